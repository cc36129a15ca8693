//! The vocabulary of a model: its tokens, what each of them is, and which neighbours become one.

use super::special::{SpecialToken, SpecialTokens};
use crate::alloc::check_room;
use crate::error::{Error, Result};

// What becomes of a vocabulary is made by other libraries, which would end the process if they got no memory. So what it
// takes at most is asked for first; `tests/faults.rs` compares that with what it does take. Real vocabularies take a third
// of it; the rest is for files whose tokens are short, many and all special.

/// Bytes that the smallest vocabulary takes.
const ROOM: usize = 4 << 20;
/// Bytes for each token and each merge.
const ROOM_PER_STRING: usize = 320;
/// Bytes for each byte of these.
const ROOM_PER_BYTE: usize = 8;
/// Bytes for each token that is matched in a text before all others, and for each of its bytes, where the file has no
/// pipeline that lists them: such a list is made, read and made into a matcher.
const ROOM_PER_ADDED: usize = 2304;
const ROOM_PER_ADDED_BYTE: usize = 112;
/// Bytes for each byte of a pipeline, which is JSON.
const ROOM_PER_PIPELINE_BYTE: usize = 128;
/// Bytes for each pattern of it: those that would take more are refused when they are compiled.
const ROOM_PER_PATTERN: usize = 24 << 20;

/// What a token is, as `tokenizer.ggml.token_type` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text that no other token can spell.
    Unknown,
    /// Steers the model; never spelt by a user's text.
    Control,
    /// Added to the vocabulary after training; matched in any text.
    UserDefined,
    /// A hole in the vocabulary that was given a name.
    Unused,
    /// One byte, written `<0xHH>`.
    Byte,
}

impl TokenKind {
    pub(super) fn from_gguf(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    pub(super) fn to_gguf(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// Whether the token is no text: it is left out when text is wanted.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }

    /// Whether the token is matched in a text before all others.
    pub(super) fn is_added(self) -> bool {
        self.is_special() || self == Self::UserDefined
    }
}

/// What says which neighbours become one token, and which of them first.
#[derive(Debug)]
pub(super) enum Merges<'a> {
    /// Pairs by rank, each `left right`.
    Ranked(Vec<&'a str>),
    /// One score per token: what makes the token with the highest comes first.
    Scored(Vec<f32>),
}

/// A vocabulary, borrowed from where it was read.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    /// Tokens by id, as they are written in the file.
    pub(super) tokens: Vec<&'a str>,
    /// One kind per token.
    pub(super) kinds: Vec<TokenKind>,
    pub(super) merges: Merges<'a>,
    pub(super) special: SpecialTokens,
    pub(super) add_bos: bool,
}

impl Vocabulary<'_> {
    /// Asks for the memory that is taken to make a tokenizer of this vocabulary and the pipeline that its file has, which
    /// cuts texts by `n_patterns`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn check_room(&self, pipeline: Option<&str>, n_patterns: usize) -> Result<()> {
        let of_string =
            |text: &&str| ROOM_PER_STRING.saturating_add(text.len().saturating_mul(ROOM_PER_BYTE));
        let of_added = |(_, text, kind): (u32, &str, TokenKind)| match kind.is_added() {
            true => ROOM_PER_ADDED.saturating_add(text.len().saturating_mul(ROOM_PER_ADDED_BYTE)),
            false => 0,
        };
        let merges: &[&str] = match &self.merges {
            Merges::Ranked(pairs) => pairs,
            Merges::Scored(_) => &[],
        };
        let strings = self.tokens.iter().chain(merges).map(of_string);
        let rest = match pipeline {
            Some(pipeline) => pipeline.len().saturating_mul(ROOM_PER_PIPELINE_BYTE),
            None => self.ids().map(of_added).fold(0, usize::saturating_add),
        };
        let rest = rest.saturating_add(n_patterns.saturating_mul(ROOM_PER_PATTERN));
        check_room(strings.fold(ROOM.saturating_add(rest), usize::saturating_add)).map_err(|error| {
            let (n_tokens, n_merges) = (self.tokens.len(), merges.len());
            let what = format!("a vocabulary of {n_tokens} tokens and {n_merges} merges");
            Error::new(error.kind(), format!("{what}: {error}"))
        })
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// No tokens, too many, not one kind or score per token, a score that is no number, or an id that is no token.
    pub(super) fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(Error::format(format!("tokenizer.ggml.tokens has {count} tokens")));
        }
        if self.kinds.len() != count {
            let kinds = self.kinds.len();
            return Err(Error::format(format!(
                "tokenizer.ggml.token_type has {kinds} entries for {count} tokens"
            )));
        }
        if let Merges::Scored(scores) = &self.merges {
            if scores.len() != count {
                let scores = scores.len();
                return Err(Error::format(format!(
                    "tokenizer.ggml.scores has {scores} entries for {count} tokens"
                )));
            }
            if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                let token = self.tokens[id];
                return Err(Error::format(format!("tokenizer.ggml.scores {id}, of {token:?}, is no number")));
            }
        }
        // Nothing is run by the others: a file may give them numbers that are no token.
        let is_used = |token: SpecialToken| token == SpecialToken::Bos || token.ends_generation();
        match self.special.iter().find(|&(token, id)| is_used(token) && id as usize >= count) {
            None => Ok(()),
            Some((token, id)) => {
                let key = token.key();
                Err(Error::format(format!("{key}: token {id}, but there are {count} tokens")))
            }
        }
    }

    /// Tokens with their ids.
    pub(super) fn ids(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0..).zip(self.tokens.iter().zip(&self.kinds)).map(|(id, (token, kind))| (id, *token, *kind))
    }
}
