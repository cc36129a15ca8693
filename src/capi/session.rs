//! `lg_session`: a sequence of tokens and what the model remembers of it.

use std::ffi::c_void;

use super::cancel::{self, lg_cancel};
use super::exclusive::Exclusive;
use super::guard::guard;
use super::model::lg_model;
use super::params::{self, Params, reserved, unknown};
use super::pointer::{free, into_handle, optional_floats, output, reference, slice};
use super::status::{lg_error, lg_status};
use crate::alloc::{try_collect, try_with_capacity};
use crate::backend::args::{KvType, Precision};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::session::{Session, SessionParams};

/// One sequence of tokens with its keys and values. It keeps its model alive.
///
/// Threads: one caller at a time, in any thread; a second one gets `LG_ERR_BUSY`. Sessions of one model may be used at
/// the same time. After `LG_ERR_INTERNAL` every call returns `LG_ERR_POISONED`.
pub struct lg_session {
    session: Exclusive<Session>,
    /// What never changes can be told while another call runs.
    pub(super) n_ctx: u32,
    pub(super) n_bytes: u64,
    pub(super) kv_bytes: u64,
}

impl lg_session {
    /// A handle of the session.
    pub(super) fn handle(session: Session) -> Result<*mut Self> {
        let (n_ctx, n_bytes, kv_bytes) =
            (session.n_ctx(), session.n_bytes() as u64, session.kv_bytes() as u64);
        into_handle(Self { session: Exclusive::new(session), n_ctx, n_bytes, kv_bytes })
    }

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
    /// Longest context in tokens, at most 2^30; 0 means the one that the model was trained for.
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
    /// is taken that fits, at most the one that the model was trained for: `lg_session_n_ctx` tells. What a session takes
    /// later, because it has gone back into what it shares with forks, does not count.
    pub max_bytes: u64,
    /// Most bytes of the host's memory that restore points may take, beside the session's own memory and only as they are
    /// made; they are what `lg_session_rewind` and `lg_session_prompt` go back to where layers have given up a part of
    /// the context. 0 means a tenth of what the cache takes, or what four points take if that is more. With 1 there are
    /// none. On a card such memory stays with the model, for points to come.
    pub restore_bytes: u64,
}

// SAFETY: repr(C), begins with its size, integers only, and without padding: 8 + 6 * 4 + 2 * 8 bytes.
unsafe impl Params for lg_session_params {
    const FIRST_SIZE: usize = 48;
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
            restore_bytes: usize::try_from(self.restore_bytes).unwrap_or(usize::MAX),
        })
    }
}

/// Told how much of a long call is done: tokens of a prompt after each of its chunks, bytes of a model's file. True goes on;
/// false stops the call with `LG_ERR_CANCELLED`, as a cancel object would that is set at that moment, and also after the last
/// part: what is done stays done.
///
/// A session that is at work is in use meanwhile.
pub type lg_on_progress =
    Option<unsafe extern "C" fn(user: *mut c_void, n_done: usize, n_total: usize) -> bool>;

/// Tells a caller's `on_progress`, if there is one.
///
/// # Safety
/// `on_progress` may be called with `user` as long as the result lives.
pub(super) unsafe fn teller(
    on_progress: lg_on_progress,
    user: *mut c_void,
) -> impl FnMut(usize, usize) -> bool {
    move |n_done, n_total| {
        // SAFETY: as the caller says.
        on_progress.is_none_or(|on_progress| unsafe { on_progress(user, n_done, n_total) })
    }
}

/// Opens an empty session. Allocates what `lg_model_plan` says, which is all that it needs but for its list of tokens, of 4
/// bytes each, and what calls take and give back.
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
        out.write(lg_session::handle(Session::new(&model.model, &params)?)?);
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
/// chunks that had finished, `lg_session_n_tokens` says how far, and the call may go on from there. `cancel` may be NULL.
///
/// Errors: `LG_ERR_INVALID` for no tokens or one beyond the vocabulary and `LG_ERR_CONTEXT_FULL` if they do not all fit,
/// both before anything is computed; `LG_ERR_CANCELLED`; `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and an `on_progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_prefill(
    session: *mut lg_session,
    tokens: *const u32,
    n_tokens: usize,
    on_progress: lg_on_progress,
    user: *mut c_void,
    cancel: *const lg_cancel,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, tokens) =
            unsafe { (reference(session, "session")?, slice(tokens, n_tokens, "tokens")?) };
        // SAFETY: as above.
        let cancel = unsafe { cancel::get(cancel) }?;
        // SAFETY: as above.
        let mut tell = unsafe { teller(on_progress, user) };
        session.with(|session| session.prefill(tokens, &cancel, &mut tell))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_prefill", error, body) }
}

