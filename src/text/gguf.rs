//! The pipelines of plain GGUF files, which only name them: what the tokenizer.json of such a model says.

use serde_json::{Value, json};

use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::{Error, Result};

/// Where a text is cut before the merges, in front of `ByteLevel`.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pipeline that `tokenizer.ggml.pre` names, for vocabularies that spell bytes.
///
/// # Errors
/// A name that is not known.
pub(super) fn byte_level(pre: &str, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let byte_level = |use_regex: bool| {
        let mut component = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        component["use_regex"] = use_regex.into();
        component
    };
    let split = |regex: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let nfc = json!({"type": "NFC"});
    let (normalizer, pre_tokenizer, ignore_merges) = match pre {
        "gpt-2" => (Value::Null, byte_level(true), false),
        "smollm" | "starcoder" | "refact" | "command-r" => {
            (Value::Null, json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}), false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA_3), true),
        "qwen2" | "deepseek-r1-qwen" => (nfc, split(QWEN_2), false),
        _ => {
            return Err(Error::unsupported(format!(
                "tokenizer.ggml.pre {pre:?} is not known (known: gpt-2, smollm, starcoder, refact, command-r, llama-bpe, \
                 qwen2, deepseek-r1-qwen); a file that lgconvert makes from the model's Hugging Face folder carries its \
                 own pipeline"
            )));
        }
    };
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level(true),
        "added_tokens": added_tokens(vocabulary),
        "model": {"ignore_merges": ignore_merges},
    }))
}

/// The pipeline of SentencePiece, for vocabularies with scores: `▁` is a space, and every text begins with one if
/// `space_prefix`.
pub(super) fn sentence_piece(
    space_prefix: bool,
    unknown: Option<&str>,
    vocabulary: &Vocabulary<'_>,
) -> Value {
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "added_tokens": added_tokens(vocabulary),
        "model": {"byte_fallback": true, "fuse_unk": true, "unk_token": unknown},
    })
}

/// Whether texts begin with the beginning-of-text token, in files that do not say it.
pub(super) fn adds_bos(model: &str, pre: Option<&str>) -> bool {
    model == "llama" || matches!(pre, Some("llama-bpe" | "llama3" | "llama-v3"))
}

/// The tokens that are found in a text before anything else.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Vec<Value> {
    let added = vocabulary.ids().filter(|(_, _, kind)| kind.is_added());
    let token = |(id, token, kind): (u32, &str, TokenKind)| {
        json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": kind.is_special(),
        })
    };
    added.map(token).collect()
}
