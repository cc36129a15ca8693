//! Rotary embeddings as `config.json` spells them: a base, and divisors of the frequencies.

use std::f64::consts::TAU;

use anyhow::{Result, bail, ensure};

use super::json::Object;

pub struct Rope {
    pub base: f64,
    /// One per pair of elements, unless all are 1.
    pub divisors: Option<Vec<f32>>,
}

/// What may be said of a rotation.
const FIELDS: [&str; 8] = [
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "type",
];

/// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` where newer files have both.
pub fn read(config: &Object<'_>, n_rot: usize) -> Result<Rope> {
    ensure!(
        config.get("rope_parameters").is_none() || config.get("rope_scaling").is_none(),
        "config.json: rope_parameters and rope_scaling both say how positions turn, one of them must go"
    );
    let scaling = match config.opt_object("rope_parameters")? {
        Some(parameters) => Some(of_all_layers(parameters)?),
        None => config.opt_object("rope_scaling")?,
    };
    let within = scaling.map(|scaling| scaling.opt_positive("rope_theta")).transpose()?.flatten();
    let base = match within {
        Some(base) => base,
        None => config.opt_positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(scaling) = scaling else { return Ok(Rope { base, divisors: None }) };
    let kind = match scaling.opt_str("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.opt_str("type")?,
    };
    if let Some(part) = scaling.opt_positive("partial_rotary_factor")? {
        ensure!(part == 1.0, "config.json: partial_rotary_factor {part}, only 1 works");
    }
    let n_pairs = n_rot / 2;
    let divisors = match kind {
        Some("default") => None,
        None => {
            ensure!(scaling.get("factor").is_none(), "config.json: a rope factor without a rope type");
            None
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding to the width that files store")]
        Some("linear") => Some(vec![scaling.require_positive("factor")? as f32; n_pairs]),
        Some("llama3") => Some(llama3(&scaling, base, n_rot)?),
        Some(other) => bail!("config.json: rope type {other:?}: default, linear and llama3 work"),
    };
    match scaling.iter().find(|(field, _)| !FIELDS.contains(field)) {
        None => Ok(Rope { base, divisors }),
        Some((field, _)) => {
            bail!("config.json: {field}: this field of a rotation is unknown, and the model may need it")
        }
    }
}

/// The parameters of all layers, where they may stand once for each type of layers.
fn of_all_layers(parameters: Object<'_>) -> Result<Object<'_>> {
    let mut types = parameters.iter().filter(|(_, value)| value.is_object());
    let Some((first, shared)) = types.next() else { return Ok(parameters) };
    match parameters.iter().find(|(_, value)| *value != shared) {
        None => Object::new("rope_parameters", shared),
        Some((other, _)) => bail!(
            "config.json: rope_parameters: {other} differs from {first}, only one rotation for all layers can be converted"
        ),
    }
}

/// Llama 3.1's scaling: wavelengths beyond the original context over `low_freq_factor` are stretched by `factor`,
/// those below it over `high_freq_factor` stay, and in between the frequency is a blend of both.
fn llama3(scaling: &Object<'_>, base: f64, n_rot: usize) -> Result<Vec<f32>> {
    let factor = scaling.require_positive("factor")?;
    let low = scaling.require_positive("low_freq_factor")?;
    let high = scaling.require_positive("high_freq_factor")?;
    let n_ctx = scaling.require_positive("original_max_position_embeddings")?;
    ensure!(low < high, "config.json: low_freq_factor {low} is not below high_freq_factor {high}");
    let divisor = |pair: usize| {
        let wavelength = TAU * base.powf((2 * pair) as f64 / n_rot as f64);
        let turns = n_ctx / wavelength;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let kept = (turns - low) / (high - low);
            1.0 / ((1.0 - kept) / factor + kept)
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the width that files store")]
    let divisors = (0..n_rot / 2).map(|pair| divisor(pair) as f32).collect();
    Ok(divisors)
}
