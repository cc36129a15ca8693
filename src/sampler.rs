//! From logits to a token.
//!
//! What is set works in this order:
//!
//! 1. The repetition penalty changes the logits of recent tokens.
//! 2. The temperature divides all logits, and their softmax is the probabilities.
//! 3. Top-k leaves the likeliest tokens.
//! 4. Top-p leaves the likeliest of those, whose probabilities count as if there were no others.
//! 5. Min-p leaves those of them that are likely enough beside the likeliest.
//! 6. One of what is left is drawn by its probability.

use crate::alloc::try_vec;
use crate::error::{Error, Result};

/// How the next token is chosen. The default takes the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; 0 takes the likeliest token, and only the repetition penalty has an effect, too.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens remain; 0 means all.
    pub top_k: u32,
    /// Only the likeliest tokens remain whose probabilities reach `top_p` together; 1 means all.
    ///
    /// Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    pub top_p: f32,
    /// Only tokens remain that have at least `min_p` times the probability of the likeliest; 0 means all.
    ///
    /// Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024.
    pub min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones, once however often a token occurs; 1 changes
    /// nothing, and less makes repetitions likelier.
    ///
    /// Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019. There it
    /// divides negative logits too, which makes their tokens likelier.
    pub repeat_penalty: f32,
    /// How many of the last tokens are recent, those of the prompt among them; more than there are means all, 0 none.
    pub repeat_last_n: u32,
    /// Start of the random numbers: the same seed gives the same choices.
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerParams {
    /// Those of `tokens` that are recent; none if it makes no difference.
    fn recent<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        let n = if self.repeat_penalty == 1.0 { 0 } else { self.repeat_last_n as usize };
        &tokens[tokens.len().saturating_sub(n)..]
    }

    /// The logit of a recent token. A penalty of at least 1 never makes one larger.
    fn penalized(&self, logit: f32) -> f32 {
        if logit > 0.0 { logit / self.repeat_penalty } else { logit * self.repeat_penalty }
    }
}

