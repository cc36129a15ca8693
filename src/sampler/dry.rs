//! Repetitions that the next token could go on with.

use super::room;
use crate::error::Result;

/// A token, and how many tokens before an earlier place of it the text ends with, too.
pub(super) type Repeat = (u32, usize);

/// Finds repetitions in time linear in the text: read backwards, its end is a beginning, and the Z algorithm (Gusfield,
/// "Algorithms on Strings, Trees, and Sequences", 1997) says for each place how much of the beginning is repeated there.
#[derive(Clone, Debug, Default)]
pub(super) struct Repeats {
    /// At i: how much of the end, read backwards, begins again i tokens before it.
    lengths: Vec<usize>,
    found: Vec<Repeat>,
}

impl Repeats {
    /// Finds what repeats at least `n_least` tokens, at least 1, of the end of `text`, and none of the `breakers`, which are
    /// in rising order.
    pub(super) fn find(&mut self, text: &[u32], breakers: &[u32], n_least: usize) -> Result<()> {
        let is_breaker = |token: u32| breakers.binary_search(&token).is_ok();
        let n_end = text.iter().rev().take_while(|token| !is_breaker(**token)).count();
        let lengths = room(&mut self.lengths, n_end)?;
        let found = room(&mut self.found, if n_end < n_least { 0 } else { text.len() })?;
        if n_end < n_least {
            return Ok(());
        }
        let back = |i: usize| text[text.len() - 1 - i];
        lengths.push(n_end);
        // The repetition that reaches furthest back so far: from where, and how far.
        let (mut start, mut reach) = (0, 0);
        for i in 1..text.len() {
            let mut n = if i < reach { lengths[i - start].min(reach - i) } else { 0 };
            while i + n >= reach && n < n_end && i + n < text.len() && back(n) == back(i + n) {
                n += 1;
            }
            if i + n > reach {
                (start, reach) = (i, i + n);
            }
            if i < n_end {
                lengths.push(n);
            }
            if n >= n_least && !is_breaker(back(i - 1)) {
                found.push((back(i - 1), n));
            }
        }
        Ok(())
    }

    /// What was found; a token can be there several times.
    pub(super) fn found(&self) -> &[Repeat] {
        &self.found
    }
}
