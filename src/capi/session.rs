//! `lg_session`: a sequence of tokens and what the model remembers of it.

use std::ffi::c_void;

use super::cancel::{flag, lg_cancel};
use super::exclusive::Exclusive;
use super::guard::{guard, guard_or};
use super::model::lg_model;
use super::params::{self, Params, reserved, unknown};
use super::pointer::{free, into_handle, output, reference, slice};
use super::status::{lg_error, lg_status};
use crate::backend::args::{KvType, Precision};
use crate::error::Result;
use crate::session::{Session, SessionParams};

/// One sequence of tokens with its keys and values. It keeps its model alive.
///
/// Threads: one caller at a time, in any thread; a second one gets `LG_ERR_INVALID`. Sessions of one model may be used
/// at the same time. After `LG_ERR_INTERNAL` every call returns `LG_ERR_POISONED`.
pub struct lg_session {
    session: Exclusive<Session>,
}

impl lg_session {
    /// See [`Exclusive::with`].
    pub(super) fn with<R>(&self, body: impl FnOnce(&mut Session) -> Result<R>) -> Result<R> {
        self.session.with("session", body)
    }
}

/// `lg_session_params.kv_type`: 16-bit floats, as IEEE 754 has them.
pub const LG_KV_TYPE_F16: u32 = 0;
/// `lg_session_params.kv_type`: 32-bit floats.
pub const LG_KV_TYPE_F32: u32 = 1;
/// `lg_session_params.kv_type`: the upper halves of 32-bit floats: the range of these, and 8 bits of precision.
pub const LG_KV_TYPE_BF16: u32 = 2;
/// `lg_session_params.kv_type`: 8-bit integers with a 16-bit scale per token and KV head for the key, and one for the
/// value: little more than half the memory of 16-bit floats.
pub const LG_KV_TYPE_Q8: u32 = 3;

/// `lg_session_params.precision`: activations may be rounded to 8 or 16 bits on their way into a matrix product.
pub const LG_PRECISION_FAST: u32 = 0;
/// `lg_session_params.precision`: activations and sums are 32-bit floats.
pub const LG_PRECISION_EXACT: u32 = 1;

/// How to open a session, and what its memory is planned for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_session_params {
    /// `sizeof(lg_session_params)`.
    pub struct_size: usize,
    /// Longest context in tokens; 0 means the one that the model was trained for.
    pub n_ctx: u32,
    /// Most tokens that run through the layers together; 0 means 2048, and on a Hopper card a sixteenth
    /// of the context, up to 8192, if that is more. More need more memory. On the processor results do
    /// not change; on a card they change by rounding.
    pub chunk_tokens: u32,
    /// Element type of the cache: one of `LG_KV_TYPE_*`.
    pub kv_type: u32,
    /// How precisely matrix products are computed: one of `LG_PRECISION_*`.
    pub precision: u32,
    /// Rows of logits that are computed together where a call computes several; 0 means 1. More need more memory.
    pub logits_rows: u32,
    /// 0.
    pub reserved: u32,
    /// Most bytes that the session may take; 0 means that there is no limit. With `n_ctx` a session that takes more is
    /// refused before anything is allocated, and the error says which context would fit. Without it the longest context
    /// is taken that fits, at most the one that the model was trained for: `lg_session_n_ctx` tells.
    pub max_bytes: u64,
}

// SAFETY: repr(C), begins with its size, integers only, and without padding: 8 + 6 * 4 + 8 bytes.
unsafe impl Params for lg_session_params {
    const FIRST_SIZE: usize = 24;
}

impl lg_session_params {
    pub(super) fn checked(self) -> Result<SessionParams> {
        reserved(self.reserved)?;
        Ok(SessionParams {
            n_ctx: self.n_ctx,
            chunk_tokens: self.chunk_tokens,
            kv_type: match self.kv_type {
                LG_KV_TYPE_F16 => KvType::F16,
                LG_KV_TYPE_F32 => KvType::F32,
                LG_KV_TYPE_BF16 => KvType::Bf16,
                LG_KV_TYPE_Q8 => KvType::Q8,
                other => return Err(unknown("kv_type", other)),
            },
            precision: match self.precision {
                LG_PRECISION_FAST => Precision::Fast,
                LG_PRECISION_EXACT => Precision::Exact,
                other => return Err(unknown("precision", other)),
            },
            logits_rows: self.logits_rows,
            max_bytes: usize::try_from(self.max_bytes).unwrap_or(usize::MAX),
        })
    }
}

