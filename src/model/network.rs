//! A model's matrices on a backend, whichever it is.
//!
//! Everything generic over the backend ends here: [`Engine`] and [`Sequence`] hide which one it is, at the price of
//! one virtual call per step.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::alloc::{Meter, try_box, try_collect_ok};
use crate::attention::plan::LayerAttention;
use crate::backend::args::{KvShape, KvType, WorkspaceShape};
use crate::backend::{Backend, DeviceInfo};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kv::cache::{LayerLayout, scratch_bytes};
use crate::kv::file;
use crate::kv::restore::Occasion;
use crate::model::config::Config;
use crate::model::layer::Weights;
use crate::model::opening::Opening;
use crate::model::scratch::Activations;
use crate::model::sequence::NetworkSequence;
use crate::sampler::Candidate;
use crate::session::{LayerPlan, MemoryPlan, SessionParams, Shape};
use crate::weights::WeightFile;

/// By default restore points take a tenth of what the cache takes,
const RESTORE_PART: usize = 10;

/// or what so many of them take that share nothing, if that is more.
const RESTORE_POINTS: usize = 4;

/// A model on some backend.
pub trait Engine: Send + Sync {
    /// What it runs on.
    fn info(&self) -> DeviceInfo;
    /// Bytes that the device can still allocate, where it knows that.
    fn free_bytes(&self) -> Option<usize>;
    /// See [`Model::plan_for`](crate::Model::plan_for).
    fn plan(&self, params: &SessionParams, attention: &[LayerAttention]) -> Result<MemoryPlan>;
    /// Allocates a sequence: exactly the bytes of its plan.
    fn sequence(&self, params: &SessionParams) -> Result<Box<dyn Sequence>>;
    /// Appends tokens to each of several of this model's sequences and computes the logits behind each one's last, all in
    /// one step of at most a chunk of the first; all of them count, or on an error none.
    fn step_batch(&self, batch: &mut [Part<'_, dyn Sequence>], cancel: &Cancel) -> Result<()>;
    /// Bytes of all living sequences.
    fn session_bytes(&self) -> usize;
}

/// A sequence, and its tokens in a step of several: at least one, and at most a chunk.
pub type Part<'a, S> = (&'a mut S, &'a [u32]);

/// What is wanted of a step besides what it leaves in the cache.
pub enum Want<'a, 'r> {
    /// Nothing.
    Nothing,
    /// The logits of the last row; see [`Sequence::logits`].
    Last,
    /// What is wanted of rows of a prompt, of which the step begins with this one.
    Rows(&'a mut Rows<'r>, usize),
}

/// Is handed logits, (n, n_vocab), of some rows at a time, with the place of the first among those that are wanted.
pub type HandOver<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// Rows of a prompt, and what is wanted of them. If the last row of a step is among them, its logits stay; see
/// [`Sequence::logits`].
pub struct Rows<'a> {
    /// Their numbers, rising.
    pub rows: &'a [usize],
    /// Is handed their logits.
    pub logits: Option<HandOver<'a>>,
    /// (rows, d_model): their last hidden states; empty if those are not wanted
    pub hidden: &'a mut [f32],
}

impl<'a> Rows<'a> {
    /// The rows of a step, as places in `rows`: parts of at most `most` that follow each other, and the last row of the
    /// step by itself, so that its logits come last and stay.
    pub(super) fn parts(
        &self,
        step: Range<usize>,
        most: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let rows = self.rows;
        let (mut begin, end) =
            (rows.partition_point(|&row| row < step.start), rows.partition_point(|&row| row < step.end));
        std::iter::from_fn(move || {
            let part = rows[begin..end].iter().take(most).enumerate();
            let n =
                part.take_while(|&(i, &row)| i == 0 || row == rows[begin] + i && row + 1 < step.end).count();
            begin += n;
            (n > 0).then(|| begin - n..begin)
        })
    }
}

/// One sequence of tokens and what the model remembers of it.
pub trait Sequence: Any + Send {
    /// Runs `tokens`, at most a chunk, behind those that the sequence holds; all of them count, or on an error none.
    fn step(&mut self, tokens: &[u32], want: Want<'_, '_>, cancel: &Cancel) -> Result<()>;
    /// Logits of the last row of the last step that wanted them: (n_vocab).
    fn logits(&mut self) -> Result<&[f32]>;
    /// The last hidden state of the last row of the last step: (d_model).
    fn hidden(&mut self) -> Result<&[f32]>;
    /// The `n` largest of those logits, largest first.
    fn top(&mut self, n: usize) -> Result<Vec<Candidate>>;
    /// How steps that repeat themselves are run, if that is worth telling.
    fn repeat_note(&self) -> Option<String>;
    /// Tokens held.
    fn n_tokens(&self) -> u32;
    /// Makes a restore point of what is held, if that can be done.
    fn keep(&mut self, occasion: Occasion);
    /// Gives the restore point of this position, if there is one, another occasion.
    fn renew(&mut self, n_tokens: usize, occasion: Occasion);
    /// Positions of the restore points, rising.
    fn restore_points(&self) -> Result<Vec<usize>>;
    /// Bytes that the restore points hold.
    fn restore_bytes(&self) -> usize;
    /// The highest position, at most `n_tokens`, that [`rewind`](Self::rewind) can go back to.
    fn nearest_restorable(&self, n_tokens: u32) -> u32;
    /// Layers that have given up what the token at `n_tokens` sees.
    fn layers_behind(&self, n_tokens: u32) -> Result<Vec<usize>>;
    /// Forgets the tokens from `n_tokens` on, a position that can be gone back to. On an error the sequence is empty.
    fn rewind(&mut self, n_tokens: u32) -> Result<()>;
    /// See [`Session::fork_plan`](crate::Session::fork_plan).
    fn fork_plan(&self, params: &SessionParams) -> Result<MemoryPlan>;
    /// A sequence that holds the same, with the same logits: allocates exactly the bytes of its plan. On an error nothing has
    /// changed.
    fn fork(&mut self, params: &SessionParams) -> Result<Box<dyn Sequence>>;
    /// Writes what is held: `tokens`, and their keys and values.
    fn save(&self, tokens: &[u32], file: &mut file::Writer<'_>) -> Result<()>;
    /// Reads what [`save`](Self::save) has written into an empty sequence; returns the tokens. On an error the sequence is of
    /// no use.
    fn load(&mut self, file: &mut file::Reader<'_>) -> Result<Vec<u32>>;
}

/// A model's matrices on a backend.
pub struct Network<B: Backend>(Arc<Parts<B>>);

/// What the sequences of a model share.
pub(super) struct Parts<B: Backend> {
    pub backend: B,
    pub config: Arc<Config>,
    /// In memory of their own: that of an `Arc` is small, since nobody can refuse it.
    pub weights: Box<Weights<B>>,
    /// Tells the model's file from others.
    pub fingerprint: u128,
    /// What the backend had allocated before any sequence.
    weight_bytes: usize,
    /// Counts the memory of the host that callers read from.
    pub host: Meter,
}

impl<B: Backend> Network<B> {
    /// Finds the matrices in the file.
    ///
    /// # Errors
    /// `Format` for a tensor that is missing or has another shape than the model's numbers say; `Unsupported` for an element
    /// type that this runtime does not know, and for heads that the backend cannot compute; `Cancelled`.
    pub fn load(
        backend: B,
        file: &WeightFile<'_>,
        config: Arc<Config>,
        opening: &mut Opening<'_>,
    ) -> Result<Self> {
        let (has, max) = (config.head_dim, backend.max_head_dim());
        if has > max {
            let device = backend.info().name;
            return Err(Error::unsupported(format!(
                "attention heads of {has} elements: {device} can use at most {max}, the CPU any number"
            )));
        }
        let weights = try_box(Weights::load(&backend, file, &config, opening)?)?;
        let weight_bytes = backend.allocated_bytes();
        let (fingerprint, host) = (file.fingerprint(), Meter::default());
        Ok(Self(Arc::new(Parts { backend, config, weights, fingerprint, weight_bytes, host })))
    }
}

impl<B: Backend> Parts<B> {
    pub fn layouts(&self, shape: &Shape, attention: &[LayerAttention]) -> Result<Vec<LayerLayout>> {
        let config = &self.config;
        let layout = |attention: &LayerAttention| {
            let Config { n_kv_heads, head_dim, .. } = **config;
            let block_size = attention.mask.block_size() as usize;
            let kv = KvShape { n_kv_heads, head_dim, block_size, ty: shape.kv_type };
            LayerLayout::new(attention, kv, shape.n_ctx, shape.chunk_tokens)
        };
        try_collect_ok(attention.iter().map(layout))
    }

    /// Most bytes of the restore points of a session.
    pub fn restore_bytes(&self, shape: &Shape, layouts: &[LayerLayout]) -> usize {
        let backend = &self.backend;
        let of_point: usize = layouts.iter().map(|layout| layout.ring_bytes(backend)).sum();
        let of_cache: usize = layouts.iter().map(|layout| layout.kv_bytes(backend)).sum();
        match shape.restore_bytes {
            _ if of_point == 0 => 0,
            0 => (RESTORE_POINTS * of_point).max(of_cache / RESTORE_PART),
            bytes => bytes,
        }
    }

    /// See [`Engine::plan`].
    pub fn plan(&self, shape: &Shape, attention: &[LayerAttention]) -> Result<MemoryPlan> {
        let Self { backend, config, .. } = self;
        let layouts = self.layouts(shape, attention)?;
        let layer = |(layout, attention): (&LayerLayout, &LayerAttention)| {
            Ok(LayerPlan {
                attention: attention.try_clone()?,
                n_slots: layout.slots.n_slots(),
                kv_bytes: layout.kv_bytes(backend),
                staging_bytes: layout.staging_bytes(backend),
            })
        };
        let logits_bytes = Activations::<B>::logits_bytes(config, shape.logits_rows);
        Ok(MemoryPlan {
            n_ctx: shape.n_ctx,
            chunk_tokens: shape.chunk_tokens,
            layers: try_collect_ok(layouts.iter().zip(attention).map(layer))?,
            scratch_bytes: scratch_bytes(backend, layouts.iter()),
            restore_bytes: self.restore_bytes(shape, &layouts),
            activation_bytes: Activations::<B>::n_bytes(config, shape.chunk_tokens as usize),
            workspace_bytes: backend.workspace_bytes(&self.workspace_shape(shape), shape.precision),
            table_bytes: layouts.iter().map(|layout| layout.table_bytes(backend)).sum::<usize>()
                + backend.descriptor_bytes(),
            // Once where the backend computes them, once where the caller reads them.
            logits_bytes: 2 * logits_bytes
                + Activations::<B>::top_bytes()
                + Activations::<B>::hidden_bytes(config),
            parent_bytes: 0,
        })
    }

    /// What files of this model's sessions are for.
    pub fn identity(&self, kv_type: KvType) -> file::Identity<'_> {
        let Config { n_heads, n_kv_heads, head_dim, ref attention, .. } = *self.config;
        file::Identity { fingerprint: self.fingerprint, kv_type, n_heads, n_kv_heads, head_dim, attention }
    }

    pub fn workspace_shape(&self, shape: &Shape) -> WorkspaceShape {
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
    fn info(&self) -> DeviceInfo {
        self.0.backend.info()
    }

    fn free_bytes(&self) -> Option<usize> {
        self.0.backend.free_bytes()
    }

    fn plan(&self, params: &SessionParams, attention: &[LayerAttention]) -> Result<MemoryPlan> {
        let Parts { backend, config, .. } = &*self.0;
        self.0.plan(&params.shape(config, backend.most_chunk_tokens())?, attention)
    }

    fn sequence(&self, params: &SessionParams) -> Result<Box<dyn Sequence>> {
        let shape = params.shape(&self.0.config, self.0.backend.most_chunk_tokens())?;
        Ok(try_box(NetworkSequence::new(&self.0, &shape)?)?)
    }

    fn step_batch(&self, batch: &mut [Part<'_, dyn Sequence>], cancel: &Cancel) -> Result<()> {
        let own = batch.iter_mut().map(|(sequence, tokens)| {
            let sequence: &mut dyn Any = &mut **sequence;
            let own = sequence.downcast_mut().filter(|own: &&mut NetworkSequence<B>| own.is_of(&self.0));
            let own = own.ok_or_else(|| Error::invalid("a batch with sessions of several models"))?;
            Ok((own, *tokens))
        });
        NetworkSequence::step_batch(&mut try_collect_ok(own)?, cancel)
    }

    fn session_bytes(&self) -> usize {
        self.0.backend.allocated_bytes() - self.0.weight_bytes + self.0.host.n_bytes()
    }
}
