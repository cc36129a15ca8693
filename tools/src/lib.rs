//! What the command-line tools share.
#![forbid(unsafe_code)]

pub mod convert;
pub mod eval;
pub mod inspect;
pub mod npy;
pub mod plan;
pub mod run_args;
