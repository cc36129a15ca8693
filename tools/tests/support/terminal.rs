//! A terminal, and a person who types when they see what they wait for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// A program that prints nothing for so long will not print what is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };

/// The key that brings back the line before.
pub const UP: &str = "\x1b[A";
/// Ctrl-C.
pub const INTERRUPT: &str = "\x03";

/// Characters of a line.
const WIDTH: usize = 80;

/// Both ends of a terminal: the person's and the program's.
pub fn ends() -> (File, OwnedFd) {
    // No other program of this process may keep a terminal that is to vanish.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let keyboard = ioctl_tiocgptpeer(&terminal, flags).unwrap();
    // Ctrl-C would throw away what is printed and not read yet.
    let mut modes = tcgetattr(&keyboard).unwrap();
    modes.local_modes.insert(LocalModes::NOFLSH);
    tcsetattr(&keyboard, OptionalActions::Now, &modes).unwrap();
    (File::from(terminal), keyboard)
}

/// A program that has a terminal to itself.
pub struct Terminal {
    terminal: File,
    program: Child,
    /// Before the program came.
    modes: String,
    printed: Vec<u8>,
    /// Bytes of the plain text that were waited for already.
    n_seen: usize,
}

impl Terminal {
    /// Starts a program with a new terminal as its input and output.
    pub fn start(program: &str, args: &[&str]) -> Self {
        Self::start_with(program, args, &[])
    }

    /// The same with these variables in its environment, and without an editor of the person's.
    pub fn start_with(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let (terminal, end) = ends();
        let modes = modes(&terminal);
        let end = || Stdio::from(end.try_clone().unwrap());
        // Ctrl-C reaches the programs whose controlling terminal it is typed at.
        let mut command = Command::new("setsid");
        command.args(["--ctty", program]).args(args).env("TERM", "xterm");
        command.env_remove("VISUAL").env_remove("EDITOR").envs(variables.iter().copied());
        let program = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { terminal, program, modes, printed: Vec::new(), n_seen: 0 }
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

    /// Asks the program to terminate, which must end by that and leave the terminal as it was.
    pub fn terminate(self) {
        self.end_by(Signal::TERM);
    }

    /// The same with any signal that asks for it.
    pub fn end_by(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.program), signal).unwrap();
        assert_eq!(self.program.wait().unwrap().signal(), Some(signal.as_raw()));
        assert_eq!(modes(&self.terminal), self.modes);
    }

    /// Takes the terminal away, as a window that is closed does, and waits until the program has ended.
    pub fn vanish(mut self) {
        self.terminal = File::open("/dev/null").unwrap();
        self.program.wait().unwrap();
    }

    /// What a person sees: the lines on the screen, as far as everything was read.
    pub fn screen(&self) -> Vec<String> {
        screen(&self.printed)
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

/// How a terminal treats keys, and what it shows of them.
fn modes(terminal: &File) -> String {
    let modes = tcgetattr(terminal).unwrap();
    format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
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

/// The lines that are left when all this was printed. It knows what bars and prompts are made of.
fn screen(printed: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(printed);
    let (mut lines, mut row, mut column) = (Vec::<Vec<char>>::new(), 0, 0);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        lines.resize(lines.len().max(row + 1), Vec::new());
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                let mut sequence = String::new();
                while !sequence.ends_with(|c: char| c.is_ascii_alphabetic()) {
                    sequence.extend(chars.next());
                }
                let n = sequence.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(1);
                match sequence.chars().last() {
                    Some('A') => row -= n,
                    Some('B') => row += n,
                    Some('C') => column += n,
                    Some('D') => column -= n,
                    Some('K') if sequence == "[2K" => lines[row].clear(),
                    Some('K') => lines[row].truncate(column),
                    _ => {}
                }
            }
            c => {
                // Behind the last column the line goes on below, once there is something to show there.
                if column == WIDTH {
                    (row, column) = (row + 1, 0);
                    lines.resize(lines.len().max(row + 1), Vec::new());
                }
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
    }
    lines.into_iter().map(|line| String::from_iter(line).trim_end().to_owned()).collect()
}
