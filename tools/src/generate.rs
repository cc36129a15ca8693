//! From a prompt to an answer, token by token.

use std::time::{Duration, Instant};

use anyhow::Result;
use longgen::text::TextStream;
use longgen::{Cancel, Error, ErrorKind, Sampler, Session};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    EndOfText,
    /// It has as many tokens as were asked for.
    Limit,
    /// The context has no room for more.
    ContextFull,
    /// The user asked to stop.
    Cancelled,
}

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
    /// Why the answer ended.
    pub stop: Stop,
}

impl Stats {
    /// Whether the whole prompt was read: the user has not stopped it before.
    pub fn has_begun(&self) -> bool {
        self.stop != Stop::Cancelled || self.n_generated > 0
    }
}

/// Told about a long prompt: tokens done, tokens in all.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Makes the session hold exactly `prompt`, keeping what the two have in common, and computes the logits behind it.
/// Returns how many tokens were kept.
///
/// # Errors
/// `ContextFull` if the prompt is longer than the context: the session still holds all that it held. Those of the session.
pub fn prefill(
    session: &mut Session,
    prompt: &[u32],
    cancel: &Cancel,
    progress: Progress<'_>,
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
    session.prefill(&prompt[kept..], cancel, progress)?;
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
    progress: Progress<'_>,
    print: &mut dyn FnMut(&str),
) -> Result<Stats> {
    let start = Instant::now();
    let model = session.model().clone();
    let tokenizer = model.tokenizer();
    let mut stats = Stats {
        n_prompt: prompt.len(),
        n_reused: 0,
        n_generated: 0,
        n_decoded: 0,
        prompt: Duration::ZERO,
        generation: Duration::ZERO,
        stop: Stop::Limit,
    };
    match prefill(session, prompt, cancel, progress) {
        Ok(reused) => stats.n_reused = reused,
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            return Ok(Stats { stop: Stop::Cancelled, prompt: start.elapsed(), ..stats });
        }
        Err(error) => return Err(error.into()),
    }
    stats.prompt = start.elapsed();
    let start = Instant::now();
    let mut text = TextStream::new::<String>([]);
    while stats.n_generated < limit {
        let token = session.sample(sampler)?;
        if tokenizer.is_end_of_generation(token) {
            stats.stop = Stop::EndOfText;
            break;
        }
        stats.n_generated += 1;
        if !tokenizer.is_special(token) {
            print(text.push(tokenizer.token_bytes(token).unwrap_or_default()));
        }
        // Nobody asks what would follow the last one.
        if stats.n_generated == limit {
            break;
        }
        match session.decode(token, cancel) {
            Ok(()) => stats.n_decoded += 1,
            Err(error) if error.kind() == ErrorKind::Cancelled => stats.stop = Stop::Cancelled,
            Err(error) if error.kind() == ErrorKind::ContextFull => stats.stop = Stop::ContextFull,
            Err(error) => return Err(error.into()),
        }
        if stats.stop != Stop::Limit {
            break;
        }
    }
    print(text.finish());
    stats.generation = start.elapsed();
    Ok(stats)
}
