//! A terminal, and a person who types when they see what they wait for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

/// A program that prints nothing for so long will not print what is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };

/// The key that brings back the line before.
pub const UP: &str = "\x1b[A";
/// Ctrl-C.
pub const INTERRUPT: &str = "\x03";

/// Both ends of a terminal: the person's and the program's.
pub fn ends() -> (File, OwnedFd) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let keyboard = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    (File::from(terminal), keyboard)
}

/// A program that has a terminal to itself.
pub struct Terminal {
    terminal: File,
    program: Child,
    printed: Vec<u8>,
    /// Bytes of the plain text that were waited for already.
    n_seen: usize,
}

impl Terminal {
    /// Starts a program with a new terminal as its input and output.
    pub fn start(program: &str, args: &[&str]) -> Self {
        let (terminal, end) = ends();
        let end = || Stdio::from(end.try_clone().unwrap());
        // Ctrl-C reaches the programs whose controlling terminal it is typed at.
        let mut command = Command::new("setsid");
        command.args(["--ctty", program]).args(args).env("TERM", "xterm");
        let program = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { terminal, program, printed: Vec::new(), n_seen: 0 }
    }

    /// Presses keys, whether or not the program waits for them.
    pub fn press(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is printed, and returns what is printed before it and was not waited for yet.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let plain = plain(&self.printed);
            if let Some(n) = plain[self.n_seen..].find(text) {
                let begin = self.n_seen;
                self.n_seen += n + text.len();
                return plain[begin..begin + n].to_owned();
            }
            let mut ready = [PollFd::new(&self.terminal, PollFlags::IN)];
            let n_ready = poll(&mut ready, Some(&PATIENCE)).unwrap();
            let mut bytes = [0; 4096];
            let n = if n_ready == 0 { 0 } else { self.terminal.read(&mut bytes).unwrap_or(0) };
            assert!(n > 0, "{text:?} is not printed after {:?}", &plain[self.n_seen..]);
            self.printed.extend_from_slice(&bytes[..n]);
        }
    }

    /// Types a line at the prompt and returns all that is printed until the next prompt.
    pub fn enter(&mut self, line: &str) -> String {
        self.press(line);
        self.press("\r");
        self.wait_for("\n");
        self.wait_for("\n> ")
    }

    /// Whether the program, which should end by itself, has succeeded.
    pub fn succeeds(mut self) -> bool {
        self.program.wait().unwrap().success()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended already is what a test wants.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Text without what moves the cursor: carriage returns and control sequences.
fn plain(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default();
    let rest =
        parts.map(|part| part.split_once(|c: char| ('@'..='~').contains(&c)).map_or("", |(_, rest)| rest));
    std::iter::once(first).chain(rest).collect::<String>().replace('\r', "")
}
