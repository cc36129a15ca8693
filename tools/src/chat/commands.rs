//! What can be typed in a chat.

use std::env;
use std::path::{Path, PathBuf};

use rustyline::completion::unescape;

/// Every command, what stands behind it, and what it does.
pub const COMMANDS: [(&str, &str, &str); 10] = [
    ("/undo", "", "take the last question and its answer back"),
    ("/regen", "", "answer the last question again"),
    ("/edit", "[TEXT]", "change the last question, in $EDITOR or to TEXT, and answer it"),
    ("/clear", "", "forget the conversation"),
    ("/stats", "", "what the context holds, and what the last answer cost"),
    ("/save", "[FILE]", "save all now, as leaving does; with FILE a copy there"),
    ("/load", "FILE", "go on with the conversation in FILE"),
    ("/fork", "[FILE]", "go on with a copy in FILE; the file so far stays as it is"),
    ("/help", "", "this list"),
    ("/bye", "", "leave, like Ctrl-D"),
];

/// What keys do.
const KEYS: &str = "\
Ctrl-C stops an answer, and the conversation keeps what has come of it. Before
an answer begins it takes your message back. At the prompt, twice, it leaves.
Arrow up brings back what you typed, Tab completes commands and file names.
A backslash at a line's end continues it.";

/// A line at the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing was typed.
    Nothing,
    /// A message.
    Say(String),
    /// Takes the last question back.
    Undo,
    /// Answers it again.
    Regen,
    /// Puts another one in its place; which one, an editor says unless it stands here.
    Edit(Option<String>),
    /// Forgets the conversation.
    Clear,
    /// Tells about the context.
    Stats,
    /// Writes the conversation to its file or another.
    Save(Option<PathBuf>),
    /// Goes on with another conversation.
    Load(PathBuf),
    /// Goes on with a copy, whose file may be named.
    Fork(Option<PathBuf>),
    /// Lists commands.
    Help,
    /// Leaves.
    Bye,
}

impl Command {
    /// Reads what was typed.
    ///
    /// # Errors
    /// What is no command, or has no such argument; for the user to read.
    pub fn read(line: &str) -> Result<Self, String> {
        let line = line.trim();
        if !line.starts_with('/') {
            return Ok(if line.is_empty() { Self::Nothing } else { Self::Say(line.to_owned()) });
        }
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
        let command = match name {
            "/edit" => return Ok(Self::Edit(argument.map(str::to_owned))),
            "/save" => return Ok(Self::Save(argument.map(path))),
            "/fork" => return Ok(Self::Fork(argument.map(path))),
            "/load" => return argument.map(path).map(Self::Load).ok_or("/load FILE: which file?".to_owned()),
            "/undo" => Self::Undo,
            "/regen" => Self::Regen,
            "/clear" => Self::Clear,
            "/stats" => Self::Stats,
            "/help" => Self::Help,
            "/bye" => Self::Bye,
            _ => return Err(format!("{name}: no such command; /help lists them")),
        };
        match argument {
            None => Ok(command),
            Some(argument) => Err(format!("{name} stands alone, without {argument:?}")),
        }
    }
}

/// Whether a file's name stands behind a command.
pub fn takes_file(name: &str) -> bool {
    COMMANDS.iter().any(|(command, argument, _)| *command == name && argument.contains("FILE"))
}

/// A path as it was typed: with backslashes before spaces, as completing it puts them there, and `~/` for the home.
fn path(text: &str) -> PathBuf {
    let text = unescape(text, Some('\\'));
    match (text.strip_prefix("~/"), env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(&*text),
    }
}

/// What `/help` says.
pub fn help() -> String {
    let line =
        |(name, argument, what): &(&str, &str, &str)| format!("{:<14}{what}\n", format!("{name} {argument}"));
    format!("{}\n{KEYS}", COMMANDS.iter().map(line).collect::<String>())
}
