//! Fields of `config.json` by which relatives of the Llama family change what a model computes.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::json::Object;
use crate::plan::shown;

/// Fields that change nothing where they have one value, or are missing or null.
struct Fields {
    /// The value, for errors.
    neutral: &'static str,
    is_neutral: fn(&Value) -> bool,
    names: &'static [&'static str],
}

const FIELDS: &[Fields] = &[
    Fields {
        neutral: "null",
        is_neutral: Value::is_null,
        names: &[
            "attention_chunk_size",
            "attention_multiplier",
            "attn_logit_softcapping",
            "clip_qkv",
            "dim_model_base",
            "final_logit_softcapping",
            "layer_switch",
            "max_window_layers",
            "no_rope_layer_interval",
            "no_rope_layers",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "scale_depth",
            "sliding_window_pattern",
            "swiglu_limit",
        ],
    },
    Fields {
        neutral: "false",
        is_neutral: |value| *value == Value::Bool(false),
        names: &[
            "alibi",
            "attn_temperature_tuning",
            "parallel_attn",
            "qk_layernorm",
            "qk_norm",
            "rope_interleaved",
            "use_alibi",
            "use_bidirectional_attention",
            "use_parallel_residual",
            "use_qk_norm",
        ],
    },
    Fields {
        neutral: "1",
        is_neutral: |value| value.as_f64() == Some(1.0),
        names: &[
            "attention_value_scale",
            "embedding_multiplier",
            "embedding_scale",
            "key_multiplier",
            "lm_head_multiplier",
            "logit_scale",
            "logits_scaling",
            "partial_rotary_factor",
            "residual_multiplier",
            "rotary_pct",
            "scale_emb",
        ],
    },
    Fields { neutral: "\"silu\"", is_neutral: |value| value == "silu", names: &["hidden_act"] },
];

/// Checks that the model computes nothing that a model file cannot say.
pub fn check(config: &Object<'_>) -> Result<()> {
    for Fields { neutral, is_neutral, names } in FIELDS {
        for (name, value) in names.iter().filter_map(|name| Some((name, config.get(name)?))) {
            ensure!(
                is_neutral(value),
                "config.json: {name}: {} changes what the model computes, only {neutral} can be converted",
                shown(value)
            );
        }
    }
    Ok(())
}
