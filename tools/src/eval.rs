//! What `lgeval` measures.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use longgen::{Cancel, Model, Session, SessionParams};
use serde_json::{Value, json};

use crate::npy;
use crate::output;
use crate::run_args::RunArgs;

/// Rows of logits that are computed together.
const LOGITS_ROWS: u32 = 32;

/// Token ids from a file: numbers with blanks or line ends between them.
///
/// # Errors
/// The file cannot be read, or has a word that is no id.
pub fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let id =
        |word: &str| word.parse().with_context(|| format!("{}: {word:?} is no token id", path.display()));
    text.split_whitespace().map(id).collect()
}

/// Writes the logits behind the last `last` tokens, or behind all of them, as a NumPy file.
///
/// # Errors
/// Those of the session and of the file; a file that was not finished is removed.
pub fn logits(
    args: &RunArgs,
    model: &Arc<Model>,
    tokens: &[u32],
    last: Option<usize>,
    out: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let n_vocab = model.config().n_vocab;
    let first = tokens.len() - last.unwrap_or(tokens.len()).min(tokens.len());
    let mut session = open(args, model, u32::try_from(tokens.len())?)?;
    let mut file = output::temporary(out)?;
    {
        let mut sink = BufWriter::new(file.as_file_mut());
        npy::write_header(&mut sink, tokens.len() - first, n_vocab)?;
        if first > 0 {
            session.prefill(&tokens[..first], cancel, &mut |_, _| true)?;
        }
        session.prefill_each(&tokens[first..], cancel, &mut |_, rows| {
            npy::write_values(&mut sink, rows).map_err(|error| {
                longgen::Error::new(longgen::ErrorKind::Io, format!("{}: {error}", out.display()))
            })
        })?;
        sink.flush()?;
    }
    file.persist(out).with_context(|| out.display().to_string())?;
    Ok(())
}

fn open(args: &RunArgs, model: &Arc<Model>, n_ctx: u32) -> Result<Session> {
    let params = SessionParams { logits_rows: LOGITS_ROWS, ..args.session_params(n_ctx) };
    args.session(model, &params)
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    /// Tokens that were scored.
    pub n_tokens: usize,
    /// Time of everything but opening the model.
    pub seconds: f64,
}

