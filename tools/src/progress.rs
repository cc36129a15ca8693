//! Long work, as a terminal shows it.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work that is done sooner is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// A bar on standard error, which appears if work takes longer than a moment and goes away with it. Where standard error
/// is no terminal, nothing appears.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// A bar as indicatif's `template` describes it.
    pub fn new(template: &str) -> Self {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = if stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        Self { bar: bar.with_style(style), started: Instant::now() }
    }

    /// `done` of `all` is done.
    pub fn show(&self, done: usize, all: usize) {
        if done >= all {
            self.bar.finish_and_clear();
        } else if self.started.elapsed() >= PATIENCE {
            self.bar.set_length(all as u64);
            self.bar.set_position(done as u64);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
