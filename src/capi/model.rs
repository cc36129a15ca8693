//! `lg_model`: opening a model.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

use super::cancel::{self, lg_cancel};
use super::guard::guard;
use super::params::{self, Params, flag, reserved, unknown};
use super::pointer::{self, c_string, free, into_handle, output, path};
use super::session::{lg_on_progress, teller};
use super::status::{lg_error, lg_status};
use crate::error::{Error, Result};
use crate::model::opening::LogLevel;
use crate::model::{Device, Model, ModelParams};
use crate::weights::Load;

/// An open model: its weights, its vocabulary, and the device that runs it.
///
/// Threads: immutable; any number of threads may use it at once, each with a session of its own, and several models may
/// be at work at once. Sessions keep what they need of it alive, so a model may be freed before its sessions.
pub struct lg_model {
    pub(super) model: Arc<Model>,
    /// [`Config::architecture`](crate::model::config::Config::architecture), as C programs read it.
    pub(super) architecture: CString,
    /// [`Model::device`], as C programs read it.
    pub(super) device: CString,
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

/// `lg_on_log`: good to know.
pub const LG_LOG_INFO: u32 = 0;
/// `lg_on_log`: not what was asked for, or not as good as it could be.
pub const LG_LOG_WARNING: u32 = 1;

/// Told what is worth knowing about a model while it is opened, line by line and once each: what it consists of, why
/// `LG_DEVICE_AUTO` takes the processor, what it runs on, how long it took. `level` is one of `LG_LOG_*`; `message` is a
/// line of UTF-8 for people, without its end, and valid during the call.
///
/// Called before `lg_model_open` returns.
pub type lg_on_log = Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>;

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
    /// 1 opens metadata and text only: the file needs no tensors, and may be of any architecture whose tokenizer is known.
    /// There are no sessions of such a model; its vocabulary is that of its tokens, and all numbers of what it would be
    /// computed with are 0. 0 opens everything.
    pub vocab_only: u32,
    /// 0.
    pub reserved: u32,
    /// Told how many bytes have been gone through; may be NULL. The file counts once for each time that it is gone
    /// through: to copy it into memory, to verify it, and to load its tensors.
    pub on_progress: lg_on_progress,
    /// Told what is worth knowing; NULL for silence.
    pub on_log: lg_on_log,
    /// Handed to `on_progress` and `on_log`.
    pub user: *mut c_void,
    /// Stops the call, which returns `LG_ERR_CANCELLED`; may be NULL. It is looked at from tensor to tensor, and every
    /// 16 MiB where a file is copied, but not while the vocabulary is read, which takes less than a second.
    pub cancel: *const lg_cancel,
}

// SAFETY: repr(C), begins with its size, numbers and pointers, and without padding: 8 + 6 * 4 + 4 * 8 bytes.
unsafe impl Params for lg_model_params {
    const FIRST_SIZE: usize = 64;
}

impl lg_model_params {
    fn checked(&self) -> Result<ModelParams> {
        reserved(self.reserved)?;
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
            vocab_only: flag("vocab_only", self.vocab_only)?,
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
/// `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_DEVICE`, `LG_ERR_CANCELLED`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask, and callbacks that keep their promises.
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
        let params = unsafe { params::read(params, "lg_model_params") }?;
        // SAFETY: as above.
        let cancel = unsafe { cancel::get(params.cancel) }?;
        // SAFETY: as above.
        let mut on_progress = unsafe { teller(params.on_progress, params.user) };
        let mut on_log = |level, message: &str| {
            if let Some(on_log) = params.on_log {
                // SAFETY: the caller's word; the message ends with a zero byte.
                unsafe { on_log(params.user, self::level(level), c_string(message).as_ptr()) };
            }
        };
        let model = Model::open_with(path, &params.checked()?, &cancel, &mut on_progress, &mut on_log)?;
        let architecture = c_string(&model.config().architecture);
        let device = c_string(&model.device().name);
        out.write(into_handle(lg_model { model: Arc::new(model), architecture, device })?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_open", error, body) }
}

fn level(level: LogLevel) -> u32 {
    match level {
        LogLevel::Info => LG_LOG_INFO,
        LogLevel::Warning => LG_LOG_WARNING,
    }
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
/// As for [`pointer::reference`].
pub(super) unsafe fn get<T: Copy>(model: *const lg_model, fallback: T, body: impl FnOnce(&Model) -> T) -> T {
    // SAFETY: the caller's word.
    unsafe { pointer::get(model, fallback, |model| Ok(body(&model.model))) }
}

/// What `layers` says about one of them.
pub(super) fn layer<T>(layers: &[T], layer: u32) -> Result<&T> {
    let n_layers = layers.len();
    layers.get(layer as usize).ok_or_else(|| Error::invalid(format!("layer {layer} of {n_layers}")))
}
