//! `model_type` `llama`.

use anyhow::{Result, bail, ensure};
use longgen_format::{OwnedValue, keys};

use super::json::Object;
use super::{Family, rope};
use crate::convert::names::{Dims, OUTPUT};
use crate::convert::{identity, structure};

/// Most elements of a head that the runtime knows.
const MAX_HEAD_DIM: usize = 512;

/// What a `config.json` of this type says.
pub fn family(config: &Object<'_>) -> Result<Family> {
    if config.get("quantization_config").is_some() {
        bail!(
            "config.json: quantization_config: quantised checkpoints cannot be converted, their original can"
        );
    }
    if let Some(activation) = config.opt_str("hidden_act")? {
        ensure!(activation == "silu", "config.json: hidden_act {activation:?}, only silu works");
    }
    if let Some(part) = config.opt_positive("partial_rotary_factor")? {
        ensure!(part == 1.0, "config.json: partial_rotary_factor {part}, only 1 works");
    }
    let size = |field| config.require_u32(field).map(|n| n as usize);
    let (d_model, n_heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let n_kv_heads = config.opt_u32("num_key_value_heads")?.map_or(n_heads, |n| n as usize);
    let head_dim = match config.opt_u32("head_dim")? {
        Some(n) => n as usize,
        None => d_model.checked_div(n_heads).unwrap_or(0),
    };
    ensure!(
        n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "config.json: {n_heads} query heads cannot share {n_kv_heads} kv heads"
    );
    ensure!(
        config.get("head_dim").is_some() || d_model.is_multiple_of(n_heads),
        "config.json: {n_heads} heads cannot share {d_model} elements"
    );
    ensure!(
        (2..=MAX_HEAD_DIM).contains(&head_dim) && head_dim.is_multiple_of(2),
        "config.json: heads of {head_dim} elements: even numbers up to {MAX_HEAD_DIM} work"
    );
    ensure!(size("num_hidden_layers")? > 0, "config.json: num_hidden_layers is 0");
    let dims = Dims {
        n_layers: size("num_hidden_layers")?,
        d_model,
        d_ff: size("intermediate_size")?,
        n_heads,
        n_kv_heads,
        head_dim,
        n_rot: head_dim,
        n_vocab: size("vocab_size")?,
    };
    let rope = rope::read(config, dims.n_rot)?;

    let mut metadata = identity("llama");
    let numbers = [
        (keys::BLOCK_COUNT, config.require_u32("num_hidden_layers")?),
        (keys::CONTEXT_LENGTH, config.require_u32("max_position_embeddings")?),
        (keys::EMBEDDING_LENGTH, config.require_u32("hidden_size")?),
        (keys::FEED_FORWARD_LENGTH, config.require_u32("intermediate_size")?),
        (keys::VOCAB_SIZE, config.require_u32("vocab_size")?),
        (keys::ATTENTION_HEAD_COUNT, config.require_u32("num_attention_heads")?),
        (keys::ATTENTION_HEAD_COUNT_KV, u32::try_from(n_kv_heads)?),
        (keys::ATTENTION_KEY_LENGTH, u32::try_from(head_dim)?),
        (keys::ATTENTION_VALUE_LENGTH, u32::try_from(head_dim)?),
        (keys::ROPE_DIMENSION_COUNT, u32::try_from(dims.n_rot)?),
    ];
    metadata.extend(numbers.map(|(key, n)| (key.to_owned(), OwnedValue::U32(n))));
    let epsilon = to_f32(config.require_positive("rms_norm_eps")?);
    metadata.push((keys::ATTENTION_LAYER_NORM_RMS_EPSILON.to_owned(), OwnedValue::F32(epsilon)));
    metadata.push((keys::ROPE_FREQ_BASE.to_owned(), OwnedValue::F32(to_f32(rope.base))));
    metadata.extend(structure("halves"));

    let is_set = |field| config.opt_bool(field).map(|value| value.unwrap_or(false));
    let (mut optional, mut unused) = (Vec::new(), vec!["rotary_emb.inv_freq"]);
    if is_set("attention_bias")? {
        optional.extend(["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"]);
    }
    if is_set("mlp_bias")? {
        optional.extend(["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"]);
    }
    match is_set("tie_word_embeddings")? {
        // Some checkpoints store the embedding a second time.
        true => unused.push("lm_head.weight"),
        false => optional.push(OUTPUT),
    }
    Ok(Family { dims, metadata, rope_divisors: rope.divisors, optional, unused })
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to the width that files store")]
fn to_f32(x: f64) -> f32 {
    x as f32
}
