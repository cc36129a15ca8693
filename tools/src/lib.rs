//! What the command-line tools share.
#![forbid(unsafe_code)]

pub mod convert;
pub mod inspect;
pub mod plan;
