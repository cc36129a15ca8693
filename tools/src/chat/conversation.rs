//! A conversation: messages, and the tokens that they are to the model.

use std::sync::Arc;

use anyhow::{Context, Result};
use longgen::text::{ChatTemplate, Message};
use longgen::{Cancel, Model, OnProgress, Sampler, Session, StopReason};

use crate::generate::{self, Stats};

/// Who asks questions.
const USER: &str = "user";

/// Which question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// One more.
    New,
    /// One in the place of the last, and of its answer.
    Instead,
}

/// Messages, and the session that knows them.
pub struct Conversation {
    session: Session,
    sampler: Sampler,
    system: Option<String>,
    messages: Vec<Message>,
    /// Of the context, that the messages take up.
    n_tokens: usize,
    /// Of the last answer that is among the messages.
    last: Option<Stats>,
}

impl Conversation {
    /// A conversation that begins with what `system` says, if it says anything.
    ///
    /// # Errors
    /// A model without a chat template.
    pub fn new(session: Session, sampler: Sampler, system: Option<String>) -> Result<Self> {
        template(session.model())?;
        let mut conversation =
            Self { session, sampler, system, messages: Vec::new(), n_tokens: 0, last: None };
        conversation.clear();
        Ok(conversation)
    }

    /// Forgets everything but what the system says.
    pub fn clear(&mut self) {
        let system = self.system.iter().map(|content| message("system", content));
        self.messages = system.collect();
        self.n_tokens = 0;
        self.last = None;
    }

    /// Goes on with messages of another time. What the system says is what they begin with.
    ///
    /// # Errors
    /// Those of [`settle`](Self::settle).
    pub fn resume(&mut self, messages: &[Message]) -> Result<()> {
        let system = messages.first().filter(|message| message.role == "system");
        self.system = system.map(|message| message.content.clone());
        self.messages = messages.to_vec();
        self.last = None;
        self.settle()
    }

    /// Goes on in another session of the same model.
    pub fn move_to(&mut self, session: Session) {
        self.session = session;
    }

    /// Takes the session back to what the conversation has of it. Now it may have restore points to go back with; when it was
    /// saved and loaded, it has none.
    ///
    /// # Errors
    /// Those of [`Session::rewind`].
    pub fn settle(&mut self) -> Result<()> {
        let Some(tokens) = self.tokens() else {
            self.n_tokens = 0;
            return Ok(());
        };
        self.n_tokens = tokens.len();
        self.session.rewind(self.session.n_common(&tokens))?;
        Ok(())
    }

    /// The tokens of the conversation; nothing where the template refuses what there is so far, which it may take with the
    /// next message.
    fn tokens(&self) -> Option<Vec<u32>> {
        if self.messages.is_empty() { Some(Vec::new()) } else { self.encode(false).ok() }
    }

    /// Takes the last question and its answer back, and returns it, if there is one. The session keeps them for when the
    /// question is asked again.
    pub fn take_back(&mut self) -> Option<String> {
        let begin = self.last_question()?;
        let question = self.messages.drain(begin..).next().map(|message| message.content);
        self.n_tokens = self.tokens().map_or(0, |tokens| tokens.len());
        self.last = None;
        question
    }

    /// The last question.
    pub fn question(&self) -> Option<&str> {
        self.last_question().map(|i| &*self.messages[i].content)
    }

    /// Questions that were asked.
    pub fn n_questions(&self) -> usize {
        self.messages.iter().filter(|message| message.role == USER).count()
    }

    /// Which message is the last question.
    fn last_question(&self) -> Option<usize> {
        self.messages.iter().rposition(|message| message.role == USER)
    }

    /// What was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The session, to look at.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What the conversation's last answer cost, if it has one.
    pub fn last(&self) -> Option<&Stats> {
        self.last.as_ref()
    }

    /// Tokens of the context that the conversation takes up.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Answers what the user says. An answer that was stopped stays in the conversation as far as it came; a message whose
    /// answer did not begin is no part of it, and what it would have replaced stays, though the session keeps what it has
    /// read for when it is said again. What a question has in common with the one that it replaces is not computed again.
    ///
    /// # Errors
    /// Those of the template, the session and the sampler; the conversation is as before then.
    pub fn say(
        &mut self,
        turn: Turn,
        text: &str,
        limit: usize,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
        print: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Stats> {
        let end = self.messages.len();
        let begin = match turn {
            Turn::New => end,
            Turn::Instead => self.last_question().unwrap_or(end),
        };
        let replaced = self.messages.split_off(begin);
        self.messages.push(message(USER, text));
        let mut answer = String::new();
        let result = self.encode(true).and_then(|prompt| {
            let print = &mut |text: &str| {
                answer.push_str(text);
                print(text)
            };
            generate::answer(&mut self.session, &prompt, &mut self.sampler, limit, cancel, on_progress, print)
        });
        match &result {
            Ok(stats) if stats.n_generated > 0 || stats.stop == Some(StopReason::End) => {
                self.messages.push(message("assistant", &answer));
                self.n_tokens = stats.n_prompt + stats.n_decoded;
                self.last = Some(stats.clone());
            }
            _ => {
                self.messages.truncate(begin);
                self.messages.extend(replaced);
            }
        }
        result
    }

    /// The conversation as tokens, with or without what begins the assistant's answer.
    fn encode(&self, begins_answer: bool) -> Result<Vec<u32>> {
        let model = self.session.model();
        let text = template(model)?.render(&self.messages, begins_answer)?;
        Ok(model.tokenizer().encode(&text, true, true)?)
    }
}

fn template(model: &Arc<Model>) -> Result<&ChatTemplate> {
    model
        .chat_template()
        .context("this model has no chat template, so it cannot chat; --raw continues a text instead")
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}
