//! The tokenizer and the chat template of a folder, as the keys of a model file.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use longgen::text::split_hf_tokenizer;
use longgen_format::{OwnedValue, keys};
use serde_json::Value;

use super::json::{self, Object};

pub struct Tokenizer {
    pub metadata: Vec<(String, OwnedValue)>,
    pub warnings: Vec<String>,
}

/// Keys for tokens that end a generation besides `eos`.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Reads `tokenizer.json`, and `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json` where they are.
pub fn read(folder: &Path, config: &Object<'_>, n_vocab: usize) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    ensure!(
        path.exists(),
        "{}: no tokenizer.json, and other kinds of tokenizers cannot be converted",
        folder.display()
    );
    let text = json::read_text(&path)?;
    let tokenizer_config = json::read_text_if_present(&folder.join("tokenizer_config.json"))?;
    let tokenizer = split_hf_tokenizer(&text, tokenizer_config.as_deref())?;
    tokenizer.tokenizer().context("tokenizer.json")?;
    let n_tokens = tokenizer.tokens.len();
    ensure!(n_tokens <= n_vocab, "tokenizer.json has {n_tokens} tokens, the embedding {n_vocab} rows");
    let chat_template = match json::read_text_if_present(&folder.join("chat_template.jinja"))? {
        Some(template) => Some(template),
        None => tokenizer.chat_template,
    };

    let eos = match tokenizer.eos {
        Some(eos) => Some(eos),
        None => config.get("eos_token_id").and_then(ids).and_then(|ids| ids.first().copied()),
    };
    let mut pairs: Vec<(&str, OwnedValue)> = vec![
        ("tokenizer.ggml.model", OwnedValue::Str(tokenizer.model.to_owned())),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(tokenizer.tokens)),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(tokenizer.token_types)),
        ("tokenizer.ggml.merges", OwnedValue::Strs(tokenizer.merges)),
    ];
    let special = [
        ("tokenizer.ggml.bos_token_id", tokenizer.bos),
        ("tokenizer.ggml.eos_token_id", eos),
        ("tokenizer.ggml.unknown_token_id", tokenizer.unk),
        ("tokenizer.ggml.padding_token_id", tokenizer.pad),
    ];
    pairs.extend(special.into_iter().filter_map(|(key, id)| Some((key, OwnedValue::U32(id?)))));
    let mut warnings = Vec::new();
    let ends = other_ends(folder, config, eos)?;
    pairs.extend(END_KEYS.into_iter().zip(&ends).map(|(key, &id)| (key, OwnedValue::U32(id))));
    if let Some(left_out) = ends.get(END_KEYS.len()..)
        && !left_out.is_empty()
    {
        warnings
            .push(format!("tokens {left_out:?} end a generation too, but a model file has no room for them"));
    }
    pairs.push(("tokenizer.ggml.add_bos_token", OwnedValue::Bool(tokenizer.add_bos)));
    pairs.push(("tokenizer.ggml.add_eos_token", OwnedValue::Bool(tokenizer.add_eos)));
    if let Some(template) = chat_template {
        pairs.push(("tokenizer.chat_template", OwnedValue::Str(template)));
    }
    pairs.push((keys::TOKENIZER_PIPELINE, OwnedValue::Str(tokenizer.pipeline)));
    let metadata = pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(Tokenizer { metadata, warnings })
}

/// Tokens that end a generation, besides `eos`, ascending.
fn other_ends(folder: &Path, config: &Object<'_>, eos: Option<u32>) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    let generation = if path.exists() { json::read(&path)? } else { Value::Null };
    let sources = [generation.get("eos_token_id"), config.get("eos_token_id")];
    let all: BTreeSet<u32> = sources.into_iter().flatten().filter_map(ids).flatten().collect();
    Ok(all.into_iter().filter(|id| Some(*id) != eos).collect())
}

/// A token id, or a list of them.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
    }
}
