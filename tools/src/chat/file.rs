//! A conversation on disk: what was said, as people can read it, and beside it what the model has computed of it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use longgen::text::Message;
use longgen::{Cancel, Model, Session, SessionParams};
use serde_json::{Value, json};

use super::conversation::Conversation;
use crate::output::{self, target, tell};
use crate::progress::Progress;

/// The file of a conversation: a JSON object per line and message. The session is in another one beside it, which only
/// spares work.
pub struct ChatFile {
    path: PathBuf,
    session_path: PathBuf,
    /// What the file holds.
    messages: Vec<Message>,
    /// Tokens of the session that its file holds.
    tokens: Vec<u32>,
}

impl ChatFile {
    /// Reads a conversation; a file that is not there yet has an empty one. A symbolic link stands for what it leads to.
    ///
    /// # Errors
    /// What is wrong in which line, or that the file could not be replaced.
    pub fn open(path: &Path) -> Result<Self> {
        let path = target(path)?;
        let messages = read(&path)?.unwrap_or_default();
        // Better now than when there is something to keep.
        output::temporary(&path)?;
        let session_path = target(&session_path(&path))?;
        Ok(Self { path, session_path, messages, tokens: Vec::new() })
    }

    /// A file for a copy of the conversation, beside this one: NAME-2, NAME-3, ... A copy of a copy is numbered like the first.
    pub fn beside(&self) -> PathBuf {
        let name = |path: Option<&OsStr>| path.unwrap_or_default().to_string_lossy().into_owned();
        let (stem, extension) = (name(self.path.file_stem()), name(self.path.extension()));
        let beside = |stem: &str| {
            let path = self.path.with_file_name(stem);
            if extension.is_empty() { path } else { path.with_file_name(format!("{stem}.{extension}")) }
        };
        let numbered = stem.rsplit_once('-').and_then(|(base, n)| Some((base, n.parse::<u32>().ok()?)));
        let (base, n) = numbered.filter(|(base, _)| is_there(&beside(base))).unwrap_or((&stem, 1));
        let is_free = |path: &PathBuf| !is_there(path) && !is_there(&session_path(path));
        (n.saturating_add(1)..).map(|n| beside(&format!("{base}-{n}"))).find(is_free).unwrap_or_default()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The messages in it.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Refuses another text than that with which the conversation begins, if it has begun.
    ///
    /// # Errors
    /// Both texts.
    pub fn check_system(&self, text: &str) -> Result<()> {
        let Some(first) = self.messages.first() else { return Ok(()) };
        let path = self.path.display();
        if first.role != "system" {
            bail!(
                "{path} has no system message, --system says {text:?}: leave that out, or take another file"
            );
        }
        let has = &first.content;
        ensure!(
            has == text,
            "{path} begins with the system message {has:?}, --system says {text:?}: leave that out, or take another file"
        );
        Ok(())
    }

    /// The session that was saved, if it is of use; says why not.
    pub fn load(&mut self, model: &Arc<Model>, params: &SessionParams, cancel: &Cancel) -> Option<Session> {
        let bar = Progress::file("loading");
        let on_progress = &mut |done, all| bar.show(done, all);
        let result = Session::load(model, &self.session_path, params, cancel, on_progress);
        // Before anything else stands on its line.
        drop(bar);
        match result {
            Ok(session) => {
                self.tokens = session.tokens().to_vec();
                Some(session)
            }
            Err(error) => {
                if !self.messages.is_empty() || error.kind() != longgen::ErrorKind::NotFound {
                    tell(format!("{error}; the conversation is computed again with your next message"));
                }
                None
            }
        }
    }

    /// Writes the conversation to the file, if it is not there already.
    ///
    /// # Errors
    /// Those of the file system, and that the file holds something else by now; it is as it was then.
    pub fn keep(&mut self, conversation: &Conversation) -> Result<()> {
        let messages = conversation.messages();
        if self.messages == messages && (messages.is_empty() || is_there(&self.path)) {
            return Ok(());
        }
        let path = self.path.display();
        if read(&self.path)?.is_some_and(|there| there != self.messages) {
            bail!(
                "{path} was changed meanwhile and is left so: /save FILE takes another one, or the same when it is moved away"
            );
        }
        replace(&self.path, messages).with_context(|| format!("cannot write {path}"))?;
        self.messages = messages.to_vec();
        Ok(())
    }

    /// Fails where there is no conversation yet, but something of the name that its session will have.
    pub fn check_session_is_free(&self) -> Result<()> {
        ensure!(
            !self.messages.is_empty() || !is_there(&self.session_path),
            "{} is there already and would be replaced: take another name",
            self.session_path.display()
        );
        Ok(())
    }

    /// Saves the session beside the file, as far as the conversation has it. Returns the length of its file in bytes.
    ///
    /// # Errors
    /// Those of [`Session::save`]; an older session stays then.
    pub fn save(&mut self, conversation: &mut Conversation, cancel: &Cancel) -> Result<u64> {
        conversation.settle()?;
        let (session, path) = (conversation.session(), &self.session_path);
        let is_gone = !self.tokens.is_empty() && !is_there(path);
        if session.tokens() != self.tokens || is_gone {
            let bar = Progress::file("saving");
            session.save(path, cancel, &mut |done, all| bar.show(done, all))?;
            self.tokens = session.tokens().to_vec();
        }
        Ok(fs::metadata(path).map_or(0, |file| file.len()))
    }
}

/// The messages in a file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<Message>>> {
    let name = || path.display().to_string();
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        there => ensure!(there.with_context(name)?.is_file(), "{}: not a file", path.display()),
    }
    // Line by line: what is no conversation may be large.
    let lines = BufReader::new(File::open(path).with_context(name)?).split(b'\n').zip(1..);
    let lines = lines.filter(|(line, _)| !line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()));
    let messages = lines.map(|(line, n)| {
        let line = line.with_context(name)?;
        message(&line).with_context(|| format!("{}, line {n}", path.display()))
    });
    messages.collect::<Result<_>>().map(Some)
}

/// Where the session of a conversation lies.
fn session_path(path: &Path) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(".kv");
    path.into()
}

/// Whether there is something of that name, be it a link that leads nowhere.
pub fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn message(line: &[u8]) -> Result<Message> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        let (text, place) =
            (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
        anyhow!("no JSON at column {}: {}", error.column(), text.strip_suffix(&place).unwrap_or(&text))
    })?;
    let fields = value.as_object().context("not an object with \"role\" and \"content\"")?;
    if let Some(name) = fields.keys().find(|name| !["role", "content"].contains(&name.as_str())) {
        bail!("{name:?}: a message has \"role\" and \"content\" alone");
    }
    let text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value) => Err(anyhow!("{name:?} is {value}, not a string")),
        None => Err(anyhow!("no {name:?}")),
    };
    Ok(Message { role: text("role")?, content: text("content")? })
}

/// Puts a file with these messages in the place of `path` when it is complete and on the disk.
fn replace(path: &Path, messages: &[Message]) -> Result<()> {
    let line =
        |message: &Message| json!({"role": message.role, "content": message.content}).to_string() + "\n";
    let mut file = output::temporary(path)?;
    // A new file is for its owner alone: all that was said is in it.
    let permissions = fs::metadata(path).map_or(Permissions::from_mode(0o600), |old| old.permissions());
    file.as_file().set_permissions(permissions)?;
    file.write_all(messages.iter().map(line).collect::<String>().as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(File::open(output::folder(path))?.sync_all()?)
}
