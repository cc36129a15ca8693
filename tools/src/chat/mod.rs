//! Chats: conversations that are kept in files, at a terminal or one question at a time.

pub mod commands;
pub mod conversation;
mod editor;
pub mod file;
mod leaving;
mod lines;
mod talk;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use longgen::{Cancel, SessionParams};

use crate::costs;
use crate::generate::Stats;
use crate::output::{tell, try_print};
use crate::progress::Progress;
use conversation::{Conversation, Turn};
use file::{ChatFile, is_there};

pub use leaving::Shared;
pub use talk::talk;

/// A conversation, and where it is kept.
pub struct Chat {
    /// What is said.
    pub conversation: Conversation,
    /// Where it is kept, if anywhere.
    pub file: Option<ChatFile>,
    /// How its sessions are opened.
    pub params: SessionParams,
    /// Most tokens of an answer.
    pub limit: usize,
    /// Whether each answer is followed by what it cost.
    pub shows_costs: bool,
}

/// What was left for another conversation.
struct Left {
    n_questions: usize,
    /// What keeps it.
    kept: Option<String>,
}

impl Chat {
    /// Goes on with the messages of the file.
    ///
    /// # Errors
    /// Those of [`Conversation::resume`].
    pub fn resume(&mut self) -> Result<()> {
        match &self.file {
            Some(file) if !file.messages().is_empty() => self.conversation.resume(file.messages()),
            _ => Ok(()),
        }
    }

    /// Answers the only question, and shows that, what it cost, and what ended it too early.
    ///
    /// # Errors
    /// Those of [`Conversation::say`], [`Unread`](crate::output::Unread), and an answer that was stopped.
    pub fn answer_once(&mut self, question: &str, cancel: &Cancel) -> Result<()> {
        let stats = self.say(Turn::New, question, cancel)?;
        self.tell_costs(&stats);
        stats.check_end()
    }

    /// Answers, and shows that.
    fn say(&mut self, turn: Turn, text: &str, cancel: &Cancel) -> Result<Stats> {
        let bar = Progress::prompt();
        let on_progress = &mut |done, all| bar.show(done, all);
        let mut unread = None;
        let print = &mut |text: &str| {
            unread = try_print(text).err();
            unread.is_none()
        };
        let answer = self.conversation.say(turn, text, self.limit, cancel, on_progress, print);
        // Before anything else stands on its line.
        drop(bar);
        let stats = answer?;
        unread.map_or_else(|| try_print("\n"), Err)?;
        Ok(stats)
    }

    /// Says what an answer cost, if that is wanted.
    fn tell_costs(&self, stats: &Stats) {
        if self.shows_costs && stats.has_begun() {
            costs::tell_costs(self.conversation.session(), stats, self.params.kv_type);
        }
    }

    /// Writes what was said to the file.
    fn keep(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.keep(&self.conversation))
    }

    /// Keeps everything.
    fn leave(&mut self, cancel: &Cancel) -> Result<()> {
        self.keep()?;
        if let Some(file) = &mut self.file {
            let kept = format!("{} is complete, but not", file.path().display());
            file.save(&mut self.conversation, cancel).context(kept)?;
        }
        Ok(())
    }

    /// Writes everything to another file, or to the one that there is. A file that is there is replaced if nothing is lost by
    /// that. Returns the bytes of what was computed.
    fn save(&mut self, path: Option<&Path>, cancel: &Cancel) -> Result<u64> {
        let mut other = path.map(ChatFile::open).transpose()?;
        if let Some(file) = &mut self.file
            && other.as_ref().is_none_or(|other| other.path() == file.path())
        {
            file.keep(&self.conversation)?;
            return file.save(&mut self.conversation, cancel);
        }
        let other = other.as_mut().context("no file: /save FILE writes one")?;
        ensure!(
            self.conversation.messages().starts_with(other.messages()),
            "{} has another conversation and is left so: take another name",
            other.path().display()
        );
        other.check_session_is_free()?;
        other.keep(&self.conversation)?;
        other.save(&mut self.conversation, cancel)
    }

    /// Goes on with the conversation of another file, and says what was left. Where that cannot be read or this one not be
    /// kept, this one goes on.
    fn load(&mut self, path: &Path, cancel: &Cancel) -> Result<Left> {
        ensure!(path.exists(), "{}: no such file", path.display());
        let mut file = ChatFile::open(path)?;
        ensure!(!file.messages().is_empty(), "{}: a conversation without messages", path.display());
        let left = self.leave_for_another(cancel)?;
        if let Some(session) = file.load(self.conversation.session().model(), &self.params, cancel) {
            self.conversation.move_to(session);
        }
        self.file = Some(file);
        self.resume()?;
        Ok(left)
    }

    /// Goes on with a copy of the conversation in a new file, and returns what keeps the old one.
    fn fork(&mut self, path: Option<&Path>, cancel: &Cancel) -> Result<Option<String>> {
        let beside = || self.file.as_ref().map(ChatFile::beside);
        let path = path.map(Path::to_owned).or_else(beside).context("which file? /fork FILE names it")?;
        ensure!(
            !is_there(&path),
            "{} is there already: take another name, /load goes on with it",
            path.display()
        );
        let mut file = ChatFile::open(&path)?;
        file.check_session_is_free()?;
        let left = self.leave_for_another(cancel)?;
        file.keep(&self.conversation)?;
        self.file = Some(file);
        Ok(left.kept)
    }

    /// Keeps everything before another file takes its place. What was computed can be computed again.
    fn leave_for_another(&mut self, cancel: &Cancel) -> Result<Left> {
        self.keep()?;
        if let Err(error) = self.leave(cancel) {
            tell(format!("({error:#})"));
        }
        ensure!(!cancel.is_cancelled(), "stopped");
        let kept = self.file.as_ref().map(|file| file.path().display().to_string());
        Ok(Left { n_questions: self.conversation.n_questions(), kept })
    }
}
