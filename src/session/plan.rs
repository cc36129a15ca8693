//! How to open a session, and what it takes.

use std::fmt::Debug;

use crate::attention::plan::{LayerAttention, MAX_CTX};
use crate::backend::CHUNK_TOKENS;
use crate::backend::args::{KvType, Precision};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::Config;

/// Chunks of a long context, where the backend gains by long ones: their activations take a few percent of what a cache of
/// 16 bits takes in full layers.
const CHUNKS_OF_CONTEXT: u32 = 16;

/// Chunks by default are multiples of this, so that they begin with blocks of the cache and tiles of attention.
const CHUNK_MULTIPLE: u32 = 256;

/// How to open a session, and what its memory is planned for. Zero means the default everywhere.
#[derive(Clone, Debug, Default)]
pub struct SessionParams {
    /// Longest context in tokens; 0 means the one that the model was trained for.
    pub n_ctx: u32,
    /// Most tokens that run through the layers together; 0 means 2048, and on a Hopper card a sixteenth of the context,
    /// up to 8192, if that is more. Never changes a result on the processor.
    pub chunk_tokens: u32,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// How precisely matrix products are computed.
    pub precision: Precision,
    /// Rows of logits that are computed together by [`prefill_each`](super::Session::prefill_each) and
    /// [`step_batch`](super::Session::step_batch); 0 means 1.
    pub logits_rows: u32,
    /// Most bytes that the session may take; 0 means that there is no limit. With `n_ctx` a session that takes more is
    /// refused; without it the longest context is taken that fits, at most the one that the model was trained for. What a
    /// session takes later, because it has gone back into what it shares with forks, does not count.
    pub max_bytes: usize,
    /// Most bytes of the host's memory that restore points may take, beside the session's own memory and only as they are
    /// made; they are what [`rewind`](super::Session::rewind) goes back to where layers have given up a part of the context. 0
    /// means a tenth of the cache's, or four points' if that is more. With 1 there are none. On a card such memory stays with
    /// the model, for points to come.
    pub restore_bytes: usize,
}

/// [`SessionParams`] without defaults, checked.
#[derive(Clone)]
pub(crate) struct Shape {
    pub n_ctx: u32,
    pub chunk_tokens: u32,
    pub kv_type: KvType,
    pub precision: Precision,
    pub logits_rows: usize,
    pub restore_bytes: usize,
}

impl SessionParams {
    /// `most_chunk_tokens` is the backend's; see [`Backend::most_chunk_tokens`](crate::backend::Backend::most_chunk_tokens).
    pub(crate) fn shape(&self, config: &Config, most_chunk_tokens: u32) -> Result<Shape> {
        let n_ctx = or(self.n_ctx, config.n_ctx_train);
        check_context(n_ctx)?;
        let part = n_ctx / CHUNKS_OF_CONTEXT / CHUNK_MULTIPLE * CHUNK_MULTIPLE;
        let default = part.clamp(CHUNK_TOKENS, most_chunk_tokens);
        let chunk_tokens = or(self.chunk_tokens, default).min(n_ctx);
        let logits_rows = or(self.logits_rows, 1).min(chunk_tokens) as usize;
        let Self { kv_type, precision, restore_bytes, .. } = *self;
        Ok(Shape { n_ctx, chunk_tokens, kv_type, precision, logits_rows, restore_bytes })
    }

    /// The shape of a fork of a session that has this one and holds `n_tokens` tokens.
    pub(crate) fn shape_of_fork(&self, parent: &Shape, n_tokens: u32) -> Result<Shape> {
        let n_ctx = or(self.n_ctx, parent.n_ctx);
        check_context(n_ctx)?;
        if n_tokens > n_ctx {
            let message = format!("{n_tokens} tokens of a session do not fit in a context of {n_ctx}");
            return Err(Error::new(ErrorKind::ContextFull, message));
        }
        let Shape { kv_type, precision, .. } = *parent;
        same_or_default("a cache of type", self.kv_type, kv_type)?;
        same_or_default("precision", self.precision, precision)?;
        let chunk_tokens = or(self.chunk_tokens, parent.chunk_tokens).min(n_ctx);
        let logits_rows = or(self.logits_rows as usize, parent.logits_rows).min(chunk_tokens as usize);
        let restore_bytes = or(self.restore_bytes, parent.restore_bytes);
        Ok(Shape { n_ctx, chunk_tokens, kv_type, precision, logits_rows, restore_bytes })
    }
}

/// `value`, or the default if it is 0.
fn or<T: PartialEq + Default>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

fn check_context(n_ctx: u32) -> Result<()> {
    match n_ctx > MAX_CTX {
        true => Err(Error::invalid(format!("context of {n_ctx} tokens: at most {MAX_CTX} work"))),
        false => Ok(()),
    }
}

/// Refuses what a fork cannot have otherwise than the session that is forked.
fn same_or_default<T: PartialEq + Default + Debug>(what: &str, wanted: T, parent: T) -> Result<()> {
    match wanted == T::default() || wanted == parent {
        true => Ok(()),
        false => Err(Error::invalid(format!("a fork with {what} {wanted:?} of a session with {parent:?}"))),
    }
}

/// The exact memory of a session, in bytes; what is allocated equals it.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Longest context in tokens.
    pub n_ctx: u32,
    /// Most tokens of a step.
    pub chunk_tokens: u32,
    /// Layer by layer.
    pub layers: Vec<LayerPlan>,
    /// Keys and values of the running step, shared by the layers with a ring.
    pub scratch_bytes: usize,
    /// Activations of a step.
    pub activation_bytes: usize,
    /// Working memory of the ops.
    pub workspace_bytes: usize,
    /// Tables that say where blocks lie and which rows are the session's.
    pub table_bytes: usize,
    /// Logits, where they are computed and where they are read, and the hidden state that is read.
    pub logits_bytes: usize,
    /// What the session that is forked takes in addition, to share what it holds; 0 unless this is a fork's plan.
    pub parent_bytes: usize,
    /// Most bytes of the host's memory that restore points will take, which are not among those of the session.
    pub restore_bytes: usize,
}

/// The memory of one layer of a session.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// What the layer may look at.
    pub attention: LayerAttention,
    /// Cache blocks of all KV heads together, without those that are shared.
    pub n_slots: u32,
    /// Bytes of those.
    pub kv_bytes: usize,
    /// Bytes of the blocks of a step that become current when the step has finished.
    pub staging_bytes: usize,
}

impl MemoryPlan {
    /// Bytes of the cache itself.
    pub fn kv_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.kv_bytes).sum()
    }

    /// Bytes of all layers' staging.
    pub fn staging_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.staging_bytes).sum()
    }

    /// Bytes of everything but restore points.
    pub fn total_bytes(&self) -> usize {
        self.kv_bytes()
            + self.staging_bytes()
            + self.scratch_bytes
            + self.activation_bytes
            + self.workspace_bytes
            + self.table_bytes
            + self.logits_bytes
            + self.parent_bytes
    }
}
