//! Sessions that go on from where another one stands.

use super::guard::guard;
use super::params;
use super::pointer::{output, reference};
use super::session::{lg_session, lg_session_params};
use super::status::{lg_error, lg_status};

/// Makes another session that holds the same tokens and goes on by itself: nothing is computed again, and layers that see all
/// of the context share what is there of it. So many answers to one prompt cost one prompt. The fork has the logits behind
/// the last token, and the restore points; its counters are 0.
///
/// What is shared stays as long as any of the sessions, which may be freed in any order. It is what the session held when it
/// was forked first: a fork of a fork shares that, and gets a copy of what was appended since. A session that goes back into
/// what it shares needs memory of its own for what comes instead; the call that appends it takes that, unless the others are
/// gone.
///
/// `params` may be NULL. 0 in it means what this session has; `kv_type` and `precision` cannot be others than its own. With
/// `max_bytes` a fork that takes more is refused. `lg_session_n_bytes` of the fork is all that it took, also for this session
/// to share what it holds. `*out` is the caller's and is freed by `lg_session_free`.
///
/// Errors: `LG_ERR_INVALID`; `LG_ERR_CONTEXT_FULL` for a context of fewer tokens than there are; `LG_ERR_OUT_OF_MEMORY`, also
/// for more than `max_bytes`; `LG_ERR_DEVICE`, `LG_ERR_POISONED`. The session is as it was then.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_session_fork(
    session: *mut lg_session,
    params: *const lg_session_params,
    out: *mut *mut lg_session,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (session, out) = unsafe { (reference(session, "session")?, output(out, "out")?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_session_params") }?.checked()?;
        out.write(lg_session::handle(session.with(|session| session.fork(&params))?)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_session_fork", error, body) }
}