/// Chooses tokens, one after the other, from one stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    random: SplitMix,
    /// (token, weight), reused by every call
    candidates: Vec<(u32, f32)>,
    /// Recent tokens in rising order, reused by every call
    recent: Vec<u32>,
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
    /// `Invalid` for a negative temperature, a `top_p` outside of (0, 1], a `min_p` outside of [0, 1], or a
    /// `repeat_penalty` that is not above 0.
    pub fn new(params: &SamplerParams) -> Result<Self> {
        let SamplerParams { temperature, top_p, min_p, repeat_penalty, seed, .. } = *params;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::invalid(format!(
                "temperature {temperature} is not a finite number from 0 on"
            )));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::invalid(format!("top-p {top_p} is not within (0, 1]")));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(Error::invalid(format!("min-p {min_p} is not within [0, 1]")));
        }
        if !(repeat_penalty.is_finite() && repeat_penalty > 0.0) {
            return Err(Error::invalid(format!(
                "repeat penalty {repeat_penalty} is not a finite number above 0"
            )));
        }
        let (candidates, recent) = (Vec::new(), Vec::new());
        Ok(Self { params: params.clone(), random: SplitMix(seed), candidates, recent })
    }

    /// The token behind `tokens`, by the logits of all. Of equally likely ones the lowest id comes first; logits that are
    /// NaN are never chosen.
    ///
    /// # Errors
    /// `Invalid` if there is nothing to choose from.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32]) -> Result<u32> {
        self.remember(tokens)?;
        self.choose(logits.len(), (0..).zip(logits.iter().copied()))
    }

    /// The same, by the logits of the [`n_candidates`](Self::n_candidates) likeliest tokens.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn sample_from(&mut self, candidates: &[Candidate], tokens: &[u32]) -> Result<u32> {
        self.remember(tokens)?;
        self.choose(candidates.len(), candidates.iter().map(|candidate| (candidate.token, candidate.logit)))
    }

    /// How many of the likeliest tokens decide what is chosen behind `tokens`; `None` if all do.
    ///
    /// Penalties of at least 1 only move recent tokens down. So the k likeliest afterwards are among the k + r likeliest
    /// before, where r tokens are recent: who stands behind that many stands behind k that do not move.
    pub fn n_candidates(&self, tokens: &[u32]) -> Option<usize> {
        let n_recent = self.params.recent(tokens).len();
        match self.params {
            SamplerParams { repeat_penalty, .. } if repeat_penalty < 1.0 => None,
            SamplerParams { temperature: 0.0, .. } => Some(1 + n_recent),
            SamplerParams { top_k: 0, .. } => None,
            SamplerParams { top_k, .. } => Some(top_k as usize + n_recent),
        }
    }

    fn remember(&mut self, tokens: &[u32]) -> Result<()> {
        let recent = self.params.recent(tokens);
        if self.recent.capacity() < recent.len() {
            self.recent = try_vec(recent.len(), 0)?;
        }
        self.recent.clear();
        self.recent.extend_from_slice(recent);
        self.recent.sort_unstable();
        Ok(())
    }

    fn choose(&mut self, n: usize, logits: impl Iterator<Item = (u32, f32)> + Clone) -> Result<u32> {
        let Self { params, random, candidates, recent } = self;
        let logits = logits.map(|(token, logit)| match recent.binary_search(&token) {
            Ok(_) => (token, params.penalized(logit)),
            Err(_) => (token, logit),
        });
        if params.temperature == 0.0 {
            return likeliest(logits);
        }
        if candidates.capacity() < n {
            *candidates = try_vec(n, (0, 0.0))?;
        }
        candidates.clear();
        candidates.extend(logits.clone().filter(|(_, logit)| *logit > f32::NEG_INFINITY));
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = params.top_k as usize;
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
            *weight = ((*weight - highest) / params.temperature).exp();
        }
        if params.top_p < 1.0 {
            let enough = total(candidates) * params.top_p;
            let mut reached = 0.0;
            let last = candidates.iter().position(|(_, weight)| {
                reached += weight;
                reached >= enough
            });
            candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
        }
        // The likeliest has weight 1.
        let n_likely = candidates.partition_point(|(_, weight)| *weight >= params.min_p);
        candidates.truncate(n_likely);
        let mut left = random.unit() * total(candidates);
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

