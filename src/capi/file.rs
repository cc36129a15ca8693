//! Sessions in files.

use std::ffi::{c_char, c_void};

use super::cancel::{self, lg_cancel};
use super::guard::guard;
use super::model::lg_model;
use super::params;
use super::pointer::{output, path, reference};
use super::session::{lg_on_progress, lg_session, lg_session_params, teller};
use super::status::{lg_error, lg_status};
use crate::session::Session;

/// Writes the session to a file, from which `lg_session_load` makes one that goes on as this one would. The file has the
/// tokens, and the keys and values that layers have not given up; restore points and logits are not in it. Its owner alone
/// can read it: all that was said in the session is in it.
///
/// `path` ends with a zero byte; its bytes go to the operating system as they are. `on_progress` is told bytes. A file that is
/// there is replaced when the new one is complete and on the disk, by a rename. Whatever fails leaves it as it was; only a
/// process that is killed leaves a temporary file beside it, ".longgen-*.tmp".
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_NOT_FOUND`, `LG_ERR_IO`, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_CANCELLED`,
/// `LG_ERR_POISONED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and an `on_progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_save(
    session: *const lg_session,
    path: *const c_char,
    on_progress: lg_on_progress,
    user: *mut c_void,
    cancel: *const lg_cancel,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, path) = unsafe { (reference(session, "session")?, self::path(path)?) };
        // SAFETY: as above.
        let cancel = unsafe { cancel::get(cancel) }?;
        // SAFETY: as above.
        let mut tell = unsafe { teller(on_progress, user) };
        session.with(|session| session.save(path, &cancel, &mut tell))
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_save", error, body) }
}

/// Opens a session with what `lg_session_save` has written, on any device. The model must be of the same file and attend to
/// the same, and `kv_type` must be the same; everything else may differ, such as the length of the context, as long as the
/// tokens fit.
///
/// `path` ends with a zero byte; its bytes go to the operating system as they are. `params` may be NULL: all defaults.
/// `on_progress` is told bytes. `*out` is the caller's and is freed by `lg_session_free`; the model may be freed before. There
/// are no logits before something was appended: `lg_session_prompt` computes no more than what is new. The session goes back
/// as far as the one that was saved could without its restore points.
///
/// Errors: those of `lg_session_new`; `LG_ERR_NOT_FOUND`, `LG_ERR_IO`; `LG_ERR_FORMAT` for a file that is damaged,
/// `LG_ERR_UNSUPPORTED` for one of another version, `LG_ERR_INVALID` also for one that does not go with the model or the
/// parameters, `LG_ERR_CONTEXT_FULL` for one with more tokens than the context; `LG_ERR_CANCELLED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and an `on_progress` that keeps its promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_load(
    model: *const lg_model,
    path: *const c_char,
    params: *const lg_session_params,
    on_progress: lg_on_progress,
    user: *mut c_void,
    cancel: *const lg_cancel,
    out: *mut *mut lg_session,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, path) = unsafe { (reference(model, "model")?, self::path(path)?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_session_params") }?.checked()?;
        // SAFETY: as above.
        let (cancel, out) = unsafe { (cancel::get(cancel)?, output(out, "out")?) };
        // SAFETY: as above.
        let mut tell = unsafe { teller(on_progress, user) };
        let session = Session::load(&model.model, path, &params, &cancel, &mut tell)?;
        out.write(lg_session::handle(session)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_load", error, body) }
}
