//! What is in a model file, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use longgen::attention::plan::LayerAttention;
use longgen::model::config::Config;
use longgen::weights::{Load, WeightFile};
use longgen::{MemoryPlan, Model, ModelParams, SessionParams};
use longgen_format::{Array, Directory, TensorInfo, Value, keys};
use serde_json::json;

use crate::plan;

/// Longest text of a value that is shown whole.
const SHOWN_CHARS: usize = 72;

/// Everything about the file at `path` as text; with `n_ctx`, also what the cache of such a context takes.
///
/// # Errors
/// A file that cannot be read, or, with `n_ctx`, that the runtime cannot run.
pub fn text(path: &Path, n_ctx: Option<u32>) -> Result<String> {
    let bytes = longgen::weights::open(path, Load::Map)?;
    let directory = Directory::read((*bytes).as_ref()).with_context(|| path.display().to_string())?;
    let metadata = &directory.metadata;
    let mut text =
        format!("{}: GGUF version {}, {}\n", path.display(), directory.version(), size(bytes_of(&bytes)));

    let _ = writeln!(text, "\nmetadata ({} keys)", metadata.len());
    for (key, value) in metadata.iter() {
        let _ = writeln!(text, "  {key} = {}", shown(value));
    }
    let n_bytes: u64 = directory.tensors().iter().map(TensorInfo::n_bytes).sum();
    let _ = writeln!(text, "\ntensors ({}, {})", directory.tensors().len(), size(n_bytes));
    for tensor in directory.tensors() {
        let shape: Vec<_> = tensor.shape().iter().map(u64::to_string).collect();
        let (name, ty) = (tensor.name(), tensor.type_name());
        let _ =
            writeln!(text, "  {name:<32} {ty:<6} {:<16} {:>12}", shape.join(" x "), size(tensor.n_bytes()));
    }
    text.push_str("\nattention\n");
    match (Config::read(&WeightFile { bytes: &bytes, directory: &directory }), n_ctx) {
        (Err(error), _) => {
            let _ = writeln!(text, "  unknown: {error}");
        }
        (Ok(config), None) => text.push_str(&plan::table(&config.attention, |_| String::new())),
        (Ok(config), Some(n_ctx)) => text.push_str(&with_memory(path, &config, n_ctx)?),
    }
    Ok(text)
}

/// The plan with the bytes of each group's cache, and their sum beside that of full attention.
fn with_memory(path: &Path, config: &Config, n_ctx: u32) -> Result<String> {
    let planned = |attention: Option<Vec<LayerAttention>>| -> Result<MemoryPlan> {
        let model = Model::open(path, &ModelParams { attention, n_threads: 1, ..ModelParams::default() })?;
        Ok(model.plan(&SessionParams { n_ctx, ..SessionParams::default() })?)
    };
    let own = planned(None)?;
    let full = planned(Some(plan::full(config.into())))?;
    let mut text = plan::table(&config.attention, |layers| {
        let n_bytes: usize = own.layers[layers].iter().map(|layer| layer.kv_bytes).sum();
        size(n_bytes as u64)
    });
    let (own, full) = (size(own.kv_bytes() as u64), size(full.kv_bytes() as u64));
    let _ = writeln!(text, "  kv cache of {n_ctx} tokens: {own}, with full attention {full}");
    Ok(text)
}

/// The same for programs: `attention` holds the layers in the words of a JSON plan, or null if the runtime does not know
/// the file.
///
/// # Errors
/// A file that cannot be read.
pub fn json(path: &Path) -> Result<serde_json::Value> {
    let bytes = longgen::weights::open(path, Load::Map)?;
    let directory = Directory::read((*bytes).as_ref()).with_context(|| path.display().to_string())?;
    let metadata: serde_json::Map<_, _> =
        directory.metadata.iter().map(|(key, value)| (key.to_owned(), to_json(value))).collect();
    let hashes = directory.metadata.opt_strs(keys::HASH_TENSORS)?.unwrap_or_default();
    let tensor = |(i, tensor): (usize, &TensorInfo<'_>)| {
        json!({
            "name": tensor.name(), "type": tensor.type_name(), "shape": tensor.shape(),
            "offset": tensor.offset(), "bytes": tensor.n_bytes(), "hash": hashes.get(i),
        })
    };
    let tensors: Vec<_> = directory.tensors().iter().enumerate().map(tensor).collect();
    let config = Config::read(&WeightFile { bytes: &bytes, directory: &directory }).ok();
    Ok(json!({
        "gguf_version": directory.version(),
        "alignment": directory.alignment(),
        "bytes": bytes_of(&bytes),
        "metadata": metadata,
        "tensors": tensors,
        "attention": config.map(|config| plan::to_json(&config.attention)),
    }))
}

fn bytes_of(bytes: &longgen::backend::args::SharedBytes) -> u64 {
    (**bytes).as_ref().len() as u64
}

fn to_json(value: &Value<'_>) -> serde_json::Value {
    match *value {
        Value::UInt(_, x) => x.into(),
        Value::Int(_, x) => x.into(),
        Value::Float(_, x) => x.into(),
        Value::Bool(x) => x.into(),
        Value::Str(x) => x.into(),
        Value::Array(array) => array.iter().map(|value| to_json(&value)).collect(),
    }
}

/// A value on one line, shortened.
fn shown(value: &Value<'_>) -> String {
    match value {
        Value::UInt(_, x) => x.to_string(),
        Value::Int(_, x) => x.to_string(),
        Value::Float(_, x) => x.to_string(),
        Value::Bool(x) => x.to_string(),
        Value::Str(x) => shortened(x),
        Value::Array(array) => shown_array(array),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
    }
}

fn shown_array(array: &Array<'_>) -> String {
    let mut items = String::new();
    for value in array.iter() {
        if items.len() > SHOWN_CHARS {
            items.push_str(", ...");
            break;
        }
        let comma = if items.is_empty() { "" } else { ", " };
        let _ = write!(items, "{comma}{}", shown(&value));
    }
    format!("[{items}] ({} x {})", array.len(), array.element_type())
}

/// A number of bytes in the unit that suits it.
pub fn size(n_bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| n_bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", n_bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{n_bytes} B"),
    }
}
