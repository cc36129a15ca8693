//! How to open a session, and what it takes.

use crate::attention::plan::{LayerAttention, MAX_CTX};
use crate::backend::CHUNK_TOKENS;
use crate::backend::args::{KvType, Precision};
use crate::error::{Error, Result};
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
    /// refused; without it the longest context is taken that fits, at most the one that the model was trained for.
    pub max_bytes: usize,
    /// Most bytes of the host's memory that restore points may take, beside the session's own memory and only as they are
    /// made; they are what [`rewind`](super::Session::rewind) goes back to where layers have given up a part of the context. 0
    /// means a tenth of the cache's, or four points' if that is more, and on a card none. With 1 there are none.
    pub restore_bytes: usize,
}

/// [`SessionParams`] without defaults, checked.
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
        let or = |value, default| if value == 0 { default } else { value };
        let n_ctx = or(self.n_ctx, config.n_ctx_train);
        if n_ctx > MAX_CTX {
            return Err(Error::invalid(format!("context of {n_ctx} tokens: at most {MAX_CTX} work")));
        }
        let part = n_ctx / CHUNKS_OF_CONTEXT / CHUNK_MULTIPLE * CHUNK_MULTIPLE;
        let default = part.clamp(CHUNK_TOKENS, most_chunk_tokens);
        let chunk_tokens = or(self.chunk_tokens, default).min(n_ctx);
        let logits_rows = or(self.logits_rows, 1).min(chunk_tokens) as usize;
        let Self { kv_type, precision, restore_bytes, .. } = *self;
        Ok(Shape { n_ctx, chunk_tokens, kv_type, precision, logits_rows, restore_bytes })
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
    /// Most bytes of the host's memory that restore points will take, which are not among those of the session.
    pub restore_bytes: usize,
}

/// The memory of one layer of a session.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// What the layer may look at.
    pub attention: LayerAttention,
    /// Cache blocks of all KV heads together.
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
    }
}
