//! A Hugging Face tokenizer taken apart into what a model file stores.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::decoder::fallback_byte;
use super::pipeline::{Pipeline, added_tokens, shown};
use super::special::{SpecialToken, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::{Merges, TokenKind, Vocabulary};
use crate::alloc::{try_collect, try_collect_ok};
use crate::error::{Error, Result};

/// What a model file stores of a tokenizer; the key of each field is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfTokenizer {
    /// `tokenizer.ggml.model`: `gpt2`, the name for byte-pair encoding with merges.
    pub model: &'static str,
    /// `longgen.tokenizer.pipeline`: tokenizer.json without vocabulary and merges.
    pub pipeline: String,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, by rank, each `left right`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: bool,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: bool,
    /// `tokenizer.chat_template`; of several, the one named `default`.
    pub chat_template: Option<String>,
}

impl HfTokenizer {
    /// The tokenizer that a file with this metadata has.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_metadata`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let kind = |&number: &i32| {
            TokenKind::from_gguf(number).ok_or_else(|| Error::invalid(format!("token type {number}")))
        };
        let vocabulary = Vocabulary {
            tokens: try_collect(self.tokens.iter().map(String::as_str))?,
            kinds: try_collect_ok(self.token_types.iter().map(kind))?,
            merges: Merges::Ranked(try_collect(self.merges.iter().map(String::as_str))?),
            special: SpecialTokens::default()
                .with(SpecialToken::Bos, self.bos)
                .with(SpecialToken::Eos, self.eos)
                .with(SpecialToken::Unk, self.unk)
                .with(SpecialToken::Pad, self.pad),
            add_bos: self.add_bos,
        };
        let check = |n_patterns| vocabulary.check_room(Some(&self.pipeline), n_patterns);
        check(0)?;
        Tokenizer::new(&vocabulary, Pipeline::parse(&self.pipeline, check)?)
    }
}

/// Takes a tokenizer.json apart, with the special tokens and the chat template of its tokenizer_config.json.
///
/// The same input always gives the same output.
///
/// # Errors
/// Input that is malformed, has holes in its vocabulary, contradicts itself, or needs what the runtime cannot do
/// (another model than BPE; normalizers, pre-tokenizers, post-processors or decoders that are not known).
pub fn split_hf_tokenizer(tokenizer_json: &str, tokenizer_config_json: Option<&str>) -> Result<HfTokenizer> {
    let object = |name: &str, text: &str| -> Result<Value> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Error::format(format!("{name} is no JSON: {error}")))?;
        match value.is_object() {
            true => Ok(value),
            false => Err(Error::format(format!("{name} is no object"))),
        }
    };
    let mut source = object("tokenizer.json", tokenizer_json)?;
    let config =
        tokenizer_config_json.map_or(Ok(Value::Null), |text| object("tokenizer_config.json", text))?;

    let model = source["model"].take();
    if let Some(kind) = model["type"].as_str()
        && kind != "BPE"
    {
        return Err(Error::unsupported(format!(
            "tokenizer.json has a model of type {kind:?}, only BPE is supported"
        )));
    }
    let merges = merges(&model["merges"])?;
    let (tokens, token_types) = tokens(&model, &source["added_tokens"])?;
    let ids: HashMap<&str, u32> = (0..).zip(&tokens).map(|(id, token)| (token.as_str(), id)).collect();
    let id = |key: &str| -> Result<Option<u32>> {
        // Either the token itself or an object that describes it.
        let value = &config[key];
        let Some(token) = value.as_str().or_else(|| value["content"].as_str()) else { return Ok(None) };
        let found = ids.get(token).copied();
        found.map(Some).ok_or_else(|| {
            Error::format(format!(
                "tokenizer_config.json has {key} {token:?}, which is not in the vocabulary"
            ))
        })
    };
    let (mut bos, mut eos) = (id("bos_token")?, id("eos_token")?);
    let frame = Frame::parse(&source["post_processor"])?;
    let agree = |name: &str, ours: &mut Option<u32>, framed: Option<&str>| -> Result<bool> {
        let Some(token) = framed else { return Ok(false) };
        let framed = ids.get(token).copied();
        *ours = ours.or(framed);
        if framed.is_none() || framed != *ours {
            return Err(Error::unsupported(format!(
                "tokenizer.json has a post_processor that adds {token:?}, which is not the {name} token"
            )));
        }
        Ok(true)
    };
    let framed = (agree("bos", &mut bos, frame.first)?, agree("eos", &mut eos, frame.last)?);

    let pipeline = json!({
        "normalizer": source["normalizer"],
        "pre_tokenizer": source["pre_tokenizer"],
        "decoder": source["decoder"],
        "added_tokens": source["added_tokens"],
        "model": {
            "unk_token": model["unk_token"],
            "fuse_unk": model["fuse_unk"].as_bool().unwrap_or(false),
            "byte_fallback": model["byte_fallback"].as_bool().unwrap_or(false),
            "ignore_merges": model["ignore_merges"].as_bool().unwrap_or(false),
            "continuing_subword_prefix": model["continuing_subword_prefix"],
            "end_of_word_suffix": model["end_of_word_suffix"],
        },
    });
    Pipeline::from_value(&pipeline)?;
    let unk_of_model = model["unk_token"].as_str().and_then(|token| ids.get(token).copied());
    let (unk, pad) = (id("unk_token")?.or(unk_of_model), id("pad_token")?);
    drop(ids);
    Ok(HfTokenizer {
        model: "gpt2",
        pipeline: pipeline.to_string(),
        tokens,
        token_types,
        merges,
        bos,
        eos,
        unk,
        pad,
        add_bos: config["add_bos_token"].as_bool().unwrap_or(framed.0),
        add_eos: config["add_eos_token"].as_bool().unwrap_or(framed.1),
        chat_template: chat_template(&config["chat_template"]),
    })
}

