//! A model's matrices on a backend, and the sequences that run through them.
//!
//! Everything generic over the backend ends here: [`Engine`] and [`Sequence`] hide which one it is, at the price of
//! one virtual call per step.

use std::sync::Arc;

use crate::alloc::{HostBuf, Meter};
use crate::attention::plan::LayerAttention;
use crate::backend::Backend;
use crate::backend::args::{KvShape, StepRows, WorkspaceShape};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kv::cache::{KvCache, LayerLayout, scratch_bytes};
use crate::model::config::Config;
use crate::model::forward::{SeqStep, Step};
use crate::model::layer::Weights;
use crate::model::scratch::Activations;
use crate::session::{LayerPlan, MemoryPlan, SessionParams, Shape};
use crate::weights::WeightFile;

/// A model on some backend.
pub trait Engine: Send + Sync {
    /// See [`Model::plan`](crate::Model::plan).
    fn plan(&self, params: &SessionParams) -> Result<MemoryPlan>;
    /// Allocates a sequence: exactly the bytes of its plan.
    fn sequence(&self, params: &SessionParams) -> Result<Box<dyn Sequence>>;
    /// Bytes of all living sequences.
    fn session_bytes(&self) -> usize;
}

/// Which rows of a step become logits.
pub enum Want<'a> {
    /// None.
    Nothing,
    /// The last one; see [`Sequence::logits`].
    Last,
    /// All of them, handed over some rows at a time, with the number of the first.
    Each(&'a mut dyn FnMut(usize, &[f32]) -> Result<()>),
}

/// One sequence of tokens and what the model remembers of it.
pub trait Sequence: Send {
    /// Runs `tokens`, at most a chunk, behind those that the sequence holds; all of them count, or on an error none.
    fn step(&mut self, tokens: &[u32], want: Want<'_>, cancel: &Cancel) -> Result<()>;
    /// Logits of the last row of the last step that wanted them: (n_vocab).
    fn logits(&self) -> &[f32];
    /// Tokens held.
    fn n_tokens(&self) -> u32;
    /// Lowest position besides 0 that [`rewind`](Self::rewind) can go back to.
    fn oldest_restorable(&self) -> u32;
    /// Forgets the tokens from `n_tokens` on.
    fn rewind(&mut self, n_tokens: u32);
}

/// A model's matrices on a backend.
pub struct Network<B: Backend>(Arc<Parts<B>>);

struct Parts<B: Backend> {
    backend: B,
    config: Arc<Config>,
    weights: Weights<B>,
    /// What the backend had allocated before any sequence: vectors that it keeps as f32.
    weight_bytes: usize,
    host: Meter,
}

impl<B: Backend> Network<B> {
    /// Finds the matrices in the file.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn load(backend: B, file: &WeightFile<'_>, config: Arc<Config>) -> Result<Self> {
        let weights = Weights::load(&backend, file, &config)?;
        let weight_bytes = backend.allocated_bytes();
        Ok(Self(Arc::new(Parts { backend, config, weights, weight_bytes, host: Meter::default() })))
    }
}

impl<B: Backend> Parts<B> {
    fn layouts(&self, shape: &Shape) -> Vec<LayerLayout> {
        let config = &self.config;
        let layout = |attention: &LayerAttention| {
            let Config { n_kv_heads, head_dim, .. } = **config;
            let block_size = attention.mask.block_size() as usize;
            let kv = KvShape { n_kv_heads, head_dim, block_size, ty: shape.kv_type };
            LayerLayout::new(attention, kv, shape.n_ctx, shape.chunk_tokens)
        };
        config.attention.iter().map(layout).collect()
    }

    fn workspace_shape(&self, shape: &Shape) -> WorkspaceShape {
        let config = &self.config;
        WorkspaceShape {
            max_rows: shape.chunk_tokens as usize,
            max_weight_elems: config.d_model
                * config.d_ff.max(config.n_vocab).max(config.n_heads * config.head_dim),
            max_cols: config.d_model.max(config.d_ff).max(config.n_heads * config.head_dim),
            n_heads: config.n_heads,
            head_dim: config.head_dim,
            n_ctx: shape.n_ctx as usize,
        }
    }
}

