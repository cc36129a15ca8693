//! Chat templates: from messages to the text that a model was trained to continue.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{date, tojson};
use crate::error::{Error, ErrorKind, Result};

const NAME: &str = "chat template";

/// Steps that any template may take, whatever the messages.
const BASE_FUEL: u64 = 1_000_000;
/// Macros and includes may nest this deep.
const RECURSION_LIMIT: usize = 100;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// The chat template of a model, in Jinja as Hugging Face runs it. Immutable; can be used by many threads at once.
///
/// Templates see `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, and `tools` and `documents` as none; the
/// functions `raise_exception(message)` and `strftime_now(format)`, which tells the time in UTC; and the filter `tojson`.
/// A template cannot read files, and the steps it may take are limited in proportion to the messages.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are what the template sees under these names.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line of a syntax error.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(false)
            .build();
        environment.set_syntax(syntax.map_err(|error| template_error(ErrorKind::Internal, &error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| {
            date::strftime(format, date::now())
                .map_err(|error| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, error))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| template_error(ErrorKind::Format, &error))?;
        let owned = |token: Option<&str>| token.map(str::to_owned);
        Ok(Self { environment, bos_token: owned(bos_token), eos_token: owned(eos_token) })
    }

    /// The text of a conversation; with `add_generation_prompt`, it ends where the assistant's answer begins.
    ///
    /// Encode it with special tokens: the template writes them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with line and cause if the template refuses the messages, fails, or takes too many steps.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        // The engine takes one unit of fuel for 64 bytes that it copies: each message may be copied 64 times.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL.saturating_add(bytes as u64)));

        let message = |message: &Message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        };
        let mut context = vec![
            ("messages", messages.iter().map(message).collect()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        context.extend(self.bos_token.as_deref().map(|token| ("bos_token", Value::from(token))));
        context.extend(self.eos_token.as_deref().map(|token| ("eos_token", Value::from(token))));
        let template = environment.get_template(NAME);
        let text = template.and_then(|template| template.render(Value::from_pairs(context)));
        text.map_err(|error| template_error(ErrorKind::Invalid, &error))
    }
}

/// `{% generation %}` marks what the assistant said, for training; here it is a block like any other.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        let Some(end) = tag.find("%}") else { break };
        let (inside, after) = tag.split_at(end);
        text.push_str(before);
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => text.push_str(&inside.replace("generation", "with")),
            "endgeneration" => text.push_str(&inside.replace("endgeneration", "endwith")),
            _ => text.push_str(inside),
        }
        rest = after;
    }
    text + rest
}

/// One line: where in the template, and every cause.
fn template_error(kind: ErrorKind, error: &minijinja::Error) -> Error {
    let cause = |error: &minijinja::Error| match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    let mut text = error.line().map_or_else(|| NAME.to_owned(), |line| format!("{NAME}, line {line}"));
    text = format!("{text}: {}", cause(error));
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let cause = error.downcast_ref().map_or_else(|| error.to_string(), cause);
        text = format!("{text}: {cause}");
        source = error.source();
    }
    Error::new(kind, text)
}
