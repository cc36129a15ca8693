//! `lg_sampler`.

use super::exclusive::Exclusive;
use super::guard::guard;
use super::params::{self, Params, reserved};
use super::pointer::{Buffer, free, into_handle, output, reference, slice};
use super::session::lg_session;
use super::status::{lg_error, lg_status};
use crate::error::Result;
use crate::sampler::{Sampler, SamplerParams};
use crate::session::Session;

/// Chooses tokens, one after the other, from one stream of random numbers. It belongs to no model.
///
/// Threads: one caller at a time; a second one gets `LG_ERR_BUSY`. After `LG_ERR_INTERNAL` every call returns
/// `LG_ERR_POISONED`.
pub struct lg_sampler {
    sampler: Exclusive<Sampler>,
}

impl lg_sampler {
    /// See [`Exclusive::with`].
    pub(super) fn with<R>(&self, body: impl FnOnce(&mut Sampler) -> Result<R>) -> Result<R> {
        self.sampler.with("sampler", body)
    }
}

/// How the next token is chosen. All zero takes the likeliest one. What is set works in this order: the mask of
/// `lg_sampler_sample_masked`, the biases of `lg_sampler_set_bias`, repetition penalty, frequency and presence penalty,
/// DRY, temperature, top-k, typical, top-p, min-p. From typical on, the probabilities of the tokens that are left count as
/// if there were no others. Tokens whose logit is NaN or minus infinity are never chosen.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_sampler_params {
    /// `sizeof(lg_sampler_params)`.
    pub struct_size: usize,
    /// Start of the random numbers: the same seed gives the same numbers, on every machine, and the same choices
    /// where logits are the same.
    pub seed: u64,
    /// Divides the logits; not negative. 0 takes the likeliest token, and only masks, biases,
    /// penalties and DRY have an effect, too.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens remain; 0 means all.
    pub top_k: u32,
    /// Only the likeliest tokens remain whose probabilities reach `top_p` together; at most 1. 0 and 1 mean all.
    pub top_p: f32,
    /// Only tokens remain that have at least `min_p` times the probability of the likeliest; at most 1. 0
    /// means all.
    pub min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones, once however often a token
    /// occurs; not negative. 0 and 1 change nothing, and numbers between them make repetitions likelier.
    pub repeat_penalty: f32,
    /// How many of the session's last tokens are recent, those of the prompt among them; more than there are
    /// mean all. 0 means 64.
    pub repeat_last_n: u32,
    /// Only the tokens remain whose surprise, minus the logarithm of their probability, is closest to the
    /// average, so many that their probabilities reach `typical_p` together; at most 1. 0 and 1 mean all.
    /// (Meister et al., "Locally Typical Sampling", 2022.)
    pub typical_p: f32,
    /// Taken from the logit of a recent token as often as it occurs. Negative numbers make repetitions
    /// likelier.
    pub frequency_penalty: f32,
    /// Taken from the logit of a recent token once. Negative numbers make repetitions likelier.
    pub presence_penalty: f32,
    /// DRY, "don't repeat yourself": a token that followed before what the text ends with, `n` tokens long,
    /// loses `dry_multiplier * dry_base ^ (n - dry_allowed_length)` of its logit; not negative. 0 means none
    /// does.
    pub dry_multiplier: f32,
    /// How much faster repetitions lose with each token of their length; at least 1. 0 means 1.75.
    pub dry_base: f32,
    /// Repetitions shorter than this cost nothing. 0 means 2.
    pub dry_allowed_length: u32,
    /// How many of the session's last tokens DRY looks at, those of the prompt among them; more than there
    /// are mean all, and so does 0.
    pub dry_last_n: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size, numbers only, and without padding: 2 * 8 + 14 * 4 bytes.
unsafe impl Params for lg_sampler_params {
    const FIRST_SIZE: usize = 72;
}

impl lg_sampler_params {
    fn checked(self) -> Result<SamplerParams> {
        let default = SamplerParams::default();
        let or = |value: f32, default| if value == 0.0 { default } else { value };
        let or_n = |value: u32, default| if value == 0 { default } else { value };
        reserved(self.reserved)?;
        Ok(SamplerParams {
            temperature: self.temperature,
            top_k: self.top_k,
            typical_p: or(self.typical_p, default.typical_p),
            top_p: or(self.top_p, default.top_p),
            min_p: self.min_p,
            repeat_penalty: or(self.repeat_penalty, default.repeat_penalty),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_last_n: or_n(self.repeat_last_n, default.repeat_last_n),
            dry_multiplier: self.dry_multiplier,
            dry_base: or(self.dry_base, default.dry_base),
            dry_allowed_length: or_n(self.dry_allowed_length, default.dry_allowed_length),
            dry_last_n: or_n(self.dry_last_n, default.dry_last_n),
            seed: self.seed,
        })
    }
}

/// A token, and what is added to its logit.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_logit_bias {
    /// Its id.
    pub token: u32,
    /// A finite number, or minus infinity, which forbids the token.
    pub bias: f32,
}

/// A token that a sampler had left to choose.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_choice {
    /// Its id.
    pub token: u32,
    /// Its logit after bias and penalties, before the temperature.
    pub logit: f32,
    /// Its probability among all that were left.
    pub p: f32,
}