/// Told how much of a long call is done: tokens of a prompt after each of its chunks, bytes of a model's file.
///
/// Called in the thread of the running call, which goes on when it returns; to stop the call, set its cancel object. It
/// must return: no exception and no longjmp may leave it. A session that is at work is in use meanwhile.
pub type lg_progress = Option<unsafe extern "C" fn(user: *mut c_void, n_done: usize, n_total: usize)>;

/// Opens an empty session. Allocates all memory that it will ever need: what `lg_model_plan` says.
///
/// `params` may be NULL: all defaults. `*out` is the caller's and is freed by `lg_session_free`; the model may be freed
/// before.
///
/// Errors: `LG_ERR_INVALID`, also for a model that was opened with `vocab_only`; `LG_ERR_OUT_OF_MEMORY`, also for more
/// than `max_bytes`; `LG_ERR_DEVICE`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_new(
    model: *const lg_model,
    params: *const lg_session_params,
    out: *mut *mut lg_session,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, out) = unsafe { (reference(model, "model")?, output(out, "out")?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_session_params") }?.checked()?;
        let session = Exclusive::new(Session::new(&model.model, &params)?);
        out.write(into_handle(lg_session { session }));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_new", error, body) }
}

/// Frees a session. NULL does nothing.
///
/// # Safety
/// The caller must not use the session or its logits any more, in no thread and in no running call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_free(session: *mut lg_session) {
    // SAFETY: the caller's word.
    unsafe { free(session) }
}

/// Appends `n_tokens` tokens, at least one, and computes the logits behind the last.
///
/// They are processed in chunks, and a chunk counts as a whole or not at all: after an error the session holds the
/// chunks that had finished, `lg_session_position` says how far, and the call may go on from there. `cancel` may be
/// NULL. `progress` may be NULL; `user` is handed to it.
///
/// Errors: `LG_ERR_INVALID` for no tokens or one beyond the vocabulary and `LG_ERR_CONTEXT_FULL` if they do not all fit,
/// both before anything is computed; `LG_ERR_CANCELLED`; `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and a `progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_prefill(
    session: *mut lg_session,
    tokens: *const u32,
    n_tokens: usize,
    cancel: *const lg_cancel,
    progress: lg_progress,
    user: *mut c_void,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, tokens) =
            unsafe { (reference(session, "session")?, slice(tokens, n_tokens, "tokens")?) };
        // SAFETY: as above.
        let cancel = unsafe { flag(cancel) }?;
        let mut tell = |n_done, n_tokens| {
            if let Some(progress) = progress {
                // SAFETY: the caller's word.
                unsafe { progress(user, n_done, n_tokens) };
            }
        };
        session.with(|session| session.prefill(tokens, &cancel, &mut tell))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_prefill", error, body) }
}

/// Appends one token and computes the logits behind it. `cancel` may be NULL. After an error the session stands where it
/// stood.
///
/// Errors: those of `lg_session_prefill`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_decode(
    session: *mut lg_session,
    token: u32,
    cancel: *const lg_cancel,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, cancel) = unsafe { (reference(session, "session")?, flag(cancel)?) };
        session.with(|session| session.decode(token, &cancel))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_decode", error, body) }
}

/// The logits behind the session's last token: `*n_logits` floats, one per token of the vocabulary.
///
/// They are not copied, since a vocabulary can have half a megabyte of them per token: `*logits` points into the session,
/// must not be written to, and is valid until the session is next appended to, rewound or freed.
///
/// Errors: `LG_ERR_INVALID` if nothing was computed behind the last token: the session is empty, was rewound, or
/// `lg_session_prefill` stopped between two chunks; `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
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

/// Number of tokens that the session holds, which is the position of the next one. 0 for NULL, and while another call
/// runs in the session.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_position(session: *const lg_session) -> usize {
    // SAFETY: the caller's word.
    guard_or(0, || unsafe { reference(session, "session") }?.with(|session| Ok(session.tokens().len())))
}

/// Longest context of the session in tokens. 0 for NULL, and while another call runs in the session.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_n_ctx(session: *const lg_session) -> u32 {
    // SAFETY: the caller's word.
    guard_or(0, || unsafe { reference(session, "session") }?.with(|session| Ok(session.n_ctx())))
}

/// Goes back to the first `n_tokens` tokens and forgets the others.
///
/// Layers that keep a part of the context cannot go back to where they have given up what they need. Then the session
/// becomes empty instead: `*n_kept` is how many tokens it holds afterwards, `n_tokens` or 0, and the caller appends the
/// missing ones again. Going back to one cache block, at least 16 tokens, behind the furthest token so far always works.
/// There are no logits until something is appended, unless `n_tokens` is where the session stood.
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
