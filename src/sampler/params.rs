//! What a sampler is asked for.

use std::fmt::Display;

use crate::error::{Error, Result};

/// How the next token is chosen. The default takes the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divides the logits; 0 takes the likeliest token, and only biases, penalties and DRY have an effect, too.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens remain; 0 means all.
    pub top_k: u32,
    /// Only the tokens remain whose surprise, minus the logarithm of their probability, is closest to the average, so many
    /// that their probabilities reach `typical_p` together; 1 means all.
    ///
    /// Meister et al., "Locally Typical Sampling", 2022.
    pub typical_p: f32,
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
    /// Taken from the logit of a recent token as often as it occurs; negative numbers make repetitions likelier.
    ///
    /// This and the next are OpenAI's parameters, which look at generated tokens alone.
    pub frequency_penalty: f32,
    /// Taken from the logit of a recent token once; negative numbers make repetitions likelier.
    pub presence_penalty: f32,
    /// How many of the last tokens are recent, those of the prompt among them; more than there are means all, 0 none.
    pub repeat_last_n: u32,
    /// DRY, "don't repeat yourself": a token that followed before what the text ends with, `n` tokens long, loses
    /// `dry_multiplier * dry_base ^ (n - dry_allowed_length)` of its logit; 0 means none does.
    ///
    /// By p-e-w, in the program text-generation-webui, 2024.
    pub dry_multiplier: f32,
    /// How much faster repetitions lose with each token of their length; at least 1.
    pub dry_base: f32,
    /// Repetitions shorter than this cost nothing; at least 1.
    pub dry_allowed_length: u32,
    /// How many of the last tokens DRY looks at, those of the prompt among them; more than there are means all, 0 none.
    pub dry_last_n: u32,
    /// Start of the random numbers: the same seed gives the same choices.
    pub seed: u64,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last_n: 64,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_last_n: u32::MAX,
            seed: 0,
        }
    }
}

impl SamplerParams {
    pub(super) fn check(&self) -> Result<()> {
        let is_share = |share: f32| share > 0.0 && share <= 1.0;
        let from = |least: f32, value: f32| value.is_finite() && value >= least;
        let Self { temperature, typical_p, top_p, min_p, repeat_penalty, .. } = self;
        let Self {
            frequency_penalty, presence_penalty, dry_multiplier, dry_base, dry_allowed_length, ..
        } = self;
        let (share, finite, above) = ("within (0, 1]", "a finite number", "a finite number above 0");
        let (from_0, from_1) = ("a finite number from 0 on", "a finite number from 1 on");
        let parameters: [(&str, &dyn Display, bool, &str); 10] = [
            ("temperature", temperature, from(0.0, *temperature), from_0),
            ("typical-p", typical_p, is_share(*typical_p), share),
            ("top-p", top_p, is_share(*top_p), share),
            ("min-p", min_p, (0.0..=1.0).contains(min_p), "within [0, 1]"),
            ("repeat penalty", repeat_penalty, from(0.0, *repeat_penalty) && *repeat_penalty > 0.0, above),
            ("frequency penalty", frequency_penalty, frequency_penalty.is_finite(), finite),
            ("presence penalty", presence_penalty, presence_penalty.is_finite(), finite),
            ("dry multiplier", dry_multiplier, from(0.0, *dry_multiplier), from_0),
            ("dry base", dry_base, from(1.0, *dry_base), from_1),
            ("dry allowed length", dry_allowed_length, *dry_allowed_length > 0, "a number from 1 on"),
        ];
        match parameters.iter().find(|(_, _, is_good, _)| !is_good) {
            Some((name, value, _, range)) => Err(Error::invalid(format!("{name} {value} is not {range}"))),
            None => Ok(()),
        }
    }

    /// Those of `tokens` that are recent; none if it makes no difference.
    pub(super) fn recent<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        let is_off = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) == (1.0, 0.0, 0.0);
        last(tokens, if is_off { 0 } else { self.repeat_last_n })
    }

    /// Those of `tokens` that DRY looks at; none if it makes no difference.
    pub(super) fn dry_text<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        last(tokens, if self.dry_multiplier == 0.0 { 0 } else { self.dry_last_n })
    }

    /// The logit of a token that is recent `n` times.
    pub(super) fn penalized(&self, logit: f32, n: u32) -> f32 {
        let logit = if logit > 0.0 { logit / self.repeat_penalty } else { logit * self.repeat_penalty };
        logit - n as f32 * self.frequency_penalty - self.presence_penalty
    }

    /// Whether a penalty can make a logit larger.
    pub(super) fn raises(&self) -> bool {
        self.repeat_penalty < 1.0 || self.frequency_penalty < 0.0 || self.presence_penalty < 0.0
    }

    /// What a token loses that would go on with a repetition of `n` tokens.
    pub(super) fn dry_penalty(&self, n: usize) -> f32 {
        let excess = n.saturating_sub(self.dry_allowed_length as usize);
        self.dry_multiplier * self.dry_base.powf(excess as f32)
    }
}

fn last(tokens: &[u32], n: u32) -> &[u32] {
    &tokens[tokens.len().saturating_sub(n as usize)..]
}
