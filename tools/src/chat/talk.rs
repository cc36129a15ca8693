//! A chat at a terminal.

use std::path::Path;

use anyhow::{Context, Result};
use indicatif::DecimalBytes;
use longgen::{Cancel, ErrorKind, StopReason};
use rustyline::error::ReadlineError;

use super::commands::{Command, help};
use super::conversation::Turn;
use super::editor;
use super::lines::Lines;
use super::{Chat, Shared};
use crate::costs::tell_costs;
use crate::generate::Stats;
use crate::output::{Unread, tell};

/// Characters of a message that are shown of it.
const SHOWN_CHARS: usize = 60;

/// Reads messages and commands until the user leaves.
///
/// # Errors
/// A terminal that nothing can be read from or written to, and what the device fails with.
pub fn talk(shared: &Shared) -> Result<()> {
    greet(&shared.lock());
    let mut lines = Lines::open().context("cannot read lines from this terminal")?;
    let mut was_interrupted = false;
    while !shared.is_left() {
        let line = match lines.read("") {
            Err(ReadlineError::Interrupted) if !was_interrupted => {
                tell("(Ctrl-C again or Ctrl-D leaves)");
                was_interrupted = true;
                continue;
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(()),
            line => line.context("cannot read a line")?,
        };
        was_interrupted = false;
        let command = Command::read(&line).map_err(anyhow::Error::msg).and_then(|command| match command {
            Command::Edit(None) => edit(shared, &mut lines),
            command => Ok(command),
        });
        match command {
            Ok(Command::Bye) => return Ok(()),
            Ok(command) => {
                let chat = &mut *shared.lock();
                shared.cancel.reset();
                chat.follow(command, &shared.cancel)?;
                if let Err(error) = chat.keep() {
                    tell(format!("({error:#})"));
                }
            }
            Err(error) => tell(format!("{error:#}")),
        }
    }
    Ok(())
}

/// Lets the user change the last question.
fn edit(shared: &Shared, lines: &mut Lines) -> Result<Command> {
    let question = shared.lock().last_question()?;
    let edited = match editor::command() {
        Some(command) => editor::edit(&command, &question)?,
        None => match lines.read(&question) {
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => question.clone(),
            line => line.context("cannot read a line")?,
        },
    };
    if edited.trim().is_empty() || edited == question {
        tell("(the question is as it was)");
        return Ok(Command::Nothing);
    }
    Ok(Command::Edit(Some(edited)))
}

impl Chat {
    /// Does what the user wants, and says so where that does not show.
    fn follow(&mut self, command: Command, cancel: &Cancel) -> Result<()> {
        let done = match command {
            Command::Nothing | Command::Edit(None) | Command::Bye => Ok(()),
            Command::Say(text) => self.answer(Turn::New, &text, cancel),
            Command::Edit(Some(text)) => {
                self.last_question().and_then(|_| self.answer(Turn::Instead, &text, cancel))
            }
            Command::Regen => {
                self.last_question().and_then(|question| self.answer(Turn::Instead, &question, cancel))
            }
            Command::Undo => self.undo(),
            Command::Clear => {
                self.conversation.clear();
                Ok(())
            }
            Command::Stats => self.tell_stats(),
            Command::Save(path) => self.save(path.as_deref(), cancel).map(|n_bytes| {
                tell(format!("(saved, {} computed)", DecimalBytes(n_bytes)));
            }),
            Command::Load(path) => self.go_to(&path, cancel),
            Command::Fork(path) => self.fork(path.as_deref(), cancel).map(|old| self.tell_fork(old)),
            Command::Help => {
                tell(help());
                Ok(())
            }
        };
        match done {
            Err(error) if error.is::<Unread>() => Err(error),
            Err(error) => {
                tell(self.refusal(&error));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn last_question(&self) -> Result<String> {
        self.conversation.question().map(str::to_owned).context("there is no question yet")
    }

    /// Answers, and says why an answer ended early, and with --stats what it cost.
    fn answer(&mut self, turn: Turn, text: &str, cancel: &Cancel) -> Result<()> {
        let stats = self.say(turn, text, cancel)?;
        if let Some(end) = self.early_end(turn, &stats) {
            tell(end);
        }
        self.tell_costs(&stats);
        Ok(())
    }

    fn early_end(&self, turn: Turn, stats: &Stats) -> Option<String> {
        match (stats.stop, turn) {
            (Some(StopReason::ContextFull), _) => {
                let n_ctx = self.conversation.session().n_ctx();
                Some(format!(
                    "(the context of {n_ctx} tokens is full: /clear empties it, -c takes a larger one)"
                ))
            }
            (Some(StopReason::Cancelled), _) => {
                Some("(stopped: the conversation keeps the answer as far as it came)".to_owned())
            }
            (None, Turn::New) => Some(
                "(stopped before the answer: your message is not in the conversation, arrow up brings it back)"
                    .to_owned(),
            ),
            (None, Turn::Instead) => {
                Some("(stopped before the answer: the conversation is as it was)".to_owned())
            }
            (Some(_), _) => None,
        }
    }

    /// Why something was not done, and what can be done instead.
    fn refusal(&self, error: &anyhow::Error) -> String {
        match error.downcast_ref::<longgen::Error>().map(longgen::Error::kind) {
            Some(ErrorKind::ContextFull) => format!(
                "({error:#}; the conversation so far has {}: /clear forgets it, /undo its last turn, arrow up brings \
                your message back)",
                self.conversation.n_tokens()
            ),
            _ => format!("{error:#}"),
        }
    }

    fn undo(&mut self) -> Result<()> {
        let question = self.conversation.take_back().context("there is no question yet")?;
        let left = turns(self.conversation.n_questions());
        tell(format!("(taken back: {}; {left} left)", beginning(&question)));
        Ok(())
    }

    /// What /stats does.
    fn tell_stats(&self) -> Result<()> {
        let session = self.conversation.session();
        let (n_tokens, n_ctx) = (self.conversation.n_tokens(), session.n_ctx());
        let kv_bytes = DecimalBytes(session.kv_bytes() as u64);
        tell(format!("context {n_tokens} of {n_ctx} tokens, {kv_bytes} of keys and values"));
        let mut points = session.restore_points()?;
        points.retain(|&point| point <= n_tokens);
        if !points.is_empty() {
            let list: Vec<String> = points.iter().map(ToString::to_string).collect();
            let bytes = DecimalBytes(session.restore_bytes() as u64);
            tell(format!("restore points behind {} tokens, {bytes}", list.join(", ")));
        }
        if let Some(stats) = self.conversation.last() {
            tell_costs(session, stats, self.params.kv_type);
        }
        Ok(())
    }

    /// What /load does.
    fn go_to(&mut self, path: &Path, cancel: &Cancel) -> Result<()> {
        let left = self.load(path, cancel)?;
        if left.n_questions > 0 {
            let turns = turns(left.n_questions);
            tell(match left.kept {
                Some(file) => format!("(left {turns}, kept in {file})"),
                None => format!("(dropped {turns}, which no file has)"),
            });
        }
        tell_beginning(self);
        Ok(())
    }

    /// Says where a conversation goes on that was kept in `old`.
    fn tell_fork(&self, old: Option<String>) {
        let new = self.file.as_ref().map(|file| file.path().display().to_string()).unwrap_or_default();
        tell(match old {
            Some(old) => format!("(goes on in {new}; /load {old} goes back)"),
            None => format!("(goes on in {new})"),
        });
    }
}

/// Says who answers, and what the conversation goes on with.
fn greet(chat: &Chat) {
    let session = chat.conversation.session();
    let name = session.model().config().name.as_deref().unwrap_or("the model");
    tell(format!("{name}, {} tokens of context. /help lists commands.", session.n_ctx()));
    tell_beginning(chat);
}

/// Says what the conversation of a file goes on with.
fn tell_beginning(chat: &Chat) {
    let Some(file) = chat.file.as_ref().filter(|file| !file.messages().is_empty()) else { return };
    let messages = file.messages();
    let n_messages = match messages.len() {
        1 => "1 message".to_owned(),
        n => format!("{n} messages"),
    };
    let (n_tokens, n_computed) = (chat.conversation.n_tokens(), chat.conversation.session().tokens().len());
    let path = file.path().display();
    tell(format!("{path} goes on: {n_messages}, {n_tokens} tokens, {n_computed} of them computed"));
    for message in &messages[messages.len().saturating_sub(2)..] {
        tell(format!("  {}: {}", message.role, beginning(&message.content)));
    }
}

/// What a message begins with.
fn beginning(message: &str) -> String {
    let line = message.trim().lines().next().unwrap_or_default();
    let begin: String = line.chars().take(SHOWN_CHARS).collect();
    let more = if begin.len() < message.trim().len() { " ..." } else { "" };
    begin + more
}

fn turns(n: usize) -> String {
    if n == 1 { "1 turn".to_owned() } else { format!("{n} turns") }
}
