//! Chat templates: from messages to the text that a model was trained to continue.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::machinery::{self, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, State, UndefinedBehavior};

use super::{date, guard, instructions, python, tojson, values};
use crate::alloc::check_room;
use crate::error::{Error, ErrorKind, Result};

const NAME: &str = "chat template";

/// Steps that any template may take, whatever the messages, and for each of them: several times what those of common models
/// take.
const BASE_FUEL: usize = 250_000;
const FUEL_PER_MESSAGE: usize = 250;
/// And for each byte of variables.
const FUEL_PER_VARIABLE_BYTE: usize = 4;

// The engine ends the process if it gets no memory, so what it takes at most is asked for first. `tests/faults.rs` compares
// that with what it does take.

/// Bytes that the smallest template takes.
const BASE_ROOM: usize = 1 << 20;
/// Bytes for each byte of a template while it is compiled, and for its guarded instructions.
const ROOM_PER_SOURCE_BYTE: usize = 160;
/// Bytes for each unit of fuel: the engine takes one for 64 bytes that it makes, and texts grow by doubling.
const ROOM_PER_FUEL: usize = 192;
/// Bytes for each byte of variables, which are JSON, until the template sees them.
const ROOM_PER_VARIABLE_BYTE: usize = 160;

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
/// Templates see `messages`, `add_generation_prompt`, the model's special tokens, and `tools` and `documents` as none; the
/// functions `raise_exception(message)` and `strftime_now(format)`; and the filter `tojson`.
///
/// A template from a hostile file is harmless. It cannot read files or include other templates. The steps that it may take
/// are limited in proportion to the messages and variables, and whatever it does is steps: to compare or to print a list is
/// one for each value in it, as often as it is in it. With them, its memory is limited. Lists and maps nest at most 100 deep,
/// and hold no namespace and no `loop`, which could come to hold them. It needs less than 512 KiB of stack.
///
/// Templates of common models give the texts of Python to the byte. What the engine lacks, like Python's `%` on strings, is
/// an error. It is less strict about types: to iterate over none, or to order a number and a string, is no error as it is
/// there. Some corners differ; `tests/golden/expressions.py` lists those that are known.
///
/// Times are those of UTC, where Hugging Face takes the machine's zone: the zone would come from the environment, which
/// the library does not read, and the same messages would be other tokens on another machine.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    n_source_bytes: usize,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are names and texts as the template sees them: `bos_token`, `eos_token`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line of a syntax error, or where expressions are so long or blocks so many that the
    /// compiler could run out of stack; [`ErrorKind::OutOfMemory`] before it takes more than there is.
    pub fn new(source: &str, special_tokens: &[(&str, &str)]) -> Result<Self> {
        ask_for(BASE_ROOM.saturating_add(source.len().saturating_mul(ROOM_PER_SOURCE_BYTE)))?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(false)
            .build();
        let syntax = syntax.map_err(|error| template_error(ErrorKind::Internal, &error))?;
        environment.set_syntax(syntax.clone());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(RECURSION_LIMIT);
        // There is no other template that one could include, and not itself either, whose instructions are not guarded.
        environment.set_path_join_callback(|name, _| format!("./{name}").into());
        environment.set_debug(false);
        python::extend(&mut environment);
        guard::extend(&mut environment);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("raise_exception", |state: &State, message: &Value| {
            guard::charge_text(state, message)?;
            // The error has several copies of it.
            state.consume_fuel(message.as_bytes().map_or(0, <[u8]>::len) as u64 / 16)?;
            Err::<Value, _>(values::wrong(message.to_string()))
        });
        for (name, token) in special_tokens {
            environment.add_global((*name).to_owned(), *token);
        }
        let n_source_bytes = source.len();
        let source = without_generation_tags(&with_line_feeds(source));
        instructions::check_source(&source, syntax)
            .and_then(|()| environment.add_template_owned(NAME, source))
            .map_err(|error| template_error(ErrorKind::Format, &error))?;
        Guarded::new(&environment).map_err(|error| template_error(ErrorKind::Format, &error))?;
        Ok(Self { environment, n_source_bytes }.with_clock(date::now))
    }

    /// Has `strftime_now` tell the time of this clock instead of the system's: seconds since 1970-01-01 00:00.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.environment.add_function("strftime_now", move |state: &State, format: &str| {
            state.consume_fuel(format.len() as u64)?;
            date::strftime(format, clock())
                .map_err(|error| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, error))
        });
        self
    }

    /// The text of a conversation; with `add_generation_prompt`, it ends where the assistant's answer begins.
    ///
    /// Encode it with special tokens: the template writes them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with line and cause if the template refuses the messages, fails, or takes too many steps;
    /// [`ErrorKind::OutOfMemory`] before it takes more than there is.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, "", add_generation_prompt)
    }

    /// The same, where the template sees the members of the JSON object `variables`, too: `tools`, `documents`,
    /// `enable_thinking`, or what else it asks for. They come before what it would see by these names otherwise. The empty
    /// text is no variables.
    ///
    /// Messages that have more than a role and a text, such as calls of tools or content in parts, come as the member
    /// `messages`; there must be no others then.
    ///
    /// # Errors
    /// Those of [`render`](Self::render), and [`ErrorKind::Invalid`] if `variables` is no JSON object.
    pub fn render_with(
        &self,
        messages: &[Message],
        variables: &str,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        // The engine takes one unit of fuel for 64 bytes that it copies: each message may be copied 64 times.
        let fuel = [
            BASE_FUEL,
            bytes,
            messages.len().saturating_mul(FUEL_PER_MESSAGE),
            variables.len().saturating_mul(FUEL_PER_VARIABLE_BYTE),
        ];
        let fuel = fuel.into_iter().fold(0, usize::saturating_add);
        let of_variables = variables.len().saturating_mul(ROOM_PER_VARIABLE_BYTE);
        let of_source = self.n_source_bytes.saturating_mul(ROOM_PER_SOURCE_BYTE);
        ask_for(fuel.saturating_mul(ROOM_PER_FUEL).saturating_add(of_variables).saturating_add(of_source))?;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel as u64));

        let wrong = |error| Error::invalid(format!("{NAME} variables are no JSON object: {error}"));
        let variables = if variables.is_empty() { "{}" } else { variables };
        let variables: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(variables).map_err(wrong)?;
        if variables.contains_key("messages") && !messages.is_empty() {
            return Err(Error::invalid(format!(
                "{NAME}: messages are given twice, by themselves and as a variable"
            )));
        }
        let message = |message: &Message| {
            let pairs = [("role", message.role.as_str()), ("content", message.content.as_str())];
            values::map(pairs.map(|(key, text)| (Value::from(key), Value::from(text))).to_vec())
        };
        let mut context = BTreeMap::from([
            ("messages".to_owned(), values::list(messages.iter().map(message).collect())),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
        ]);
        context.extend(variables.into_iter().map(|(name, value)| (name, values::from_json(value))));
        let render = || Guarded::new(&environment)?.render(&environment, Value::from(context));
        // Files bring templates, and the engine panics on some: on a break out of a block that is inside of a loop.
        let text = catch_unwind(AssertUnwindSafe(render));
        let text = text.map_err(|_| Error::invalid(format!("{NAME}: the engine cannot run it")))?;
        text.map_err(|error| template_error(ErrorKind::Invalid, &error))
    }
}

