//! The pipeline of a tokenizer: everything but its vocabulary and merges.
//!
//! It is written as the Hugging Face tokenizer.json writes it, with these keys: `normalizer`, `pre_tokenizer`,
//! `decoder`, `added_tokens`, and `model` with its flags. Converted files carry it; for a plain GGUF it follows from
//! the keys that it has instead (`gguf.rs`).

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::decoder::Decoder;
use crate::error::{Error, Result};

/// Components that are trusted with any input: others can fail in ways that are no error, or belong to other models.
const NORMALIZERS: [&str; 11] = [
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Prepend",
    "Replace",
    "ByteLevel",
];
const PRE_TOKENIZERS: [&str; 8] =
    ["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"];

/// Most that replacements lengthen a text by.
const MAX_GROWTH: f64 = 1000.0;

/// A pipeline, ready to run.
pub(super) struct Pipeline {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) decoder: Decoder,
    pub(super) added_tokens: Vec<(u32, AddedToken)>,
    pub(super) ignore_merges: bool,
    pub(super) byte_fallback: bool,
    pub(super) fuse_unk: bool,
    pub(super) unk_token: Option<String>,
}

impl Pipeline {
    /// Reads a pipeline. `check` is told how many patterns it cuts texts by before they are compiled.
    ///
    /// # Errors
    /// Not JSON, a malformed part, or a part that the runtime does not support, named; those of `check`.
    pub(super) fn parse(text: &str, check: impl FnOnce(usize) -> Result<()>) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Error::format(format!("longgen.tokenizer.pipeline is no JSON: {error}")))?;
        check(n_patterns(&value["pre_tokenizer"]))?;
        Self::from_value(&value)
    }

    pub(super) fn from_value(value: &Value) -> Result<Self> {
        let (normalizer, pre_tokenizer) = (&value["normalizer"], &value["pre_tokenizer"]);
        check_components(normalizer, "normalizer", "normalizers", &NORMALIZERS)?;
        check_components(pre_tokenizer, "pre-tokenizer", "pretokenizers", &PRE_TOKENIZERS)?;
        let decoder = Decoder::parse(&value["decoder"])?;
        check_growth(normalizer, "normalizer", "normalizers")?;
        check_growth(&value["decoder"], "decoder", "decoders")?;
        let malformed = |what: &str, error: serde_json::Error| {
            Error::format(format!("tokenizer {what} is malformed: {error}"))
        };
        let model = &value["model"];
        let flag = |key: &str| model[key].as_bool().unwrap_or(false);
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[key].as_str().is_some_and(|affix| !affix.is_empty()) {
                return Err(Error::unsupported(format!("tokenizer model with {key} {}", model[key])));
            }
        }
        Ok(Self {
            normalizer: serde_json::from_value(normalizer.clone())
                .map_err(|error| malformed("normalizer", error))?,
            pre_tokenizer: serde_json::from_value(pre_tokenizer.clone())
                .map_err(|error| malformed("pre-tokenizer", error))?,
            decoder,
            added_tokens: added_tokens(&value["added_tokens"])?,
            ignore_merges: flag("ignore_merges"),
            byte_fallback: flag("byte_fallback"),
            fuse_unk: flag("fuse_unk"),
            unk_token: model["unk_token"].as_str().map(str::to_owned),
        })
    }
}

/// The added tokens of a tokenizer.json, with their ids.
pub(super) fn added_tokens(value: &Value) -> Result<Vec<(u32, AddedToken)>> {
    let entries = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(entries) => entries,
        other => {
            return Err(Error::format(format!("tokenizer added_tokens is no list but {}", shown(other))));
        }
    };
    let token = |entry: &Value| {
        let id = entry["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let token: Option<AddedToken> = serde_json::from_value(entry.clone()).ok();
        id.zip(token)
            .ok_or_else(|| Error::format(format!("tokenizer added token is malformed: {}", shown(entry))))
    };
    entries.iter().map(token).collect()
}

/// A part of a pipeline as errors show it: its beginning, for it may be anything.
pub(super) fn shown(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

/// Refuses replacements that make a text many times as long: a chain of them, each harmless, doubles it again and again.
fn check_growth(value: &Value, what: &str, list: &str) -> Result<()> {
    let factor = growth(value, list);
    match factor <= MAX_GROWTH {
        true => Ok(()),
        false => Err(Error::format(format!(
            "tokenizer {what}: its replacements make a text up to {factor:.0} times as long, at most {MAX_GROWTH} work"
        ))),
    }
}

/// How many times as long a component makes a text, at most; null and what is malformed does nothing.
fn growth(value: &Value, list: &str) -> f64 {
    let length = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, str::len) as f64;
    match value["type"].as_str() {
        Some("Sequence") => {
            value[list].as_array().into_iter().flatten().map(|part| growth(part, list)).product()
        }
        Some("Replace") => (length(value.get("content")) / length(value.pointer("/pattern/String"))).max(1.0),
        Some("Prepend") => 1.0 + length(value.get("prepend")),
        _ => 1.0,
    }
}

/// How many patterns a pre-tokenizer cuts texts by.
fn n_patterns(value: &Value) -> usize {
    match value["type"].as_str() {
        Some("Sequence") => value["pretokenizers"].as_array().into_iter().flatten().map(n_patterns).sum(),
        kind => usize::from(kind == Some("Split")),
    }
}

/// Accepts a component, and those of a sequence, only if all are known.
fn check_components(value: &Value, what: &str, list: &str, known: &[&str]) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let Some(kind) = value["type"].as_str() else {
        return Err(Error::format(format!("tokenizer {what} without a type: {}", shown(value))));
    };
    if !known.contains(&kind) {
        let known = known.join(", ");
        return Err(Error::unsupported(format!("tokenizer {what} {kind:?} (known: {known})")));
    }
    if kind == "Replace" && value.pointer("/pattern/String").and_then(Value::as_str).is_none_or(str::is_empty)
    {
        return Err(Error::unsupported(format!(
            "tokenizer {what} replaces something else than a string: {}",
            shown(value)
        )));
    }
    if kind == "Sequence" {
        let Some(parts) = value[list].as_array() else {
            return Err(Error::format(format!(
                "tokenizer {what} sequence without {list:?}: {}",
                shown(value)
            )));
        };
        parts.iter().try_for_each(|part| check_components(part, what, list, known))?;
    }
    Ok(())
}
