//! How opening a model goes: what it tells, and when it stops.

use std::time::Instant;

use crate::cancel::{Cancel, OnProgress, go_on};
use crate::error::Result;
use crate::model::config::Config;
use crate::weights::WeightFile;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Good to know.
    Info,
    /// Not what was asked for, or not as good as it could be.
    Warning,
}

/// Told what is worth knowing about a model while it is opened, line by line: what it consists of, what it runs on and
/// why, how long it took.
pub type OnLog<'a> = &'a mut dyn FnMut(LogLevel, &str);

/// A model that is being opened.
pub struct Opening<'a> {
    cancel: &'a Cancel,
    on_progress: OnProgress<'a>,
    on_log: OnLog<'a>,
    begun: Instant,
    /// How often the file will be gone through, and how often it has been.
    n_passes: usize,
    n_passed: usize,
    /// What `on_progress` was told last.
    n_done: usize,
}

impl<'a> Opening<'a> {
    /// One that will go through the file `n_passes` times.
    pub fn new(n_passes: usize, cancel: &'a Cancel, on_progress: OnProgress<'a>, on_log: OnLog<'a>) -> Self {
        Self { cancel, on_progress, on_log, begun: Instant::now(), n_passes, n_passed: 0, n_done: 0 }
    }

    /// # Errors
    /// `Cancelled`.
    pub(super) fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    /// This pass has gone through `n_bytes` of the file's. What has been told is not taken back if a pass begins again, on
    /// another device.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn reach(&mut self, n_bytes: usize, file_bytes: usize) -> Result<()> {
        self.check()?;
        let n_done = self.n_passed * file_bytes + n_bytes.min(file_bytes);
        if n_done > self.n_done {
            self.n_done = n_done;
            go_on((self.on_progress)(n_done, self.n_passes * file_bytes))?;
        }
        Ok(())
    }

    /// The file has been gone through.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn pass(&mut self, file_bytes: usize) -> Result<()> {
        self.reach(file_bytes, file_bytes)?;
        self.n_passed += 1;
        Ok(())
    }

    /// Compares a file with its checksums, in one pass.
    ///
    /// # Errors
    /// `Format` naming what has changed, `Unsupported` for a file without checksums, `Cancelled`.
    pub(super) fn verify(&mut self, file: &WeightFile<'_>) -> Result<()> {
        let (mut n_bytes, file_bytes) = (0, file.bytes().len());
        file.directory.verify_until(|i| {
            n_bytes += usize::try_from(file.directory.tensors()[i].n_bytes()).unwrap_or(usize::MAX);
            self.reach(n_bytes, file_bytes)
        })?;
        self.pass(file_bytes)
    }

    pub(super) fn log(&mut self, level: LogLevel, message: &str) {
        (self.on_log)(level, message);
    }

    /// What the model consists of is known.
    pub(super) fn found(&mut self, config: &Config, file: &WeightFile<'_>) {
        let Config { architecture, n_layers, n_vocab, attention, .. } = config;
        let of_kind = |kind| match attention.iter().filter(|layer| layer.kind() == kind).count() {
            0 => None,
            n => Some(format!("{n} {kind}")),
        };
        let kinds: Vec<String> = ["full", "window", "blocks"].into_iter().filter_map(of_kind).collect();
        let layers = match n_layers {
            0 => String::new(),
            n => format!("{n} layers ({}), ", kinds.join(", ")),
        };
        let (n_params, n_bytes) = (file.n_elems(), file.n_bytes());
        let text =
            format!("{layers}{n_vocab} tokens of vocabulary, {n_params} parameters in {n_bytes} bytes");
        // Whatever a file says, it is one line.
        self.log(LogLevel::Info, &format!("{}: {text}", architecture.escape_debug()));
    }

    /// The model is there.
    pub(super) fn end(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.log(LogLevel::Info, &format!("opened in {seconds:.3} s"));
    }
}
