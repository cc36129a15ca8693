//! Reader, writer and checker of LongGen model files: GGUF v3 with a per-layer attention plan and checksums.
//!
//! The crate works on slices and on anything that can be written to and sought; files and memory maps are its user's.
//! `format/README.md` is the specification.
//!
//! ```
//! use longgen_format::{Directory, OwnedValue, TensorDecl, TensorType, Writer};
//!
//! let metadata = vec![("general.architecture".to_owned(), OwnedValue::Str("longgen".to_owned()))];
//! let tensors = vec![TensorDecl { name: "output_norm.weight".to_owned(), shape: vec![2], ty: TensorType::F32 }];
//! let mut file = std::io::Cursor::new(Vec::new());
//! let mut writer = Writer::new(&mut file, metadata, tensors)?;
//! writer.write_tensor(&[1.0f32, 2.0].map(f32::to_le_bytes).concat())?;
//! writer.finish()?;
//!
//! let bytes = file.into_inner();
//! let directory = Directory::read(&bytes)?;
//! directory.verify(|_| {})?;
//! assert_eq!(directory.metadata.require_str("general.architecture")?, "longgen");
//! assert_eq!(directory.tensor("output_norm.weight").map(|tensor| tensor.n_bytes()), Some(8));
//! # Ok::<(), longgen_format::Error>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod index;
pub mod keys;
mod metadata;
pub mod quant;
mod read;
mod source_type;
mod tensor_type;
mod verify;
mod write;

pub use error::Error;
pub use index::{MetadataIndex, ValueShape};
pub use metadata::{Array, Metadata, Value, ValueType};
pub use read::{Directory, TensorInfo};
pub use source_type::SourceType;
pub use tensor_type::TensorType;
pub use write::{OwnedValue, TensorDecl, Writer};
