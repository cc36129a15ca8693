//! The wall between C and panics.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use super::status::{ErrorOut, lg_error, lg_status};
use crate::error::Result;

/// Runs the body of the exported function called `function` and reports how it ended: an error as its kind, a panic as
/// `LG_ERR_INTERNAL`.
///
/// # Safety
/// `error` is NULL or points to an [`lg_error`] that nobody else uses during the call.
pub(super) unsafe fn guard(
    function: &str,
    error: *mut lg_error,
    body: impl FnOnce() -> Result<()>,
) -> lg_status {
    // SAFETY: as the caller says.
    let Some(out) = (unsafe { ErrorOut::new(error) }) else {
        return lg_status::LG_ERR_INVALID;
    };
    match catch(body) {
        Ok(Ok(())) => lg_status::LG_OK,
        Ok(Err(error)) => {
            let status = error.kind().into();
            out.write(status, &error.to_string(), function);
            status
        }
        Err(panic) => {
            let place = format!("{function}, {}", panic.location);
            out.write(lg_status::LG_ERR_INTERNAL, &panic.message, &place);
            lg_status::LG_ERR_INTERNAL
        }
    }
}

/// The same for functions that cannot report: what `body` returns, or `fallback` if it panics or fails.
pub(super) fn guard_or<T>(fallback: T, body: impl FnOnce() -> Result<T>) -> T {
    match catch(body) {
        Ok(Ok(value)) => value,
        Ok(Err(_)) | Err(_) => fallback,
    }
}

/// What a panic said, and where in the source.
struct Panic {
    message: String,
    location: String,
}

thread_local! {
    /// Whether this thread is inside of a guard, where panics are reported and not printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
}

fn catch<T>(body: impl FnOnce() -> T) -> Result<T, Panic> {
    keep_panics_quiet();
    let outer = GUARDED.replace(true);
    // What a panic could leave half done is behind `Exclusive`, which gives it to nobody afterwards; a model is immutable.
    let result = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
    result.map_err(|payload| Panic { message: message(&*payload), location: LOCATION.take() })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic").to_owned()
}

/// Takes the report of a panic away from the standard error of the host process, on guarded threads and on the library's
/// own. Other threads exist where the library is part of a Rust program: those keep the hook that they had.
fn keep_panics_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            let is_worker = || std::thread::current().name().is_some_and(|name| name.starts_with("longgen"));
            if GUARDED.get() {
                LOCATION.set(info.location().map(ToString::to_string).unwrap_or_default());
            } else if !is_worker() {
                previous(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::ffi::{CStr, c_char};

    fn text(bytes: &[c_char]) -> &str {
        // SAFETY: the texts of an error end with a zero byte within their array.
        unsafe { CStr::from_ptr(bytes.as_ptr()) }.to_str().unwrap()
    }

    fn run(body: impl FnOnce() -> Result<()>) -> (lg_status, lg_error) {
        let mut error =
            lg_error { struct_size: size_of::<lg_error>(), code: 77, message: [1; 512], r#where: [1; 124] };
        // SAFETY: `error` is a local.
        let status = unsafe { guard("lg_test", &raw mut error, body) };
        (status, error)
    }

    #[test]
    fn a_panic_becomes_an_internal_error_that_says_what_and_where() {
        let (status, error) = run(|| panic!("slot {} is taken", 3));
        assert_eq!((status, error.code), (lg_status::LG_ERR_INTERNAL, 11));
        assert_eq!(text(&error.message), "slot 3 is taken");
        let place = text(&error.r#where);
        assert!(place.starts_with("lg_test, src/capi/guard.rs:"), "{place}");
        assert_eq!(guard_or(5, || panic!("of a getter")), 5);
    }

    #[test]
    fn an_error_is_reported_and_success_leaves_the_object_alone() {
        let (status, error) = run(|| Err(Error::format("byte 7")));
        assert_eq!((status, error.code), (lg_status::LG_ERR_FORMAT, 4));
        assert_eq!((text(&error.message), text(&error.r#where)), ("byte 7", "lg_test"));
        let (status, error) = run(|| Ok(()));
        assert_eq!((status, error.code, error.message[0]), (lg_status::LG_OK, 77, 1));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let (_, error) = run(|| Err(Error::invalid("é".repeat(1000))));
        assert_eq!(text(&error.message), "é".repeat(255));
    }

    #[test]
    fn an_error_object_that_is_too_small_is_refused_before_anything_happens() {
        let mut error = lg_error { struct_size: 16, code: 77, message: [1; 512], r#where: [1; 124] };
        // SAFETY: `error` is a local.
        let status = unsafe { guard("lg_test", &raw mut error, || panic!("must not run")) };
        assert_eq!((status, error.code), (lg_status::LG_ERR_INVALID, 77));
        // SAFETY: NULL is allowed.
        let status = unsafe { guard("lg_test", std::ptr::null_mut(), || Err(Error::invalid("unheard"))) };
        assert_eq!(status, lg_status::LG_ERR_INVALID);
    }
}
