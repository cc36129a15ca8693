//! `lg_cancel`.

use super::guard::guard;
use super::pointer::{self, free, into_handle, output, reference};
use super::status::{lg_error, lg_status};
use crate::cancel::Cancel;
use crate::error::Result;

/// Stops a long call. One object may serve several calls, at once or one after the other.
///
/// Threads: any thread may set and reset it while others use it.
pub struct lg_cancel(Cancel);

/// Makes a cancel object that is not set. `lg_cancel_free` frees it.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_OUT_OF_MEMORY`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_cancel_new(out: *mut *mut lg_cancel, error: *mut lg_error) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let out = unsafe { output(out, "out") }?;
        out.write(into_handle(lg_cancel(Cancel::default()))?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_cancel_new", error, body) }
}

/// Asks the calls that were given this object to stop soon: with `LG_ERR_CANCELLED`, but for an answer of
/// `lg_session_generate` that has begun, which ends. Calls that come later stop at once, until `lg_cancel_reset`. NULL does
/// nothing. A signal handler may call it.
///
/// # Safety
/// The caller must not free the object before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_cancel_set(cancel: *mut lg_cancel) {
    // Without the guard, whose thread locals are not for signal handlers: one atomic store does not panic.
    // SAFETY: the caller's word.
    if let Ok(cancel) = unsafe { reference(cancel, "cancel") } {
        cancel.0.cancel();
    }
}

/// Makes the object usable for the next call. NULL does nothing.
///
/// # Safety
/// The caller must not free the object before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_cancel_reset(cancel: *mut lg_cancel) {
    // SAFETY: the caller's word.
    unsafe {
        pointer::get(cancel, (), |cancel| {
            cancel.0.reset();
            Ok(())
        });
    }
}

/// Frees a cancel object. NULL does nothing.
///
/// # Safety
/// The caller must not use the object any more, in no thread and in no running call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_cancel_free(cancel: *mut lg_cancel) {
    // SAFETY: the caller's word.
    unsafe { free(cancel) }
}

/// What a cancel object shares; NULL stands for one that is never set.
///
/// # Safety
/// As for [`reference`].
pub(super) unsafe fn get(cancel: *const lg_cancel) -> Result<Cancel> {
    if cancel.is_null() {
        return Ok(Cancel::default());
    }
    // SAFETY: the caller's word.
    Ok(unsafe { reference(cancel, "cancel") }?.0.clone())
}
