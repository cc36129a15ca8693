//! Tokenizers and chat templates from a file's metadata.

use longgen_format::{Metadata, keys};

use super::chat::ChatTemplate;
use super::pipeline::Pipeline;
use super::tokenizer::Tokenizer;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::{Error, Result};

/// Further tokens that end a generation, where a file names them.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Tokenizer {
    /// The tokenizer of a file.
    ///
    /// # Errors
    /// `Format` for keys that are missing, wrong or contradict each other, `Unsupported` for a tokenizer that this runtime
    /// does not know.
    pub fn from_metadata(metadata: &Metadata<'_>) -> Result<Self> {
        let model = metadata.require_str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(Error::unsupported(format!(
                "tokenizer.ggml.model {model:?}: only gpt2, byte-pair encoding with merges, is known"
            )));
        }
        let tokens = metadata.require_strs("tokenizer.ggml.tokens")?;
        let kinds = match metadata.opt_i32s("tokenizer.ggml.token_type")? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(numbers) => {
                let kind = |number| {
                    TokenKind::from_gguf(number).ok_or_else(|| {
                        Error::format(format!("tokenizer.ggml.token_type: {number} is no type"))
                    })
                };
                numbers.into_iter().map(kind).collect::<Result<_>>()?
            }
        };
        let ends = END_KEYS.iter().map(|key| metadata.opt_u32(key)).collect::<Result<Vec<_>, _>>()?;
        let vocabulary = Vocabulary {
            tokens,
            kinds,
            merges: metadata.require_strs("tokenizer.ggml.merges")?,
            bos: metadata.opt_u32("tokenizer.ggml.bos_token_id")?,
            eos: metadata.opt_u32("tokenizer.ggml.eos_token_id")?,
            ends: ends.into_iter().flatten().collect(),
            add_bos: metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false),
        };
        let pipeline = match metadata.opt_str(keys::TOKENIZER_PIPELINE)? {
            Some(pipeline) => Pipeline::parse(pipeline)?,
            // A file without the key splits text in a way that nobody can tell: guessing would cost quality in silence.
            None => Pipeline::from_gguf(metadata.require_str("tokenizer.ggml.pre")?, &vocabulary)?,
        };
        Self::new(&vocabulary, pipeline)
    }
}

impl ChatTemplate {
    /// The chat template of a file, if it has one.
    ///
    /// # Errors
    /// `Format` for a template that does not compile, or token ids beyond the vocabulary.
    pub fn from_metadata(metadata: &Metadata<'_>) -> Result<Option<Self>> {
        let Some(source) = metadata.opt_str("tokenizer.chat_template")? else { return Ok(None) };
        let tokens = metadata.opt_strs("tokenizer.ggml.tokens")?.unwrap_or_default();
        let token = |key: &str| -> Result<Option<&str>> {
            let Some(id) = metadata.opt_u32(key)? else { return Ok(None) };
            let token = tokens.get(id as usize);
            token.map(|token| Some(*token)).ok_or_else(|| Error::format(format!("{key}: {id} is no token")))
        };
        let (bos, eos) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Self::new(source, bos, eos).map(Some)
    }
}
