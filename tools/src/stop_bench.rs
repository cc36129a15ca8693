//! How long a call goes on after it was asked to stop.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longgen::{Cancel, ErrorKind, Model, ModelParams};
use serde_json::{Value, json};

use crate::eval::summary;
use crate::run_args::RunArgs;

/// Tokens that are decoded one by one.
const N_DECODED: usize = 32;

/// The flags of `lgeval bench-stop`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchStopArgs {
    /// The model, and how it is run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Tokens of the prompt that is stopped
    #[arg(short = 'p', long, default_value_t = 2048)]
    pub n_prompt: usize,
    /// Calls of each kind that are stopped, at moments spread over the time that they take
    #[arg(short, long, default_value_t = 50)]
    pub repeat: u32,
}

/// How long calls of one kind went on.
#[derive(Clone, Debug)]
pub struct StopTimes {
    /// What was stopped: `open`, `prefill` or `decode`.
    pub name: &'static str,
    /// Milliseconds of the whole call, which nobody stops.
    pub whole_ms: f64,
    /// Milliseconds from the wish to the return; of calls that had ended by themselves there are none.
    pub ms: Vec<f64>,
}

impl StopTimes {
    /// As a JSON object, with the name of the device.
    pub fn to_json(&self, device: &str) -> Value {
        let (min, median, max) = summary(&self.ms);
        json!({
            "device": device, "test": self.name, "whole_ms": self.whole_ms, "calls": self.ms.len(),
            "min": min, "median": median, "max": max, "ms": self.ms,
        })
    }
}

impl BenchStopArgs {
    /// Stops loading, a prompt, and decoding. Hands the name of the device and each result to `tell`.
    ///
    /// # Errors
    /// What is wrong with the file, a prompt longer than the context, `cancel`, and what fails on the device.
    pub fn run(&self, cancel: &Cancel, tell: &mut dyn FnMut(&str, &StopTimes)) -> Result<()> {
        let params = ModelParams {
            n_threads: self.run.compute.threads.unwrap_or(0),
            device: self.run.compute.device,
            ..Default::default()
        };
        let open = |stop: &Cancel| {
            Model::open_with(self.run.path(), &params, stop, &mut |_, _| true, &mut |_, _| {})
        };
        let model = Arc::new(open(cancel)?);
        let device = model.device().name;
        let n_tokens = self.n_prompt.max(N_DECODED);
        let mut session = self.run.session(&model, &self.run.session_params(u32::try_from(n_tokens)?))?;
        let fits = session.n_ctx() as usize;
        ensure!(n_tokens <= fits, "{n_tokens} tokens do not fit in a context of {fits}");
        let ids: Vec<u32> = (0..n_tokens)
            .map(|i| u32::try_from(i * 7919 % model.config().n_vocab))
            .collect::<Result<_, _>>()?;

        tell(&device, &self.times("open", cancel, &mut |stop| open(stop).map(drop))?);
        let prefill = &mut |stop: &Cancel| {
            session.reset();
            session.prefill(&ids[..self.n_prompt], stop, &mut |_, _| true)
        };
        tell(&device, &self.times("prefill", cancel, prefill)?);
        let decode = &mut |stop: &Cancel| {
            session.reset();
            ids[..N_DECODED].iter().try_for_each(|&id| session.decode(id, stop))
        };
        tell(&device, &self.times("decode", cancel, decode)?);
        Ok(())
    }

    /// Stops `call` again and again: at moments that are spread evenly over the time that it takes.
    fn times(
        &self,
        name: &'static str,
        cancel: &Cancel,
        call: &mut dyn FnMut(&Cancel) -> longgen::Result<()>,
    ) -> Result<StopTimes> {
        call(cancel)?;
        let begun = Instant::now();
        call(cancel)?;
        let whole = begun.elapsed();
        let mut ms = Vec::new();
        for i in 0..self.repeat {
            ensure!(!cancel.is_cancelled(), "stopped");
            ms.extend(time_to_stop(whole * i / self.repeat, call)?);
        }
        Ok(StopTimes { name, whole_ms: whole.as_secs_f64() * 1e3, ms })
    }
}

/// Milliseconds from the wish, `after` the call's begin, to its return.
fn time_to_stop(
    after: Duration,
    call: &mut dyn FnMut(&Cancel) -> longgen::Result<()>,
) -> Result<Option<f64>> {
    let stop = Cancel::default();
    thread::scope(|scope| {
        let wish = scope.spawn(|| {
            thread::sleep(after);
            let now = Instant::now();
            stop.cancel();
            now
        });
        let result = call(&stop);
        let returned = Instant::now();
        let wished = wish.join().unwrap_or(returned);
        match result {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                Ok(Some(returned.saturating_duration_since(wished).as_secs_f64() * 1e3))
            }
            Err(error) => Err(error.into()),
        }
    })
}
