//! A flag that stops a long call from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Asks a running call to stop. Clones share the flag; setting it is safe from any thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks whatever looks at this flag to stop soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Makes the flag usable for the next call.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// `Ok` unless somebody asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "stopped at the caller's request")),
        }
    }
}