impl<B: Backend> Engine for Network<B> {
    fn plan(&self, params: &SessionParams) -> Result<MemoryPlan> {
        let Parts { backend, config, .. } = &*self.0;
        let shape = params.shape(config)?;
        let layouts = self.0.layouts(&shape);
        let layer = |(layout, attention): (&LayerLayout, &_)| LayerPlan {
            attention: Clone::clone(attention),
            n_slots: layout.slots.n_slots(),
            kv_bytes: layout.kv_bytes(backend),
            staging_bytes: layout.staging_bytes(backend),
        };
        let logits_bytes = Activations::<B>::logits_bytes(config, shape.logits_rows);
        Ok(MemoryPlan {
            n_ctx: shape.n_ctx,
            chunk_tokens: shape.chunk_tokens,
            layers: layouts.iter().zip(&config.attention).map(layer).collect(),
            scratch_bytes: scratch_bytes(backend, &layouts),
            activation_bytes: Activations::<B>::n_bytes(config, shape.chunk_tokens as usize),
            workspace_bytes: backend.workspace_bytes(&self.0.workspace_shape(&shape), shape.precision),
            table_bytes: layouts.iter().map(|layout| layout.table_bytes(backend)).sum::<usize>()
                + backend.descriptor_bytes(),
            // Once where the backend computes them, once where the caller reads them.
            logits_bytes: 2 * logits_bytes,
        })
    }

    fn sequence(&self, params: &SessionParams) -> Result<Box<dyn Sequence>> {
        let Parts { backend, config, host, .. } = &*self.0;
        let shape = params.shape(config)?;
        let rows = shape.chunk_tokens as usize;
        Ok(Box::new(NetworkSequence {
            kv: KvCache::new(backend, self.0.layouts(&shape), &config.attention)?,
            acts: Activations::new(backend, config, rows, shape.logits_rows)?,
            workspace: backend.workspace(&self.0.workspace_shape(&shape), shape.precision)?,
            desc: backend.descriptor()?,
            logits: HostBuf::new(Activations::<B>::logits_bytes(config, shape.logits_rows), host)?,
            logits_rows: shape.logits_rows,
            network: self.0.clone(),
        }))
    }

    fn session_bytes(&self) -> usize {
        self.0.backend.allocated_bytes() - self.0.weight_bytes + self.0.host.n_bytes()
    }
}

struct NetworkSequence<B: Backend> {
    network: Arc<Parts<B>>,
    kv: KvCache<B>,
    acts: Activations<B>,
    workspace: B::Workspace,
    desc: B::Descriptor,
    /// (logits_rows, n_vocab), where the caller reads them
    logits: HostBuf,
    logits_rows: usize,
}

impl<B: Backend> Sequence for NetworkSequence<B> {
    fn step(&mut self, tokens: &[u32], want: Want<'_>, cancel: &Cancel) -> Result<()> {
        let Parts { backend, config, weights, .. } = &*self.network;
        let n_tokens =
            u32::try_from(tokens.len()).map_err(|_| Error::invalid("a step of too many tokens"))?;
        let (n_rows, n_vocab) = (tokens.len(), config.n_vocab);
        backend.describe(&mut self.desc, StepRows { row: 0, n_tokens, pos: self.kv.n_tokens() })?;
        backend.upload(&mut self.acts.tokens, 0, tokens)?;
        let (acts, logits, logits_rows) = (&mut self.acts, self.logits.of_mut::<f32>(), self.logits_rows);
        let (desc, kv) = (&self.desc, &mut self.kv);

        backend.run(&mut self.workspace, cancel, |ws| {
            let seqs = &mut [SeqStep { desc, kv: &mut *kv }];
            let mut step = Step { backend, config, weights, acts, seqs, n_rows };
            let is_last = match want {
                Want::Nothing => false,
                Want::Last => true,
                Want::Each(hand_over) => {
                    step.layers(ws)?;
                    for first in (0..n_rows).step_by(logits_rows) {
                        let n = logits_rows.min(n_rows - first);
                        step.logits(ws, first, n)?;
                        backend.download(&mut logits[..n * n_vocab], &step.acts.logits, 0)?;
                        hand_over(first, &logits[..n * n_vocab])?;
                    }
                    return step.fill_rings(ws);
                }
            };
            let mut ops = |ws: &mut B::Workspace| {
                step.layers(ws)?;
                if is_last {
                    step.logits(ws, n_rows - 1, 1)?;
                }
                step.fill_rings(ws)
            };
            // Token after token is decoded by the same ops.
            match n_rows {
                1 => backend.repeat(ws, u32::from(is_last), &mut ops)?,
                _ => ops(ws)?,
            }
            match is_last {
                true => backend.download(&mut logits[..n_vocab], &acts.logits, 0),
                false => Ok(()),
            }
        })?;
        kv.advance(n_tokens);
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits.of()[..self.network.config.n_vocab]
    }

    fn n_tokens(&self) -> u32 {
        self.kv.n_tokens()
    }

    fn oldest_restorable(&self) -> u32 {
        self.kv.oldest_restorable()
    }

    fn rewind(&mut self, n_tokens: u32) {
        self.kv.rewind(n_tokens);
    }
}
