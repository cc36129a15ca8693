//! From logits to a token.
//!
//! What is set works in this order:
//!
//! 1. A mask leaves the tokens that it allows.
//! 2. Biases are added to the logits of their tokens.
//! 3. The repetition penalty, then the frequency and the presence penalty, change the logits of recent tokens.
//! 4. DRY lowers the logits of tokens that would go on with a repetition.
//! 5. The temperature divides all logits, and their softmax is the probabilities.
//! 6. Top-k leaves the likeliest tokens.
//! 7. Typical sampling leaves those of them that are about as surprising as a token is on average.
//! 8. Top-p leaves the likeliest of those.
//! 9. Min-p leaves those of them that are likely enough beside the likeliest.
//! 10. One of what is left is drawn by its probability.
//!
//! From the seventh step on, the probabilities of what a step finds count as if there were no other tokens. Tokens whose
//! logit is NaN or minus infinity are never chosen.

mod changes;
mod dry;
mod filters;
mod params;
mod random;
#[cfg(test)]
mod tests;

pub use params::SamplerParams;

use crate::alloc::try_vec;
use crate::error::{Error, Result};
use changes::Change;
use dry::Repeats;
use random::SplitMix;

/// Chooses tokens, one after the other, from one stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    /// (token, bias), in rising order of tokens
    bias: Vec<(u32, f32)>,
    /// In rising order
    dry_breakers: Vec<u32>,
    random: SplitMix,
    /// Reused by every call, as are those below
    repeats: Repeats,
    /// In rising order of tokens
    changes: Vec<Change>,
    choices: Vec<Choice>,
}

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

/// A token that a sampler had left to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its logit after bias and penalties, before the temperature.
    pub logit: f32,
    /// Its probability among all that were left.
    pub p: f32,
}

impl Sampler {
    /// # Errors
    /// `Invalid` for a parameter out of its range.
    pub fn new(params: &SamplerParams) -> Result<Self> {
        params.check()?;
        Ok(Self {
            params: params.clone(),
            bias: Vec::new(),
            dry_breakers: Vec::new(),
            random: SplitMix(params.seed),
            repeats: Repeats::default(),
            changes: Vec::new(),
            choices: Vec::new(),
        })
    }

    /// What is added to the logits of some tokens: pairs of token and bias, which replace those that were set before. Minus
    /// infinity forbids a token. Tokens that a vocabulary does not have change nothing.
    ///
    /// # Errors
    /// `Invalid` for a bias that is NaN or infinity, or a token with two; `OutOfMemory`.
    pub fn set_bias(&mut self, biases: impl ExactSizeIterator<Item = (u32, f32)>) -> Result<()> {
        let mut sorted = Vec::new();
        room(&mut sorted, biases.len())?.extend(biases);
        sorted.sort_unstable_by_key(|(token, _)| *token);
        if let Some((token, bias)) = sorted.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            let message =
                format!("bias {bias} of token {token} is neither a finite number nor minus infinity");
            return Err(Error::invalid(message));
        }
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::invalid(format!("token {} has more than one bias", pair[0].0)));
        }
        self.bias = sorted;
        Ok(())
    }

    /// Tokens that repetitions do not reach across, as DRY sees them, such as line ends or quotes: they replace those that
    /// were set before. DRY never lowers a breaker itself.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn set_dry_breakers(&mut self, tokens: &[u32]) -> Result<()> {
        let mut sorted = Vec::new();
        room(&mut sorted, tokens.len())?.extend_from_slice(tokens);
        sorted.sort_unstable();
        self.dry_breakers = sorted;
        Ok(())
    }

    /// Begins the random numbers again, so that the same calls choose the same tokens. Biases and breakers stay.
    pub fn reset(&mut self) {
        self.random = SplitMix(self.params.seed);
        self.choices.clear();
    }

    /// What the last call chose from, likeliest first: one token without a temperature, none after a call that failed.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The token behind `tokens`, by the logits of all: [`Place::sample`] there. Of equally likely ones the lowest id comes
    /// first.
    ///
    /// # Errors
    /// `Invalid` if there is nothing to choose from, `OutOfMemory`.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32]) -> Result<u32> {
        self.behind(tokens)?.sample(logits)
    }

    /// The end of a text, for which its repetitions are looked up: in time linear in the part of it that is looked back at.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn behind(&mut self, tokens: &[u32]) -> Result<Place<'_>> {
        let Self { params, bias, dry_breakers, repeats, changes, choices, .. } = self;
        choices.clear();
        repeats.find(params.dry_text(tokens), dry_breakers, params.dry_allowed_length as usize)?;
        changes::gather(changes, bias, params.recent(tokens), repeats.found())?;
        Ok(Place { sampler: self, mask: None })
    }
}