/// The weights of all.
fn total(candidates: &[(u32, f32)]) -> f32 {
    candidates.iter().map(|(_, weight)| weight).sum()
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
            counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_likeliest() {
        let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
        assert_eq!(sampler.sample(&[1.0, f32::NAN, 3.0, 3.0], &[]).unwrap(), 2);
        assert_eq!(sampler.sample(&[-0.0, 0.0], &[]).unwrap(), 1, "as Session::top orders them");
        assert!(sampler.sample(&[], &[]).is_err());
        assert!(sampler.sample(&[f32::NAN], &[]).is_err());
    }

    /// A text and logits of `n` tokens, of which some are equal and one is impossible.
    fn text_and_logits(n: u32, seed: u64) -> (Vec<u32>, Vec<f32>) {
        let mut random = SplitMix(seed);
        let text = (0..n).map(|_| u32::try_from(random.next() % u64::from(n)).unwrap()).collect();
        // Steps that no penalty makes of one another: whether tokens are equal is then no matter of rounding.
        let mut logits: Vec<f32> = (0..n).map(|_| (random.unit() * 40.0).round() * 0.137 - 2.9).collect();
        logits[5] = f32::NEG_INFINITY;
        (text, logits)
    }

    /// What `keep` leaves of `p`, with sum 1; it is told each probability and what is ahead of it in `order`.
    fn kept(p: &[f64], order: &[usize], keep: impl Fn(f64, &[usize]) -> bool) -> Vec<f64> {
        let keeps = |token| keep(p[token], &order[..order.iter().position(|&other| other == token).unwrap()]);
        let kept: Vec<f64> = (0..p.len()).map(|token| if keeps(token) { p[token] } else { 0.0 }).collect();
        let total: f64 = kept.iter().sum();
        kept.iter().map(|p| p / total).collect()
    }

    /// The probability of each token behind `text`, step by step as the definitions have it.
    fn probabilities(params: &SamplerParams, logits: &[f32], text: &[u32]) -> Vec<f64> {
        let recent = &text[text.len() - text.len().min(params.repeat_last_n as usize)..];
        let penalty = f64::from(params.repeat_penalty);
        let penalized = |(token, &logit): (usize, &f32)| match f64::from(logit) {
            logit if !recent.iter().any(|&other| other as usize == token) => logit,
            logit if logit > 0.0 => logit / penalty,
            logit => logit * penalty,
        };
        let p: Vec<f64> = logits.iter().enumerate().map(penalized).collect();
        let p: Vec<f64> = p.iter().map(|logit| (logit / f64::from(params.temperature)).exp()).collect();
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        let top_k = if params.top_k == 0 { p.len() } else { params.top_k as usize };
        let p = kept(&p, &order, |_, ahead| ahead.len() < top_k);
        let sum = |tokens: &[usize]| tokens.iter().map(|&token| p[token]).sum::<f64>();
        let p = kept(&p, &order, |_, ahead| sum(ahead) < f64::from(params.top_p));
        kept(&p, &order, |share, _| share >= f64::from(params.min_p) * p[order[0]])
    }

    /// Pearson's statistic of counts, and what it stays below but once in three million times (Wilson and Hilferty, "The
    /// Distribution of Chi-Square", 1931). Tokens that are expected less than five times count together.
    fn chi_square(counts: &[u32], p: &[f64]) -> (f64, f64) {
        let n: u32 = counts.iter().sum();
        let (mut rare, mut cells) = ((0.0, 0.0), Vec::new());
        for (&count, p) in counts.iter().zip(p) {
            let (count, expected) = (f64::from(count), p * f64::from(n));
            match expected < 5.0 {
                true => rare = (rare.0 + count, rare.1 + expected),
                false => cells.push((count, expected)),
            }
        }
        cells.extend((rare.1 >= 5.0).then_some(rare));
        let statistic = cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum();
        let freedom = cells.len() as f64 - 1.0;
        let spread = 2.0 / (9.0 * freedom.max(1.0));
        (statistic, freedom * (1.0 - spread + 5.0 * spread.sqrt()).powi(3) + 1e-9)
    }

    /// All combinations of a few values of each parameter.
    fn combinations() -> impl Iterator<Item = SamplerParams> {
        (0..3u32.pow(5)).map(|n| {
            let digit = |place| n as usize / 3usize.pow(place) % 3;
            SamplerParams {
                temperature: [0.5, 1.0, 1.7][digit(0)],
                top_k: [0, 3, 10][digit(1)],
                top_p: [1.0, 0.9, 0.4][digit(2)],
                min_p: [0.0, 0.03, 0.3][digit(3)],
                repeat_penalty: [1.0, 1.4, 0.7][digit(4)],
                repeat_last_n: n % 20,
                seed: u64::from(n),
            }
        })
    }

    #[test]
    fn frequencies_are_the_probabilities_of_the_definitions() {
        for params in combinations() {
            let (text, logits) = text_and_logits(24, params.seed);
            let p = probabilities(&params, &logits, &text);
            let mut sampler = Sampler::new(&params).unwrap();
            let mut counts = vec![0; logits.len()];
            for _ in 0..4000 {
                counts[sampler.sample(&logits, &text).unwrap() as usize] += 1;
            }
            let impossible = counts.iter().zip(&p).position(|(&count, &p)| count > 0 && p == 0.0);
            assert_eq!(impossible, None, "{params:?}");
            let (statistic, most) = chi_square(&counts, &p);
            assert!(statistic < most, "{params:?}: {statistic} of {most}: {counts:?} {p:?}");
        }
    }

    #[test]
    fn the_likeliest_tokens_choose_what_all_choose() {
        let greedy =
            [1.0, 1.5, 0.7].map(|repeat_penalty| SamplerParams { repeat_penalty, ..Default::default() });
        for params in combinations().chain(greedy) {
            for (seed, repeat_last_n) in (0..24).zip([0, 1, 3, 10, 30, 60, 120, 1000].into_iter().cycle()) {
                let (text, logits) = text_and_logits(300, seed);
                let params = SamplerParams { repeat_last_n, ..params.clone() };
                let (mut few, mut all) = (Sampler::new(&params).unwrap(), Sampler::new(&params).unwrap());
                let Some(n) = few.n_candidates(&text) else { continue };
                let candidate = |(token, &logit)| Candidate { token, logit };
                let mut top: Vec<Candidate> = (0..).zip(&logits).map(candidate).collect();
                top.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
                top.truncate(n);
                for _ in 0..20 {
                    let chosen = few.sample_from(&top, &text).unwrap();
                    assert_eq!(chosen, all.sample(&logits, &text).unwrap(), "{params:?}");
                }
            }
        }
    }

    #[test]
    fn a_penalty_works_without_a_temperature_and_only_on_recent_tokens() {
        let logits = [4.0f32, 3.0, -1.0];
        let of = |repeat_penalty, repeat_last_n, text: &[u32]| {
            let params = SamplerParams { repeat_penalty, repeat_last_n, ..Default::default() };
            Sampler::new(&params).unwrap().sample(&logits, text).unwrap()
        };
        assert_eq!([of(1.3, 64, &[0]), of(1.4, 64, &[0]), of(1.4, 64, &[0, 1])], [0, 1, 0]);
        // Once, however often a token occurs.
        assert_eq!(of(1.3, 64, &[0, 0, 0]), 0);
        assert_eq!(
            [of(1.4, 2, &[0, 2, 2]), of(1.4, 3, &[0, 2, 2]), of(1.4, u32::MAX, &[0, 2, 2])],
            [0, 1, 1]
        );
        assert_eq!(of(1.4, 0, &[0]), 0);
        // A negative logit goes down, too.
        assert_eq!(of(100.0, 64, &[0, 1, 2]), 0);
        assert_eq!(of(0.5, 64, &[1]), 1);
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_likeliest() {
        let logits = [0.1f32, 3.0, 2.9, 0.2, 2.8];
        let of = |top_k, top_p| {
            let params = SamplerParams { temperature: 1.0, top_k, top_p, seed: 1, ..Default::default() };
            counts(params, &logits, 2000)
        };
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
        type Change = fn(&mut SamplerParams, f32);
        let with = |change: Change, value| {
            let mut params = SamplerParams::default();
            change(&mut params, value);
            Sampler::new(&params).map(|_| ()).map_err(|error| error.to_string())
        };
        let cases: [(&str, Change, &[f32]); 4] = [
            ("temperature", |params, value| params.temperature = value, &[-1.0]),
            ("top-p", |params, value| params.top_p = value, &[-0.5, 0.0, 1.1]),
            ("min-p", |params, value| params.min_p = value, &[-0.5, 1.1]),
            ("repeat penalty", |params, value| params.repeat_penalty = value, &[-1.0, 0.0]),
        ];
        for (name, change, values) in cases {
            for &value in values.iter().chain(&[f32::NAN, f32::INFINITY]) {
                let error = with(change, value).unwrap_err();
                assert!(error.starts_with(&format!("{name} {value} is not")), "{error}");
            }
            assert!(with(change, 0.9).is_ok());
        }
    }
}
