//! What each layer of a model may look at.

use super::guard::guard;
use super::model::{layer, lg_model};
use super::params::{Results, ResultsOut};
use super::pointer::{Buffer, reference};
use super::status::{lg_error, lg_status};
use crate::attention::mask::Mask;

/// `lg_layer_attention.kind`: a token sees every token before it.
pub const LG_ATTENTION_FULL: u32 = 0;
/// `lg_layer_attention.kind`: the token at position i sees the one at j if i - j < `window_tokens` or j < `sink_tokens`.
pub const LG_ATTENTION_WINDOW: u32 = 1;
/// `lg_layer_attention.kind`: with blocks of `block_size` tokens, a token in block I sees what is before it in block J if
/// I - J < `local_blocks`, J < `sink_blocks`, or (J + phase) mod `stride` = 0; every query head has a phase of its own.
pub const LG_ATTENTION_BLOCKS: u32 = 2;

/// What the tokens of one layer see. Numbers of another kind are 0.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct lg_layer_attention {
    /// Set by the caller: `sizeof(lg_layer_attention)`.
    pub struct_size: usize,
    /// One of `LG_ATTENTION_*`.
    pub kind: u32,
    /// Blocks: tokens of a block.
    pub block_size: u32,
    /// Blocks: how many are visible behind a token, its own included.
    pub local_blocks: u32,
    /// Blocks: how many at the beginning of the context stay visible.
    pub sink_blocks: u32,
    /// Blocks: distance of the strided ones; 0 if there are none.
    pub stride: u32,
    /// Window: tokens that are visible behind a token, itself included.
    pub window_tokens: u32,
    /// Window: tokens at the beginning of the context that stay visible.
    pub sink_tokens: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), begins with its size, and without padding: 8 + 8 * 4 bytes.
unsafe impl Results for lg_layer_attention {
    const FIRST_SIZE: usize = 40;
}

impl From<Mask> for lg_layer_attention {
    fn from(mask: Mask) -> Self {
        match mask {
            Mask::Full => Self { kind: LG_ATTENTION_FULL, ..Self::default() },
            Mask::Window { window_tokens, sink_tokens } => {
                Self { kind: LG_ATTENTION_WINDOW, window_tokens, sink_tokens, ..Self::default() }
            }
            Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => Self {
                kind: LG_ATTENTION_BLOCKS,
                block_size,
                local_blocks,
                sink_blocks,
                stride,
                ..Self::default()
            },
        }
    }
}

/// What the tokens of a layer see. Layers count from 0.
///
/// Errors: `LG_ERR_INVALID`, also for a layer that the model does not have.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_layer_attention(
    model: *const lg_model,
    layer: u32,
    out: *mut lg_layer_attention,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let model = unsafe { reference(model, "model") }?;
        // SAFETY: as above.
        let out = unsafe { ResultsOut::new(out, "lg_layer_attention") }?;
        let attention = self::layer(&model.model.config().attention, layer)?;
        out.write(&lg_layer_attention::from(attention.mask));
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_layer_attention", error, body) }
}

/// The phase of each query head of a layer, as `LG_ATTENTION_BLOCKS` uses it; without a meaning in the other kinds.
///
/// `phases` has room for `cap` numbers; `*n_phases` is how many there are, which is `lg_model_n_heads`.
///
/// Errors: `LG_ERR_INVALID`, also for a layer that the model does not have.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_layer_phases(
    model: *const lg_model,
    layer: u32,
    phases: *mut u32,
    cap: usize,
    n_phases: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let model = unsafe { reference(model, "model") }?;
        // SAFETY: as above.
        let phases = unsafe { Buffer::new(phases, cap, n_phases, ["phases", "n_phases"]) }?;
        phases.fill(&self::layer(&model.model.config().attention, layer)?.phases)
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_layer_phases", error, body) }
}
