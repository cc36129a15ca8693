//! What else a model's file says: its key-value pairs, read where they lie.

use std::sync::Arc;

use longgen_format::{Error as FormatError, MetadataIndex, ValueShape};

use crate::alloc::try_vec;
use crate::backend::args::SharedBytes;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::WeightFile;

/// The key-value pairs of a model's file. Strings and arrays, the vocabulary among them, stay where they lie in the file.
pub struct ModelMetadata {
    index: MetadataIndex,
    /// The file, or its header.
    bytes: SharedBytes,
}

impl ModelMetadata {
    /// Those of a file. With `only_header`, a copy of its header is kept and not all of the file.
    pub(super) fn new(file: &WeightFile<'_>, only_header: bool) -> Result<Self> {
        let index = file.directory.metadata_index()?;
        if !only_header {
            return Ok(Self { index, bytes: file.bytes.clone() });
        }
        let bytes = file.bytes();
        let n_bytes = usize::try_from(file.directory.data_offset()).unwrap_or(usize::MAX).min(bytes.len());
        let mut header = try_vec(n_bytes, 0u8)?;
        header.copy_from_slice(&bytes[..n_bytes]);
        Ok(Self { index, bytes: Arc::new(header) })
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The key of the pair number `i`, in the order of the file.
    ///
    /// # Errors
    /// `Invalid` if there are not so many.
    pub fn key(&self, i: usize) -> Result<&str> {
        let n = self.len();
        self.index.key(self.bytes(), i).ok_or_else(|| Error::invalid(format!("key {i} of {n}")))
    }

    /// What a key has.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn shape(&self, key: &str) -> Result<ValueShape> {
        self.index.shape(self.bytes(), key).map_err(refused)
    }

    /// The unsigned integer number `i` of a key; number 0 is the value of a key that has no array.
    ///
    /// # Errors
    /// `NotFound` for a key that is not there; `Invalid` for an element that is not there, of another type, or does not fit.
    pub fn u64(&self, key: &str, i: usize) -> Result<u64> {
        self.index.u64(self.bytes(), key, i).map_err(refused)
    }

    /// The same for a signed integer.
    ///
    /// # Errors
    /// Those of [`u64`](Self::u64).
    pub fn i64(&self, key: &str, i: usize) -> Result<i64> {
        self.index.i64(self.bytes(), key, i).map_err(refused)
    }

    /// The same for a float.
    ///
    /// # Errors
    /// Those of [`u64`](Self::u64).
    pub fn f64(&self, key: &str, i: usize) -> Result<f64> {
        self.index.f64(self.bytes(), key, i).map_err(refused)
    }

    /// The same for a boolean.
    ///
    /// # Errors
    /// Those of [`u64`](Self::u64).
    pub fn bool(&self, key: &str, i: usize) -> Result<bool> {
        self.index.bool(self.bytes(), key, i).map_err(refused)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// Those of [`u64`](Self::u64).
    pub fn text(&self, key: &str, i: usize) -> Result<&str> {
        self.index.str(self.bytes(), key, i).map_err(refused)
    }
}

/// The file is in order; what is asked of it may not be.
fn refused(error: FormatError) -> Error {
    let kind = match error {
        FormatError::MissingKey { .. } => ErrorKind::NotFound,
        FormatError::Changed { .. } => ErrorKind::Format,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, error.to_string())
}
