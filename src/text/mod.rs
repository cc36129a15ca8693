//! Text: tokens from text and back, a stream of finished characters, and chat templates.
//!
//! Everything here is pure: no device, no file, no environment. A [`Tokenizer`] and a [`ChatTemplate`] come from a
//! file's metadata, are immutable and may be shared between threads; a [`TextStream`] belongs to one generation.

mod byte_level;
mod chat;
mod date;
mod decoder;
mod gguf;
mod guard;
mod huggingface;
mod instructions;
mod merges;
mod metadata;
mod pipeline;
mod python;
mod scores;
mod special;
mod stream;
mod tojson;
mod tokenizer;
mod values;
mod vocabulary;

pub use chat::{ChatTemplate, Message};
pub use huggingface::{HfTokenizer, split_hf_tokenizer};
pub use metadata::pipeline_of;
pub use special::SpecialToken;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
