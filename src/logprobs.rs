//! Log-probabilities of tokens: logarithms of the softmax over the whole vocabulary.

/// A token and how likely it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// What turns logits into log-probabilities: how much larger each logit is than its log-probability.
pub(crate) struct LogTotal(f64);

impl LogTotal {
    pub fn of(logits: &[f32]) -> Self {
        let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum();
        Self(highest + total.ln())
    }

    #[expect(clippy::cast_possible_truncation, reason = "results are f32")]
    pub fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.0) as f32
    }
}
