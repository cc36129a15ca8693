//! A model: its numbers, its text, and the backend that runs it.

pub mod config;
pub mod forward;
pub mod layer;
pub mod llama;
pub mod metadata;
pub mod network;
pub mod opening;
pub mod scratch;
mod sequence;

use std::path::Path;
use std::sync::Arc;

use longgen_format::Directory;

use crate::alloc::try_collect_ok;
use crate::attention::plan::LayerAttention;
use crate::backend::args::{KvType, SharedBytes};
use crate::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaBackend;
use crate::backend::reference::ReferenceBackend;
use crate::backend::{Backend, DeviceInfo};
use crate::cancel::{Cancel, OnProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::Config;
use crate::model::metadata::ModelMetadata;
use crate::model::network::{Engine, Network, Part, Sequence};
use crate::model::opening::{LogLevel, OnLog, Opening};
use crate::session::{MemoryPlan, SessionParams};
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::{Load, WeightFile, open_until, read_header};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first CUDA device if this build and this machine can use one and the model fits, else the processor.
    Auto,
    /// The processor, with everything that makes it fast.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// The processor, one element after the other as the formulas read: an oracle for tests.
    Reference,
}

/// How to open a model. The default opens it as its file says, on all cores.
#[derive(Clone, Debug, Default)]
pub struct ModelParams {
    /// How the file comes into memory.
    pub load: Load,
    /// Where it runs.
    pub device: Device,
    /// Threads of the processor, at most 4,096; 0 means one per core.
    pub n_threads: usize,
    /// What each layer may look at instead of what the file says.
    pub attention: Option<Vec<LayerAttention>>,
    /// Compare every tensor with its checksum, which reads the whole file. One without checksums is `Unsupported`.
    pub verify: bool,
    /// Open metadata and text only. The file needs no tensors and may be of any architecture; there are no sessions.
    pub vocab_only: bool,
}

impl ModelParams {
    /// How often the bytes of a file are gone through once they are there.
    fn n_passes(&self) -> usize {
        usize::from(self.verify) + usize::from(!self.vocab_only)
    }
}

/// An open model: immutable, and shared by its sessions.
pub struct Model {
    config: Arc<Config>,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    metadata: ModelMetadata,
    /// Nothing if only the text was opened.
    engine: Option<Box<dyn Engine>>,
    weight_bytes: usize,
    tensor_bytes: usize,
    n_params: u64,
    device_note: Option<String>,
}

impl Model {
    /// Opens a LongGen file or a plain `llama` GGUF.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Format`, `Unsupported`, `OutOfMemory`, `Device`; the message says what and where.
    pub fn open(path: impl AsRef<Path>, params: &ModelParams) -> Result<Self> {
        Self::open_with(path, params, &Cancel::default(), &mut |_, _| true, &mut |_, _| {})
    }

    /// The same, telling how many bytes it has gone through and what it finds. The file counts once for each time that it is
    /// gone through: to copy it into memory, to verify it, and to load its tensors.
    ///
    /// # Errors
    /// Also `Cancelled`.
    pub fn open_with(
        path: impl AsRef<Path>,
        params: &ModelParams,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
        on_log: OnLog<'_>,
    ) -> Result<Self> {
        let path = path.as_ref();
        // The header is a small part of a file.
        let header_alone = params.load == Load::Read && params.vocab_only && !params.verify;
        let n_copies = usize::from(params.load == Load::Read && !header_alone);
        let mut opening = Opening::new(n_copies + params.n_passes(), cancel, on_progress, on_log);
        let in_file = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
        opening.check().map_err(in_file)?;
        let copied = &mut |n_read, n_bytes| opening.reach(n_read, n_bytes).map_err(in_file);
        let (bytes, file_bytes) = match header_alone {
            true => read_header(path)?,
            false => {
                let bytes = open_until(path, params.load, copied)?;
                let n_bytes = (*bytes).as_ref().len();
                (bytes, n_bytes)
            }
        };
        if n_copies > 0 {
            opening.pass(file_bytes).map_err(in_file)?;
        }
        Self::read(&bytes, file_bytes, params, &mut opening).map_err(in_file)
    }

    /// Opens a model file that is in memory already.
    ///
    /// # Errors
    /// `Format`, `Unsupported`, `OutOfMemory`, `Device`, `Cancelled`.
    #[expect(clippy::needless_pass_by_value, reason = "the model keeps the bytes")]
    pub fn from_bytes(
        bytes: SharedBytes,
        params: &ModelParams,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
        on_log: OnLog<'_>,
    ) -> Result<Self> {
        let n_bytes = (*bytes).as_ref().len();
        Self::read(&bytes, n_bytes, params, &mut Opening::new(params.n_passes(), cancel, on_progress, on_log))
    }

    /// Reads a file of `file_bytes`, of which `bytes` is all or, if nothing else is wanted, its header.
    fn read(
        bytes: &SharedBytes,
        file_bytes: usize,
        params: &ModelParams,
        opening: &mut Opening<'_>,
    ) -> Result<Self> {
        let directory = Directory::read_header((**bytes).as_ref(), file_bytes as u64)?;
        let file = WeightFile { bytes, directory: &directory };
        opening.check()?;
        if params.verify {
            opening.verify(&file)?;
        }
        let model = Self::from_file(&file, params, opening)?;
        opening.end();
        Ok(model)
    }

