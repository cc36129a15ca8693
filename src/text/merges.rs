//! Byte-pair encoding by a list of merges: the pair with the lowest rank is merged first.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Vocab};

use super::pipeline::Pipeline;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::{Error, Result};

/// The model of `merges`, each `left right`, and the tokens that they can make.
pub(super) fn model(vocabulary: &Vocabulary<'_>, merges: &[&str], pipeline: &Pipeline) -> Result<BPE> {
    let mut ids = Vocab::with_capacity(vocabulary.tokens.len());
    let mut hidden = HashSet::new();
    for (id, token, kind) in vocabulary.ids() {
        // The model alone must not turn text into a control token, whatever the file's merges say.
        let spelt = match kind {
            TokenKind::Control | TokenKind::Unused => pipeline.unk_token.as_deref() == Some(token),
            _ => true,
        };
        if !spelt {
            hidden.insert(token);
        } else if let Some(first) = ids.insert(token.to_owned(), id) {
            return Err(Error::format(format!("tokenizer.ggml.tokens {first} and {id} are both {token:?}")));
        }
    }
    if let Some(unknown) = &pipeline.unk_token
        && !ids.contains_key(unknown)
    {
        return Err(Error::format(format!("tokenizer unk_token {unknown:?} is not in the vocabulary")));
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let parts = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let Some((left, right)) = parts else {
            return Err(Error::format(format!(
                "tokenizer.ggml.merges {rank} is {merge:?}, not \"left right\""
            )));
        };
        let is_hidden = |token: &str| hidden.contains(token);
        if hidden.is_empty() || !(is_hidden(left) || is_hidden(right) || is_hidden(&[left, right].concat())) {
            pairs.push((left.to_owned(), right.to_owned()));
        }
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(ids, pairs)
        .ignore_merges(pipeline.ignore_merges)
        .byte_fallback(pipeline.byte_fallback)
        .fuse_unk(pipeline.fuse_unk);
    if let Some(unknown) = &pipeline.unk_token {
        builder = builder.unk_token(unknown.clone());
    }
    builder.build().map_err(|error| Error::format(format!("tokenizer.ggml.merges: {error}")))
}
