//! From bytes to a directory of what is in them. Nothing is trusted: every length is compared with what is left of the
//! file before anything is allocated for it, every sum and product is checked, and time is linear in the file.

use std::collections::HashMap;

use byteorder::{ByteOrder, LittleEndian as LE};

use crate::metadata::{Array, Metadata, Value, ValueType};
use crate::tensor_type::{KnownType, known_type};
use crate::{Error, SourceType, TensorType, keys};

/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Largest alignment that makes sense; GGUF's default is 32.
const MAX_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// What is where in a model file.
#[derive(Clone, Debug)]
pub struct Directory<'a> {
    /// The key-value pairs.
    pub metadata: Metadata<'a>,
    pub(crate) bytes: &'a [u8],
    version: u32,
    alignment: u64,
    pub(crate) data_offset: u64,
    pub(crate) tensors: Vec<TensorInfo<'a>>,
    by_name: HashMap<&'a str, usize>,
}

/// A tensor's name, shape, type and place.
#[derive(Clone, Debug)]
pub struct TensorInfo<'a> {
    pub(crate) name: &'a str,
    shape: [u64; MAX_DIMS as usize],
    n_dims: usize,
    type_id: u32,
    pub(crate) offset: u64,
    pub(crate) n_bytes: u64,
}

impl<'a> TensorInfo<'a> {
    /// The name, unique in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The dimensions; elements along the first one lie side by side.
    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.n_dims]
    }

    /// Number of elements.
    pub fn n_elems(&self) -> u64 {
        // Checked for overflow when the file was read.
        self.shape().iter().product()
    }

    /// GGML's number of the type.
    pub fn type_id(&self) -> u32 {
        self.type_id
    }

    /// GGML's name of the type, supported or not.
    pub fn type_name(&self) -> &'static str {
        known_type(self.type_id).map_or("unknown", |known| known.name)
    }

    /// The type, of a model file.
    ///
    /// # Errors
    /// [`Error::ForeignTensorType`] for one that can only be converted, [`Error::UnsupportedTensorType`] for one that this
    /// crate cannot read.
    pub fn ty(&self) -> Result<TensorType, Error> {
        let ty = self.source_type()?;
        ty.stored().ok_or_else(|| Error::ForeignTensorType { tensor: self.name.to_owned(), name: ty.name() })
    }

    /// The type, of anybody's file.
    ///
    /// # Errors
    /// [`Error::UnsupportedTensorType`] for one that this crate cannot read.
    pub fn source_type(&self) -> Result<SourceType, Error> {
        let known = known_type(self.type_id);
        known.and_then(|known| known.readable).ok_or_else(|| Error::UnsupportedTensorType {
            tensor: self.name.to_owned(),
            id: self.type_id,
            name: self.type_name(),
        })
    }

    /// Where the data begins in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the data.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

