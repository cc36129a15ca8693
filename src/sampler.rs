//! From logits to a token.

use crate::alloc::try_vec;
use crate::error::{Error, Result};

/// How the next token is chosen. The default takes the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; 0 takes the likeliest token and makes the rest of no effect.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens remain; 0 means all.
    pub top_k: u32,
    /// Only the likeliest tokens remain whose probabilities reach `top_p` together; 1 means all.
    ///
    /// Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    pub top_p: f32,
    /// Start of the random numbers: the same seed gives the same choices.
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Chooses tokens, one after the other, from one stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    random: SplitMix,
    /// (token, weight), reused by every call
    candidates: Vec<(u32, f32)>,
}

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

impl Sampler {
    /// # Errors
    /// `Invalid` for a negative temperature or a `top_p` outside of (0, 1].
    pub fn new(params: &SamplerParams) -> Result<Self> {
        let SamplerParams { temperature, top_p, seed, .. } = *params;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::invalid(format!("temperature {temperature} is below 0 or no number")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::invalid(format!("top-p {top_p} is not within (0, 1]")));
        }
        Ok(Self { params: params.clone(), random: SplitMix(seed), candidates: Vec::new() })
    }

    /// The next token, by the logits of all. Of equally likely ones the lowest id comes first; logits that are NaN are
    /// never chosen.
    ///
    /// # Errors
    /// `Invalid` if there is nothing to choose from.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.choose(logits.len(), (0..).zip(logits.iter().copied()))
    }

    /// The same, by the logits of the [`n_candidates`](Self::n_candidates) likeliest tokens.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn sample_from(&mut self, candidates: &[Candidate]) -> Result<u32> {
        self.choose(candidates.len(), candidates.iter().map(|candidate| (candidate.token, candidate.logit)))
    }

    /// How many of the likeliest tokens decide what is chosen; `None` if all do.
    pub fn n_candidates(&self) -> Option<usize> {
        match self.params {
            SamplerParams { temperature: 0.0, .. } => Some(1),
            SamplerParams { top_k: 0, .. } => None,
            SamplerParams { top_k, .. } => Some(top_k as usize),
        }
    }

    fn choose(&mut self, n: usize, logits: impl Iterator<Item = (u32, f32)> + Clone) -> Result<u32> {
        if self.params.temperature == 0.0 {
            return likeliest(logits);
        }
        let candidates = &mut self.candidates;
        if candidates.capacity() < n {
            *candidates = try_vec(n, (0, 0.0))?;
        }
        candidates.clear();
        candidates.extend(logits.clone().filter(|(_, logit)| *logit > f32::NEG_INFINITY));
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = self.params.top_k as usize;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_logit);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(by_logit);
        let Some(&(first, highest)) = candidates.first() else { return likeliest(logits) };
        if highest == f32::INFINITY {
            return Ok(first);
        }
        for (_, weight) in candidates.iter_mut() {
            *weight = ((*weight - highest) / self.params.temperature).exp();
        }
        let mut total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
        if self.params.top_p < 1.0 {
            let enough = total * self.params.top_p;
            let mut reached = 0.0;
            let last = candidates.iter().position(|(_, weight)| {
                reached += weight;
                reached >= enough
            });
            candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
            total = candidates.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = self.random.unit() * total;
        for &(token, weight) in candidates.iter() {
            left -= weight;
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding can leave a last sliver of the unit interval uncovered.
        Ok(candidates.last().map_or(first, |candidate| candidate.0))
    }
}

/// The token with the highest logit; the lowest id of several.
fn likeliest(logits: impl Iterator<Item = (u32, f32)>) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, logit) in logits {
        if !logit.is_nan() && best.is_none_or(|(_, highest)| logit.total_cmp(&highest).is_gt()) {
            best = Some((token, logit));
        }
    }
    best.map(|best| best.0)
        .ok_or_else(|| Error::invalid("no logits to choose from: none, or all of them NaN"))
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): small, and the same
/// numbers on every machine and in every release.
#[derive(Clone, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), in steps of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(params: SamplerParams, logits: &[f32], n: u32) -> Vec<u32> {
        let mut sampler = Sampler::new(&params).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_likeliest() {
        let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
        assert_eq!(sampler.sample(&[1.0, f32::NAN, 3.0, 3.0]).unwrap(), 2);
        assert_eq!(sampler.sample(&[-0.0, 0.0]).unwrap(), 1, "as Session::top orders them");
        assert!(sampler.sample(&[]).is_err());
        assert!(sampler.sample(&[f32::NAN]).is_err());
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        let n = 40_000;
        let counts = counts(SamplerParams { temperature: 0.5, seed: 7, ..Default::default() }, &logits, n);
        let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / 0.5).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (&count, weight) in counts.iter().zip(weights) {
            let (expected, n) = (weight / total, f64::from(n));
            // Five standard deviations of a binomial share.
            let allowed = 5.0 * (expected * (1.0 - expected) / n).sqrt();
            assert!((f64::from(count) / n - expected).abs() <= allowed, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_likeliest() {
        let logits = [0.1f32, 3.0, 2.9, 0.2, 2.8];
        let of =
            |top_k, top_p| counts(SamplerParams { temperature: 1.0, top_k, top_p, seed: 1 }, &logits, 2000);
        let top_2 = of(2, 1.0);
        assert!(top_2[1] > 0 && top_2[2] > 0 && top_2[0] + top_2[3] + top_2[4] == 0);
        let half = of(0, 0.6);
        assert!(half[1] > 0 && half[2] > 0 && half[0] + half[3] + half[4] == 0, "{half:?}");
        assert_eq!(of(0, 1e-6)[1], 2000);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let of = |seed| counts(SamplerParams { temperature: 1.0, seed, ..Default::default() }, &logits, 50);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let refused = |temperature, top_p| {
            Sampler::new(&SamplerParams { temperature, top_p, ..Default::default() }).is_err()
        };
        assert!(refused(-1.0, 1.0) && refused(f32::NAN, 1.0) && refused(1.0, 0.0) && refused(1.0, 1.1));
    }
}