/// Makes a sampler. `params` may be NULL: all defaults. `*out` is the caller's and is freed by `lg_sampler_free`.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_OUT_OF_MEMORY`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_new(
    params: *const lg_sampler_params,
    out: *mut *mut lg_sampler,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let out = unsafe { output(out, "out") }?;
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_sampler_params") }?.checked()?;
        out.write(into_handle(lg_sampler { sampler: Exclusive::new(Sampler::new(&params)?) })?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_new", error, body) }
}

/// What is added to the logits of some tokens: `n_biases` pairs of token and bias, which replace those that were set before.
/// Tokens that a model does not have change nothing.
///
/// Errors: `LG_ERR_INVALID` for a bias that is NaN or infinity, or a token with two, `LG_ERR_OUT_OF_MEMORY`,
/// `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_set_bias(
    sampler: *mut lg_sampler,
    biases: *const lg_logit_bias,
    n_biases: usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (sampler, biases) =
            unsafe { (reference(sampler, "sampler")?, slice(biases, n_biases, "biases")?) };
        sampler.with(|sampler| sampler.set_bias(biases.iter().map(|pair| (pair.token, pair.bias))))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_set_bias", error, body) }
}

/// Tokens that repetitions do not reach across, as DRY sees them, such as line ends or quotes: they replace those that were
/// set before. DRY never lowers a breaker itself.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_set_dry_breakers(
    sampler: *mut lg_sampler,
    tokens: *const u32,
    n_tokens: usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (sampler, tokens) =
            unsafe { (reference(sampler, "sampler")?, slice(tokens, n_tokens, "tokens")?) };
        sampler.with(|sampler| sampler.set_dry_breakers(tokens))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_set_dry_breakers", error, body) }
}

/// Writes the token that `choose` chooses in the session.
///
/// # Safety
/// As for [`reference`] and [`output`].
unsafe fn sample(
    sampler: *mut lg_sampler,
    session: *const lg_session,
    token: *mut u32,
    choose: impl FnOnce(&mut Session, &mut Sampler) -> Result<u32>,
) -> Result<()> {
    // SAFETY: the caller's word, as for all pointers of this function.
    let (sampler, session) = unsafe { (reference(sampler, "sampler")?, reference(session, "session")?) };
    // SAFETY: as above.
    let token = unsafe { output(token, "token") }?;
    token.write(session.with(|session| sampler.with(|sampler| choose(session, sampler)))?);
    Ok(())
}

/// Chooses the token that follows the last one of `session`; appending it is the caller's, with `lg_session_decode`. Of
/// equally likely tokens the lowest id is taken.
///
/// Errors: `LG_ERR_INVALID` if the session has no logits, or nothing is left to choose; `LG_ERR_OUT_OF_MEMORY`,
/// `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_sample(
    sampler: *mut lg_sampler,
    session: *const lg_session,
    token: *mut u32,
    error: *mut lg_error,
) -> lg_status {
    // SAFETY: the caller's word.
    let body = || unsafe { sample(sampler, session, token, Session::sample) };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_sample", error, body) }
}

/// The same among the tokens that a mask allows: those whose bit is set, bit `token % 32` of word `token / 32`, as grammar
/// engines such as llguidance and XGrammar fill masks. Tokens behind the last word are not allowed.
///
/// Errors: those of `lg_sampler_sample`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_sample_masked(
    sampler: *mut lg_sampler,
    session: *const lg_session,
    mask: *const u32,
    n_words: usize,
    token: *mut u32,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let mask = unsafe { slice(mask, n_words, "mask") }?;
        // SAFETY: as above.
        unsafe { sample(sampler, session, token, |session, sampler| session.sample_masked(sampler, mask)) }
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_sample_masked", error, body) }
}

/// What the last token was chosen from, likeliest first: one token without a temperature, none after a call that failed.
///
/// `choices` has room for `cap` of them; `*n_choices` is how many there are.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_choices(
    sampler: *const lg_sampler,
    choices: *mut lg_choice,
    cap: usize,
    n_choices: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let sampler = unsafe { reference(sampler, "sampler") }?;
        // SAFETY: as above.
        let choices = unsafe { Buffer::new(choices, cap, n_choices, ["choices", "n_choices"]) }?;
        sampler.with(|sampler| {
            let all = sampler.choices().iter();
            choices.fill_with(all.map(|c| lg_choice { token: c.token, logit: c.logit, p: c.p }))
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_choices", error, body) }
}

/// Begins the random numbers again, so that the same calls choose the same tokens. Biases and breakers stay.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_reset(sampler: *mut lg_sampler, error: *mut lg_error) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let sampler = unsafe { reference(sampler, "sampler") }?;
        sampler.with(|sampler| {
            sampler.reset();
            Ok(())
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_reset", error, body) }
}

/// Frees a sampler. NULL does nothing.
///
/// # Safety
/// The caller must not use the sampler any more, in no thread and in no running call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_sampler_free(sampler: *mut lg_sampler) {
    // SAFETY: the caller's word.
    unsafe { free(sampler) }
}
