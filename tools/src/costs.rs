//! What an answer cost, in words.

use std::time::Duration;

use longgen::{KvType, Model, Session};

use crate::generate::Stats;
use crate::output::tell;
use crate::plan::spans;

/// Says what an answer in `session` cost.
pub fn tell_costs(session: &Session, stats: &Stats, kv_type: KvType) {
    tell(line(session.model(), stats, kv_type));
    if let Some(note) = session.decode_note() {
        tell(note);
    }
}

/// One line about an answer of `model`.
fn line(model: &Model, stats: &Stats, kv_type: KvType) -> String {
    let Stats { n_prompt, n_reused, n_recomputed, ref limiting_layers, n_generated, n_decoded, .. } = *stats;
    let n_computed = n_prompt - n_reused;
    let again = match n_recomputed {
        0 => String::new(),
        n => format!("{n} of them again since layers {} had given them up, ", spans(limiting_layers)),
    };
    let per_second = rate(n_decoded, stats.generation);
    format!(
        "prompt {n_prompt} tokens ({n_reused} reused, {n_computed} computed, {again}{:.0} ms, {:.1}/s), \
        answer {n_generated} tokens ({:.0} ms, {per_second:.1}/s, {})",
        stats.prompt.as_secs_f64() * 1e3,
        rate(n_computed, stats.prompt),
        stats.generation.as_secs_f64() * 1e3,
        bandwidth(model, stats, per_second, kv_type),
    )
}

fn rate(n: usize, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64().max(1e-9)
}

/// What the tokens of an answer read per second, and the most that the device can deliver.
fn bandwidth(model: &Model, stats: &Stats, tokens_per_second: f64, kv_type: KvType) -> String {
    let middle = stats.n_prompt + stats.n_decoded / 2;
    let position = u32::try_from(middle).unwrap_or(u32::MAX);
    let bytes = model.weight_bytes() + model.kv_read_bytes(position, kv_type);
    let has = tokens_per_second * bytes as f64 / 1e9;
    match model.device().bandwidth {
        Some(most) => format!("{has:.1} of at most {:.0} GB/s read", most / 1e9),
        None => format!("{has:.1} GB/s read"),
    }
}
