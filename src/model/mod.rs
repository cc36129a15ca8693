//! A model: its numbers, its text, and the backend that runs it.

pub mod config;
pub mod forward;
pub mod layer;
pub mod network;
pub mod scratch;

use std::path::Path;
use std::sync::Arc;

use longgen_format::Directory;

use crate::attention::plan::LayerAttention;
use crate::backend::cpu::CpuBackend;
use crate::backend::reference::ReferenceBackend;
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::network::{Engine, Network, Sequence};
use crate::session::{MemoryPlan, SessionParams};
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::{Load, WeightFile, open};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor, with everything that makes it fast.
    #[default]
    Cpu,
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
    /// Compare every tensor with its checksum, which reads the whole file.
    pub verify: bool,
}

/// An open model: immutable, and shared by its sessions.
pub struct Model {
    config: Arc<Config>,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    engine: Box<dyn Engine>,
}

impl Model {
    /// Opens a LongGen file or a plain `llama` GGUF.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Format`, `Unsupported`, `OutOfMemory`, `Device`; the message says what and where.
    pub fn open(path: impl AsRef<Path>, params: &ModelParams) -> Result<Self> {
        let path = path.as_ref();
        let bytes = open(path, params.load)?;
        let in_file = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
        let directory = Directory::read((*bytes).as_ref()).map_err(|error| in_file(error.into()))?;
        if params.verify {
            directory.verify(|_| {}).map_err(|error| in_file(error.into()))?;
        }
        let file = WeightFile { bytes: &bytes, directory: &directory };
        Self::from_file(&file, params).map_err(in_file)
    }

    fn from_file(file: &WeightFile<'_>, params: &ModelParams) -> Result<Self> {
        let mut config = Config::read(file)?;
        if let Some(attention) = &params.attention {
            if attention.len() != config.n_layers {
                let (has, expected) = (attention.len(), config.n_layers);
                return Err(Error::invalid(format!(
                    "attention plan of {has} layers for a model of {expected}"
                )));
            }
            attention.iter().try_for_each(|layer| layer.check(config.n_heads))?;
            config.attention = attention.clone();
        }
        let config = Arc::new(config);
        let tokenizer = Tokenizer::from_metadata(&file.directory.metadata)?;
        let chat_template = ChatTemplate::from_metadata(&file.directory.metadata)?;
        let engine: Box<dyn Engine> = match params.device {
            Device::Cpu => {
                let n_threads = match params.n_threads {
                    0 => std::thread::available_parallelism().map_or(1, usize::from),
                    n => n,
                };
                Box::new(Network::load(CpuBackend::new(n_threads)?, file, config.clone())?)
            }
            Device::Reference => Box::new(Network::load(ReferenceBackend::default(), file, config.clone())?),
        };
        Ok(Self { config, tokenizer, chat_template, engine })
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

    /// The exact memory of a session with these parameters; allocates nothing.
    ///
    /// # Errors
    /// `Invalid` for parameters out of their range.
    pub fn plan(&self, params: &SessionParams) -> Result<MemoryPlan> {
        self.engine.plan(params)
    }

    /// Bytes that this model's sessions occupy now, as they were allocated.
    pub fn session_bytes(&self) -> usize {
        self.engine.session_bytes()
    }

    pub(crate) fn sequence(&self, params: &SessionParams) -> Result<Box<dyn Sequence>> {
        self.engine.sequence(params)
    }
}
