//! The Llama family: `model_type` `llama`, and `mistral` and `ministral`, which are the same but for their windows.

use anyhow::{Result, bail, ensure};
use longgen::attention::plan::MAX_CTX;
use longgen::model::config::{MAX_DIM, MAX_HEAD_DIM, MAX_LAYERS, MAX_VOCAB};
use longgen_format::{OwnedValue, keys};

use super::json::Object;
use super::{Family, neutral, rope};
use crate::convert::names::{Dims, OUTPUT};
use crate::convert::{identity, structure};

/// What a `config.json` of such a type says.
pub fn family(config: &Object<'_>) -> Result<Family> {
    if config.get("quantization_config").is_some() {
        bail!(
            "config.json: quantization_config: quantised checkpoints cannot be converted, their original can"
        );
    }
    neutral::check(config)?;
    let n_layers = config.require_up_to("num_hidden_layers", MAX_LAYERS)?;
    let d_model = config.require_up_to("hidden_size", MAX_DIM)?;
    let d_ff = config.require_up_to("intermediate_size", MAX_DIM)?;
    let n_vocab = config.require_up_to("vocab_size", MAX_VOCAB)?;
    let n_heads = config.require_up_to("num_attention_heads", MAX_DIM)?;
    let n_kv_heads = config.opt_up_to("num_key_value_heads", MAX_DIM)?.unwrap_or(n_heads);
    ensure!(
        n_heads.is_multiple_of(n_kv_heads),
        "config.json: {n_heads} query heads cannot share {n_kv_heads} kv heads"
    );
    let head_dim = config.opt_up_to("head_dim", MAX_DIM)?;
    ensure!(
        head_dim.is_some() || d_model.is_multiple_of(n_heads),
        "config.json: {n_heads} heads cannot share {d_model} elements"
    );
    let head_dim = head_dim.unwrap_or(d_model / n_heads);
    ensure!(
        head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(2),
        "config.json: heads of {head_dim} elements: even numbers up to {MAX_HEAD_DIM} work"
    );
    let dims = Dims {
        n_layers: n_layers as usize,
        d_model: d_model as usize,
        d_ff: d_ff as usize,
        n_heads: n_heads as usize,
        n_kv_heads: n_kv_heads as usize,
        head_dim: head_dim as usize,
        n_rot: head_dim as usize,
        n_vocab: n_vocab as usize,
    };
    let rope = rope::read(config, dims.n_rot)?;

    let mut metadata = identity(config.require_str("model_type")?);
    let numbers = [
        (keys::BLOCK_COUNT, n_layers),
        (keys::CONTEXT_LENGTH, config.require_up_to("max_position_embeddings", MAX_CTX)?),
        (keys::EMBEDDING_LENGTH, d_model),
        (keys::FEED_FORWARD_LENGTH, d_ff),
        (keys::VOCAB_SIZE, n_vocab),
        (keys::ATTENTION_HEAD_COUNT, n_heads),
        (keys::ATTENTION_HEAD_COUNT_KV, n_kv_heads),
        (keys::ATTENTION_KEY_LENGTH, head_dim),
        (keys::ATTENTION_VALUE_LENGTH, head_dim),
        (keys::ROPE_DIMENSION_COUNT, head_dim),
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