/// Scores the second half of every window of `n_ctx` tokens, so that each prediction has at least half a window before it;
/// windows begin with the beginning-of-text token if the model wants it.
///
/// # Errors
/// A text that is shorter than one window, and those of the session.
pub fn perplexity(
    args: &RunArgs,
    model: &Arc<Model>,
    text: &str,
    n_ctx: u32,
    cancel: &Cancel,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let start = Instant::now();
    let tokenizer = model.tokenizer();
    let tokens = tokenizer.encode(text, false, false)?;
    let bos: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
    let n = n_ctx as usize - bos.len().min(n_ctx as usize);
    if n < 4 {
        bail!("a window of {n_ctx} tokens is too short to score half of it");
    }
    if tokens.len() < n {
        bail!("the text has {} tokens, fewer than one window of {n_ctx}", tokens.len());
    }
    let mut session = open(args, model, n_ctx)?;
    let (n_windows, n_vocab) = (tokens.len() / n, model.config().n_vocab);
    let (mut sum, mut n_tokens) = (0.0, 0);
    for (i, window) in tokens.chunks_exact(n).enumerate() {
        session.rewind(0)?;
        let window = [&bos[..], window].concat();
        let scored = window.len() / 2;
        session.prefill(&window[..scored], cancel, &mut |_, _| true)?;
        // The prediction of token `scored` comes from the first half's last row.
        sum += surprise(session.logits()?, window[scored]);
        let rest = &window[scored..window.len() - 1];
        session.prefill_each(rest, cancel, &mut |row, logits| {
            for (j, logits) in logits.chunks_exact(n_vocab).enumerate() {
                sum += surprise(logits, window[scored + row + j + 1]);
            }
            Ok(())
        })?;
        n_tokens += window.len() - scored;
        progress(i + 1, n_windows);
    }
    Ok(Perplexity {
        perplexity: (sum / n_tokens as f64).exp(),
        n_tokens,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Negative log-likelihood of a token, in nats.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    sum.ln() + max - f64::from(logits[token as usize])
}

/// Speed of one kind of work: tokens per second of every repetition.
#[derive(Clone, Debug)]
pub struct Speed {
    /// `pp512`, or `tg64 x4 @ d4096`.
    pub name: String,
    /// Sessions that computed together.
    pub n_sessions: usize,
    /// Tokens per second, one number a repetition.
    pub tokens_per_second: Vec<f64>,
    /// Weights, keys and values that each token reads, in bytes; 0 where tokens share them.
    pub bytes_per_token: usize,
}

impl Speed {
    /// Minimum, median and maximum.
    pub fn summary(&self) -> (f64, f64, f64) {
        summary(&self.tokens_per_second)
    }

    /// Milliseconds in which each session got a token; nothing where tokens share them.
    pub fn ms_per_token(&self) -> Option<f64> {
        let (_, median, _) = self.summary();
        (self.bytes_per_token > 0).then(|| self.n_sessions as f64 / median * 1e3)
    }

    /// As a JSON object, with the name of the device that was measured.
    pub fn to_json(&self, device: &str) -> Value {
        let (min, median, max) = self.summary();
        json!({
            "device": device,
            "test": self.name,
            "sessions": self.n_sessions,
            "ms_per_token": self.ms_per_token(),
            "min": min,
            "median": median,
            "max": max,
            "tokens_per_second": self.tokens_per_second,
            "bytes_per_token": self.bytes_per_token,
        })
    }
}

/// Minimum, median and maximum.
pub fn summary(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
    (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}

/// What is to be timed.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    /// Tokens of a prompt; 0 leaves it out.
    pub n_prompt: usize,
    /// Tokens that are generated; 0 leaves it out.
    pub n_generate: usize,
    /// Tokens that are there before, not timed.
    pub depth: usize,
    /// Repetitions, after one that is not counted.
    pub repeat: usize,
    /// Sessions that generate together: one number after the other.
    pub sessions: &'a [usize],
}

/// Times prompt and generation, without tokenizer and sampler.
///
/// # Errors
/// Those of the session.
pub fn bench(args: &RunArgs, model: &Arc<Model>, bench: Bench<'_>, cancel: &Cancel) -> Result<Vec<Speed>> {
    let Bench { n_prompt, n_generate, depth, repeat, sessions: numbers } = bench;
    let n_tokens = depth + n_prompt.max(n_generate);
    let n_most = numbers.iter().copied().max().unwrap_or(1);
    // A batch fits in the working memory of the first session.
    let n_ctx = u32::try_from(n_tokens.max(n_most))?;
    let params = SessionParams { logits_rows: u32::try_from(n_most)?, ..args.session_params(n_ctx) };
    let sessions = (0..n_most).map(|_| args.session(model, &params));
    let mut sessions = sessions.collect::<Result<Vec<_>>>()?;
    let ids = ids(model, n_tokens)?;
    let suffix = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
    let mut speeds = Vec::new();
    if n_prompt > 0 {
        let mut rates = Vec::new();
        for _ in 0..=repeat {
            go_to(&mut sessions[0], &ids[..depth], cancel)?;
            let start = Instant::now();
            sessions[0].prefill(&ids[depth..depth + n_prompt], cancel, &mut |_, _| true)?;
            rates.push(n_prompt as f64 / start.elapsed().as_secs_f64());
        }
        let name = format!("pp{n_prompt}{suffix}");
        let tokens_per_second = rates.split_off(1);
        speeds.push(Speed { name, n_sessions: 1, tokens_per_second, bytes_per_token: 0 });
    }
    for &n_sessions in numbers.iter().filter(|_| n_generate > 0) {
        let sessions = &mut sessions[..n_sessions];
        let mut rates = Vec::new();
        for _ in 0..=repeat {
            sessions.iter_mut().try_for_each(|session| go_to(session, &ids[..depth], cancel))?;
            let start = Instant::now();
            for id in ids[depth..depth + n_generate].chunks(1) {
                match &mut *sessions {
                    [session] => session.decode(id[0], cancel)?,
                    sessions => step(sessions, id, cancel)?,
                }
            }
            rates.push((n_generate * n_sessions) as f64 / start.elapsed().as_secs_f64());
        }
        let together = if n_sessions > 1 { format!(" x{n_sessions}") } else { String::new() };
        let middle = u32::try_from(depth + n_generate / 2)?;
        speeds.push(Speed {
            name: format!("tg{n_generate}{together}{suffix}"),
            n_sessions,
            tokens_per_second: rates.split_off(1),
            bytes_per_token: model.weight_bytes() / n_sessions
                + model.kv_read_bytes(middle, args.compute.kv_type()),
        });
    }
    Ok(speeds)
}

/// Ids all over the vocabulary, the same in every run.
pub(crate) fn ids(model: &Model, n: usize) -> Result<Vec<u32>> {
    let n_vocab = model.config().n_vocab;
    (0..n).map(|i| Ok(u32::try_from((i * 7919 + 13) % n_vocab)?)).collect()
}

/// Appends the same tokens to each session, in one step.
pub(crate) fn step(sessions: &mut [Session], tokens: &[u32], cancel: &Cancel) -> Result<()> {
    let mut batch: Vec<_> = sessions.iter_mut().map(|session| (session, tokens)).collect();
    Ok(Session::step_batch(&mut batch, cancel)?)
}

/// Makes a session hold these tokens, as cheaply as it can.
pub(crate) fn go_to(session: &mut Session, tokens: &[u32], cancel: &Cancel) -> Result<()> {
    let kept = session.rewind(tokens.len().min(session.tokens().len()))?;
    if kept < tokens.len() {
        session.prefill(&tokens[kept..], cancel, &mut |_, _| true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_negative_log_of_the_softmax() {
        let logits = [1.0f32, -2.0, 700.0, 699.0];
        let total: f64 = logits.iter().map(|&x| (f64::from(x) - 700.0).exp()).sum();
        for (token, &logit) in (0u32..).zip(&logits) {
            let expected = -((f64::from(logit) - 700.0).exp() / total).ln();
            let has = surprise(&logits, token);
            assert!((has - expected).abs() < 1e-9 * expected.abs().max(1.0), "{token}: {has} {expected}");
        }
    }

    #[test]
    fn a_summary_is_minimum_median_and_maximum() {
        let speed = Speed {
            name: String::new(),
            n_sessions: 2,
            tokens_per_second: vec![3.0, 9.0, 1.0, 5.0, 4.0],
            bytes_per_token: 1,
        };
        assert_eq!(speed.summary(), (1.0, 4.0, 9.0));
        assert_eq!(speed.ms_per_token(), Some(500.0));
    }
}
