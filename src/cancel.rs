//! What stops a long call: a flag, from any thread, and whoever is told how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Told how much of a long call is done, and how much there is in all. True goes on; false stops the call with `Cancelled`, as
/// a [`Cancel`] would that is set at that moment, and also after the last part: what is done stays done.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Looks that are left while nobody has asked to stop.
const NEVER: u64 = u64::MAX;

/// Asks a running call to stop. Clones share the flag; setting it is safe from any thread and in a signal handler.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// How often the flag may still be looked at before it counts as set.
    looks_left: Arc<AtomicU64>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self::after(NEVER)
    }
}

impl Cancel {
    /// A flag that is set once it has been looked at `n_looks` times: with one number after the other, a test stops a
    /// call at every moment at which it can be stopped.
    pub fn after(n_looks: u64) -> Self {
        Self { looks_left: Arc::new(AtomicU64::new(n_looks)) }
    }

    /// Asks whatever looks at this flag to stop soon.
    pub fn cancel(&self) {
        self.looks_left.store(0, Ordering::Relaxed);
    }

    /// Makes the flag usable for the next call.
    pub fn reset(&self) {
        self.looks_left.store(NEVER, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop, or this flag has been looked at often enough.
    pub fn is_cancelled(&self) -> bool {
        let one_less = |left: u64| if left == NEVER { Some(NEVER) } else { left.checked_sub(1) };
        self.looks_left.load(Ordering::Relaxed) != NEVER
            && self.looks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err()
    }

    /// `Ok` unless somebody asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        go_on(!self.is_cancelled())
    }
}

/// `Ok` if the caller says that a call goes on.
pub(crate) fn go_on(goes_on: bool) -> Result<()> {
    match goes_on {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "stopped at the caller's request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_set_once_it_was_looked_at_often_enough() {
        let cancel = Cancel::after(2);
        let clone = cancel.clone();
        assert_eq!([&cancel, &clone, &cancel, &clone].map(Cancel::is_cancelled), [false, false, true, true]);
        cancel.reset();
        assert!((0..1000).all(|_| !clone.is_cancelled()));
        clone.cancel();
        assert!(cancel.is_cancelled() && cancel.check().is_err());
        assert!(Cancel::after(0).is_cancelled());
    }
}
