//! What sessions will take, before they are opened.

use super::guard::guard;
use super::model::{layer, lg_model};
use super::params::{self, Results, ResultsOut};
use super::pointer::{output, reference};
use super::session::lg_session_params;
use super::status::{lg_error, lg_status};
use crate::error::Result;
use crate::session::{LayerPlan, MemoryPlan};

/// What a session takes, in bytes. Each of several sessions takes that much.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_memory_plan {
    /// Set by the caller: `sizeof(lg_memory_plan)`.
    pub struct_size: usize,
    /// Longest context in tokens: that of the parameters, or what they leave to the library.
    pub n_ctx: u32,
    /// Most tokens that run through the layers together.
    pub chunk_tokens: u32,
    /// The cache: keys and values of all layers.
    pub kv_bytes: u64,
    /// Cache blocks of a chunk that become current when the chunk is done.
    pub staging_bytes: u64,
    /// Keys and values of the running chunk, which layers with a part of the context share.
    pub scratch_bytes: u64,
    /// Activations of a chunk.
    pub activation_bytes: u64,
    /// Working memory of the operations.
    pub workspace_bytes: u64,
    /// Tables that say where cache blocks lie and which rows of a step are the session's.
    pub table_bytes: u64,
    /// Logits, where they are computed and where they are read, and the hidden state that is read.
    pub logits_bytes: u64,
    /// All of them together.
    pub total_bytes: u64,
    /// Most bytes of the host's memory that restore points will take, which are not among those.
    pub restore_bytes: u64,
}

// SAFETY: repr(C), begins with its size, and without padding: 8 + 2 * 4 + 9 * 8 bytes.
unsafe impl Results for lg_memory_plan {
    const FIRST_SIZE: usize = 88;
}

impl From<&MemoryPlan> for lg_memory_plan {
    fn from(plan: &MemoryPlan) -> Self {
        Self {
            struct_size: 0,
            n_ctx: plan.n_ctx,
            chunk_tokens: plan.chunk_tokens,
            kv_bytes: plan.kv_bytes() as u64,
            staging_bytes: plan.staging_bytes() as u64,
            scratch_bytes: plan.scratch_bytes as u64,
            activation_bytes: plan.activation_bytes as u64,
            workspace_bytes: plan.workspace_bytes as u64,
            table_bytes: plan.table_bytes as u64,
            logits_bytes: plan.logits_bytes as u64,
            total_bytes: plan.total_bytes() as u64,
            restore_bytes: plan.restore_bytes as u64,
        }
    }
}

/// What a session takes for one layer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_layer_plan {
    /// Set by the caller: `sizeof(lg_layer_plan)`.
    pub struct_size: usize,
    /// Cache blocks of all KV heads together.
    pub n_slots: u32,
    /// Tokens of a cache block.
    pub block_size: u32,
    /// The layer's part of `lg_memory_plan.kv_bytes`.
    pub kv_bytes: u64,
    /// The layer's part of `lg_memory_plan.staging_bytes`.
    pub staging_bytes: u64,
}

// SAFETY: repr(C), begins with its size, and without padding: 8 + 2 * 4 + 2 * 8 bytes.
unsafe impl Results for lg_layer_plan {
    const FIRST_SIZE: usize = 32;
}

impl From<&LayerPlan> for lg_layer_plan {
    fn from(plan: &LayerPlan) -> Self {
        Self {
            struct_size: 0,
            n_slots: plan.n_slots,
            block_size: plan.attention.mask.block_size(),
            kv_bytes: plan.kv_bytes as u64,
            staging_bytes: plan.staging_bytes as u64,
        }
    }
}

/// The plan of a session with these parameters.
///
/// # Safety
/// As for [`reference`] and [`params::read`].
unsafe fn plan(model: *const lg_model, params: *const lg_session_params) -> Result<MemoryPlan> {
    // SAFETY: the caller's word.
    let (model, params) = unsafe { (reference(model, "model")?, params::read(params, "lg_session_params")?) };
    model.model.plan(&params.checked()?)
}

/// The memory that `lg_session_new` would allocate for a session with these parameters, to the byte. Allocates none of
/// it. N sessions take N times that.
///
/// `params` may be NULL: all defaults.
///
/// Errors: `LG_ERR_INVALID`, also for a model that was opened with `vocab_only`; `LG_ERR_OUT_OF_MEMORY` if it is more
/// than `max_bytes`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_plan(
    model: *const lg_model,
    params: *const lg_session_params,
    out: *mut lg_memory_plan,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let out = unsafe { ResultsOut::new(out, "lg_memory_plan") }?;
        // SAFETY: as above.
        let plan = unsafe { plan(model, params) }?;
        out.write(&lg_memory_plan::from(&plan));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_plan", error, body) }
}

/// The part of a layer in what `lg_model_plan` says. Layers count from 0.
///
/// Errors: those of `lg_model_plan`; `LG_ERR_INVALID` also for a layer that the model does not have.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_plan_layer(
    model: *const lg_model,
    params: *const lg_session_params,
    layer: u32,
    out: *mut lg_layer_plan,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let out = unsafe { ResultsOut::new(out, "lg_layer_plan") }?;
        // SAFETY: as above.
        let plan = unsafe { plan(model, params) }?;
        out.write(&lg_layer_plan::from(self::layer(&plan.layers, layer)?));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_plan_layer", error, body) }
}

/// The longest context, in tokens, that a session can have within `n_bytes` with otherwise these parameters: at most
/// their `n_ctx`, and 0 if not even one token fits. Their `max_bytes` plays no part. `params` may be NULL: all defaults.
///
/// Errors: `LG_ERR_INVALID`, also for a model that was opened with `vocab_only`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_longest_context(
    model: *const lg_model,
    params: *const lg_session_params,
    n_bytes: u64,
    n_ctx: *mut u32,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, n_ctx) = unsafe { (reference(model, "model")?, output(n_ctx, "n_ctx")?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_session_params") }?.checked()?;
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        n_ctx.write(model.model.longest_context(&params, n_bytes)?.unwrap_or(0));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_longest_context", error, body) }
}
