//! What a session says about the token that comes next.

use super::guard::guard;
use super::pointer::{output, outputs, reference};
use super::session::lg_session;
use super::status::{lg_error, lg_status};
use crate::logprobs::TokenLogprob;

/// The logits behind the session's last token: `*n_logits` floats, one per token of the vocabulary.
///
/// They are not copied, since a vocabulary can have half a megabyte of them per token: `*logits` points into the session,
/// must not be written to, and is valid until the session is next appended to, rewound, reset
/// or freed.
///
/// Errors: `LG_ERR_INVALID` if nothing was computed behind the last token: the session is empty, was rewound,
/// `lg_session_prefill` stopped between two chunks, or `lg_session_prefill_rows` was asked for other logits only or
/// failed, or the device failed; `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_logits(
    session: *const lg_session,
    logits: *mut *const f32,
    n_logits: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let (out, n_logits) = unsafe { (output(logits, "logits")?, output(n_logits, "n_logits")?) };
        session.with(|session| {
            let logits = session.logits()?;
            out.write(logits.as_ptr());
            n_logits.write(logits.len());
            Ok(())
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_logits", error, body) }
}

/// The last hidden state behind the session's last token: `*n_hidden` floats, as many as the model is wide. It is the one
/// behind the final norm, which the output matrix is multiplied with.
///
/// `*hidden` points into the session like the logits of `lg_session_logits`.
///
/// Errors: `LG_ERR_INVALID` if the session is empty or was rewound, or if a call that was to append tokens has failed
/// since; `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_hidden(
    session: *const lg_session,
    hidden: *mut *const f32,
    n_hidden: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let (out, n_hidden) = unsafe { (output(hidden, "hidden")?, output(n_hidden, "n_hidden")?) };
        session.with(|session| {
            let hidden = session.hidden()?;
            out.write(hidden.as_ptr());
            n_hidden.write(hidden.len());
            Ok(())
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_hidden", error, body) }
}

/// A token and how likely it is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_token_logprob {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability, over the whole vocabulary.
    pub logprob: f32,
}

/// The `n_logprobs` likeliest tokens behind the session's last one, likeliest first, with their log-probabilities. Of equally
/// likely ones the lowest id comes first.
///
/// `logprobs` has room for `n_logprobs` of them, at most 256 and as many as the vocabulary has.
///
/// Errors: those of `lg_session_logits`, `LG_ERR_OUT_OF_MEMORY`, and `LG_ERR_INVALID` for more tokens than that.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_top_logprobs(
    session: *const lg_session,
    logprobs: *mut lg_token_logprob,
    n_logprobs: usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let logprobs = unsafe { outputs(logprobs, n_logprobs, "logprobs") }?;
        let top = session.with(|session| session.top_logprobs(n_logprobs))?;
        for (out, TokenLogprob { token, logprob }) in logprobs.iter_mut().zip(top) {
            out.write(lg_token_logprob { token, logprob });
        }
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_top_logprobs", error, body) }
}

/// The natural logarithm of the probability, over the whole vocabulary, that `token` comes behind the session's last one.
/// Each call reads all logits.
///
/// Errors: those of `lg_session_logits`, and `LG_ERR_INVALID` for a token beyond the vocabulary.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_logprob(
    session: *const lg_session,
    token: u32,
    logprob: *mut f32,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, logprob) = unsafe { (reference(session, "session")?, output(logprob, "logprob")?) };
        logprob.write(session.with(|session| session.logprob(token))?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_logprob", error, body) }
}
