//! From tokens to bytes: what a pipeline's `decoder` does to one token.
//!
//! Decoders are applied to each token once, when the tokenizer is built, so that decoding a sequence is joining bytes
//! and a stream of tokens gives exactly the text of the whole sequence.

use serde_json::Value;

use super::byte_level;
use super::pipeline::shown;
use super::vocabulary::TokenKind;
use crate::error::{Error, Result};

/// The decoder of a pipeline, flattened.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    byte_level: bool,
    byte_fallback: bool,
    /// (pattern, replacement), applied in order.
    replacements: Vec<(String, String)>,
    /// Spaces to drop from the start of a text, at most: the encoder put them there.
    pub(super) strip_start: usize,
}

impl Decoder {
    /// Reads the `decoder` of a pipeline.
    ///
    /// # Errors
    /// A decoder that cannot be applied token by token, or a malformed one.
    pub(super) fn parse(value: &Value) -> Result<Self> {
        let mut decoder = Self::default();
        decoder.add(value)?;
        if decoder.byte_level && (decoder.byte_fallback || !decoder.replacements.is_empty()) {
            return Err(Error::unsupported("tokenizer decoder combines ByteLevel with other decoders"));
        }
        Ok(decoder)
    }

    fn add(&mut self, value: &Value) -> Result<()> {
        let malformed = |what: &str| Error::format(format!("tokenizer decoder: {what} in {}", shown(value)));
        let text = |key: &str| {
            value.get(key).and_then(Value::as_str).ok_or_else(|| malformed(&format!("no string {key:?}")))
        };
        match value.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                let steps = value.get("decoders").and_then(Value::as_array);
                steps
                    .ok_or_else(|| malformed("no list \"decoders\""))?
                    .iter()
                    .try_for_each(|step| self.add(step))?;
            }
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            // Joins tokens into one text, which is how bytes are joined anyway.
            Some("Fuse") => {}
            Some("Replace") => {
                let pattern = value.pointer("/pattern/String").and_then(Value::as_str);
                match pattern {
                    Some(pattern) if !pattern.is_empty() => {
                        self.replacements.push((pattern.to_owned(), text("content")?.to_owned()));
                    }
                    _ => {
                        return Err(malformed(
                            "only a plain, non-empty pattern can be replaced, which is missing",
                        ));
                    }
                }
            }
            Some("Metaspace") => {
                let space = text("replacement")?;
                if space.is_empty() {
                    return Err(malformed("an empty \"replacement\""));
                }
                self.replacements.push((space.to_owned(), " ".to_owned()));
                let prefixed = match value.get("prepend_scheme").and_then(Value::as_str) {
                    Some(scheme) => scheme != "never",
                    None => value.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
                };
                self.strip_start += usize::from(prefixed);
            }
            Some("Strip") => {
                let count = |key: &str| value.get(key).and_then(Value::as_u64);
                let (start, stop) = (count("start").unwrap_or(0), count("stop").unwrap_or(0));
                if text("content")? != " " || stop != 0 || start > 1 {
                    return Err(Error::unsupported(format!(
                        "tokenizer decoder strips more than one leading space: {}",
                        shown(value)
                    )));
                }
                self.strip_start += usize::from(start == 1);
            }
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "tokenizer decoder {other:?} (known: Sequence, ByteLevel, ByteFallback, Fuse, Replace, Metaspace, Strip)"
                )));
            }
            None if value.is_null() => {
                return Err(Error::unsupported(
                    "a tokenizer without a decoder: nothing says how its tokens become text",
                ));
            }
            None => return Err(malformed("no \"type\"")),
        }
        Ok(())
    }

    /// The bytes that `token` adds to a text.
    pub(super) fn bytes(&self, token: &str, kind: TokenKind) -> Vec<u8> {
        // Special tokens are written as they are; so are added ones in byte-level vocabularies, whose other tokens
        // are spelt in the alphabet.
        if kind.is_special() || (self.byte_level && kind == TokenKind::UserDefined) {
            return token.as_bytes().to_vec();
        }
        if self.byte_level {
            return byte_level::bytes_of(token).unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let mut text = token.to_owned();
        for (pattern, replacement) in &self.replacements {
            text = text.replace(pattern, replacement);
        }
        text.into_bytes()
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
