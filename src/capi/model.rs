//! `lg_model`: opening a model and asking what it is.

use std::ffi::c_char;
use std::sync::Arc;

use super::guard::{guard, guard_or};
use super::params::{self, Params, flag, unknown};
use super::pointer::{free, into_handle, output, path, reference};
use super::session::lg_session_params;
use super::status::{lg_error, lg_status};
use crate::error::Result;
use crate::model::{Device, Model, ModelParams};
use crate::weights::Load;

/// An open model: its weights, its vocabulary, and the device that runs it.
///
/// Threads: immutable; any number of threads may use it at once. Sessions keep what they need of it alive, so a model
/// may be freed before its sessions.
pub struct lg_model {
    pub(super) model: Arc<Model>,
}

/// `lg_model_params.load`: the file is mapped, so that pages are read when they are needed and shared with other
/// processes. It may be replaced by a rename while it is in use; it must not be truncated or rewritten in place, which
/// would end the process with SIGBUS or change the model.
pub const LG_LOAD_MAP: u32 = 0;
/// `lg_model_params.load`: the file is copied into memory, and may change afterwards.
pub const LG_LOAD_READ: u32 = 1;

/// `lg_model_params.device`: the first CUDA card if the library was built for them and can use it, else the processor.
pub const LG_DEVICE_AUTO: u32 = 0;
/// `lg_model_params.device`: the processor.
pub const LG_DEVICE_CPU: u32 = 1;
/// `lg_model_params.device`: the processor, with one scalar operation after the other as the formulas read. Slow; to
/// compare results with.
pub const LG_DEVICE_REFERENCE: u32 = 2;
/// `lg_model_params.device`: the first CUDA card; `LG_DEVICE_CUDA + n` is the one behind it by `n`, up to 255.
pub const LG_DEVICE_CUDA: u32 = 256;

/// A token that does not exist.
pub const LG_TOKEN_NONE: u32 = u32::MAX;

/// How to open a model.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_model_params {
    /// `sizeof(lg_model_params)`.
    pub struct_size: usize,
    /// How the file comes into memory: `LG_LOAD_MAP` or `LG_LOAD_READ`.
    pub load: u32,
    /// Where the model runs: one of `LG_DEVICE_*`.
    pub device: u32,
    /// Threads of the processor that run the model, at most 4,096; 0 means one per core.
    pub n_threads: u32,
    /// 1 compares every tensor with the checksum in the file, which reads the whole file; 0 does not.
    pub verify: u32,
}

// SAFETY: repr(C), begins with its size, integers only, and without padding: 8 + 4 * 4 bytes.
unsafe impl Params for lg_model_params {
    const FIRST_SIZE: usize = 24;
}

impl lg_model_params {
    fn checked(self) -> Result<ModelParams> {
        Ok(ModelParams {
            load: match self.load {
                LG_LOAD_MAP => Load::Map,
                LG_LOAD_READ => Load::Read,
                other => return Err(unknown("load", other)),
            },
            device: match self.device {
                LG_DEVICE_AUTO => Device::Auto,
                LG_DEVICE_CPU => Device::Cpu,
                LG_DEVICE_REFERENCE => Device::Reference,
                cuda @ LG_DEVICE_CUDA..=511 => Device::Cuda((cuda - LG_DEVICE_CUDA) as usize),
                other => return Err(unknown("device", other)),
            },
            n_threads: self.n_threads as usize,
            verify: flag("verify", self.verify)?,
            ..ModelParams::default()
        })
    }
}

/// Opens a model file: LongGen's own, or a plain GGUF of a Llama-like model.
///
/// `path` ends with a zero byte; its bytes go to the operating system as they are. `params` may be NULL: all defaults.
/// `*out` is the caller's and is freed by `lg_model_free`. Everything in the file is checked before it is used; a file
/// that lies gives `LG_ERR_FORMAT`. See `LG_LOAD_MAP` for what must not happen to the file while it is open.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_NOT_FOUND`, `LG_ERR_IO`, `LG_ERR_FORMAT`, `LG_ERR_UNSUPPORTED`,
/// `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_open(
    path: *const c_char,
    params: *const lg_model_params,
    out: *mut *mut lg_model,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (path, out) = unsafe { (self::path(path)?, output(out, "out")?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_model_params") }?.checked()?;
        let model = Arc::new(Model::open(path, &params)?);
        out.write(into_handle(lg_model { model })?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_open", error, body) }
}

/// Frees a model. Its sessions go on living. NULL does nothing.
///
/// # Safety
/// The caller must not use the model any more, in no thread and in no running call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_free(model: *mut lg_model) {
    // SAFETY: the caller's word.
    unsafe { free(model) }
}

/// What `body` says about a model, or `fallback` for NULL.
///
/// # Safety
/// As for [`reference`].
unsafe fn get<T: Copy>(model: *const lg_model, fallback: T, body: impl FnOnce(&Model) -> T) -> T {
    // SAFETY: the caller's word.
    guard_or(fallback, || unsafe { reference(model, "model") }.map(|model| body(&model.model)))
}

/// Number of tokens in the vocabulary, which is the number of logits. Token ids are below it. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_vocab(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| u32::try_from(model.config().n_vocab).unwrap_or(u32::MAX)) }
}

/// Longest context, in tokens, that the model was trained for. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_ctx_train(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| model.config().n_ctx_train) }
}

/// Number of layers. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_layers(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| u32::try_from(model.config().n_layers).unwrap_or(u32::MAX)) }
}

/// The beginning-of-text token, or `LG_TOKEN_NONE` if the model has none or is NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_bos_token(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, LG_TOKEN_NONE, |model| model.tokenizer().bos().unwrap_or(LG_TOKEN_NONE)) }
}

/// The end-of-text token, or `LG_TOKEN_NONE` if the model has none or is NULL. A model may end its answers with other
/// tokens as well: ask `lg_model_is_end_of_generation`.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_eos_token(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, LG_TOKEN_NONE, |model| model.tokenizer().eos().unwrap_or(LG_TOKEN_NONE)) }
}

/// Whether a generation is over when the model chooses `token`. False for NULL and for numbers that are no token.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_is_end_of_generation(model: *const lg_model, token: u32) -> bool {
    // SAFETY: the caller's word.
    unsafe { get(model, false, |model| model.tokenizer().is_end_of_generation(token)) }
}

/// The memory, in bytes, that `lg_session_new` would allocate for a session with these parameters, to the byte.
/// Allocates nothing itself. `params` may be NULL: all defaults.
///
/// Errors: `LG_ERR_INVALID`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_plan_bytes(
    model: *const lg_model,
    params: *const lg_session_params,
    n_bytes: *mut u64,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, n_bytes) = unsafe { (reference(model, "model")?, output(n_bytes, "n_bytes")?) };
        // SAFETY: as above.
        let params = unsafe { params::read(params, "lg_session_params") }?.checked()?;
        n_bytes.write(model.model.plan(&params)?.total_bytes() as u64);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_plan_bytes", error, body) }
}
