//! The tensors of the transformer that the runtime runs: their names in model files and in Hugging Face folders, and
//! their shapes.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use longgen::model::config::ROPE_FREQS;

use super::source::SourceTensor;
use crate::plan::PlanShape;

/// The numbers that give tensors their shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Layers.
    pub n_layers: usize,
    /// Elements of the residual stream.
    pub d_model: usize,
    /// Elements of the gated unit.
    pub d_ff: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that turn.
    pub n_rot: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
}

impl From<&Dims> for PlanShape {
    fn from(dims: &Dims) -> Self {
        Self { n_layers: dims.n_layers, n_heads: dims.n_heads, n_kv_heads: dims.n_kv_heads }
    }
}

/// A tensor that the runtime knows; in a layer its names stand behind `blk.N.` and `model.layers.N.`.
struct Known {
    name: &'static str,
    /// Empty if a folder has no such tensor.
    hugging_face: &'static str,
    required: bool,
    /// GGUF's order: inputs first.
    shape: fn(&Dims) -> Vec<usize>,
}

const fn required(name: &'static str, hugging_face: &'static str, shape: fn(&Dims) -> Vec<usize>) -> Known {
    Known { name, hugging_face, required: true, shape }
}

const fn optional(name: &'static str, hugging_face: &'static str, shape: fn(&Dims) -> Vec<usize>) -> Known {
    Known { name, hugging_face, required: false, shape }
}

const BEFORE: &[Known] = &[
    optional(ROPE_FREQS, "", |d| vec![d.n_rot / 2]),
    required(EMBEDDING, "model.embed_tokens.weight", |d| vec![d.d_model, d.n_vocab]),
];

const LAYER: &[Known] = &[
    required("attn_norm.weight", "input_layernorm.weight", |d| vec![d.d_model]),
    required("attn_q.weight", "self_attn.q_proj.weight", |d| vec![d.d_model, d.n_heads * d.head_dim]),
    optional("attn_q.bias", "self_attn.q_proj.bias", |d| vec![d.n_heads * d.head_dim]),
    required("attn_k.weight", "self_attn.k_proj.weight", |d| vec![d.d_model, d.n_kv_heads * d.head_dim]),
    optional("attn_k.bias", "self_attn.k_proj.bias", |d| vec![d.n_kv_heads * d.head_dim]),
    required("attn_v.weight", "self_attn.v_proj.weight", |d| vec![d.d_model, d.n_kv_heads * d.head_dim]),
    optional("attn_v.bias", "self_attn.v_proj.bias", |d| vec![d.n_kv_heads * d.head_dim]),
    required("attn_output.weight", "self_attn.o_proj.weight", |d| vec![d.n_heads * d.head_dim, d.d_model]),
    optional("attn_output.bias", "self_attn.o_proj.bias", |d| vec![d.d_model]),
    required("ffn_norm.weight", "post_attention_layernorm.weight", |d| vec![d.d_model]),
    required("ffn_gate.weight", "mlp.gate_proj.weight", |d| vec![d.d_model, d.d_ff]),
    optional("ffn_gate.bias", "mlp.gate_proj.bias", |d| vec![d.d_ff]),
    required("ffn_up.weight", "mlp.up_proj.weight", |d| vec![d.d_model, d.d_ff]),
    optional("ffn_up.bias", "mlp.up_proj.bias", |d| vec![d.d_ff]),
    required("ffn_down.weight", "mlp.down_proj.weight", |d| vec![d.d_ff, d.d_model]),
    optional("ffn_down.bias", "mlp.down_proj.bias", |d| vec![d.d_model]),
];

const BEHIND: &[Known] = &[
    required("output_norm.weight", "model.norm.weight", |d| vec![d.d_model]),
    // Without it the embedding serves as the output too.
    optional(OUTPUT, "lm_head.weight", |d| vec![d.d_model, d.n_vocab]),
];

/// The embedding's name.
pub const EMBEDDING: &str = "token_embd.weight";
/// The output's name.
pub const OUTPUT: &str = "output.weight";

/// A tensor that a model of these numbers may have.
pub struct Expected {
    /// Its name in model files.
    pub name: String,
    /// Its name in Hugging Face folders; empty if it is never there.
    pub hugging_face: String,
    /// Whether the model cannot run without it.
    pub required: bool,
    /// Its dimensions, inputs first.
    pub shape: Vec<u64>,
}

/// Every tensor that a model of these numbers may have, in the order of a model file.
pub fn expected(dims: &Dims) -> impl Iterator<Item = Expected> {
    let make = |known: &Known, prefix: &str, hf_prefix: &str| Expected {
        name: format!("{prefix}{}", known.name),
        hugging_face: match known.hugging_face {
            "" => String::new(),
            name => format!("{hf_prefix}{name}"),
        },
        required: known.required,
        shape: (known.shape)(dims).into_iter().map(|n| n as u64).collect(),
    };
    let layer = move |i: usize| {
        let (prefix, hf_prefix) = (format!("blk.{i}."), format!("model.layers.{i}."));
        LAYER.iter().map(move |known| make(known, &prefix, &hf_prefix))
    };
    let before = BEFORE.iter().map(move |known| make(known, "", ""));
    let behind = BEHIND.iter().map(move |known| make(known, "", ""));
    before.chain((0..dims.n_layers).flat_map(layer)).chain(behind)
}

/// Checks that the tensors of a file to be written are those of a model of these numbers: all that it needs, each of
/// the right shape, and no other.
///
/// # Errors
/// The first tensor that is missing, of another shape or unknown.
pub fn check(dims: &Dims, tensors: &[SourceTensor]) -> Result<()> {
    let mut by_name: HashMap<_, _> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    for expected in expected(dims) {
        match by_name.remove(expected.name.as_str()) {
            None => ensure!(!expected.required, "tensor {:?} is missing", expected.name),
            Some(shape) => ensure!(
                shape == expected.shape,
                "tensor {:?}: shape {shape:?}, the model's numbers say {:?} (inputs first)",
                expected.name,
                expected.shape
            ),
        }
    }
    match tensors.iter().find(|tensor| by_name.contains_key(tensor.name.as_str())) {
        None => Ok(()),
        Some(SourceTensor { name, shape, .. }) => {
            bail!("tensor {name:?} of shape {shape:?} is unknown: the model would run without it")
        }
    }
}
