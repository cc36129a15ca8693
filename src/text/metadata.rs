//! Tokenizers and chat templates from a file's metadata.

use longgen_format::{Metadata, keys};
use serde_json::Value;

use super::chat::ChatTemplate;
use super::gguf;
use super::pipeline::Pipeline;
use super::special::{SpecialToken, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::{Merges, TokenKind, Vocabulary};
use crate::alloc::{try_collect_ok, try_vec};
use crate::error::{Error, Result};

/// Special tokens as chat templates call them.
const TEMPLATE_TOKENS: [(&str, SpecialToken); 7] = [
    ("bos_token", SpecialToken::Bos),
    ("eos_token", SpecialToken::Eos),
    ("unk_token", SpecialToken::Unk),
    ("sep_token", SpecialToken::Sep),
    ("pad_token", SpecialToken::Pad),
    ("cls_token", SpecialToken::Cls),
    ("mask_token", SpecialToken::Mask),
];

impl Tokenizer {
    /// The tokenizer of a file.
    ///
    /// # Errors
    /// `Format` for keys that are missing, wrong or contradict each other, `Unsupported` for a tokenizer that this runtime
    /// does not know, `OutOfMemory` before it takes more than there is.
    pub fn from_metadata(metadata: &Metadata<'_>) -> Result<Self> {
        let vocabulary = vocabulary(metadata)?;
        let pipeline = pipeline(metadata, &vocabulary)?;
        let given = metadata.opt_str(keys::TOKENIZER_PIPELINE)?;
        let check = |n_patterns| vocabulary.check_room(given, n_patterns);
        Self::new(&vocabulary, Pipeline::parse(&pipeline, check)?)
    }
}

/// The pipeline of a file's tokenizer as `longgen.tokenizer.pipeline` has it, also if it is a plain GGUF.
///
/// # Errors
/// Those of [`Tokenizer::from_metadata`].
pub fn pipeline_of(metadata: &Metadata<'_>) -> Result<String> {
    pipeline(metadata, &vocabulary(metadata)?)
}

fn vocabulary<'a>(metadata: &Metadata<'a>) -> Result<Vocabulary<'a>> {
    let model = metadata.require_str("tokenizer.ggml.model")?;
    let merges = match model {
        "gpt2" => Merges::Ranked(metadata.require_strs("tokenizer.ggml.merges")?),
        "llama" => Merges::Scored(metadata.require_f32s("tokenizer.ggml.scores")?),
        _ => {
            return Err(Error::unsupported(format!(
                "tokenizer.ggml.model {model:?} (known: gpt2 and llama, byte-pair encoding with merges or scores)"
            )));
        }
    };
    let tokens = metadata.require_strs("tokenizer.ggml.tokens")?;
    let kinds = match metadata.opt_i32s("tokenizer.ggml.token_type")? {
        None => try_vec(tokens.len(), TokenKind::Normal)?,
        Some(numbers) => {
            let kind = |number| {
                TokenKind::from_gguf(number)
                    .ok_or_else(|| Error::format(format!("tokenizer.ggml.token_type: {number} is no type")))
            };
            try_collect_ok(numbers.into_iter().map(kind))?
        }
    };
    let mut special = SpecialTokens::default();
    for token in SpecialToken::ALL {
        special = special.with(token, metadata.opt_u32(token.key())?);
    }
    let add_bos = metadata.opt_bool("tokenizer.ggml.add_bos_token")?;
    Ok(Vocabulary {
        tokens,
        kinds,
        merges,
        special,
        add_bos: add_bos.unwrap_or(gguf::adds_bos(model, metadata.opt_str("tokenizer.ggml.pre")?)),
    })
}

fn pipeline(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<String> {
    let pipeline = metadata.opt_str(keys::TOKENIZER_PIPELINE)?;
    vocabulary.check_room(pipeline, 0)?;
    if let Some(pipeline) = pipeline {
        return Ok(pipeline.to_owned());
    }
    let pipeline = match vocabulary.merges {
        // A file without the key splits text in a way that nobody can tell: guessing would cost quality in silence.
        Merges::Ranked(_) => gguf::byte_level(metadata.require_str("tokenizer.ggml.pre")?, vocabulary)?,
        Merges::Scored(_) => sentence_piece(metadata, vocabulary)?,
    };
    Ok(pipeline.to_string())
}

fn sentence_piece(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    if metadata.opt_bool("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        return Err(Error::unsupported(
            "tokenizer.ggml.remove_extra_whitespaces is true, but spaces cannot be taken out of texts here; a file that \
             lgconvert makes from the model's Hugging Face folder carries its own pipeline",
        ));
    }
    let space_prefix = metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.special.get(SpecialToken::Unk).map(|id| {
        let token = vocabulary.tokens.get(id as usize).copied();
        token.ok_or_else(|| Error::format(format!("{}: {id} is no token", SpecialToken::Unk.key())))
    });
    Ok(gguf::sentence_piece(space_prefix, unknown.transpose()?, vocabulary))
}

impl ChatTemplate {
    /// The chat template of a file, if it has one.
    ///
    /// # Errors
    /// `Format` for a template that does not compile, or token ids beyond the vocabulary.
    pub fn from_metadata(metadata: &Metadata<'_>) -> Result<Option<Self>> {
        let Some(source) = metadata.opt_str("tokenizer.chat_template")? else { return Ok(None) };
        let tokens = metadata.opt_strs("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut special_tokens = Vec::new();
        for (name, token) in TEMPLATE_TOKENS {
            let key = token.key();
            let Some(id) = metadata.opt_u32(key)? else { continue };
            let token = tokens.get(id as usize);
            let token = token.ok_or_else(|| Error::format(format!("{key}: {id} is no token")))?;
            special_tokens.push((name, *token));
        }
        Self::new(source, &special_tokens).map(Some)
    }
}