    fn from_file(file: &WeightFile<'_>, params: &ModelParams, opening: &mut Opening<'_>) -> Result<Self> {
        let metadata = &file.directory.metadata;
        let mut config = if params.vocab_only { Config::of_text(metadata)? } else { Config::read(file)? };
        if let Some(attention) = &params.attention {
            check_attention(&config, attention)?;
            config.attention = try_collect_ok(attention.iter().map(LayerAttention::try_clone))?;
        }
        let tokenizer = Tokenizer::from_metadata(metadata)?;
        if params.vocab_only {
            config.n_vocab = tokenizer.n_vocab();
        }
        tokenizer.check_rows(config.n_vocab)?;
        let chat_template = ChatTemplate::from_metadata(metadata)?;
        opening.check()?;
        opening.found(&config, file);
        let config = Arc::new(config);
        let (engine, device_note) = match params.vocab_only {
            true => (None, None),
            false => {
                let (engine, note) = engine(params, file, &config, opening)?;
                opening.log(LogLevel::Info, &format!("running on {}", engine.info().name));
                (Some(engine), note)
            }
        };
        let has_output = file.has("output.weight");
        let is_read = |name: &str| !has_output || name != "token_embd.weight";
        let tensors = file.directory.tensors().iter().filter(|tensor| is_read(tensor.name()));
        let weight_bytes = tensors.map(|tensor| usize::try_from(tensor.n_bytes()).unwrap_or(0)).sum();
        let (tensor_bytes, n_params) = (file.n_bytes(), file.n_elems());
        // A file that was copied into memory goes, unless the engine computes from it.
        let only_header = params.load == Load::Read && Arc::strong_count(file.bytes) == 1;
        let metadata = ModelMetadata::new(file, only_header)?;
        Ok(Self {
            config,
            tokenizer,
            chat_template,
            metadata,
            engine,
            weight_bytes,
            tensor_bytes,
            n_params,
            device_note,
        })
    }

    /// What the model runs on; nothing if only its text was opened.
    pub fn device(&self) -> DeviceInfo {
        self.engine.as_ref().map(|engine| engine.info()).unwrap_or_default()
    }

    fn engine(&self) -> Result<&dyn Engine> {
        let text_alone =
            || Error::invalid("the model was opened for its text alone (vocab_only): it has no sessions");
        self.engine.as_deref().ok_or_else(text_alone)
    }

    /// Why [`Device::Auto`] took the processor although this build can use a CUDA device.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How conversations are written for this model, if its file says so.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The key-value pairs of the model's file.
    pub fn metadata(&self) -> &ModelMetadata {
        &self.metadata
    }

    /// The exact memory of a session with these parameters; allocates nothing. Several sessions take it several times.
    ///
    /// # Errors
    /// `Invalid` for parameters out of their range and for a model that was opened for its text alone, `OutOfMemory` for a
    /// session that would take more than its [`max_bytes`](SessionParams::max_bytes).
    pub fn plan(&self, params: &SessionParams) -> Result<MemoryPlan> {
        self.plan_for(params, &self.config.attention)
    }

    /// The same if the layers attended like this.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan); `Invalid` also for another number of layers.
    pub fn plan_for(&self, params: &SessionParams, attention: &[LayerAttention]) -> Result<MemoryPlan> {
        check_attention(&self.config, attention)?;
        let engine = self.engine()?;
        let plan = engine.plan(params, attention)?;
        let (needed, most) = (plan.total_bytes(), params.max_bytes);
        if most == 0 || needed <= most {
            return Ok(plan);
        }
        let longest = self.longest_context_for(params, attention, most)?;
        match longest {
            Some(n_ctx) if params.n_ctx == 0 => {
                engine.plan(&SessionParams { n_ctx, ..params.clone() }, attention)
            }
            _ => {
                let n_ctx = plan.n_ctx;
                let fits = would_fit(longest).unwrap_or_else(|| "; no context is short enough".into());
                let message =
                    format!("a context of {n_ctx} tokens needs {needed} bytes, max_bytes is {most}{fits}");
                Err(Error::new(ErrorKind::OutOfMemory, message))
            }
        }
    }

    /// Parameters: elements of all tensors.
    pub fn n_params(&self) -> u64 {
        self.n_params
    }

    /// Bytes of all weights.
    pub fn tensor_bytes(&self) -> usize {
        self.tensor_bytes
    }

    /// Bytes of weights that one token reads: all matrices, and of the embedding nothing unless it is the output too.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Bytes of keys and values that a token at this position reads.
    pub fn kv_read_bytes(&self, position: u32, kv_type: KvType) -> usize {
        let Config { n_kv_heads, n_heads, head_dim, .. } = *self.config;
        let of_layer = |layer: &LayerAttention| {
            let group = n_heads / n_kv_heads;
            let blocks = |phase: &u32| layer.mask.visible_blocks(position, position, *phase).count();
            let blocks: usize = layer.phases.iter().step_by(group).map(blocks).sum();
            blocks * layer.mask.block_size() as usize * 2 * kv_type.row_bytes(head_dim)
        };
        self.config.attention.iter().map(of_layer).sum()
    }