/// Reads forward through the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The key whose value is being read.
    key: &'a str,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn offset(&self) -> u64 {
        self.at as u64
    }

    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], Error> {
        let (offset, left) = (self.offset(), self.left());
        let Some(n) = usize::try_from(n).ok().filter(|&n| n as u64 <= left) else {
            return Err(Error::Truncated { offset, what, needed: n, left });
        };
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        self.take(4, what).map(LE::read_u32)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        self.take(8, what).map(LE::read_u64)
    }

    fn str(&mut self, what: &'static str) -> Result<&'a str, Error> {
        let n = self.u64(what)?;
        let offset = self.offset();
        std::str::from_utf8(self.take(n, what)?).map_err(|_| Error::NotUtf8 { offset, what })
    }

    /// A count of things that take at least `min_bytes` each, as far as the file can hold them.
    fn count(&mut self, min_bytes: u64, what: &'static str) -> Result<usize, Error> {
        let count = self.u64(what)?;
        let (offset, left) = (self.offset(), self.left());
        let needed = count.saturating_mul(min_bytes);
        match usize::try_from(count) {
            Ok(count) if needed <= left => Ok(count),
            _ => Err(Error::Truncated { offset, what, needed, left }),
        }
    }

    fn value_type(&mut self) -> Result<ValueType, Error> {
        let offset = self.offset();
        let id = self.u32("value type")?;
        ValueType::from_id(id).ok_or_else(|| Error::UnknownValueType { offset, key: self.key.to_owned(), id })
    }

    fn bools(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        match bytes.iter().zip(offset..).find(|(byte, _)| **byte > 1) {
            None => Ok(()),
            Some((&found, offset)) => Err(Error::BadBool { offset, key: self.key.to_owned(), found }),
        }
    }

    fn value(&mut self) -> Result<Value<'a>, Error> {
        match self.value_type()? {
            ValueType::Str => self.str("string").map(Value::Str),
            ValueType::Array => self.array().map(Value::Array),
            ty => {
                let offset = self.offset();
                let bytes = self.take(ty.min_bytes(), "value")?;
                if ty == ValueType::Bool {
                    self.bools(offset, bytes)?;
                }
                // Strings and arrays have been dealt with, so there is one.
                Ok(Value::scalar(ty, bytes).unwrap_or(Value::Bool(false)))
            }
        }
    }

    fn array(&mut self) -> Result<Array<'a>, Error> {
        let offset = self.offset();
        let ty = self.value_type()?;
        if ty == ValueType::Array {
            return Err(Error::NestedArray { offset, key: self.key.to_owned() });
        }
        let len = self.count(ty.min_bytes(), "array")?;
        let begin = self.at;
        if ty == ValueType::Str {
            for _ in 0..len {
                self.str("string of an array")?;
            }
        } else {
            let offset = self.offset();
            let elements = self.take(len as u64 * ty.min_bytes(), "array")?;
            if ty == ValueType::Bool {
                self.bools(offset, elements)?;
            }
        }
        Ok(Array { ty, len, bytes: &self.bytes[begin..self.at] })
    }
}

impl<'a> Directory<'a> {
    /// Reads and checks everything but the tensors' data.
    ///
    /// # Errors
    /// What is wrong with the file, and where.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        Self::read_header(bytes, bytes.len() as u64)
    }

    /// The same of a file of `file_bytes` that `bytes` are the beginning of: there is no data of the tensors behind them.
    ///
    /// # Errors
    /// Those of [`read`](Self::read); [`Error::Truncated`] if the header goes on behind `bytes`.
    pub fn read_header(bytes: &'a [u8], file_bytes: u64) -> Result<Self, Error> {
        let mut cursor = Cursor { bytes, at: 0, key: "" };
        if !bytes.starts_with(b"GGUF") {
            return Err(Error::Magic { found: bytes[..bytes.len().min(4)].to_vec() });
        }
        cursor.take(4, "magic")?;
        let version = cursor.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(Error::Version { found: version });
        }
        // A tensor takes at least: name length, dimension count, one dimension, type, offset.
        let n_tensors = cursor.u64("tensor count")?;
        let n_keys = cursor.count(8 + 4 + 1, "key count")?;

        let metadata = read_metadata(&mut cursor, n_keys)?;
        let alignment = metadata.opt_u64(keys::GENERAL_ALIGNMENT)?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
            return Err(Error::Alignment { found: alignment });
        }
        let left = cursor.left();
        let needed = n_tensors.saturating_mul(8 + 4 + 8 + 4 + 8);
        if needed > left {
            return Err(Error::Truncated { offset: cursor.offset(), what: "tensor count", needed, left });
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            tensors.try_reserve(1)?;
            tensors.push(read_tensor(&mut cursor)?);
        }
        let data_offset = cursor.offset().next_multiple_of(alignment);

        let mut directory =
            Self { metadata, bytes, version, alignment, data_offset, tensors, by_name: HashMap::new() };
        directory.place_tensors(file_bytes)?;
        Ok(directory)
    }

    /// Turns offsets into the tensor data into offsets into the file, and checks that data is aligned, within the file
    /// and not shared.
    fn place_tensors(&mut self, file_bytes: u64) -> Result<(), Error> {
        let alignment = self.alignment;
        self.by_name.try_reserve(self.tensors.len())?;
        for (i, tensor) in self.tensors.iter_mut().enumerate() {
            let name = || tensor.name.to_owned();
            if !tensor.offset.is_multiple_of(alignment) {
                return Err(Error::Misaligned { tensor: name(), offset: tensor.offset, alignment });
            }
            let offset = self.data_offset.saturating_add(tensor.offset);
            let n_bytes = tensor.n_bytes;
            if offset.checked_add(n_bytes).is_none_or(|end| end > file_bytes) {
                return Err(Error::OutOfFile { tensor: name(), offset, n_bytes, file_bytes });
            }
            tensor.offset = offset;
            if self.by_name.insert(tensor.name, i).is_some() {
                return Err(Error::DuplicateTensor { tensor: tensor.name.to_owned() });
            }
        }
        for pair in self.by_offset()?.windows(2) {
            if pair[0].offset + pair[0].n_bytes > pair[1].offset {
                return Err(Error::Overlap {
                    first: pair[0].name.to_owned(),
                    second: pair[1].name.to_owned(),
                    offset: pair[1].offset,
                });
            }
        }
        Ok(())
    }

    /// The tensors in the order of their data.
    pub(crate) fn by_offset(&self) -> Result<Vec<&TensorInfo<'a>>, Error> {
        let mut tensors = Vec::new();
        tensors.try_reserve_exact(self.tensors.len())?;
        tensors.extend(&self.tensors);
        tensors.sort_unstable_by_key(|tensor| (tensor.offset, tensor.name));
        Ok(tensors)
    }

    /// Version of GGUF.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of the tensors' data.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensors' data begins in the file.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The data of one of this directory's tensors.
    pub fn tensor_bytes(&self, tensor: &TensorInfo<'_>) -> &'a [u8] {
        self.slice(tensor.offset, tensor.n_bytes)
    }

    /// Places were checked when the file was read; those of another directory's tensors have no bytes here.
    pub(crate) fn slice(&self, offset: u64, n_bytes: u64) -> &'a [u8] {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        begin.checked_add(n_bytes).and_then(|end| self.bytes.get(begin..end)).unwrap_or(&[])
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, n_keys: usize) -> Result<Metadata<'a>, Error> {
    let mut metadata = Metadata::default();
    for i in 0..n_keys {
        let key = cursor.str("key")?;
        if let Some(at) = key.find('\0') {
            return Err(Error::ZeroInKey { index: i, key: key.to_owned(), at });
        }
        cursor.key = key;
        let value = cursor.value()?;
        metadata.by_key.try_reserve(1)?;
        metadata.entries.try_reserve(1)?;
        if metadata.by_key.insert(key, i).is_some() {
            return Err(Error::DuplicateKey { key: key.to_owned() });
        }
        metadata.entries.push((key, value));
    }
    Ok(metadata)
}

