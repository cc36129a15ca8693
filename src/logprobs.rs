//! Log-probabilities of tokens: logarithms of the softmax over the whole vocabulary.

/// A token and how likely it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// What turns logits into log-probabilities: how much larger each logit is than its log-probability. Logits that are NaN
/// are those of tokens that are never chosen.
pub(crate) struct LogTotal(f64);

impl LogTotal {
    pub fn of(logits: &[f32]) -> Self {
        let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        if highest.is_infinite() {
            return Self(highest);
        }
        let possible = logits.iter().filter(|logit| !logit.is_nan());
        let total: f64 = possible.map(|&logit| (f64::from(logit) - highest).exp()).sum();
        Self(highest + total.ln())
    }

    #[expect(clippy::cast_possible_truncation, reason = "results are f32")]
    pub fn logprob(&self, logit: f32) -> f32 {
        match f64::from(logit) {
            logit if logit.is_nan() || logit == f64::NEG_INFINITY => f32::NEG_INFINITY,
            // Beside an infinite logit there is no other.
            logit if logit == self.0 => 0.0,
            logit => (logit - self.0) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logprobs(logits: &[f32]) -> Vec<f32> {
        let total = LogTotal::of(logits);
        logits.iter().map(|&logit| total.logprob(logit)).collect()
    }

    #[test]
    fn they_are_those_of_the_softmax() {
        let has = logprobs(&[1.0, 3.0, 2.0]);
        let total: f64 = [1.0f64, 3.0, 2.0].map(f64::exp).iter().sum();
        for (has, logit) in has.iter().zip([1.0f64, 3.0, 2.0]) {
            assert!((f64::from(*has) - (logit.exp() / total).ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn what_is_never_chosen_has_none_and_spoils_no_other() {
        let (none, inf) = (f32::NEG_INFINITY, f32::INFINITY);
        assert_eq!(logprobs(&[f32::NAN, 5.0, none]), [none, 0.0, none]);
        assert_eq!(logprobs(&[1.0, inf, f32::NAN]), [none, 0.0, none]);
        assert_eq!(logprobs(&[none, none]), [none, none]);
        assert_eq!(logprobs(&[f32::NAN]), [none]);
    }
}