/// Appends `n_tokens` tokens like `lg_session_prefill`, and computes what is wanted of `n_rows` of them: `rows` are their
/// numbers among `tokens`, rising.
///
/// `logits` has room for `n_rows` times as many floats as the vocabulary has tokens, and gets the logits behind each of the
/// rows. `hidden` has room for `n_rows` times the model's width, and gets the last hidden state of each: the one behind the
/// final norm, which the output matrix is multiplied with. Both may be NULL, which spares the work. There are logits for
/// `lg_session_logits` and samplers afterwards if those behind the last token were wanted.
///
/// Errors: those of `lg_session_prefill`, after which the outputs hold the rows of the chunks that had finished and
/// otherwise anything; `LG_ERR_INVALID` for rows that do not rise or are beyond the tokens.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and an `on_progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_prefill_rows(
    session: *mut lg_session,
    tokens: *const u32,
    n_tokens: usize,
    rows: *const usize,
    n_rows: usize,
    on_progress: lg_on_progress,
    user: *mut c_void,
    cancel: *const lg_cancel,
    logits: *mut f32,
    hidden: *mut f32,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, tokens) =
            unsafe { (reference(session, "session")?, slice(tokens, n_tokens, "tokens")?) };
        // SAFETY: as above.
        let (rows, cancel) = unsafe { (slice(rows, n_rows, "rows")?, cancel::get(cancel)?) };
        session.with(|session| {
            let Config { n_vocab, d_model, .. } = *session.model().config();
            // SAFETY: as above.
            let logits = unsafe { optional_floats(logits, [n_rows, n_vocab], "logits") }?;
            // SAFETY: as above.
            let hidden = unsafe { optional_floats(hidden, [n_rows, d_model], "hidden") }?;
            // SAFETY: as above.
            let mut tell = unsafe { teller(on_progress, user) };
            session.prefill_rows(tokens, rows, logits, hidden, &cancel, &mut tell)
        })
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_prefill_rows", error, body) }
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
        let (session, cancel) = unsafe { (reference(session, "session")?, cancel::get(cancel)?) };
        session.with(|session| session.decode(token, &cancel))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_decode", error, body) }
}

/// Appends one or more tokens to each of several sessions of one model, and computes the logits behind each one's last: in
/// one step, which reads the weights once. So a prompt can be computed chunk by chunk beside the tokens of others, who need
/// not wait for all of it.
///
/// `tokens` has the tokens of all sessions, one session after the other: `n_tokens[i]` of `sessions[i]`, at least one.
/// `n_tokens` may be NULL: one each. A single token counts as generated, several are a part of a prompt; parts that follow
/// each other are one prompt, of which the session can go back to where it begins and ends, as after
/// `lg_session_prefill`.
///
/// The first session lends its working memory: all tokens together are at most the `chunk_tokens` that it was opened with,
/// and those of each session at most its own. All of them have the same `kv_type` and `precision`. `cancel` may be NULL.
/// After an error all of them stand where they stood.
///
/// Errors: those of `lg_session_prefill` for any of them, and `LG_ERR_INVALID` for no sessions, one that is there twice, too
/// many tokens, and sessions that do not go together.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_step_batch(
    sessions: *const *mut lg_session,
    tokens: *const u32,
    n_tokens: *const usize,
    n_sessions: usize,
    cancel: *const lg_cancel,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let sessions = unsafe { slice(sessions, n_sessions, "sessions") }?;
        let lengths = match n_tokens.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { slice(n_tokens, n_sessions, "n_tokens") }?),
        };
        let length = |i: usize| lengths.map_or(1, |lengths| lengths[i]);
        let n_all = (0..n_sessions).map(length).fold(0, usize::saturating_add);
        // SAFETY: as above.
        let (mut tokens, cancel) = unsafe { (slice(tokens, n_all, "tokens")?, cancel::get(cancel)?) };
        let mut locked = try_with_capacity(n_sessions)?;
        for (i, session) in sessions.iter().enumerate() {
            // SAFETY: as above.
            let reference = unsafe { reference(session.cast_const(), &format!("sessions[{i}]")) }?;
            let lock =
                reference.session.lock("session").map_err(|error| match sessions[..i].contains(session) {
                    true => Error::invalid(format!("sessions[{i}] is in the batch already")),
                    false => error,
                })?;
            locked.push(lock);
        }
        let batch = locked.iter_mut().enumerate().map(|(i, session)| {
            let (own, others) = tokens.split_at(length(i));
            tokens = others;
            (&mut *session.value, own)
        });
        let result = Session::step_batch(&mut try_collect(batch)?, &cancel);
        locked.iter().for_each(|session| session.note(&result));
        result
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_step_batch", error, body) }
}
