//! LongGen: a runtime for long-context language models whose layers do not all attend alike.
#![deny(unsafe_code)]

mod alloc;
pub mod attention;
pub mod backend;
pub mod cancel;
pub mod capi;
pub mod error;
pub mod generate;
pub mod kv;
pub mod logprobs;
pub mod model;
pub mod sampler;
pub mod session;
pub mod text;
mod version;
pub mod weights;

pub use backend::args::{KvType, Precision};
pub use cancel::{Cancel, OnProgress};
pub use error::{Error, ErrorKind, Result};
pub use generate::{GenerateParams, Generated, OnText, StopReason};
pub use logprobs::TokenLogprob;
pub use model::opening::{LogLevel, OnLog};
pub use model::{Device, Model, ModelParams};
pub use sampler::{Candidate, Choice, Sampler, SamplerParams};
pub use session::{Counters, MemoryPlan, Prompted, Session, SessionParams, Work};
pub use version::build_info;
