//! Model files in memory: mapped or read, and their tensors as typed views.
#![allow(unsafe_code, reason = "maps the model file")]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use longgen_format::{Directory, Error as FormatError, quant};
use xxhash_rust::xxh3::Xxh3Default;

use crate::alloc::{try_reserve, try_vec};
use crate::backend::args::{SharedBytes, WeightData};
use crate::error::{Error, ErrorKind, Result};

/// How a model file comes into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Mapped: pages are read when they are needed and shared with other processes. The file may be replaced by a
    /// rename while it is in use, but must not be truncated or rewritten in place.
    #[default]
    Map,
    /// Copied: nothing that happens to the file afterwards matters.
    Read,
}

/// Bytes that are read from a file together.
const READ_BYTES: usize = 16 << 20;

/// Bytes that a header is looked for in first: a few vocabularies are larger.
const HEADER_BYTES: usize = 4 << 20;

/// Bytes of each part of a tensor that a fingerprint covers.
const SAMPLE_BYTES: usize = 4096;

/// Brings a file into memory.
///
/// # Errors
/// `NotFound` or `Io`, naming the file; `OutOfMemory` for a file that is too large to copy.
pub fn open(path: &Path, load: Load) -> Result<SharedBytes> {
    open_until(path, load, &mut |_, _| Ok(()))
}

/// The same, telling how many bytes of how many have been copied. An error of `copied` ends it.
pub(crate) fn open_until(
    path: &Path,
    load: Load,
    copied: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SharedBytes> {
    let failed = |error| failed(path, error);
    let (mut file, n_bytes) = open_file(path)?;
    match load {
        Load::Map => {
            // SAFETY: the caller keeps the file from being truncated in place, as `Load::Map` asks; bytes that change
            // are only ever read as plain numbers.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
            Ok(Arc::new(map))
        }
        Load::Read => {
            let mut bytes = try_vec(n_bytes, 0u8)?;
            let mut n_read = 0;
            for part in bytes.chunks_mut(READ_BYTES) {
                file.read_exact(part).map_err(failed)?;
                n_read += part.len();
                copied(n_read, n_bytes)?;
            }
            Ok(Arc::new(bytes))
        }
    }
}

/// Copies the beginning of a file into memory, up to the end of its header or somewhat more. Returns the length of the
/// file, too.
pub(crate) fn read_header(path: &Path) -> Result<(SharedBytes, usize)> {
    let (mut file, file_bytes) = open_file(path)?;
    let (mut bytes, mut wanted) = (Vec::new(), HEADER_BYTES);
    loop {
        let n_read = bytes.len();
        let n_bytes = wanted.min(file_bytes);
        try_reserve(&mut bytes, n_bytes - n_read)?;
        bytes.resize(n_bytes, 0);
        file.read_exact(&mut bytes[n_read..]).map_err(|error| failed(path, error))?;
        match Directory::read_header(&bytes, file_bytes as u64) {
            Err(FormatError::Truncated { .. }) if n_bytes < file_bytes => wanted = 2 * n_bytes,
            // Whoever reads it again finds what is wrong with it.
            _ => return Ok((Arc::new(bytes), file_bytes)),
        }
    }
}

/// Opens a file, and says how long it is.
fn open_file(path: &Path) -> Result<(File, usize)> {
    let failed = |error| failed(path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::Io, format!("{}: is a folder, not a model file", path.display())));
    }
    Ok((file, usize::try_from(metadata.len()).unwrap_or(usize::MAX)))
}

fn failed(path: &Path, error: io::Error) -> Error {
    let error = Error::from(error);
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The tensors of an open model file.
pub struct WeightFile<'a> {
    /// The file's bytes; its header alone where nobody asks for tensors.
    pub bytes: &'a SharedBytes,
    /// What is where in them.
    pub directory: &'a Directory<'a>,
}

impl WeightFile<'_> {
    /// Bytes of all tensors together.
    pub fn n_bytes(&self) -> usize {
        let n_bytes = self.directory.tensors().iter().map(|tensor| tensor.n_bytes());
        usize::try_from(n_bytes.sum::<u64>()).unwrap_or(usize::MAX)
    }

    /// All bytes that are there.
    pub fn bytes(&self) -> &[u8] {
        (**self.bytes).as_ref()
    }

    /// Tells the file from others, at little cost whatever its size: a checksum of everything before the tensors, and of the
    /// beginning, the middle and the end of each tensor.
    pub fn fingerprint(&self) -> u128 {
        let (mut hash, bytes) = (Xxh3Default::new(), self.bytes());
        let header = usize::try_from(self.directory.data_offset()).unwrap_or(usize::MAX);
        hash.update(&bytes[..header.min(bytes.len())]);
        for tensor in self.directory.tensors() {
            let data = self.directory.tensor_bytes(tensor);
            let n = SAMPLE_BYTES.min(data.len());
            for at in [0, (data.len() - n) / 2, data.len() - n] {
                hash.update(&data[at..at + n]);
            }
        }
        hash.digest128()
    }

    /// Elements of all tensors together.
    pub fn n_elems(&self) -> u64 {
        self.directory.tensors().iter().fold(0, |n, tensor| n.saturating_add(tensor.n_elems()))
    }

    /// Whether the file has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.directory.tensor(name).is_some()
    }

    /// A matrix of `rows` outputs and `cols` inputs.
    ///
    /// # Errors
    /// `Format` if it is missing or has another shape, `Unsupported` for an unknown element type.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<WeightData> {
        let info =
            self.directory.tensor(name).ok_or_else(|| Error::format(format!("{name}: no such tensor")))?;
        let has: Vec<u64> = info.shape().iter().rev().copied().collect();
        let expected = [rows as u64, cols as u64];
        let is_vector = rows == 1 && has == expected[1..];
        if !is_vector && has != expected {
            return Err(Error::format(format!(
                "{name}: expected {expected:?}, file has {has:?} (outputs first)"
            )));
        }
        let begin = usize::try_from(info.offset()).unwrap_or(usize::MAX);
        let n_bytes = usize::try_from(info.n_bytes()).unwrap_or(usize::MAX);
        Ok(WeightData { file: self.bytes.clone(), range: begin..begin + n_bytes, ty: info.ty()?, rows, cols })
    }

    /// A vector of `n` numbers, as f32.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let data = self.matrix(name, 1, n)?;
        let mut values = try_vec(n, 0.0)?;
        quant::dequantize(data.ty, data.bytes(), &mut values)?;
        Ok(values)
    }
}
