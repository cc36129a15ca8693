//! What happens to the logits of a few tokens before probabilities are made of them all.

use super::dry::Repeat;
use super::{SamplerParams, room};
use crate::error::Result;

/// What happens to the logit of one token.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    token: u32,
    bias: f32,
    /// How often the token is recent.
    n_recent: u32,
    /// Length of the longest repetition that it would go on with; 0 if there is none.
    n_repeated: usize,
}

/// The changes of all tokens that have one, in rising order of tokens.
pub(super) fn gather(
    changes: &mut Vec<Change>,
    bias: &[(u32, f32)],
    recent: &[u32],
    repeats: &[Repeat],
) -> Result<()> {
    let none = Change::default();
    let changes = room(changes, bias.len() + recent.len() + repeats.len())?;
    changes.extend(bias.iter().map(|&(token, bias)| Change { token, bias, ..none }));
    changes.extend(recent.iter().map(|&token| Change { token, n_recent: 1, ..none }));
    changes.extend(repeats.iter().map(|&(token, n_repeated)| Change { token, n_repeated, ..none }));
    changes.sort_unstable_by_key(|change| change.token);
    changes.dedup_by(|next, kept| {
        let is_same = next.token == kept.token;
        if is_same {
            kept.bias += next.bias;
            kept.n_recent += next.n_recent;
            kept.n_repeated = kept.n_repeated.max(next.n_repeated);
        }
        is_same
    });
    Ok(())
}

/// The logit of a token after all that happens to it. Only a bias forbids a token: penalties leave it finite, so that one
/// which is all that is left stays possible.
pub(super) fn apply(changes: &[Change], params: &SamplerParams, token: u32, logit: f32) -> f32 {
    let Ok(i) = changes.binary_search_by_key(&token, |change| change.token) else { return logit };
    let Change { bias, n_recent, n_repeated, .. } = changes[i];
    let mut logit = logit + bias;
    let is_finite = logit.is_finite();
    if n_recent > 0 {
        logit = params.penalized(logit, n_recent);
    }
    if n_repeated > 0 {
        logit -= params.dry_penalty(n_repeated);
    }
    if is_finite { logit.clamp(f32::MIN, f32::MAX) } else { logit }
}
