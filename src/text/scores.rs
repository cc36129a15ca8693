//! Byte-pair encoding by scores, as SentencePiece does it.
//!
//! A text begins as its characters. Of all neighbours that together are a token, those whose token has the highest score
//! are joined, the leftmost of equals first, until no neighbours are a token.
//!
//! A list of merges cannot say this: each of its pairs has a rank of its own, whereas all pairs that make the same token,
//! or tokens of the same score, are equals here. Llama 2 gives all its runs of spaces one score.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::decoder::fallback_byte;
use super::pipeline::Pipeline;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::{Error, Result};

/// Stands for a space in tokens.
const SPACE: char = '▁';

/// A vocabulary whose tokens have scores.
pub(super) struct Scores {
    /// Rank and id of each token that text can become. Those with the highest score have rank 0, equals the same.
    tokens: HashMap<Box<str>, (u32, u32)>,
    /// Ids for the bytes of characters that are no token.
    bytes: Option<Vec<u32>>,
    /// Stands for such characters where there are no bytes.
    unknown: Option<u32>,
    fuse_unk: bool,
    /// Whether spaces only begin tokens. Then no pair reaches from one word into the next, and each word is for itself,
    /// which takes a third of the time or less: queues are short.
    by_words: bool,
}

/// A piece of the text, in bytes; empty once it has become part of the one before it.
struct Piece {
    start: usize,
    end: usize,
    /// Indices of its neighbours.
    previous: Option<usize>,
    next: Option<usize>,
}

impl Scores {
    pub(super) fn new(vocabulary: &Vocabulary<'_>, scores: &[f32], pipeline: &Pipeline) -> Result<Self> {
        let ranks = ranks(scores);
        let mut tokens: HashMap<Box<str>, _> = HashMap::with_capacity(scores.len());
        let mut bytes = [None; 256];
        let mut unknown = None;
        for ((id, token, kind), rank) in vocabulary.ids().zip(ranks) {
            // Text becomes no control token, whatever its score, and the name of a byte is no text.
            if matches!(kind, TokenKind::Normal | TokenKind::UserDefined)
                && let Some((_, first)) = tokens.insert(token.into(), (rank, id))
            {
                return Err(Error::format(format!(
                    "tokenizer.ggml.tokens {first} and {id} are both {token:?}"
                )));
            }
            if let Some(byte) = fallback_byte(token).filter(|_| kind == TokenKind::Byte) {
                bytes[usize::from(byte)] = Some(id);
            }
            if pipeline.unk_token.as_deref() == Some(token) {
                unknown = Some(id);
            }
        }
        let bytes = if pipeline.byte_fallback { bytes.into_iter().collect::<Option<_>>() } else { None };
        if bytes.is_none() && unknown.is_none() {
            return Err(Error::format(
                "the tokenizer has neither a token for each byte nor tokenizer.ggml.unknown_token_id: some texts could \
                 not be written",
            ));
        }
        let by_words = tokens.keys().all(|token| words(token).count() <= 1);
        Ok(Self { tokens, bytes, unknown, fuse_unk: pipeline.fuse_unk, by_words })
    }

    /// The tokens of `text`, in time n log n.
    pub(super) fn tokenize(&self, text: &str) -> Vec<u32> {
        match self.by_words {
            true => self.ids(words(text).flat_map(|word| self.join(word))),
            false => self.ids(self.join(text).into_iter()),
        }
    }

    /// The pieces that are left when no neighbours are a token.
    fn join<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut pieces = pieces(text);
        let mut queue = BinaryHeap::new();
        // The pair of the piece at `left` and its neighbour; a pair that has changed since has another end.
        let pair = |pieces: &[Piece], left: usize| {
            let end = pieces[pieces[left].next?].end;
            let (rank, _) = self.tokens.get(&text[pieces[left].start..end])?;
            Some(Reverse((*rank, left, end)))
        };
        queue.extend((0..pieces.len()).filter_map(|left| pair(&pieces, left)));
        while let Some(Reverse((_, left, end))) = queue.pop() {
            let Piece { start, end: middle, previous, next: Some(right) } = pieces[left] else { continue };
            if start == middle || pieces[right].end != end {
                continue;
            }
            let next = pieces[right].next;
            pieces[left].end = end;
            pieces[left].next = next;
            pieces[right].start = end;
            if let Some(next) = next {
                pieces[next].previous = Some(left);
            }
            queue.extend([previous, Some(left)].into_iter().flatten().filter_map(|left| pair(&pieces, left)));
        }
        let left = pieces.iter().filter(|piece| piece.start < piece.end);
        left.map(|piece| &text[piece.start..piece.end]).collect()
    }

    fn ids<'a>(&self, pieces: impl Iterator<Item = &'a str>) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut after_unknown = false;
        for piece in pieces {
            let known = self.tokens.get(piece);
            match (known, &self.bytes) {
                (Some((_, id)), _) => ids.push(*id),
                (None, Some(bytes)) => ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                (None, None) if after_unknown && self.fuse_unk => {}
                (None, None) => ids.extend(self.unknown),
            }
            after_unknown = known.is_none();
        }
        ids
    }
}

/// How many different scores are higher than each of these.
fn ranks(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut ranks = vec![0; scores.len()];
    for pair in order.windows(2) {
        ranks[pair[1]] = ranks[pair[0]] + u32::from(scores[pair[0]] != scores[pair[1]]);
    }
    ranks
}

/// Cuts a text before every run of spaces.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let n_spaces = rest.len() - rest.trim_start_matches(SPACE).len();
        let end = rest[n_spaces..].find(SPACE).map_or(rest.len(), |at| n_spaces + at);
        let word = rest.get(..end).filter(|word| !word.is_empty());
        rest = &rest[end..];
        word
    })
}

/// The characters of a text.
fn pieces(text: &str) -> Vec<Piece> {
    let piece = |(i, (start, c)): (usize, (usize, char))| {
        let end = start + c.len_utf8();
        Piece { start, end, previous: i.checked_sub(1), next: (end < text.len()).then_some(i + 1) }
    };
    text.char_indices().enumerate().map(piece).collect()
}
