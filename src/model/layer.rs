//! The matrices of a model, as its file names them.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::weights::WeightFile;

/// One layer. Matrices are (outputs, inputs).
pub struct LayerWeights<B: Backend> {
    /// (n_heads), as `u32`: phases of the strided blocks
    pub phases: B::Buf,
    /// (d_model)
    pub attn_norm: B::Buf,
    /// (n_heads * head_dim, d_model)
    pub q: B::Weight,
    /// (n_heads * head_dim)
    pub q_bias: Option<B::Buf>,
    /// (n_kv_heads * head_dim, d_model)
    pub k: B::Weight,
    /// (n_kv_heads * head_dim)
    pub k_bias: Option<B::Buf>,
    /// (n_kv_heads * head_dim, d_model)
    pub v: B::Weight,
    /// (n_kv_heads * head_dim)
    pub v_bias: Option<B::Buf>,
    /// (d_model, n_heads * head_dim)
    pub o: B::Weight,
    /// (d_model)
    pub o_bias: Option<B::Buf>,
    /// (d_model)
    pub mlp_norm: B::Buf,
    /// (d_ff, d_model)
    pub gate: B::Weight,
    /// (d_ff)
    pub gate_bias: Option<B::Buf>,
    /// (d_ff, d_model)
    pub up: B::Weight,
    /// (d_ff)
    pub up_bias: Option<B::Buf>,
    /// (d_model, d_ff)
    pub down: B::Weight,
    /// (d_model)
    pub down_bias: Option<B::Buf>,
}

/// The whole model.
pub struct Weights<B: Backend> {
    /// (n_vocab, d_model)
    pub embedding: B::Weight,
    /// One element per layer.
    pub layers: Vec<LayerWeights<B>>,
    /// (d_model)
    pub output_norm: B::Buf,
    /// (n_pairs): rotation per position of each pair of a head, in radians
    pub inv_freq: B::Buf,
    /// (n_vocab, d_model); `None` where the embedding serves as the output too.
    pub output: Option<B::Weight>,
}

impl<B: Backend> Weights<B> {
    /// Finds every matrix of the model in its file and checks its shape.
    ///
    /// # Errors
    /// `Format` for a tensor that is missing or has another shape than the model's numbers say, `Unsupported` for an
    /// element type that this runtime does not know.
    pub fn load(backend: &B, file: &WeightFile<'_>, config: &Config) -> Result<Self> {
        let (d_model, d_ff, n_vocab) = (config.d_model, config.d_ff, config.n_vocab);
        let (q_dim, kv_dim) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let matrix = |name: &str, rows, cols| backend.weight(file.matrix(name, rows, cols)?);
        let buf = |values: &[f32]| {
            let mut buf = backend.alloc(size_of_val(values))?;
            backend.upload(&mut buf, 0, values)?;
            Ok::<_, Error>(buf)
        };
        let vector = |name: &str, n: usize| buf(&file.vector(name, n)?);
        let bias = |name: &str, n| file.has(name).then(|| vector(name, n)).transpose();

        let layer = |i: usize| {
            let name = |part: &str| format!("blk.{i}.{part}");
            let attention = &config.attention[i];
            let mut phases = backend.alloc(size_of_val(&attention.phases[..]))?;
            backend.upload(&mut phases, 0, &attention.phases)?;
            Ok(LayerWeights {
                phases,
                attn_norm: vector(&name("attn_norm.weight"), d_model)?,
                q: matrix(&name("attn_q.weight"), q_dim, d_model)?,
                q_bias: bias(&name("attn_q.bias"), q_dim)?,
                k: matrix(&name("attn_k.weight"), kv_dim, d_model)?,
                k_bias: bias(&name("attn_k.bias"), kv_dim)?,
                v: matrix(&name("attn_v.weight"), kv_dim, d_model)?,
                v_bias: bias(&name("attn_v.bias"), kv_dim)?,
                o: matrix(&name("attn_output.weight"), d_model, q_dim)?,
                o_bias: bias(&name("attn_output.bias"), d_model)?,
                mlp_norm: vector(&name("ffn_norm.weight"), d_model)?,
                gate: matrix(&name("ffn_gate.weight"), d_ff, d_model)?,
                gate_bias: bias(&name("ffn_gate.bias"), d_ff)?,
                up: matrix(&name("ffn_up.weight"), d_ff, d_model)?,
                up_bias: bias(&name("ffn_up.bias"), d_ff)?,
                down: matrix(&name("ffn_down.weight"), d_model, d_ff)?,
                down_bias: bias(&name("ffn_down.bias"), d_model)?,
            })
        };
        Ok(Self {
            embedding: matrix("token_embd.weight", n_vocab, d_model)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_>>()?,
            output_norm: vector("output_norm.weight", d_model)?,
            inv_freq: buf(&config.rope.inv_freq)?,
            output: file
                .has("output.weight")
                .then(|| matrix("output.weight", n_vocab, d_model))
                .transpose()?,
        })
    }
}
