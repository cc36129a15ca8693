//! Flags that every program which runs a model has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use longgen::model::config::Config;
use longgen::text::Tokenizer;
use longgen::weights::{Load, WeightFile};
use longgen::{
    Cancel, Device, ErrorKind, KvType, Model, ModelParams, OnProgress, Precision, Session, SessionParams,
};
use longgen_format::Directory;

use crate::progress::Progress;

/// Element types of the cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvArg {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// upper halves of 32-bit floats
    Bf16,
    /// 8-bit integers with a scale per token and head
    Q8,
}

impl From<KvArg> for KvType {
    fn from(kv: KvArg) -> Self {
        match kv {
            KvArg::F32 => Self::F32,
            KvArg::F16 => Self::F16,
            KvArg::Bf16 => Self::Bf16,
            KvArg::Q8 => Self::Q8,
        }
    }
}

/// Precisions of matrix products.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PrecisionArg {
    /// f32 activations
    Exact,
    /// activations rounded to 8 bits where weights are quantised
    Fast,
}

/// Where and how something is computed.
#[derive(Args, Clone, Debug)]
pub struct ComputeArgs {
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where it runs: auto, cpu, cuda, or cuda:N for the N-th card
    #[arg(long, env = "LONGGEN_DEVICE", value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: Device,
    /// Element type of the cache
    #[arg(long, value_enum, default_value = "f16")]
    pub kv: KvArg,
    /// Precision of matrix products
    #[arg(long, value_enum, default_value = "fast")]
    pub precision: PrecisionArg,
}

impl ComputeArgs {
    /// Element type of the cache.
    pub fn kv_type(&self) -> KvType {
        self.kv.into()
    }

    /// How precisely ops compute.
    pub fn precision(&self) -> Precision {
        match self.precision {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Fast => Precision::Fast,
        }
    }
}

/// How a model is run.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Model file: made by lgconvert, or a plain llama GGUF
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Longest context in tokens [default: what the task needs, or what the model was trained for]
    #[arg(short, long = "ctx-size", alias = "ctx", value_name = "TOKENS")]
    pub ctx_size: Option<u32>,
    /// Where and how.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Most tokens that go through the layers together; changes no result on the CPU [default: 2048, on Hopper up to 8192]
    #[arg(long, value_name = "TOKENS")]
    pub chunk: Option<u32>,
    /// Most bytes of memory for restore points, which spare work when earlier text changes; 1 keeps none [default: a tenth
    /// of the cache's, or four points' if that is more]
    #[arg(long, value_name = "BYTES")]
    pub restore: Option<usize>,
}

/// The tokenizer of a model, without opening it: the file needs no weights.
///
/// # Errors
/// What is wrong with the file.
pub fn tokenizer(path: &Path) -> Result<Tokenizer> {
    read(path, |file| Ok(Tokenizer::from_metadata(&file.directory.metadata)?))
}

/// Reads a part of a model file.
fn read<T>(path: &Path, part: impl FnOnce(&WeightFile<'_>) -> Result<T>) -> Result<T> {
    let bytes = longgen::weights::open(path, Load::Map)?;
    let read = || part(&WeightFile { bytes: &bytes, directory: &Directory::read((*bytes).as_ref())? });
    read().with_context(|| path.display().to_string())
}

impl RunArgs {
    /// Opens the model.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn open(&self, params: ModelParams) -> Result<Arc<Model>> {
        let path = self.path();
        self.open_with(params, |params, on_progress| {
            Ok(Model::open_with(path, params, &Cancel::default(), on_progress, &mut |_, _| {})?)
        })
    }

    /// The numbers of the model, without opening it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn config(&self) -> Result<Config> {
        read(self.path(), |file| Ok(Config::read(file)?))
    }

    /// The model file. Where none is named, the process ends as it does for any other flag that is missing: only `lgeval
    /// bench` can do without.
    pub(crate) fn path(&self) -> &PathBuf {
        let missing = || {
            let message = "which model? -m, --model FILE names it\n";
            clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, message).exit()
        };
        self.model.as_ref().unwrap_or_else(missing)
    }

    /// Opens a model that is no file, with the device and threads of the flags.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open_with(
        &self,
        params: ModelParams,
        open: impl FnOnce(&ModelParams, OnProgress<'_>) -> Result<Model>,
    ) -> Result<Arc<Model>> {
        let params = ModelParams {
            n_threads: self.compute.threads.unwrap_or(0),
            device: self.compute.device,
            ..params
        };
        let bar = Progress::file("loading");
        let model = open(&params, &mut |done, all| bar.show(done, all))?;
        if let Some(why) = model.device_note() {
            eprintln!("running on the CPU: {why}");
        }
        Ok(Arc::new(model))
    }

    /// The parameters of a session; `n_ctx` is used unless the flags say something else.
    pub fn session_params(&self, n_ctx: u32) -> SessionParams {
        SessionParams {
            n_ctx: self.ctx_size.unwrap_or(n_ctx),
            chunk_tokens: self.chunk.unwrap_or(0),
            kv_type: self.compute.kv_type(),
            precision: self.compute.precision(),
            restore_bytes: self.restore.unwrap_or(0),
            ..SessionParams::default()
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// Parameters out of range, or too little memory; then the message says how much is needed.
    pub fn session(&self, model: &Arc<Model>, params: &SessionParams) -> Result<Session> {
        Session::new(model, params).map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => anyhow!("{error}; -c takes fewer tokens, --kv q8 smaller ones"),
            _ => error.into(),
        })
    }
}

/// How the value of a flag is written.
pub fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Reads `--device`.
fn device(text: &str) -> Result<Device, String> {
    match text.split_once(':') {
        None if text == "auto" => Ok(Device::Auto),
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", number)) => {
            number.parse().map(Device::Cuda).map_err(|_| format!("{number} is no number of a card"))
        }
        _ => Err("expected auto, cpu, cuda or cuda:N".into()),
    }
}
