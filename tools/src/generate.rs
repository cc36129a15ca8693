//! From a prompt to an answer, token by token.

use std::time::{Duration, Instant};

use anyhow::Result;
use longgen::{Cancel, Error, ErrorKind, GenerateParams, OnProgress, Sampler, Session, StopReason};

/// What an answer cost.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// How many of them the session held already.
    pub n_reused: usize,
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
}

/// Makes the session hold exactly `prompt`, keeping what the two have in common, and computes the logits behind it.
/// Returns how many tokens were kept.
///
/// # Errors
/// `ContextFull` if the prompt is longer than the context: the session still holds all that it held. Those of the session.
pub fn prefill(
    session: &mut Session,
    prompt: &[u32],
    cancel: &Cancel,
    on_progress: OnProgress<'_>,
) -> longgen::Result<usize> {
    let (n_prompt, n_ctx) = (prompt.len(), session.n_ctx());
    if n_prompt > n_ctx as usize {
        let message = format!(
            "a prompt of {n_prompt} tokens does not fit in a context of {n_ctx}: -c takes a larger one"
        );
        return Err(Error::new(ErrorKind::ContextFull, message));
    }
    let common = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    // The last token is computed again in any case: its logits are wanted.
    let kept = session.rewind(common.min(prompt.len().saturating_sub(1)))?;
    session.prefill(&prompt[kept..], cancel, on_progress)?;
    Ok(kept)
}

/// Answers `prompt` with at most `limit` tokens; `print` gets complete characters as they come. A cancel ends the answer and
/// is no error.
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
    print: &mut dyn FnMut(&str),
) -> Result<Stats> {
    let start = Instant::now();
    let mut stats = Stats {
        n_prompt: prompt.len(),
        n_reused: 0,
        n_generated: 0,
        n_decoded: 0,
        prompt: Duration::ZERO,
        generation: Duration::ZERO,
        stop: None,
    };
    match prefill(session, prompt, cancel, on_progress) {
        Ok(reused) => stats.n_reused = reused,
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            return Ok(Stats { prompt: start.elapsed(), ..stats });
        }
        Err(error) => return Err(error.into()),
    }
    stats.prompt = start.elapsed();
    let start = Instant::now();
    let params = GenerateParams { max_tokens: limit, ..Default::default() };
    let result = session.generate(sampler, &[], &params, cancel, &mut |_, _| true, &mut |_, text| {
        print(text);
        true
    });
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
