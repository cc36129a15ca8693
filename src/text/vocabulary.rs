//! The vocabulary of a model: its tokens, what each of them is, and which neighbours become one.

use super::special::{SpecialToken, SpecialTokens};
use crate::error::{Error, Result};

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
