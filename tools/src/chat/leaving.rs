//! What happens to a chat when the process is ended from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use anyhow::Result;
use longgen::Cancel;

use super::Chat;
use crate::output::tell;
use crate::signals::cancel_on_interrupt;

/// How long a request to terminate waits for an answer to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A chat of two threads: one has it, the other keeps it when a signal ends the process.
#[derive(Clone)]
pub struct Shared {
    chat: Arc<Mutex<Chat>>,
    /// Stops what is computed.
    pub cancel: Cancel,
    is_left: Arc<AtomicBool>,
}

impl Shared {
    /// From now on Ctrl-C stops what is computed, and a request to terminate keeps the chat first.
    ///
    /// # Errors
    /// The system gives no handler.
    pub fn new(chat: Chat) -> Result<Self> {
        let chat = Arc::new(Mutex::new(chat));
        let shared = Self { chat, cancel: Cancel::default(), is_left: Arc::default() };
        let signalled = shared.clone();
        cancel_on_interrupt(&shared.cancel, move || signalled.leave_now())?;
        Ok(shared)
    }

    /// The chat; after a panic as it is. Nobody waits for a person while holding it.
    pub fn lock(&self) -> MutexGuard<'_, Chat> {
        self.chat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process is being ended from outside: no further message is read then.
    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::SeqCst)
    }

    /// Keeps everything.
    ///
    /// # Errors
    /// Those of the file system, and a session that cannot be saved.
    pub fn leave(&self) -> Result<()> {
        self.cancel.reset();
        let result = self.lock().leave(&self.cancel);
        while self.is_left() {
            // The signal's thread keeps everything and ends the process.
            std::thread::park();
        }
        result
    }

    /// Keeps everything before the process is ended from outside, if the answer that is running can be stopped: where the
    /// terminal takes no more of it, it cannot.
    fn leave_now(&self) {
        self.is_left.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let mut chat = loop {
            // Again and again: an answer that begins takes back what was asked before.
            self.cancel.cancel();
            match self.chat.try_lock() {
                Ok(chat) => break chat,
                Err(TryLockError::Poisoned(chat)) => break chat.into_inner(),
                Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => return,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if let Err(error) = chat.leave(&Cancel::default()) {
            tell(format!("lgrun: {error:#}"));
        }
    }
}
