//! Hugging Face folders: `config.json`, safetensors, `tokenizer.json`.
//!
//! What a model family means by its `config.json` stands in a file of its own.

mod json;
mod llama;
mod neutral;
mod rope;
mod safetensors;
mod tokenizer;
mod windows;

use std::path::Path;

use anyhow::{Context, Result, bail};
use longgen::model::config::ROPE_FREQS;
use longgen_format::{OwnedValue, keys};

use self::json::Object;
use self::safetensors::Weights;
use super::names::{self, Dims};
use super::source::{Source, SourceTensor};
use crate::plan::{self, PlanShape};

/// What a family says of a model.
struct Family {
    dims: Dims,
    /// The key-value pairs but those of name, tokenizer and plan.
    metadata: Vec<(String, OwnedValue)>,
    /// Divisors of the rotary frequencies, unless all are 1.
    rope_divisors: Option<Vec<f32>>,
    /// Names of the model file that the model has although it could do without, in every layer or at its end.
    optional: Vec<&'static str>,
    /// Names of the folder that the model does not use.
    unused: Vec<&'static str>,
}

/// Reads a folder.
///
/// # Errors
/// A file that is missing or malformed, or that says something that a model file cannot.
pub fn read(folder: &Path) -> Result<Source> {
    let config = json::read(&folder.join("config.json"))?;
    let config = Object::new("config.json", &config)?;
    let family = match config.require_str("model_type")? {
        "llama" | "mistral" | "ministral" => llama::family(&config)?,
        other => bail!("config.json: model_type {other:?}: llama, mistral and ministral can be converted"),
    };
    let Family { dims, .. } = family;
    let tensors = tensors(&family, Weights::open(folder)?)?;
    let tokenizer = tokenizer::read(folder, &config, dims.n_vocab)?;
    // A plan has a number for every head of every layer: from here on the folder is known to have them.
    names::check(&dims, &tensors)?;
    let shape = PlanShape::from(&dims);
    let attention = match config.get("longgen") {
        None => windows::read(&config, shape)?,
        Some(plan) => {
            windows::refuse(&config)?;
            Some(plan::from_json(plan, shape).context("config.json: longgen")?)
        }
    };

    let mut metadata = family.metadata;
    let name = std::path::absolute(folder)?;
    if let Some(name) = name.file_name() {
        metadata.push((keys::GENERAL_NAME.to_owned(), OwnedValue::Str(name.to_string_lossy().into_owned())));
    }
    metadata.extend(tokenizer.metadata);
    Ok(Source { dims, metadata, tensors, attention, warnings: tokenizer.warnings })
}

/// The tensors in the order of a model file.
fn tensors(family: &Family, mut weights: Weights) -> Result<Vec<SourceTensor>> {
    let mut tensors = Vec::new();
    if let Some(divisors) = &family.rope_divisors {
        tensors.push(SourceTensor::computed(ROPE_FREQS, divisors));
    }
    for expected in names::expected(&family.dims) {
        let wanted = expected.required || family.optional.iter().any(|part| expected.name.ends_with(part));
        if wanted {
            tensors.push(weights.take(&expected.hugging_face, expected.name)?);
        }
    }
    let mut left = weights.names().filter(|name| !family.unused.iter().any(|unused| name.ends_with(unused)));
    match left.next() {
        None => Ok(tensors),
        Some(name) => bail!("tensor {name:?}: config.json does not say that the model has it"),
    }
}