/// The vocabulary in the order of its ids, and the GGUF type of each token.
fn tokens(model: &Value, added: &Value) -> Result<(Vec<String>, Vec<i32>)> {
    let vocab =
        model["vocab"].as_object().ok_or_else(|| Error::format("tokenizer.json has no model.vocab"))?;
    let added = added_tokens(added)?;
    let count = vocab.len() + added.iter().filter(|(_, token)| !vocab.contains_key(&token.content)).count();
    let mut slots: Vec<Option<(&str, TokenKind)>> = vec![None; count];
    let mut place = |token, kind, id: u64| {
        let slot = usize::try_from(id).ok().and_then(|id| slots.get_mut(id));
        let slot = slot.ok_or_else(|| {
            Error::format(format!(
                "tokenizer.json has holes: token {token:?} has id {id}, but there are {count} tokens"
            ))
        })?;
        match slot {
            Some((other, _)) if *other != token => {
                Err(Error::format(format!("tokenizer.json gives id {id} to both {other:?} and {token:?}")))
            }
            _ => {
                *slot = Some((token, kind));
                Ok(())
            }
        }
    };
    let byte_fallback = model["byte_fallback"].as_bool().unwrap_or(false);
    for (token, id) in vocab {
        let kind = if byte_fallback && fallback_byte(token).is_some() {
            TokenKind::Byte
        } else if model["unk_token"].as_str() == Some(token) {
            TokenKind::Unknown
        } else {
            TokenKind::Normal
        };
        let id = id
            .as_u64()
            .ok_or_else(|| Error::format(format!("tokenizer.json has token {token:?} with id {id}")))?;
        place(token, kind, id)?;
    }
    for (id, token) in &added {
        let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        place(&token.content, kind, u64::from(*id))?;
    }
    let tokens = slots.into_iter().enumerate().map(|(id, slot)| {
        let (token, kind) =
            slot.ok_or_else(|| Error::format(format!("tokenizer.json has no token with id {id}")))?;
        Ok((token.to_owned(), kind.to_gguf()))
    });
    tokens.collect()
}

/// Merges as GGUF spells them, from either spelling of tokenizer.json: `"a b"` or `["a", "b"]`.
fn merges(value: &Value) -> Result<Vec<String>> {
    let list = value.as_array().ok_or_else(|| Error::format("tokenizer.json has no list model.merges"))?;
    let merge = |(rank, merge): (usize, &Value)| {
        let (left, right) = match merge {
            Value::String(merge) => merge.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => left.as_str().zip(right.as_str()),
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| {
            Error::format(format!("tokenizer.json has merge {rank} {}, which is no pair", shown(merge)))
        })?;
        if left.contains(' ') || right.contains(' ') {
            return Err(Error::unsupported(format!(
                "tokenizer.json has merge {rank} {}: a part with a space cannot be written as \"left right\"",
                shown(merge)
            )));
        }
        Ok(format!("{left} {right}"))
    };
    list.iter().enumerate().map(merge).collect()
}

/// The special tokens that a post-processor puts around a text.
#[derive(Default)]
struct Frame<'a> {
    first: Option<&'a str>,
    last: Option<&'a str>,
}

impl<'a> Frame<'a> {
    fn parse(value: &'a Value) -> Result<Self> {
        let unsupported =
            || Error::unsupported(format!("tokenizer.json has a post_processor {}", shown(value)));
        let parts = |key: &str| value[key].as_array().map(Vec::as_slice).ok_or_else(unsupported);
        match value["type"].as_str() {
            None if value.is_null() => Ok(Self::default()),
            // Only moves offsets.
            Some("ByteLevel") => Ok(Self::default()),
            Some("Sequence") => parts("processors")?.iter().try_fold(Self::default(), |frame, part| {
                let part = Self::parse(part)?;
                Ok(Self { first: part.first.or(frame.first), last: part.last.or(frame.last) })
            }),
            Some("TemplateProcessing") => {
                let special = |part: &'a Value| part["SpecialToken"]["id"].as_str();
                let text = |part: &Value| part.get("Sequence").is_some();
                let (first, last) = match parts("single")? {
                    [sequence] if text(sequence) => (None, None),
                    [first, sequence] if text(sequence) => {
                        (Some(special(first).ok_or_else(unsupported)?), None)
                    }
                    [sequence, last] if text(sequence) => {
                        (None, Some(special(last).ok_or_else(unsupported)?))
                    }
                    [first, sequence, last] if text(sequence) => (
                        Some(special(first).ok_or_else(unsupported)?),
                        Some(special(last).ok_or_else(unsupported)?),
                    ),
                    _ => return Err(unsupported()),
                };
                Ok(Self { first, last })
            }
            _ => Err(unsupported()),
        }
    }
}

/// The template itself, or of a list of `{name, template}` the one named `default`.
fn chat_template(value: &Value) -> Option<String> {
    let named_default = |entry: &&Value| entry["name"].as_str() == Some("default");
    let template = match value {
        Value::Array(templates) => &templates.iter().find(named_default)?["template"],
        template => template,
    };
    template.as_str().map(str::to_owned)
}
