//! LongGen: a runtime for long-context language models whose layers do not all attend alike.
#![deny(unsafe_code)]

pub mod error;

pub use error::{Error, ErrorKind, Result};
