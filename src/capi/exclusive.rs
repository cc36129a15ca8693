//! Objects with one caller at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::error::{Error, ErrorKind, Result};

/// A value that one call at a time may use, and none after a call that ended in a bug of ours.
///
/// A second caller is an error of the host program; it is told so instead of being made to wait, so that a callback
/// which calls back into its own session does not hang.
pub(super) struct Exclusive<T> {
    value: Mutex<T>,
    is_broken: AtomicBool,
}

impl<T> Exclusive<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), is_broken: AtomicBool::new(false) }
    }

    /// Runs `body` on the value, which messages call `name`.
    ///
    /// # Errors
    /// Those of [`lock`](Self::lock) and of `body`.
    pub(super) fn with<R>(&self, name: &str, body: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut locked = self.lock(name)?;
        let result = body(&mut locked.value);
        locked.note(&result);
        result
    }

    /// Keeps other calls from the value, which messages call `name`.
    ///
    /// # Errors
    /// `Busy` while another call runs, `Poisoned` after one that panicked or returned `Internal`.
    pub(super) fn lock(&self, name: &str) -> Result<Locked<'_, T>> {
        let poisoned = || {
            Error::new(
                ErrorKind::Poisoned,
                format!("an internal error left the {name} unusable, it can only be freed"),
            )
        };
        let value = match self.value.try_lock() {
            Ok(value) => value,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Busy, format!("the {name} is in use by another call")));
            }
            Err(TryLockError::Poisoned(_)) => return Err(poisoned()),
        };
        match self.is_broken.load(Ordering::Relaxed) {
            true => Err(poisoned()),
            false => Ok(Locked { value, is_broken: &self.is_broken }),
        }
    }
}

/// The value of an [`Exclusive`] during a call.
pub(super) struct Locked<'a, T> {
    pub(super) value: MutexGuard<'a, T>,
    is_broken: &'a AtomicBool,
}

impl<T> Locked<'_, T> {
    /// How the call ended: after `Internal` the value is given to nobody any more.
    pub(super) fn note<R>(&self, result: &Result<R>) {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Internal) {
            self.is_broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::guard;
    use super::super::status::lg_status;
    use super::*;

    fn call(object: &Exclusive<u32>, body: impl FnOnce(&mut u32) -> Result<()>) -> lg_status {
        // SAFETY: no error object.
        unsafe { guard("lg_test", std::ptr::null_mut(), || object.with("session", body)) }
    }

    #[test]
    fn a_panic_poisons_the_object_for_good() {
        let object = Exclusive::new(0);
        assert_eq!(call(&object, |_| Err(Error::invalid("harmless"))), lg_status::LG_ERR_INVALID);
        assert_eq!(call(&object, |_| panic!("bug")), lg_status::LG_ERR_INTERNAL);
        for _ in 0..2 {
            assert_eq!(call(&object, |_| Ok(())), lg_status::LG_ERR_POISONED);
        }
    }

    #[test]
    fn a_panic_of_a_worker_that_comes_back_as_an_error_poisons_as_well() {
        let object = Exclusive::new(0);
        let worker_panicked =
            |_: &mut u32| Err(Error::new(ErrorKind::Internal, "a thread of the device panicked"));
        assert_eq!(call(&object, worker_panicked), lg_status::LG_ERR_INTERNAL);
        assert_eq!(call(&object, |_| Ok(())), lg_status::LG_ERR_POISONED);
    }

    #[test]
    fn a_call_from_within_a_call_is_refused_and_harms_nothing() {
        let object = Exclusive::new(7);
        let status = call(&object, |value| {
            assert_eq!(call(&object, |_| Ok(())), lg_status::LG_ERR_BUSY);
            *value += 1;
            Ok(())
        });
        assert_eq!(status, lg_status::LG_OK);
        assert_eq!(object.with("session", |value| Ok(*value)).unwrap(), 8);
    }
}
