//! LongGen: a runtime for long-context language models whose layers do not all attend alike.
#![deny(unsafe_code)]

mod alloc;
pub mod attention;
pub mod backend;
pub mod cancel;
pub mod error;
pub mod kv;
pub mod text;

pub use cancel::Cancel;
pub use error::{Error, ErrorKind, Result};