fn read_tensor<'a>(cursor: &mut Cursor<'a>) -> Result<TensorInfo<'a>, Error> {
    let name = cursor.str("tensor name")?;
    let wrong = |reason: String| Error::Shape { tensor: name.to_owned(), reason };
    let n_dims = cursor.u32("dimension count")?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(wrong(format!("{n_dims} dimensions, expected 1 to {MAX_DIMS}")));
    }
    let mut shape = [0; MAX_DIMS as usize];
    let mut n_elems = 1u64;
    for dim in shape.iter_mut().take(n_dims as usize) {
        *dim = cursor.u64("dimension")?;
        n_elems = match n_elems.checked_mul(*dim) {
            Some(0) => return Err(wrong("a dimension is 0".to_owned())),
            Some(n_elems) => n_elems,
            None => return Err(wrong("more than 2^64 elements".to_owned())),
        };
    }
    let type_id = cursor.u32("tensor type")?;
    let known =
        known_type(type_id).ok_or_else(|| Error::UnknownTensorType { tensor: name.to_owned(), id: type_id });
    let KnownType { name: type_name, block_elems, block_bytes, .. } = known?;
    if !shape[0].is_multiple_of(block_elems) {
        return Err(wrong(format!("rows of {} elements, {type_name} has blocks of {block_elems}", shape[0])));
    }
    let n_bytes = (n_elems / block_elems).checked_mul(block_bytes);
    let n_bytes = n_bytes.ok_or_else(|| wrong("more than 2^64 bytes".to_owned()))?;
    let offset = cursor.u64("tensor offset")?;
    Ok(TensorInfo { name, shape, n_dims: n_dims as usize, type_id, offset, n_bytes })
}
