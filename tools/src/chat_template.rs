//! What chat templates make of conversations.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use longgen::text::ChatTemplate;
use serde_json::{Value, json};

/// Templates, and what they are to render.
#[derive(Args)]
pub struct ChatTemplateArgs {
    /// The templates, in Jinja
    #[arg(short, long = "template", value_name = "JINJA", required = true, num_args = 1..)]
    templates: Vec<PathBuf>,
    /// The conversations: a JSON list of objects with "messages", "add_generation_prompt" if the answer is to begin, and
    /// what else templates see, such as "tools"
    #[arg(short, long, value_name = "JSON")]
    file: PathBuf,
    /// A special token, as templates name it: bos_token, eos_token, ...
    #[arg(long = "token", value_name = "NAME=TEXT", value_parser = token)]
    tokens: Vec<(String, String)>,
    /// The time of the templates, in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
}

/// Reads `--token`.
fn token(text: &str) -> Result<(String, String), String> {
    let (name, token) = text.split_once('=').ok_or("expected NAME=TEXT")?;
    Ok((name.to_owned(), token.to_owned()))
}

impl ChatTemplateArgs {
    /// Renders every conversation with the first template, then with the next.
    ///
    /// # Errors
    /// Files that cannot be read, or are no conversations. What a template says against a conversation is no error.
    pub fn run(&self, print: &mut dyn FnMut(&Value)) -> Result<()> {
        let conversations = conversations(&self.file)?;
        for path in &self.templates {
            let template = self.open(&read(path)?);
            for conversation in &conversations {
                let text = template.as_ref().map_err(ToString::to_string).and_then(|template| {
                    template.render_with(&[], conversation, false).map_err(|error| error.to_string())
                });
                print(&text.map_or_else(|error| json!({"error": error}), |text| json!({"text": text})));
            }
        }
        Ok(())
    }

    fn open(&self, source: &str) -> longgen::Result<ChatTemplate> {
        let tokens: Vec<_> = self.tokens.iter().map(|(name, token)| (&**name, &**token)).collect();
        let template = ChatTemplate::new(source, &tokens)?;
        Ok(match self.time {
            Some(seconds) => template.with_clock(move || seconds),
            None => template,
        })
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Each is what a template sees.
fn conversations(path: &Path) -> Result<Vec<String>> {
    let list: Vec<Value> = serde_json::from_str(&read(path)?).with_context(|| path.display().to_string())?;
    match list.iter().position(|conversation| !conversation["messages"].is_array()) {
        Some(i) => bail!("{}: element {i} is no conversation", path.display()),
        None => Ok(list.iter().map(Value::to_string).collect()),
    }
}
