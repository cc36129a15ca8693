//! The transformer, written once for every backend.

use crate::alloc::{try_collect, try_vec};
use crate::backend::Backend;
use crate::backend::args::*;
use crate::error::Result;
use crate::kv::cache::KvCache;
use crate::model::config::Config;
use crate::model::layer::{LayerWeights, Weights};
use crate::model::scratch::Activations;

/// One session's part of a step.
pub struct SeqStep<'a, B: Backend> {
    /// Which rows of the step are its own.
    pub desc: &'a B::Descriptor,
    /// Its cache.
    pub kv: &'a mut KvCache<B>,
}

/// The tokens of one or several sessions on their way through the layers.
pub struct Step<'a, 's, B: Backend> {
    /// Where it runs.
    pub backend: &'a B,
    /// The model's numbers.
    pub config: &'a Config,
    /// The model's matrices.
    pub weights: &'a Weights<B>,
    /// Rows of the step.
    pub acts: &'a mut Activations<B>,
    /// The sessions, whose caches have the same element type.
    pub seqs: &'a mut [SeqStep<'s, B>],
    /// Rows of all sessions together.
    pub n_rows: usize,
}

impl<B: Backend> Step<'_, '_, B> {
    /// Runs the rows of `acts.tokens` through all layers: leaves the last layer's output in `acts.x`, and keys and
    /// values in the caches, where they count after [`KvCache::advance`].
    ///
    /// A layer is `x += attention(norm(x)); x += mlp(norm(x))`.
    pub fn layers(&mut self, ws: &mut B::Workspace) -> Result<()> {
        let Activations { tokens, x, rope, .. } = &mut *self.acts;
        let (table, scale) = (&self.weights.embedding, self.config.embedding_scale);
        self.backend.embed(ws, EmbedArgs { out: x, table, tokens, n_tokens: self.n_rows, scale })?;
        let seqs = try_collect(self.seqs.iter().map(|seq| seq.desc))?;
        let angles = RopeTableArgs {
            out: rope,
            inv_freq: &self.weights.inv_freq,
            n_pairs: self.config.rope.inv_freq.len(),
            attention_factor: self.config.rope.attention_factor,
            seqs: &seqs,
        };
        self.backend.rope_table(ws, angles)?;

        for (i_layer, layer) in self.weights.layers.iter().enumerate() {
            self.attention(ws, i_layer, layer)?;
            self.mlp(ws, layer)?;
        }
        Ok(())
    }

    fn attention(&mut self, ws: &mut B::Workspace, i_layer: usize, layer: &LayerWeights<B>) -> Result<()> {
        let config = self.config;
        let Activations { x, h, q, k, v, rope, attn, .. } = &mut *self.acts;
        let mut seqs = try_collect(self.seqs.iter_mut().map(|seq| seq.kv.layer(i_layer, seq.desc)))?;
        let args = AttentionArgs {
            x,
            n_rows: self.n_rows,
            norm: &layer.attn_norm,
            eps: config.norm_eps,
            q: &layer.q,
            k: &layer.k,
            v: &layer.v,
            o: &layer.o,
            scratch: h,
            attend: AppendAttnArgs {
                out: attn,
                q,
                k,
                v,
                rope: Rope {
                    table: Some(rope),
                    n_pairs: config.rope.inv_freq.len(),
                    pairing: config.rope.pairing,
                },
                n_heads: config.n_heads,
                scale: config.attention_scale,
                softcap: 0.0,
                sink_logits: None,
                mask: config.attention[i_layer].mask,
                phases: &layer.phases,
                seqs: &mut seqs,
            },
        };
        self.backend.attention(ws, args)
    }

    fn mlp(&mut self, ws: &mut B::Workspace, layer: &LayerWeights<B>) -> Result<()> {
        let Activations { x, h, gate, up, .. } = &mut *self.acts;
        let args = MlpArgs {
            x,
            n_rows: self.n_rows,
            norm: &layer.mlp_norm,
            eps: self.config.norm_eps,
            gate: &layer.gate,
            up: &layer.up,
            down: &layer.down,
            d_ff: self.config.d_ff,
            activation: self.config.activation,
            scratch: [h, gate, up],
        };
        self.backend.mlp(ws, args)
    }

    /// What comes behind the layers. All memory that it needs is taken here: once the step counts, nothing is refused.
    pub fn ends(&mut self) -> Result<(Head<'_, B>, Rings<'_, B>)> {
        let Self { backend, config, weights, ref mut acts, ref mut seqs, .. } = *self;
        let parts = try_collect(seqs.iter_mut().flat_map(|seq| seq.kv.fill_rings(seq.desc)))?;
        Ok((Head { backend, config, weights, acts }, Rings { backend, parts }))
    }
}

/// From the last layer's output to logits.
pub struct Head<'a, B: Backend> {
    backend: &'a B,
    config: &'a Config,
    weights: &'a Weights<B>,
    /// Rows of the step.
    pub acts: &'a mut Activations<B>,
}

impl<B: Backend> Head<'_, B> {
    /// Brings rows of the step, rising, to the front of `acts.x`.
    pub fn gather(&mut self, rows: impl Iterator<Item = usize>) -> Result<()> {
        let (Activations { x, h, .. }, width) = (&mut *self.acts, self.config.d_model);
        let mut n = 0;
        for row in rows {
            self.backend.copy(h, n * width, x, row * width..(row + 1) * width)?;
            n += 1;
        }
        self.backend.copy(x, 0, h, 0..n * width)
    }

    /// Logits of `n_rows` rows from `first_row` on, in `acts.logits`: (n_rows, n_vocab).
    pub fn logits(&mut self, ws: &mut B::Workspace, first_row: usize, n_rows: usize) -> Result<()> {
        let Activations { x, h, logits, .. } = &mut *self.acts;
        let w = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        let (weight, eps) = (&self.weights.output_norm, self.config.norm_eps);
        let input = Input::Norm(Norm { x, first_row, weight, eps, scratch: h });
        let parts = &mut [MatmulPart { out: logits, w, bias: None }];
        self.backend.matmul(ws, MatmulArgs { parts, input, n_rows, add: false })
    }
}

/// What a step leaves in the layers that overwrite blocks.
pub struct Rings<'a, B: Backend> {
    backend: &'a B,
    parts: Vec<CopyPart<'a, B>>,
}

impl<B: Backend> Rings<'_, B> {
    /// Puts the step's keys and values where the sessions keep them. The last of its ops.
    pub fn fill(&mut self, ws: &mut B::Workspace) -> Result<()> {
        self.backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut self.parts })
    }
}

/// Turns rows of the last layer's output, (n_rows, d_model), into the last hidden states: their norms, which the output
/// matrix is multiplied with. On the host, where they are wanted.
#[expect(clippy::cast_possible_truncation, reason = "hidden states are f32")]
pub fn final_norm<B: Backend>(
    backend: &B,
    config: &Config,
    weights: &Weights<B>,
    rows: &mut [f32],
) -> Result<()> {
    let mut weight = try_vec(config.d_model, 0.0f32)?;
    backend.download(&mut weight, &weights.output_norm, 0)?;
    for row in rows.chunks_exact_mut(config.d_model) {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let factor = 1.0 / (squares / config.d_model as f64 + f64::from(config.norm_eps)).sqrt();
        row.iter_mut().zip(&weight).for_each(|(x, &w)| *x *= factor as f32 * w);
    }
    Ok(())
}
