//! The steps that leave some of the choices. They find them and leave them likeliest first; until the last of them has
//! run, probabilities are not divided by their sum.

use std::cmp::Ordering;

use super::Choice;

/// Likeliest first, and of equally likely ones the lowest id.
pub(super) fn likelier(a: &Choice, b: &Choice) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Leaves the `top_k` likeliest, 0 for all, and puts the choices in order.
pub(super) fn top_k(choices: &mut Vec<Choice>, top_k: u32) {
    let top_k = top_k as usize;
    if top_k > 0 && top_k < choices.len() {
        choices.select_nth_unstable_by(top_k - 1, likelier);
        choices.truncate(top_k);
    }
    choices.sort_unstable_by(likelier);
}

/// Makes probabilities of logits: that of the likeliest is 1. Beside a logit that is infinite there is no other.
pub(super) fn softmax(choices: &mut Vec<Choice>, temperature: f32) {
    let Some(&Choice { logit: highest, .. }) = choices.first() else { return };
    if highest == f32::INFINITY {
        return choices.truncate(1);
    }
    for choice in choices {
        choice.p = ((choice.logit - highest) / temperature).exp();
    }
}

/// Leaves those that are closest to the average surprise, until they reach `typical_p` together. Surprise rises from one
/// choice to the next, so they are neighbours.
pub(super) fn typical(choices: &mut Vec<Choice>, typical_p: f32) {
    if typical_p >= 1.0 || choices.is_empty() {
        return;
    }
    let total = total(choices);
    let surprise = |choice: &Choice| (total / f64::from(choice.p)).ln();
    let share =
        |choice: &Choice| if choice.p > 0.0 { f64::from(choice.p) / total * surprise(choice) } else { 0.0 };
    let average: f64 = choices.iter().map(share).sum();
    let distance = |i: usize| (surprise(&choices[i]) - average).abs();
    let n_likely = choices.partition_point(|choice| surprise(choice) <= average);
    let (mut start, mut end) = (n_likely, n_likely);
    let mut reached = 0.0;
    while reached < total * f64::from(typical_p) && end - start < choices.len() {
        if end == choices.len() || (start > 0 && distance(start - 1) <= distance(end)) {
            start -= 1;
            reached += f64::from(choices[start].p);
        } else {
            reached += f64::from(choices[end].p);
            end += 1;
        }
    }
    // Those of the highest ids came first among equally likely ones; those of the lowest are to stay.
    let lowest = choices[start].p;
    let from = choices.partition_point(|choice| choice.p > lowest);
    let n_equal = choices[start..end].partition_point(|choice| choice.p >= lowest);
    choices.copy_within(from..from + n_equal, start);
    choices.truncate(end);
    choices.drain(..start);
}

/// Leaves the likeliest that reach `top_p` together.
pub(super) fn top_p(choices: &mut Vec<Choice>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let enough = total(choices) * f64::from(top_p);
    let mut reached = 0.0;
    let last = choices.iter().position(|choice| {
        reached += f64::from(choice.p);
        reached >= enough
    });
    choices.truncate(last.map_or(choices.len(), |last| last + 1));
}

/// Leaves those that are at least `min_p` times as likely as the likeliest.
pub(super) fn min_p(choices: &mut Vec<Choice>, min_p: f32) {
    let least = min_p * choices.first().map_or(0.0, |choice| choice.p);
    choices.truncate(choices.partition_point(|choice| choice.p >= least));
}

/// Divides probabilities by their sum.
#[expect(clippy::cast_possible_truncation, reason = "results are f32")]
pub(super) fn normalize(choices: &mut [Choice]) {
    let total = total(choices);
    choices.iter_mut().for_each(|choice| choice.p = (f64::from(choice.p) / total) as f32);
}

/// The probabilities of all together: a sum in f32 would lose the tail of a large vocabulary.
pub(super) fn total(choices: &[Choice]) -> f64 {
    choices.iter().map(|choice| f64::from(choice.p)).sum()
}