/// The compiled template, guarded.
struct Guarded<'env> {
    instructions: Instructions<'env>,
    blocks: BTreeMap<&'env str, Instructions<'env>>,
}

impl<'env> Guarded<'env> {
    fn new(environment: &'env Environment<'env>) -> Result<Self, minijinja::Error> {
        let template = environment.get_template(NAME)?;
        let compiled = machinery::get_compiled_template(&template);
        if compiled.blocks.len() > instructions::MAX_BLOCKS {
            return Err(values::wrong(format!("it has more than {} blocks", instructions::MAX_BLOCKS)));
        }
        let block = |(name, block): (&&'env str, _)| Ok((*name, instructions::guarded(block)?));
        let blocks = compiled.blocks.iter().map(block).collect::<Result<_, minijinja::Error>>()?;
        Ok(Self { instructions: instructions::guarded(&compiled.instructions)?, blocks })
    }

    fn render(
        &self,
        environment: &'env Environment<'env>,
        context: Value,
    ) -> Result<String, minijinja::Error> {
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(environment, &self.instructions, context, &self.blocks, &mut out, AutoEscape::None)?;
        drop(out);
        Ok(text)
    }
}

/// Asks for the memory that the engine may take.
fn ask_for(n_bytes: usize) -> Result<()> {
    check_room(n_bytes).map_err(|error| Error::new(error.kind(), format!("{NAME}: {error}")))
}

/// Jinja reads every kind of line end as a line feed, also in its strings.
fn with_line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
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
        // What a template says itself is of this kind, whose name would add nothing.
        Some(detail) if error.kind() == minijinja::ErrorKind::InvalidOperation => detail.to_owned(),
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
