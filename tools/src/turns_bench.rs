//! How much of a conversation is computed again from turn to turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longgen::{Cancel, Model};
use serde_json::{Value, json};

use crate::eval::ids;
use crate::run_args::RunArgs;

/// The flags of `lgeval bench-turns`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchTurnsArgs {
    /// Turns of the conversation
    #[arg(long, default_value_t = 20)]
    pub turns: usize,
    /// Tokens of each message
    #[arg(short = 'p', long, default_value_t = 100)]
    pub n_message: usize,
    /// Tokens of each answer
    #[arg(short = 'n', long, default_value_t = 100)]
    pub n_answer: usize,
    /// The turn whose message is another one at last
    #[arg(long, default_value_t = 5)]
    pub edit: usize,
}

/// What the prompt of a turn took.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Its number, from 1 on.
    pub turn: usize,
    /// Whether its message was another one before.
    pub is_edit: bool,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Those that the session had not held: no prompt computes fewer.
    pub n_new: usize,
    /// Those that were computed.
    pub n_computed: usize,
    /// How long that took.
    pub time: Duration,
    /// Bytes of restore points afterwards.
    pub restore_bytes: usize,
}

impl Turn {
    /// As a JSON object, with the name of the device.
    pub fn to_json(&self, device: &str) -> Value {
        json!({
            "device": device, "turn": self.turn, "edit": self.is_edit, "n_prompt": self.n_prompt,
            "n_new": self.n_new, "n_computed": self.n_computed, "ms": self.time.as_secs_f64() * 1e3,
            "restore_bytes": self.restore_bytes,
        })
    }
}

impl BenchTurnsArgs {
    /// Has the conversation with `model`; each prompt is all that was said before, and a message. Hands the name of the device and
    /// each turn to `tell`.
    ///
    /// # Errors
    /// What is wrong with the flags, a conversation longer than the context, `cancel`, and what fails on the
    /// device.
    pub fn run(
        &self,
        model: &Arc<Model>,
        run: &RunArgs,
        cancel: &Cancel,
        tell: &mut dyn FnMut(&str, &Turn),
    ) -> Result<()> {
        let (turns, edit) = (self.turns, self.edit);
        ensure!((1..=turns).contains(&edit), "--edit {edit}: there are turns 1 to {turns}");
        ensure!(self.n_message > 0, "--n-message 0: a message has tokens");
        let device = model.device().name;
        let n_tokens = turns * (self.n_message + self.n_answer);
        let mut session = run.session(model, &run.session_params(u32::try_from(n_tokens)?))?;
        let fits = session.n_ctx() as usize;
        ensure!(n_tokens <= fits, "{n_tokens} tokens do not fit in a context of {fits}");
        // The edited turn comes twice, each time with others.
        let mut ids = ids(model, n_tokens + self.n_message + self.n_answer)?.into_iter();

        let mut text = Vec::new();
        let mut begins = Vec::new();
        for turn in (1..=turns).chain([edit]) {
            let is_edit = begins.len() == turns;
            if is_edit {
                text.truncate(begins[turn - 1]);
            }
            begins.push(text.len());
            text.extend(ids.by_ref().take(self.n_message));
            let begun = Instant::now();
            let did = session.prompt(&text, cancel, &mut |_, _| true)?;
            let took = Turn {
                turn,
                is_edit,
                n_prompt: text.len(),
                n_new: text.len() - did.n_common,
                n_computed: did.n_computed,
                time: begun.elapsed(),
                restore_bytes: session.restore_bytes(),
            };
            tell(&device, &took);
            for id in ids.by_ref().take(self.n_answer) {
                session.decode(id, cancel)?;
                text.push(id);
            }
        }
        Ok(())
    }
}
