//! The keys of plain `llama` GGUF files. A key that nobody here knows may change what the model computes, so such a file is
//! refused.

use longgen_format::Metadata;

use crate::error::{Error, Result};

/// Keys that mean what those of the same name under `longgen.` mean.
pub const SHARED: [&str; 12] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
];

/// Keys that give the attention plan and the divisors of the frequencies.
const OWN: [&str; 4] = [
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.scaling.type",
    "rope.scaling.factor",
];

/// Keys that change nothing that is computed here.
const INFORMATION: [&str; 3] =
    ["rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"];

/// Keys that change nothing when they are 0.
const ZERO: [&str; 2] = ["expert_count", "expert_used_count"];

/// Checks that the keys say nothing that is not known, and that this is the whole model.
pub(super) fn check_keys(metadata: &Metadata<'_>) -> Result<()> {
    if let Some(count) = metadata.opt_u32("split.count")?
        && count > 1
    {
        return Err(Error::unsupported(format!(
            "split.count: this is one of {count} parts; merge them first, as llama.cpp's llama-gguf-split does"
        )));
    }
    for (key, _) in metadata.iter() {
        let Some(name) = key.strip_prefix("llama.") else { continue };
        if ZERO.contains(&name) {
            let n = metadata.require_u64(key)?;
            if n > 0 {
                return Err(Error::unsupported(format!("{key}: {n}, models with experts do not work")));
            }
        } else if !(SHARED.contains(&name) || OWN.contains(&name) || INFORMATION.contains(&name)) {
            return Err(Error::unsupported(format!("{key}: this key is unknown, and the model may need it")));
        }
    }
    Ok(())
}
