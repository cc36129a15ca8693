//! Prompts that are given as a whole, and what a session can go back to.

use std::ffi::c_void;

use super::cancel::{self, lg_cancel};
use super::guard::guard;
use super::params::{Results, ResultsOut};
use super::pointer::{Buffer, get, reference, slice};
use super::session::{lg_on_progress, lg_session, teller};
use super::status::{lg_error, lg_status};
use super::stream::{LG_INDEX_NONE, index};
use crate::session::Prompted;

/// What `lg_session_prompt` has found in the session, and done.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_prompt_result {
    /// Set by the caller: `sizeof(lg_prompt_result)`.
    pub struct_size: usize,
    /// Tokens at the beginning of the prompt that the session held.
    pub n_common: usize,
    /// Those of them that were kept. One that ends the prompt is computed again if its logits are not there.
    pub n_reused: usize,
    /// Tokens that were computed.
    pub n_computed: usize,
    /// How many layers had given up what they needed, where fewer tokens were kept than could have been.
    pub n_limiting_layers: u32,
    /// The first of them, or `LG_INDEX_NONE`.
    pub limiting_layer: u32,
}

// SAFETY: repr(C), begins with its size, and without padding: 4 * 8 + 2 * 4 bytes.
unsafe impl Results for lg_prompt_result {
    const FIRST_SIZE: usize = 40;
}

impl From<&Prompted> for lg_prompt_result {
    fn from(did: &Prompted) -> Self {
        Self {
            struct_size: 0,
            n_common: did.n_common,
            n_reused: did.n_reused,
            n_computed: did.n_computed,
            n_limiting_layers: u32::try_from(did.limiting_layers.len()).unwrap_or(LG_INDEX_NONE),
            limiting_layer: index(did.limiting_layers.first().copied()),
        }
    }
}

/// Makes the session hold `n_tokens` tokens, at least one, and nothing else, and computes the logits behind the last one:
/// what it holds already from the beginning on is kept as far as it can be gone back to, as `lg_session_rewind` does, and
/// the rest is computed as `lg_session_prefill` does. Every prompt of a conversation can so be given as a whole, and
/// `lg_session_generate` without tokens answers it. The logits are those of a session that has computed everything: on the
/// processor to the bit.
///
/// Errors: those of `lg_session_prefill`, for all of the tokens; what could be kept stays then.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and an `on_progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_prompt(
    session: *mut lg_session,
    tokens: *const u32,
    n_tokens: usize,
    on_progress: lg_on_progress,
    user: *mut c_void,
    cancel: *const lg_cancel,
    out: *mut lg_prompt_result,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, tokens) =
            unsafe { (reference(session, "session")?, slice(tokens, n_tokens, "tokens")?) };
        // SAFETY: as above.
        let (cancel, out) = unsafe { (cancel::get(cancel)?, ResultsOut::new(out, "lg_prompt_result")?) };
        // SAFETY: as above.
        let mut tell = unsafe { teller(on_progress, user) };
        let did = session.with(|session| session.prompt(tokens, &cancel, &mut tell))?;
        out.write(&lg_prompt_result::from(&did));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_prompt", error, body) }
}

/// Positions, rising, that the session can go back to although layers have given up a part of the context since.
///
/// `positions` has room for `cap` numbers; `*n_positions` is how many there are.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_TOO_SMALL`, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_BUSY`, `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_restore_points(
    session: *const lg_session,
    positions: *mut usize,
    cap: usize,
    n_positions: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let session = unsafe { reference(session, "session") }?;
        // SAFETY: as above.
        let positions = unsafe { Buffer::new(positions, cap, n_positions, ["positions", "n_positions"]) }?;
        positions.fill(&session.with(|session| session.restore_points())?)
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_restore_points", error, body) }
}

/// Bytes of the host's memory that the session's restore points hold now. 0 for NULL, while another call runs in the
/// session, and after `LG_ERR_INTERNAL`.
///
/// # Safety
/// The caller must not free the session before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_restore_bytes(session: *const lg_session) -> u64 {
    // SAFETY: the caller's word.
    unsafe { get(session, 0, |session| session.with(|session| Ok(session.restore_bytes() as u64))) }
}
