//! `lg_sampler`.

use super::exclusive::Exclusive;
use super::guard::guard;
use super::params::{self, Params};
use super::pointer::{free, into_handle, output, reference};
use super::session::lg_session;
use super::status::{lg_error, lg_status};
use crate::error::Result;
use crate::sampler::{Sampler, SamplerParams};

/// Chooses tokens, one after the other, from one stream of random numbers. It belongs to no model.
///
/// Threads: one caller at a time; a second one gets `LG_ERR_INVALID`. After `LG_ERR_INTERNAL` every call returns
/// `LG_ERR_POISONED`.
pub struct lg_sampler {
    sampler: Exclusive<Sampler>,
}

/// How the next token is chosen. All zero takes the likeliest one. What is set works in this order: repetition penalty,
/// temperature, top-k, top-p, min-p.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_sampler_params {
    /// `sizeof(lg_sampler_params)`.
    pub struct_size: usize,
    /// Start of the random numbers: the same seed gives the same choices, on every machine.
    pub seed: u64,
    /// Divides the logits; not negative. 0 takes the likeliest token, and only the repetition penalty has
    /// an effect, too.
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
}

// SAFETY: repr(C), begins with its size, numbers only, and without padding: 2 * 8 + 6 * 4 bytes.
unsafe impl Params for lg_sampler_params {
    const FIRST_SIZE: usize = 32;
}

impl lg_sampler_params {
    fn checked(self) -> Result<SamplerParams> {
        let default = SamplerParams::default();
        let or = |value: f32, default| if value == 0.0 { default } else { value };
        Ok(SamplerParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: or(self.top_p, default.top_p),
            min_p: self.min_p,
            repeat_penalty: or(self.repeat_penalty, default.repeat_penalty),
            repeat_last_n: if self.repeat_last_n == 0 { default.repeat_last_n } else { self.repeat_last_n },
            seed: self.seed,
        })
    }
}

/// Makes a sampler. `params` may be NULL: all defaults. `*out` is the caller's and is freed by `lg_sampler_free`.
///
/// Errors: `LG_ERR_INVALID`.
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

/// Chooses the token that follows the last one of `session`; appending it is the caller's, with `lg_session_decode`. Of
/// equally likely tokens the lowest id is taken.
///
/// Errors: `LG_ERR_INVALID` if the session has no logits, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
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
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (sampler, session) = unsafe { (reference(sampler, "sampler")?, reference(session, "session")?) };
        // SAFETY: as above.
        let token = unsafe { output(token, "token") }?;
        let chosen = session.with(|session| sampler.sampler.with("sampler", |s| session.sample(s)))?;
        token.write(chosen);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_sampler_sample", error, body) }
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
