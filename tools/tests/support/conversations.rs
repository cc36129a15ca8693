//! Conversations in files, and what the model says in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use longgen::Device;
use serde_json::Value;
use tempfile::TempDir;

use super::program::*;
use super::terminal::Terminal;

/// The program.
pub const LGRUN: &str = env!("CARGO_BIN_EXE_lgrun");
/// Flags with which a question has one answer.
pub const EXACT: [&str; 8] = ["--temp", "0", "--kv", "f32", "--precision", "exact", "-n", "8"];
/// What is said.
pub const TEXTS: [&str; 3] =
    ["The secret code for walnut is 482913.", "The secret code for walnut is what?", "And \"that\"\\?"];

/// A folder with a conversation's file.
pub struct Place {
    /// Nothing else is in it.
    pub folder: TempDir,
    /// The conversation's.
    pub file: PathBuf,
    /// What was computed of it.
    pub session: PathBuf,
}

impl Place {
    /// Where nothing was said yet.
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("walnut.jsonl");
        let session = folder.path().join("walnut.jsonl.kv");
        Self { folder, file, session }
    }

    /// Where these messages were said, and computed by a process that has ended.
    pub fn with(texts: &[&str]) -> Self {
        let place = Self::new();
        for text in texts {
            printed(&place.ask(text, &[]));
        }
        place
    }

    /// Flags to go on with it.
    pub fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["-m", chatty(), "--session", str(&self.file), "--stats"], &EXACT[..], args].concat()
    }

    /// One question in a process of its own.
    pub fn ask(&self, text: &str, args: &[&str]) -> Output {
        run(LGRUN, &[&self.args(args)[..], &["-p", text]].concat())
    }

    /// A chat at a terminal, and what it greets with.
    pub fn chat(&self) -> (Terminal, String) {
        let mut terminal = Terminal::start(LGRUN, &self.args(&[]));
        let greeting = terminal.wait_for("\n> ");
        (terminal, greeting)
    }

    /// What the file holds.
    pub fn messages(&self) -> Vec<(String, String)> {
        messages(&self.file)
    }

    /// The messages are these, and nothing else lies about.
    pub fn assert_holds(&self, messages: &[(&str, &str)]) {
        assert_messages(&self.file, messages);
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            assert!(path == self.file || path == self.session, "{}", path.display());
        }
    }
}

/// What a program prints to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What the model answers to these messages when it gets them as one text.
pub fn answer(messages: &[(&str, &str)]) -> String {
    let prompt = chat_text(messages);
    let args = [&["-m", chatty()], &EXACT[..], &["--raw", "-p", &prompt]].concat();
    printed(&run(LGRUN, &args)).strip_suffix('\n').unwrap().to_owned()
}

/// Answers to these texts, one after the other, with nothing kept.
pub fn conversation<'a>(texts: &[&'a str]) -> Vec<(&'a str, String)> {
    let mut said: Vec<(&str, String)> = Vec::new();
    for text in texts {
        let mut messages = pairs(&said);
        messages.push(("user", text));
        let answer = answer(&messages);
        said.push((text, answer));
    }
    said
}

/// Questions and answers as messages.
pub fn pairs<'a>(said: &'a [(&str, String)]) -> Vec<(&'a str, &'a str)> {
    said.iter().flat_map(|(text, answer)| [("user", *text), ("assistant", answer)]).collect()
}

/// Tokens of a text.
pub fn n_tokens(text: &str) -> usize {
    open(Device::Reference, 1).tokenizer().encode(text, true, true).unwrap().len()
}

/// The number that stands behind a text.
pub fn number(text: &str, before: &str) -> usize {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text:?}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Tokens that a greeting says a chat goes on with, and how many of them are computed.
pub fn goes_on(greeting: &str) -> [usize; 2] {
    let (_, rest) = greeting.split_once("goes on: ").unwrap();
    ["messages, ", "tokens, "].map(|before| number(rest, before))
}

/// The messages of a file.
pub fn messages(file: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(file).unwrap();
    let text_of = |value: &Value| value.as_str().unwrap().to_owned();
    let message = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 2, "{line}");
        (text_of(&value["role"]), text_of(&value["content"]))
    };
    text.lines().map(message).collect()
}

/// A file has these messages.
pub fn assert_messages(file: &Path, expected: &[(&str, &str)]) {
    let own = |(role, content): &(&str, &str)| ((*role).to_owned(), (*content).to_owned());
    assert_eq!(messages(file), expected.iter().map(own).collect::<Vec<_>>());
}
