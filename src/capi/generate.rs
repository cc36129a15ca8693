//! Answers in one call.

use std::ffi::{c_char, c_void};

use super::cancel::{self, lg_cancel};
use super::guard::guard;
use super::model::LG_TOKEN_NONE;
use super::params::{self, Params, Results, ResultsOut, flag};
use super::pointer::{reference, slice, strings};
use super::sampler::lg_sampler;
use super::session::{lg_on_progress, lg_session, teller};
use super::status::{lg_error, lg_status};
use super::stream::{LG_INDEX_NONE, index};
use crate::error::Result;
use crate::generate::{GenerateParams, Generated, StopReason};

/// `lg_generate_result.reason`: the model ended the answer.
pub const LG_STOP_END: u32 = 0;
/// `lg_generate_result.reason`: the answer has as many tokens as were asked for.
pub const LG_STOP_LENGTH: u32 = 1;
/// `lg_generate_result.reason`: a stop string came.
pub const LG_STOP_STRING: u32 = 2;
/// `lg_generate_result.reason`: the callback asked to stop.
pub const LG_STOP_CALLBACK: u32 = 3;
/// `lg_generate_result.reason`: the context has no room for more.
pub const LG_STOP_CONTEXT_FULL: u32 = 4;
/// `lg_generate_result.reason`: the cancel object was set.
pub const LG_STOP_CANCELLED: u32 = 5;

/// How to generate an answer. All zero: until the model ends it, or the context is full.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_generate_params {
    /// `sizeof(lg_generate_params)`.
    pub struct_size: usize,
    /// Most tokens of the answer; 0 means any number.
    pub max_tokens: u32,
    /// 1 takes tokens that end an answer as tokens like any other, which are no text; 0 does not.
    pub ignore_end: u32,
    /// Strings that end the answer, as `lg_text_stream` finds them; each ends with a zero byte. They are no
    /// part of the answer.
    pub stops: *const *const c_char,
    /// How many there are.
    pub n_stops: usize,
    /// Told how many tokens of the prompt are done; may be NULL.
    pub on_progress: lg_on_progress,
    /// Told the answer; may be NULL.
    pub on_text: lg_on_text,
    /// Handed to `on_progress` and `on_text`.
    pub user: *mut c_void,
    /// Stops the prompt, which is `LG_ERR_CANCELLED`, or ends the answer; may be NULL.
    pub cancel: *const lg_cancel,
}

// SAFETY: repr(C), begins with its size, numbers and pointers, and without padding: 8 + 2 * 4 + 6 * 8 bytes.
unsafe impl Params for lg_generate_params {
    const FIRST_SIZE: usize = 64;
}

impl lg_generate_params {
    /// # Safety
    /// As for [`strings`].
    unsafe fn checked(self) -> Result<GenerateParams> {
        Ok(GenerateParams {
            max_tokens: if self.max_tokens == 0 { usize::MAX } else { self.max_tokens as usize },
            ignore_end: flag("ignore_end", self.ignore_end)?,
            // SAFETY: as the caller says.
            stops: unsafe { strings(self.stops, self.n_stops, "stops") }?,
        })
    }
}

/// What `lg_session_generate` has done.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_generate_result {
    /// Set by the caller: `sizeof(lg_generate_result)`.
    pub struct_size: usize,
    /// Tokens of the answer.
    pub n_tokens: usize,
    /// Why it ended: one of `LG_STOP_*`.
    pub reason: u32,
    /// The number of the stop string that ended it, or `LG_INDEX_NONE`.
    pub stop_index: u32,
    /// The last token of the answer, if the session does not hold it yet, since nothing was computed behind it; to go on,
    /// generate behind it. `LG_TOKEN_NONE` if the session holds all.
    pub pending_token: u32,
    /// The token with which the model ended the answer, or `LG_TOKEN_NONE`. It is no part of it: it was not told, and the
    /// session does not hold it.
    pub end_token: u32,
}

