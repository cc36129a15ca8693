//! Sessions that go on from where another one stands.

use super::{MemoryPlan, Session, SessionParams};
use crate::alloc::try_collect;
use crate::error::{Error, ErrorKind, Result};

impl Session {
    /// Makes another session that holds the same tokens and goes on by itself: nothing is computed again, and layers that see
    /// all of the context share what is there of it. So many answers to one prompt cost one prompt. The fork has the logits
    /// behind the last token, and the restore points; its counters are 0.
    ///
    /// What is shared stays as long as any of the sessions, in whatever order they go. It is what the session held when it
    /// was forked first: a fork of a fork shares that, and gets a copy of what was appended since. A session that goes back
    /// into what it shares needs memory of its own for what comes instead; the call that appends it takes that, unless the
    /// others are gone.
    ///
    /// 0 in `params` means what this session has, the longest context too. The type of the cache and the precision cannot
    /// be others than its own. Restore points of a fork are within its `restore_bytes`, in which what it shares counts; where
    /// the fork has so much more or less context that other heads than here give up blocks, it begins with none.
    ///
    /// # Errors
    /// `Invalid`; `ContextFull` for a context of fewer tokens than there are; `OutOfMemory`, also for more than
    /// [`max_bytes`](SessionParams::max_bytes); `Device`. The session is as it was then.
    pub fn fork(&mut self, params: &SessionParams) -> Result<Self> {
        let plan = self.fork_plan(params)?;
        let tokens = try_collect(self.tokens.iter().copied())?;
        let sequence = self.sequence.fork(params).map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => {
                let needed = plan.total_bytes();
                Error::new(error.kind(), format!("the fork needs {needed} bytes: {error}"))
            }
            _ => error,
        })?;
        let fork = Self::empty(&self.model, sequence, &plan);
        Ok(Self { tokens, has_logits: self.has_logits, ..fork })
    }

    /// The exact memory that [`fork`](Self::fork) would take now with these parameters; allocates nothing. What it takes in
    /// this session, to share what is there, is [`parent_bytes`](MemoryPlan::parent_bytes).
    ///
    /// # Errors
    /// Those of [`fork`](Self::fork).
    pub fn fork_plan(&self, params: &SessionParams) -> Result<MemoryPlan> {
        let plan = self.sequence.fork_plan(params)?;
        let (needed, most, n_ctx) = (plan.total_bytes(), params.max_bytes, plan.n_ctx);
        match most > 0 && needed > most {
            true => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("a fork with a context of {n_ctx} tokens needs {needed} bytes, max_bytes is {most}"),
            )),
            false => Ok(plan),
        }
    }
}
