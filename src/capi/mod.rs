//! The C interface, which `include/longgen.h` declares.
//!
//! Nothing is computed here: an exported function checks its pointers, enters the guard and calls the Rust API. The
//! conventions that all of them share stand at the top of the header; their text is in `include/cbindgen.toml`. Doc
//! comments here are written for readers of the header.
#![allow(unsafe_code, reason = "takes pointers from C")]
#![allow(non_camel_case_types, reason = "types are spelt as C programs spell them")]

pub mod attention;
pub mod cancel;
pub mod chat;
mod exclusive;
pub mod file;
pub mod fork;
pub mod generate;
mod guard;
pub mod info;
pub mod logits;
pub mod metadata;
pub mod model;
mod params;
pub mod plan;
mod pointer;
pub mod prompt;
pub mod sampler;
pub mod session;
pub mod state;
pub mod status;
pub mod stream;
pub mod tokenize;
pub mod version;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the structs of the C interface are laid out for pointers of 64 bits");

#[cfg(not(panic = "unwind"))]
compile_error!(
    "build with panic = \"unwind\": panics are caught at the C boundary, an abort would end the host process"
);
