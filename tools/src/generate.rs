//! From a prompt to an answer, token by token.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use longgen::{Cancel, Error, ErrorKind, GenerateParams, OnProgress, Prompted, Sampler, Session, StopReason};

use crate::output::tell;

/// What an answer cost.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// How many of them the session held already, and kept.
    pub n_reused: usize,
    /// How many more it held and computed again.
    pub n_recomputed: usize,
    /// Layers that had given up what they would have needed to keep those.
    pub limiting_layers: Vec<usize>,
    /// Tokens that were generated.
    pub n_generated: usize,
    /// How many of them went through the model, for what follows them.
    pub n_decoded: usize,
    /// Time until the prompt was done.
    pub prompt: Duration,
    /// Time from then on.
    pub generation: Duration,
    /// Why the answer ended; nothing if the user stopped it before it began.
    pub stop: Option<StopReason>,
}

impl Stats {
    /// Whether the whole prompt was read: the user has not stopped it before.
    pub fn has_begun(&self) -> bool {
        self.stop.is_some()
    }

    /// Says what ended an answer too early that nothing can follow.
    ///
    /// # Errors
    /// The user stopped it.
    pub fn check_end(&self) -> Result<()> {
        match self.stop {
            None | Some(StopReason::Cancelled) => bail!("stopped"),
            Some(StopReason::ContextFull) => tell("(the context is full: -c takes a larger one)"),
            Some(_) => {}
        }
        Ok(())
    }
}

/// [`Session::prompt`], with what helps where the context is too short.
///
/// # Errors
/// Those of [`Session::prompt`].
fn prompt_session(
    session: &mut Session,
    prompt: &[u32],
    cancel: &Cancel,
    on_progress: OnProgress<'_>,
) -> longgen::Result<Prompted> {
    let (n_prompt, n_ctx) = (prompt.len(), session.n_ctx());
    session.prompt(prompt, cancel, on_progress).map_err(|error| match error.kind() {
        ErrorKind::ContextFull => Error::new(
            error.kind(),
            format!(
                "a prompt of {n_prompt} tokens does not fit in a context of {n_ctx}: -c takes a larger one"
            ),
        ),
        _ => error,
    })
}

/// Answers `prompt` with at most `limit` tokens; `print` gets complete characters as they come. False from it ends the answer,
/// and so does a cancel, which is no error.
///
/// # Errors
/// Those of the session and the sampler.
pub fn answer(
    session: &mut Session,
    prompt: &[u32],
    sampler: &mut Sampler,
    limit: usize,
    cancel: &Cancel,
    on_progress: OnProgress<'_>,
    print: &mut dyn FnMut(&str) -> bool,
) -> Result<Stats> {
    let start = Instant::now();
    let mut stats = Stats {
        n_prompt: prompt.len(),
        n_reused: 0,
        n_recomputed: 0,
        limiting_layers: Vec::new(),
        n_generated: 0,
        n_decoded: 0,
        prompt: Duration::ZERO,
        generation: Duration::ZERO,
        stop: None,
    };
    match prompt_session(session, prompt, cancel, on_progress) {
        Ok(did) => {
            stats.n_reused = did.n_reused;
            stats.n_recomputed = if did.limiting_layers.is_empty() { 0 } else { did.n_common - did.n_reused };
            stats.limiting_layers = did.limiting_layers;
        }
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            return Ok(Stats { prompt: start.elapsed(), ..stats });
        }
        Err(error) => return Err(error.into()),
    }
    stats.prompt = start.elapsed();
    let start = Instant::now();
    let params = GenerateParams { max_tokens: limit, ..Default::default() };
    let result =
        session.generate(sampler, &[], &params, cancel, &mut |_, _| true, &mut |_, text| print(text));
    stats.n_decoded = session.tokens().len() - prompt.len();
    stats.generation = start.elapsed();
    match result {
        Ok(generated) => {
            stats.n_generated = generated.n_tokens;
            stats.stop = Some(generated.reason);
        }
        Err(error) if error.kind() == ErrorKind::Cancelled => {}
        Err(error) => return Err(error.into()),
    }
    Ok(stats)
}
