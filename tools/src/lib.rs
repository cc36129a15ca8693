//! What the command-line tools share.
#![forbid(unsafe_code)]

pub mod attention_bench;
pub mod chat;
pub mod chat_template;
pub mod convert;
pub mod costs;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod mixed_bench;
pub mod npy;
pub mod output;
pub mod plan;
pub mod plan_report;
pub mod progress;
pub mod random;
pub mod run_args;
pub mod signals;
pub mod stop_bench;
pub mod synthetic;
pub mod turns_bench;
