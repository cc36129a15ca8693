//! The activations of a step: allocated when a session opens, reused by every step.

use crate::backend::Backend;
use crate::backend::args::MAX_TOP;
use crate::error::Result;
use crate::model::config::Config;

/// Rows of a step on their way through the layers; everything but the tokens is f32.
pub struct Activations<B: Backend> {
    /// (rows): ids of the step's tokens, as `u32`
    pub tokens: B::Buf,
    /// (rows, d_model): the residual stream
    pub x: B::Buf,
    /// (rows, d_model): the residual stream's norm
    pub h: B::Buf,
    /// (rows, n_heads, head_dim)
    pub q: B::Buf,
    /// (rows, n_kv_heads, head_dim)
    pub k: B::Buf,
    /// (rows, n_kv_heads, head_dim)
    pub v: B::Buf,
    /// (rows, n_heads, head_dim)
    pub attn: B::Buf,
    /// (rows, d_ff)
    pub gate: B::Buf,
    /// (rows, d_ff)
    pub up: B::Buf,
    /// (rows, n_pairs, 2): cosines and sines
    pub rope: B::Buf,
    /// (logits_rows, n_vocab)
    pub logits: B::Buf,
    /// (MAX_TOP): the largest logits
    pub top_values: B::Buf,
    /// (MAX_TOP), as `u32`: their tokens
    pub top_columns: B::Buf,
}

/// Elements of one row of every buffer but the logits.
fn widths(config: &Config) -> [usize; 10] {
    let (q_dim, kv_dim) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let rope = config.rope.inv_freq.len() * 2;
    [1, config.d_model, config.d_model, q_dim, kv_dim, kv_dim, q_dim, config.d_ff, config.d_ff, rope]
}

impl<B: Backend> Activations<B> {
    /// Bytes of the buffers for steps of at most `rows` rows, without the logits.
    pub fn n_bytes(config: &Config, rows: usize) -> usize {
        widths(config).iter().sum::<usize>() * rows * size_of::<f32>()
    }

    /// Bytes of the logits of `logits_rows` rows.
    pub fn logits_bytes(config: &Config, logits_rows: usize) -> usize {
        config.n_vocab * logits_rows * size_of::<f32>()
    }

    /// Bytes of one row of `x`.
    pub fn hidden_bytes(config: &Config) -> usize {
        config.d_model * size_of::<f32>()
    }

    /// Bytes of the largest logits and their tokens.
    pub fn top_bytes() -> usize {
        MAX_TOP * (size_of::<f32>() + size_of::<u32>())
    }

    /// Allocates the buffers.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(backend: &B, config: &Config, rows: usize, logits_rows: usize) -> Result<Self> {
        let [tokens, x, h, q, k, v, attn, gate, up, rope] =
            widths(config).map(|width| backend.alloc(width * rows * size_of::<f32>()));
        let logits = backend.alloc(Self::logits_bytes(config, logits_rows))?;
        Ok(Self {
            tokens: tokens?,
            x: x?,
            h: h?,
            q: q?,
            k: k?,
            v: v?,
            attn: attn?,
            gate: gate?,
            up: up?,
            rope: rope?,
            logits,
            top_values: backend.alloc(MAX_TOP * size_of::<f32>())?,
            top_columns: backend.alloc(MAX_TOP * size_of::<u32>())?,
        })
    }
}
