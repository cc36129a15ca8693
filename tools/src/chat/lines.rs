//! Lines from a terminal, with a history, and completed by Tab.

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::commands::{COMMANDS, takes_file};

/// Where a person types.
pub struct Lines {
    editor: Editor<Completion, DefaultHistory>,
}

impl Lines {
    /// Those of this process's terminal.
    ///
    /// # Errors
    /// A terminal that lines cannot be read from.
    pub fn open() -> Result<Self, ReadlineError> {
        let config = Config::builder().completion_type(CompletionType::List).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Completion { files: FilenameCompleter::new() }));
        Ok(Self { editor })
    }

    /// A line, or several that end in a backslash; `text` stands there already.
    ///
    /// # Errors
    /// Ctrl-C, Ctrl-D, and a terminal that is gone.
    pub fn read(&mut self, text: &str) -> Result<String, ReadlineError> {
        let mut text = self.editor.readline_with_initial("> ", (text, ""))?;
        while text.ends_with('\\') {
            text.pop();
            text.push('\n');
            text += &self.editor.readline(". ")?;
        }
        let _ = self.editor.add_history_entry(&text);
        Ok(text)
    }
}

/// What Tab does: it completes commands and names of files.
struct Completion {
    files: FilenameCompleter,
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..at];
        match before.split_once(' ') {
            Some((name, _)) if takes_file(name) => self.files.complete_path(line, at),
            None if before.starts_with('/') => Ok((0, commands(before))),
            _ => Ok((at, Vec::new())),
        }
    }
}

/// The commands that begin like this. Behind one that takes a file there is a space.
fn commands(begin: &str) -> Vec<Pair> {
    let names = COMMANDS.iter().map(|(name, ..)| *name).filter(|name| name.starts_with(begin));
    let space = |name| if takes_file(name) { " " } else { "" };
    names
        .map(|name| Pair { display: name.to_owned(), replacement: format!("{name}{}", space(name)) })
        .collect()
}

impl Helper for Completion {}
impl Hinter for Completion {
    type Hint = String;
}
impl Highlighter for Completion {}
impl Validator for Completion {}
