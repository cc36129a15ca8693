//! GGUF files: plain `llama` ones, and LongGen's own to be changed.

use anyhow::{Context, Result, ensure};
use longgen::attention::mask::Mask;
use longgen::backend::args::SharedBytes;
use longgen::model::config::{Config, ROPE_FREQS};
use longgen::model::llama::SHARED;
use longgen::text::{Tokenizer, pipeline_of};
use longgen::weights::WeightFile;
use longgen_format::{Directory, Metadata, OwnedValue, Value, keys};

use super::names::{self, Dims};
use super::source::{Source, SourceTensor};
use super::{PLAN_KEYS, identity, set, structure};

/// Reads a GGUF file.
///
/// # Errors
/// A file that is damaged, of another architecture, or says something that a model file cannot.
pub fn read(bytes: &SharedBytes) -> Result<Source> {
    let directory = Directory::read((**bytes).as_ref())?;
    let metadata = &directory.metadata;
    let architecture = metadata.require_str(keys::GENERAL_ARCHITECTURE)?;
    ensure!(
        matches!(architecture, "llama" | "longgen"),
        "architecture {architecture:?}: llama and longgen files can be converted"
    );
    let config = Config::read(&WeightFile { bytes, directory: &directory })?;
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    tokenizer.check_rows(config.n_vocab)?;

    let dims = Dims {
        n_layers: config.n_layers,
        d_model: config.d_model,
        d_ff: config.d_ff,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        n_rot: config.rope.inv_freq.len() * 2,
        n_vocab: config.n_vocab,
    };
    let mut tensors = tensors(&directory, bytes)?;
    let is_llama = architecture == "llama";
    if is_llama {
        fold_linear_scaling(metadata, &mut tensors, dims.n_rot / 2)?;
    }
    names::check(&dims, &tensors)?;
    let brought = !is_llama || config.attention.iter().any(|layer| layer.mask != Mask::Full);
    Ok(Source {
        dims,
        metadata: if is_llama { from_llama(metadata, &tokenizer)? } else { from_longgen(metadata) },
        tensors,
        attention: brought.then_some(config.attention),
        warnings: Vec::new(),
    })
}

fn tensors(directory: &Directory<'_>, bytes: &SharedBytes) -> Result<Vec<SourceTensor>> {
    let tensor = |info: &longgen_format::TensorInfo<'_>| {
        let begin = usize::try_from(info.offset())?;
        let range = begin..begin + usize::try_from(info.n_bytes())?;
        Ok(SourceTensor::in_file(
            info.name().to_owned(),
            info.shape().to_vec(),
            info.source_type()?,
            bytes,
            range,
        ))
    };
    directory.tensors().iter().map(tensor).collect()
}

fn owned((key, value): (&str, &Value<'_>)) -> (String, OwnedValue) {
    (key.to_owned(), value.into())
}

fn from_longgen(metadata: &Metadata<'_>) -> Vec<(String, OwnedValue)> {
    metadata.iter().filter(|(key, _)| !PLAN_KEYS.contains(key)).map(owned).collect()
}

fn from_llama(metadata: &Metadata<'_>, tokenizer: &Tokenizer) -> Result<Vec<(String, OwnedValue)>> {
    let mut pairs = identity("llama");
    for (key, value) in metadata.iter() {
        match key.strip_prefix("llama.") {
            Some(name) if SHARED.contains(&name) => pairs.push((format!("longgen.{name}"), value.into())),
            // Reading the numbers has made the plan and the divisors of it, or found that it says nothing.
            Some(_) => {}
            None if key == keys::GENERAL_ARCHITECTURE => {}
            None => pairs.push(owned((key, value))),
        }
    }
    // What a plain file leaves to whoever reads it is said from here on.
    set(&mut pairs, "tokenizer.ggml.add_bos_token", OwnedValue::Bool(tokenizer.adds_bos()));
    set(&mut pairs, keys::TOKENIZER_PIPELINE, OwnedValue::Str(pipeline_of(metadata)?));
    pairs.extend(structure("adjacent"));
    Ok(pairs)
}

/// Multiplies the divisors of the frequencies by the factor of a linear scaling.
fn fold_linear_scaling(
    metadata: &Metadata<'_>,
    tensors: &mut Vec<SourceTensor>,
    n_pairs: usize,
) -> Result<()> {
    // Type and factor have been checked with the other numbers; a file that gives a factor and no type means linear.
    let factor = match metadata.opt_str("llama.rope.scaling.type")? {
        Some("none") => 1.0,
        _ => metadata.opt_f32("llama.rope.scaling.factor")?.unwrap_or(1.0),
    };
    if factor == 1.0 {
        return Ok(());
    }
    let mut divisors = vec![1.0; n_pairs];
    let stored = tensors.iter().position(|tensor| tensor.name == ROPE_FREQS);
    if let Some(i) = stored {
        let tensor = tensors.remove(i);
        tensor.ty.dequantize(tensor.bytes(), &mut divisors).context(ROPE_FREQS)?;
    }
    divisors.iter_mut().for_each(|divisor| *divisor *= factor);
    tensors.insert(stored.unwrap_or(0), SourceTensor::computed(ROPE_FREQS, &divisors));
    Ok(())
}