/// The end of a text, where a sampler is about to choose a token.
#[derive(Debug)]
pub struct Place<'a> {
    sampler: &'a mut Sampler,
    /// Bit `token % 32` of word `token / 32` is set for tokens that are allowed; none behind the last word are.
    mask: Option<&'a [u32]>,
}

impl<'a> Place<'a> {
    /// Allows only the tokens whose bit is set: bit `token % 32` of word `token / 32`, as grammar engines fill masks. Tokens
    /// behind the last word are not allowed.
    #[must_use]
    pub fn masked(self, mask: &'a [u32]) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// How many of the likeliest tokens decide what is chosen here; `None` if all do.
    ///
    /// Where no token moves up, the k likeliest of the end are among the k + r likeliest of the beginning, where r tokens
    /// move down: who stands behind that many stands behind k that do not move. Of a mask nothing of that kind can be said.
    pub fn n_candidates(&self) -> Option<usize> {
        let Sampler { params, bias, changes, .. } = &*self.sampler;
        let is_any = params.raises() || bias.iter().any(|(_, bias)| *bias > 0.0) || self.mask.is_some();
        let n_wanted = match params {
            SamplerParams { temperature: 0.0, .. } => 1,
            SamplerParams { top_k: 0, .. } => return None,
            SamplerParams { top_k, .. } => *top_k as usize,
        };
        (!is_any).then_some(n_wanted + changes.len())
    }

    /// Chooses a token by the logits of all. Of equally likely ones the lowest id comes first.
    ///
    /// # Errors
    /// `Invalid` if there is nothing to choose from, `OutOfMemory`.
    pub fn sample(self, logits: &[f32]) -> Result<u32> {
        self.choose(logits.len(), (0..).zip(logits.iter().copied()))
    }

    /// The same, by the logits of the [`n_candidates`](Self::n_candidates) likeliest tokens.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn sample_from(self, candidates: &[Candidate]) -> Result<u32> {
        self.choose(candidates.len(), candidates.iter().map(|candidate| (candidate.token, candidate.logit)))
    }

    fn choose(self, n: usize, logits: impl Iterator<Item = (u32, f32)>) -> Result<u32> {
        let Sampler { params, random, changes, choices, .. } = self.sampler;
        let allows = |token: u32| {
            let bit = |mask: &[u32]| {
                mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
            };
            self.mask.is_none_or(bit)
        };
        let choice = |(token, logit)| match allows(token) {
            true => Choice { token, logit: changes::apply(changes, params, token, logit), p: 1.0 },
            false => Choice { token, logit: f32::NEG_INFINITY, p: 1.0 },
        };
        let possible = logits.map(choice).filter(|choice| choice.logit > f32::NEG_INFINITY);
        if params.temperature == 0.0 {
            room(choices, 1)?.extend(possible.min_by(filters::likelier));
        } else {
            room(choices, n)?.extend(possible);
            filters::top_k(choices, params.top_k);
            filters::softmax(choices, params.temperature);
            filters::typical(choices, params.typical_p);
            filters::top_p(choices, params.top_p);
            filters::min_p(choices, params.min_p);
        }
        let token = random.draw(choices);
        filters::normalize(choices);
        token.ok_or_else(|| {
            Error::invalid("no token to choose: none, or each is forbidden, impossible or NaN")
        })
    }
}

/// Empties a buffer that is reused and makes room for `n` elements: for some more than that, since a text grows.
fn room<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> Result<&mut Vec<T>> {
    if buffer.capacity() < n {
        *buffer = try_vec(n.checked_next_power_of_two().unwrap_or(n), T::default())?;
    }
    buffer.clear();
    Ok(buffer)
}