// SAFETY: repr(C), begins with its size, and without padding: 2 * 8 + 4 * 4 bytes.
unsafe impl Results for lg_generate_result {
    const FIRST_SIZE: usize = 32;
}

impl From<Generated> for lg_generate_result {
    fn from(generated: Generated) -> Self {
        let (reason, stop) = match generated.reason {
            StopReason::End => (LG_STOP_END, LG_INDEX_NONE),
            StopReason::Length => (LG_STOP_LENGTH, LG_INDEX_NONE),
            StopReason::StopString(stop) => (LG_STOP_STRING, index(Some(stop))),
            StopReason::Callback => (LG_STOP_CALLBACK, LG_INDEX_NONE),
            StopReason::ContextFull => (LG_STOP_CONTEXT_FULL, LG_INDEX_NONE),
            StopReason::Cancelled => (LG_STOP_CANCELLED, LG_INDEX_NONE),
        };
        Self {
            struct_size: 0,
            n_tokens: generated.n_tokens,
            reason,
            stop_index: stop,
            pending_token: generated.pending_token.unwrap_or(LG_TOKEN_NONE),
            end_token: generated.end_token.unwrap_or(LG_TOKEN_NONE),
        }
    }
}

/// Told about each token of an answer, with the text that is certain since: `n_bytes` of UTF-8, which may be none, without a
/// zero byte behind them, and valid until it returns. The text that was held back until the end, if there is any, comes with
/// `LG_TOKEN_NONE`. False ends the answer: it is not called again, and text that was held back is dropped.
///
/// The session and the sampler are in use meanwhile.
pub type lg_on_text =
    Option<unsafe extern "C" fn(user: *mut c_void, token: u32, text: *const c_char, n_bytes: usize) -> bool>;

/// Appends `n_tokens` tokens as `lg_session_prefill` does, and generates an answer to all that the session then holds; without
/// tokens, to what it holds. Special tokens of the answer are told, but are no text. `params` may be NULL: all defaults.
///
/// Errors: those of `lg_session_prefill`, `lg_sampler_sample` and `lg_session_decode`. A full context and a cancel object are
/// errors until the first token of the answer only: then they end it. After an error, text that was held back has been told,
/// and the session holds all tokens that were told, but perhaps for the last (`lg_session_tokens` says), or what
/// `lg_session_prefill` leaves of a prompt.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and callbacks that keep their promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_generate(
    session: *mut lg_session,
    sampler: *mut lg_sampler,
    tokens: *const u32,
    n_tokens: usize,
    params: *const lg_generate_params,
    out: *mut lg_generate_result,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, sampler) = unsafe { (reference(session, "session")?, reference(sampler, "sampler")?) };
        // SAFETY: as above.
        let tokens = unsafe { slice(tokens, n_tokens, "tokens") }?;
        // SAFETY: as above.
        let given = unsafe { params::read(params, "lg_generate_params") }?;
        // SAFETY: as above.
        let (params, cancel) = unsafe { (given.checked()?, cancel::get(given.cancel)?) };
        // SAFETY: as above.
        let out = unsafe { ResultsOut::new(out, "lg_generate_result") }?;
        // SAFETY: as above.
        let mut on_progress = unsafe { teller(given.on_progress, given.user) };
        let mut on_text = |token: Option<u32>, text: &str| {
            let (token, text, n_bytes) = (token.unwrap_or(LG_TOKEN_NONE), text.as_ptr().cast(), text.len());
            // SAFETY: the caller's word.
            given.on_text.is_none_or(|on_text| unsafe { on_text(given.user, token, text, n_bytes) })
        };
        let generated = session.with(|session| {
            sampler.with(|sampler| {
                session.generate(sampler, tokens, &params, &cancel, &mut on_progress, &mut on_text)
            })
        })?;
        out.write(&generated.into());
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_generate", error, body) }
}
