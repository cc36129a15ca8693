//! What a prompt costs the sessions that decode when it arrives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longgen::{Cancel, Model, Session, SessionParams};
use serde_json::{Value, json};

use crate::eval::{go_to, ids, step, summary};
use crate::run_args::RunArgs;

/// The flags of `lgeval bench-mixed`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchMixedArgs {
    /// Tokens of the prompt that arrives
    #[arg(short = 'p', long, default_value_t = 512)]
    pub n_prompt: usize,
    /// Tokens of its parts: one number, or several with commas between them
    #[arg(long, value_delimiter = ',', default_value = "32,128,512")]
    pub parts: Vec<usize>,
    /// Sessions that decode meanwhile
    #[arg(short = 's', long, default_value_t = 4)]
    pub sessions: usize,
    /// Tokens that those hold before
    #[arg(short, long, default_value_t = 256)]
    pub depth: usize,
    /// Repetitions, after one that is not counted
    #[arg(short, long, default_value_t = 3)]
    pub repeat: usize,
}

/// What was measured while a prompt was computed: medians of the repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Mixed {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Sessions that decode meanwhile.
    pub n_sessions: usize,
    /// Tokens that those held before.
    pub depth: usize,
    /// Tokens of its parts, each in one step with the tokens of the others; nothing if they waited for all of it.
    pub part: Option<usize>,
    /// Tokens of the prompt per second.
    pub prompt_rate: f64,
    /// Tokens per second of all others together.
    pub decode_rate: f64,
    /// Milliseconds of the longest time from one token of the others to the next.
    pub longest_ms: f64,
}

impl Mixed {
    /// `alone`, or `in parts of 128`.
    pub fn name(&self) -> String {
        self.part.map_or_else(|| "alone".into(), |part| format!("in parts of {part}"))
    }

    /// As a JSON object, with the name of the device.
    pub fn to_json(&self, device: &str) -> Value {
        json!({
            "device": device, "test": self.name(), "n_prompt": self.n_prompt, "sessions": self.n_sessions,
            "depth": self.depth, "part": self.part, "prompt_tokens_per_second": self.prompt_rate,
            "decode_tokens_per_second": self.decode_rate, "longest_ms": self.longest_ms,
        })
    }
}

impl BenchMixedArgs {
    /// Computes the prompt alone, then in parts of each size. Hands the name of the device and each result to `tell`.
    ///
    /// # Errors
    /// What is wrong with the flags, `cancel`, and what fails on the device.
    pub fn run(
        &self,
        model: &Arc<Model>,
        run: &RunArgs,
        cancel: &Cancel,
        tell: &mut dyn FnMut(&str, &Mixed),
    ) -> Result<()> {
        let Self { n_prompt, ref parts, sessions: n_sessions, depth, repeat } = *self;
        ensure!(n_prompt > 0 && n_sessions > 0 && repeat > 0, "nothing to measure: a number is 0");
        ensure!(!parts.contains(&0), "--parts 0: a part has tokens");
        // What is decoded beside the smallest parts fits, and so does a step of the largest.
        let smallest = parts.iter().copied().min().unwrap_or(n_prompt);
        let n_ctx = u32::try_from(n_prompt.max(depth + n_prompt.div_ceil(smallest)) + n_sessions + 1)?;
        let params =
            SessionParams { logits_rows: u32::try_from(n_sessions + 1)?, ..run.session_params(n_ctx) };
        let mut arriving = run.session(model, &params)?;
        let others = (0..n_sessions).map(|_| run.session(model, &params));
        let mut others = others.collect::<Result<Vec<_>>>()?;
        let ids = ids(model, n_ctx as usize)?;
        let device = model.device().name;
        for part in [None].into_iter().chain(parts.iter().copied().map(Some)) {
            let mut measured = [const { Vec::new() }; 3];
            for round in 0..=repeat {
                arriving.rewind(0)?;
                others.iter_mut().try_for_each(|other| go_to(other, &ids[..depth], cancel))?;
                let times = match part {
                    None => vec![waited(&mut arriving, &mut others, &ids[..n_prompt], cancel)?],
                    Some(part) => beside(&mut arriving, &mut others, ids[..n_prompt].chunks(part), cancel)?,
                };
                let seconds = times.iter().sum::<Duration>().as_secs_f64();
                let longest = times.iter().max().map_or(0.0, Duration::as_secs_f64);
                let values =
                    [n_prompt as f64 / seconds, (n_sessions * times.len()) as f64 / seconds, longest * 1e3];
                if round > 0 {
                    measured.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
                }
            }
            let [prompt_rate, decode_rate, longest_ms] = measured.map(|values| summary(&values).1);
            tell(&device, &Mixed { n_prompt, n_sessions, depth, part, prompt_rate, decode_rate, longest_ms });
        }
        Ok(())
    }
}

/// The others get their next token when the prompt is done; returns after which time.
fn waited(
    arriving: &mut Session,
    others: &mut [Session],
    prompt: &[u32],
    cancel: &Cancel,
) -> Result<Duration> {
    let begun = Instant::now();
    arriving.prefill(prompt, cancel, &mut |_, _| true)?;
    step(others, &prompt[..1], cancel)?;
    Ok(begun.elapsed())
}

/// The others get a token with each part of the prompt; returns after which times.
fn beside<'a>(
    arriving: &mut Session,
    others: &mut [Session],
    parts: impl Iterator<Item = &'a [u32]>,
    cancel: &Cancel,
) -> Result<Vec<Duration>> {
    parts
        .map(|part| {
            let begun = Instant::now();
            let singles = others.iter_mut().map(|other| (other, &part[..1]));
            let mut batch: Vec<_> = [(&mut *arriving, part)].into_iter().chain(singles).collect();
            Session::step_batch(&mut batch, cancel)?;
            Ok(begun.elapsed())
        })
        .collect()
}