    /// Bytes that this model's sessions occupy now, as they were allocated.
    pub fn session_bytes(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.session_bytes())
    }

    /// The longest context, in tokens and at most that of `params`, that a session can have within `n_bytes` with otherwise
    /// these parameters, whatever their `max_bytes`; `None` if not even one token fits.
    ///
    /// # Errors
    /// `Invalid` for parameters out of their range and for a model that was opened for its text alone.
    pub fn longest_context(&self, params: &SessionParams, n_bytes: usize) -> Result<Option<u32>> {
        self.longest_context_for(params, &self.config.attention, n_bytes)
    }

    fn longest_context_for(
        &self,
        params: &SessionParams,
        attention: &[LayerAttention],
        n_bytes: usize,
    ) -> Result<Option<u32>> {
        let engine = self.engine()?;
        let (mut fits, mut too_long) = (0, engine.plan(params, attention)?.n_ctx.saturating_add(1));
        while too_long - fits > 1 {
            let n_ctx = fits + (too_long - fits) / 2;
            let plan = engine.plan(&SessionParams { n_ctx, ..params.clone() }, attention)?;
            match plan.total_bytes() <= n_bytes {
                true => fits = n_ctx,
                false => too_long = n_ctx,
            }
        }
        Ok(Some(fits).filter(|&n_ctx| n_ctx > 0))
    }

    /// Allocates a sequence; returns what was planned for it, too.
    pub(crate) fn sequence(&self, params: &SessionParams) -> Result<(Box<dyn Sequence>, MemoryPlan)> {
        let (engine, plan) = (self.engine()?, self.plan(params)?);
        // Where the limit decides how long the context is.
        let params = &SessionParams { n_ctx: plan.n_ctx, ..params.clone() };
        let error = match engine.sequence(params) {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => error,
            result => return result.map(|sequence| (sequence, plan)),
        };
        let needed = plan.total_bytes();
        // Devices hand out memory in pages; a little is lost at every buffer's end.
        let free = engine.free_bytes().map(|free| free - free / 64);
        let longest = free.map(|free| self.longest_context(params, free)).transpose()?.flatten();
        // What is free now may have been freed since.
        let fits = would_fit(longest.filter(|&n_ctx| n_ctx < plan.n_ctx)).unwrap_or_default();
        Err(Error::new(error.kind(), format!("the session needs {needed} bytes: {error}{fits}")))
    }

    pub(crate) fn step_batch(&self, batch: &mut [Part<'_, dyn Sequence>], cancel: &Cancel) -> Result<()> {
        self.engine()?.step_batch(batch, cancel)
    }
}

/// What would help where a context is too long.
fn would_fit(n_ctx: Option<u32>) -> Option<String> {
    n_ctx.map(|n_ctx| format!("; a context of {n_ctx} tokens would fit"))
}

/// The model on a device, and why not on one that was preferred.
fn engine(
    params: &ModelParams,
    file: &WeightFile<'_>,
    config: &Arc<Config>,
    opening: &mut Opening<'_>,
) -> Result<(Box<dyn Engine>, Option<String>)> {
    fn on<B: Backend>(
        backend: B,
        file: &WeightFile<'_>,
        config: &Arc<Config>,
        opening: &mut Opening<'_>,
    ) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Network::load(backend, file, config.clone(), opening)?))
    }
    let n_threads = match params.n_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let engine = match params.device {
        Device::Cpu => on(CpuBackend::new(n_threads)?, file, config, opening)?,
        Device::Reference => on(ReferenceBackend::default(), file, config, opening)?,
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => on(CudaBackend::new(ordinal)?, file, config, opening)?,
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => {
            let message = "this build cannot use CUDA devices: it was built without the feature `cuda`";
            return Err(Error::unsupported(message));
        }
        #[cfg(feature = "cuda")]
        Device::Auto => match CudaBackend::new(0).and_then(|b| on(b, file, config, opening)) {
            Ok(engine) => engine,
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                opening.log(LogLevel::Warning, &format!("cannot run on a CUDA device: {error}"));
                let engine = on(CpuBackend::new(n_threads)?, file, config, opening)?;
                return Ok((engine, Some(error.to_string())));
            }
        },
        #[cfg(not(feature = "cuda"))]
        Device::Auto => {
            opening.log(LogLevel::Info, "this build cannot use CUDA devices");
            on(CpuBackend::new(n_threads)?, file, config, opening)?
        }
    };
    Ok((engine, None))
}

fn check_attention(config: &Config, attention: &[LayerAttention]) -> Result<()> {
    if attention.len() != config.n_layers {
        let (has, expected) = (attention.len(), config.n_layers);
        return Err(Error::invalid(format!("attention plan of {has} layers for a model of {expected}")));
    }
    attention.iter().try_for_each(|layer| layer.check(config.n_heads))
}
