//! What a session holds, and going back.

use super::guard::guard;
use super::params::{Results, ResultsOut};
use super::pointer::{Buffer, get, output, reference};
use super::session::lg_session;
use super::status::{lg_error, lg_status};
use crate::session::Counters;

/// How many tokens the session holds, which is the position of the next one. 0 for NULL, while another call runs in
/// the session, and after `LG_ERR_INTERNAL`.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_n_tokens(session: *const lg_session) -> usize {
    // SAFETY: the caller's word.
    unsafe { get(session, 0, |session| session.with(|session| Ok(session.tokens().len()))) }
}

/// Longest context of the session in tokens. 0 for NULL.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_n_ctx(session: *const lg_session) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(session, 0, |session| Ok(session.n_ctx)) }
}

/// Bytes of memory that the session took, all of it, on whatever device it lies: what `lg_model_plan` said. For a fork it is
/// what `lg_session_fork` took: without what is shared, and with what the session needed that was forked. 0 for NULL.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_n_bytes(session: *const lg_session) -> u64 {
    // SAFETY: the caller's word.
    unsafe { get(session, 0, |session| Ok(session.n_bytes)) }
}

/// Those of the session's bytes that are its cache of keys and values. 0 for NULL.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_kv_bytes(session: *const lg_session) -> u64 {
    // SAFETY: the caller's word.
    unsafe { get(session, 0, |session| Ok(session.kv_bytes)) }
}

/// The tokens that the session holds.
///
/// `tokens` has room for `cap` tokens; `*n_tokens` is how many there are.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_tokens(
    session: *const lg_session,
    tokens: *mut u32,
    cap: usize,
    n_tokens: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let tokens = unsafe { Buffer::new(tokens, cap, n_tokens, ["tokens", "n_tokens"]) }?;
        session.with(|session| tokens.fill(session.tokens()))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_tokens", error, body) }
}

/// What a session has done since it was opened or reset. What was stopped or failed counts as far as it stayed; what was
/// rewound goes on counting.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_counters {
    /// Set by the caller: `sizeof(lg_counters)`.
    pub struct_size: usize,
    /// Tokens of prompts, also of the parts of several tokens that `lg_session_step_batch` appended.
    pub n_prompt_tokens: u64,
    /// Tokens that were appended one by one, by `lg_session_decode` and `lg_session_step_batch`.
    pub n_generated_tokens: u64,
    /// Milliseconds that passed while those of prompts were computed.
    pub prompt_ms: f64,
    /// Milliseconds that passed while those one by one were computed; the time of a batch counts in each
    /// of its sessions.
    pub generated_ms: f64,
}

// SAFETY: repr(C), begins with its size, integers and floats only, and without padding: 5 * 8 bytes.
unsafe impl Results for lg_counters {
    const FIRST_SIZE: usize = 40;
}

/// How many tokens the session has computed, and how long that took.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_counters(
    session: *const lg_session,
    out: *mut lg_counters,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let out = unsafe { ResultsOut::new(out, "lg_counters") }?;
        let Counters { prompt, generated } = session.with(|session| Ok(session.counters()))?;
        out.write(&lg_counters {
            struct_size: 0,
            n_prompt_tokens: prompt.n_tokens,
            n_generated_tokens: generated.n_tokens,
            prompt_ms: prompt.time.as_secs_f64() * 1e3,
            generated_ms: generated.time.as_secs_f64() * 1e3,
        });
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_counters", error, body) }
}

/// Goes back to the first `n_tokens` tokens and forgets the others.
///
/// `*n_kept` is how many tokens the session holds afterwards: `n_tokens`, or fewer where layers that keep a part of the
/// context have given up what they would need; the caller appends the missing ones again. Going back to one cache block, at
/// least 16 tokens, behind the furthest token so far always works, and so does going back to where a prompt began or ended,
/// or up to 128 tokens before that, as long as its restore point has room. There are no logits until something is appended,
/// unless `n_tokens` is where the session stood.
///
/// Errors: `LG_ERR_INVALID` if the session holds fewer tokens, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_rewind(
    session: *mut lg_session,
    n_tokens: usize,
    n_kept: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, n_kept) = unsafe { (reference(session, "session")?, output(n_kept, "n_kept")?) };
        n_kept.write(session.with(|session| session.rewind(n_tokens))?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_rewind", error, body) }
}

/// Forgets everything: the session is as it was when it was opened, its counters too.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_reset(session: *mut lg_session, error: *mut lg_error) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        unsafe { reference(session, "session") }?.with(|session| {
            session.reset();
            Ok(())
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_reset", error, body) }
}
