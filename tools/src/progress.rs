//! Long work, as a terminal shows it.

use std::io;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// Work that is done sooner is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often a bar is drawn in a second, at most.
const DRAWN_PER_SECOND: u8 = 20;

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
        let terminal = Term::buffered_stderr();
        let target = match terminal.is_term() {
            true => ProgressDrawTarget::term_like_with_hz(Box::new(Unfilled(terminal)), DRAWN_PER_SECOND),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        Self { bar: bar.with_style(style), started: Instant::now() }
    }

    /// That of a prompt, in tokens.
    pub fn prompt() -> Self {
        Self::new("reading {pos} of {len} tokens, {per_sec:1}, {eta} left")
    }

    /// That of a file that is read or written, in bytes; `verb` says which.
    pub fn file(verb: &str) -> Self {
        Self::new(&format!("{verb} {{bar:40}} {{bytes}} of {{total_bytes}}, {{bytes_per_sec}}"))
    }

    /// `done` of `all` is done. True: it goes on.
    pub fn show(&self, done: usize, all: usize) -> bool {
        if done >= all {
            self.bar.finish_and_clear();
        } else if self.started.elapsed() >= PATIENCE {
            self.bar.set_length(all as u64);
            self.bar.set_position(done as u64);
        }
        true
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A terminal whose lines end where their text ends. Bars are filled up with spaces to the right end of their line: what
/// a key shows, like the `^C` of Ctrl-C, would stand on the next one, and that one would be cleared instead of the bar.
#[derive(Debug)]
struct Unfilled(Term);

impl TermLike for Unfilled {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text.trim_end_matches(' '))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}
