//! From metadata and tensors to a file: the same input always gives the same bytes.
//!
//! The header is written first, with zeros for checksums; tensors stream through in their declared order; at the end
//! the header is written once more with what they hashed to.

use std::collections::HashSet;
use std::io::{Seek, SeekFrom, Write};

use byteorder::{LittleEndian as LE, WriteBytesExt};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use crate::metadata::{Array, Value, ValueType};
use crate::verify::{HASH_DIGITS, HASH_NAME};
use crate::{Error, TensorType, keys};

/// Alignment of the tensors' data: a page, so that a mapped tensor begins on one.
const ALIGNMENT: u32 = 4096;
const VERSION: u32 = 3;

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds what its name says")]
pub enum OwnedValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    U8s(Vec<u8>),
    I8s(Vec<i8>),
    U16s(Vec<u16>),
    I16s(Vec<i16>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    U64s(Vec<u64>),
    I64s(Vec<i64>),
    F32s(Vec<f32>),
    F64s(Vec<f64>),
    Bools(Vec<bool>),
    Strs(Vec<String>),
}

impl From<&Value<'_>> for OwnedValue {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "values were read with the very width that they go back to"
    )]
    fn from(value: &Value<'_>) -> Self {
        match *value {
            Value::UInt(ValueType::U8, x) => Self::U8(x as u8),
            Value::UInt(ValueType::U16, x) => Self::U16(x as u16),
            Value::UInt(ValueType::U32, x) => Self::U32(x as u32),
            Value::UInt(_, x) => Self::U64(x),
            Value::Int(ValueType::I8, x) => Self::I8(x as i8),
            Value::Int(ValueType::I16, x) => Self::I16(x as i16),
            Value::Int(ValueType::I32, x) => Self::I32(x as i32),
            Value::Int(_, x) => Self::I64(x),
            Value::Float(ValueType::F32, x) => Self::F32(x as f32),
            Value::Float(_, x) => Self::F64(x),
            Value::Bool(x) => Self::Bool(x),
            Value::Str(x) => Self::Str(x.to_owned()),
            Value::Array(array) => array.into(),
        }
    }
}

impl From<Array<'_>> for OwnedValue {
    fn from(array: Array<'_>) -> Self {
        /// The elements that unwrap to the variant asked for: all of them, since an array has one type.
        macro_rules! all {
            ($variant:ident) => {
                array
                    .iter()
                    .filter_map(|value| match OwnedValue::from(&value) {
                        OwnedValue::$variant(x) => Some(x),
                        _ => None,
                    })
                    .collect()
            };
        }
        match array.element_type() {
            ValueType::U8 => Self::U8s(all!(U8)),
            ValueType::I8 => Self::I8s(all!(I8)),
            ValueType::U16 => Self::U16s(all!(U16)),
            ValueType::I16 => Self::I16s(all!(I16)),
            ValueType::U32 => Self::U32s(all!(U32)),
            ValueType::I32 => Self::I32s(all!(I32)),
            ValueType::U64 => Self::U64s(all!(U64)),
            ValueType::I64 => Self::I64s(all!(I64)),
            ValueType::F32 => Self::F32s(all!(F32)),
            ValueType::F64 => Self::F64s(all!(F64)),
            ValueType::Bool => Self::Bools(all!(Bool)),
            // The reader refuses arrays of arrays.
            ValueType::Str | ValueType::Array => Self::Strs(all!(Str)),
        }
    }
}

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Its name, unique in the file.
    pub name: String,
    /// Its dimensions, 1 to 4; elements along the first one lie side by side.
    pub shape: Vec<u64>,
    /// Type of its elements.
    pub ty: TensorType,
}

impl TensorDecl {
    /// Bytes of the data.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not 1 to 4 dimensions, one is 0, rows are no whole blocks, or bytes exceed 2^64.
    pub fn n_bytes(&self) -> Result<u64, Error> {
        let wrong = |reason: &str| Error::Shape { tensor: self.name.clone(), reason: reason.to_owned() };
        let (elems, bytes) = (self.ty.block_elems() as u64, self.ty.block_bytes() as u64);
        if self.shape.is_empty() || self.shape.len() > 4 || self.shape.contains(&0) {
            return Err(wrong("expected 1 to 4 dimensions, none of them 0"));
        }
        if !self.shape[0].is_multiple_of(elems) {
            return Err(Error::Shape {
                tensor: self.name.clone(),
                reason: format!("rows of {} elements, {} has blocks of {elems}", self.shape[0], self.ty),
            });
        }
        let blocks = self.shape[1..].iter().try_fold(self.shape[0] / elems, |n, &dim| n.checked_mul(dim));
        blocks.and_then(|n| n.checked_mul(bytes)).ok_or_else(|| wrong("more than 2^64 bytes"))
    }
}

/// Writes a file tensor by tensor.
pub struct Writer<W: Write + Seek> {
    sink: W,
    metadata: Vec<(String, OwnedValue)>,
    tensors: Vec<TensorDecl>,
    /// Of the tensors that have been written.
    hashes: Vec<u128>,
    running: Xxh3Default,
    /// Bytes of the running tensor that have been written.
    written: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins a file at the sink's start, with these keys and tensors, in this order. `general.alignment` and the keys of
    /// the checksums are the writer's own: given ones are left out.
    ///
    /// # Errors
    /// [`Error::ZeroInKey`], [`Error::DuplicateKey`], [`Error::DuplicateTensor`], [`Error::Shape`], [`Error::Io`].
    pub fn new(
        sink: W,
        mut metadata: Vec<(String, OwnedValue)>,
        tensors: Vec<TensorDecl>,
    ) -> Result<Self, Error> {
        metadata.retain(|(key, _)| {
            key != keys::GENERAL_ALIGNMENT
                && key != keys::HASH_TENSORS
                && key != keys::HASH_HEADER
                && key != keys::HASH_ALGORITHM
        });
        metadata.push((keys::GENERAL_ALIGNMENT.to_owned(), OwnedValue::U32(ALIGNMENT)));
        metadata.push((keys::HASH_ALGORITHM.to_owned(), OwnedValue::Str(HASH_NAME.to_owned())));
        for (index, (key, _)) in metadata.iter().enumerate() {
            if let Some(at) = key.find('\0') {
                return Err(Error::ZeroInKey { index, key: key.clone(), at });
            }
        }
        let mut seen = HashSet::new();
        if let Some((key, _)) = metadata.iter().find(|(key, _)| !seen.insert(key.as_str())) {
            return Err(Error::DuplicateKey { key: key.clone() });
        }
        let mut seen = HashSet::new();
        for tensor in &tensors {
            tensor.n_bytes()?;
            if !seen.insert(tensor.name.as_str()) {
                return Err(Error::DuplicateTensor { tensor: tensor.name.clone() });
            }
        }
        let hashes = Vec::with_capacity(tensors.len());
        let mut writer = Self { sink, metadata, tensors, hashes, running: Xxh3Default::new(), written: 0 };
        let header = writer.header(None)?;
        writer.sink.write_all(&header)?;
        Ok(writer)
    }

    /// Writes all data of the next tensor, or what is left of the running one.
    ///
    /// # Errors
    /// As for [`write_part`](Self::write_part), and [`Error::TensorLength`] for fewer bytes, none of which are written.
    pub fn write_tensor(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (tensor, left) = self.running_tensor()?;
        match bytes.len() as u64 >= left {
            true => self.write_part(bytes),
            false => Err(wrong_length(tensor, left, bytes)),
        }
    }

    /// Writes the next bytes of the running tensor; when it is complete, the next one begins.
    ///
    /// # Errors
    /// [`Error::NoTensorLeft`], [`Error::TensorLength`] for more bytes than the tensor has left, [`Error::Io`].
    pub fn write_part(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (tensor, left) = self.running_tensor()?;
        let n_bytes = bytes.len() as u64;
        if n_bytes > left {
            return Err(wrong_length(tensor, left, bytes));
        }
        self.sink.write_all(bytes)?;
        self.running.update(bytes);
        self.written += n_bytes;
        if n_bytes == left {
            self.hashes.push(self.running.digest128());
            self.running = Xxh3Default::new();
            pad(&mut self.sink, self.written)?;
            self.written = 0;
        }
        Ok(())
    }

    /// The first tensor that is not complete, and how many bytes it lacks: at least one.
    fn running_tensor(&self) -> Result<(&TensorDecl, u64), Error> {
        let tensor = self.tensors.get(self.hashes.len());
        let tensor = tensor.ok_or(Error::NoTensorLeft { n_tensors: self.tensors.len() })?;
        Ok((tensor, tensor.n_bytes()? - self.written))
    }

    /// Fills in the checksums and hands the sink back, flushed.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if bytes of a tensor are missing, [`Error::Io`].
    pub fn finish(mut self) -> Result<W, Error> {
        if self.hashes.len() < self.tensors.len() {
            let (tensor, missing) = self.running_tensor()?;
            return Err(Error::Unfinished { tensor: tensor.name.clone(), missing });
        }
        let hash = xxh3_128(&self.header(None)?);
        let header = self.header(Some(hash))?;
        self.sink.seek(SeekFrom::Start(0))?;
        self.sink.write_all(&header)?;
        self.sink.seek(SeekFrom::End(0))?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    /// Everything before the tensor data, padded; zeros stand for checksums that are not known yet.
    fn header(&self, own_hash: Option<u128>) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.write_u32::<LE>(VERSION)?;
        out.write_u64::<LE>(self.tensors.len() as u64)?;
        out.write_u64::<LE>(self.metadata.len() as u64 + 2)?;
        for (key, value) in &self.metadata {
            write_pair(&mut out, key, value)?;
        }
        let digits = |hash: Option<u128>| format!("{:0HASH_DIGITS$x}", hash.unwrap_or(0));
        let hashes = (0..self.tensors.len()).map(|i| digits(self.hashes.get(i).copied())).collect();
        write_pair(&mut out, keys::HASH_TENSORS, &OwnedValue::Strs(hashes))?;
        write_pair(&mut out, keys::HASH_HEADER, &OwnedValue::Str(digits(own_hash)))?;
        let mut offset = 0u64;
        for tensor in &self.tensors {
            write_str(&mut out, &tensor.name)?;
            out.write_u32::<LE>(u32::try_from(tensor.shape.len()).unwrap_or(u32::MAX))?;
            for &dim in &tensor.shape {
                out.write_u64::<LE>(dim)?;
            }
            out.write_u32::<LE>(tensor.ty.id())?;
            out.write_u64::<LE>(offset)?;
            offset = offset
                .checked_add(tensor.n_bytes()?)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT.into()))
                .ok_or_else(|| Error::Shape {
                    tensor: tensor.name.clone(),
                    reason: "the file would exceed 2^64 bytes".to_owned(),
                })?;
        }
        let n_bytes = out.len() as u64;
        pad(&mut out, n_bytes)?;
        Ok(out)
    }
}

fn wrong_length(tensor: &TensorDecl, left: u64, bytes: &[u8]) -> Error {
    Error::TensorLength { tensor: tensor.name.clone(), expected: left, got: bytes.len() as u64 }
}

/// Writes zeros behind `n_bytes` bytes up to the alignment.
fn pad(sink: &mut impl Write, n_bytes: u64) -> std::io::Result<()> {
    let padding = n_bytes.next_multiple_of(ALIGNMENT.into()) - n_bytes;
    sink.write_all(&[0; ALIGNMENT as usize][..usize::try_from(padding).unwrap_or(0)])
}

fn write_str(out: &mut Vec<u8>, text: &str) -> std::io::Result<()> {
    out.write_u64::<LE>(text.len() as u64)?;
    out.write_all(text.as_bytes())
}

fn write_pair(out: &mut Vec<u8>, key: &str, value: &OwnedValue) -> std::io::Result<()> {
    /// Type and value, or array type, element type, count and elements, of numbers that know their bytes.
    macro_rules! number {
        ($id:expr, $x:expr) => {{
            out.write_u32::<LE>($id)?;
            out.write_all(&$x.to_le_bytes())
        }};
    }
    macro_rules! numbers {
        ($id:expr, $xs:expr) => {{
            write_array(out, $id, $xs.len())?;
            $xs.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
        }};
    }
    write_str(out, key)?;
    match value {
        OwnedValue::U8(x) => number!(0, x),
        OwnedValue::I8(x) => number!(1, x),
        OwnedValue::U16(x) => number!(2, x),
        OwnedValue::I16(x) => number!(3, x),
        OwnedValue::U32(x) => number!(4, x),
        OwnedValue::I32(x) => number!(5, x),
        OwnedValue::F32(x) => number!(6, x),
        OwnedValue::Bool(x) => number!(7, u8::from(*x)),
        OwnedValue::Str(x) => {
            out.write_u32::<LE>(8)?;
            write_str(out, x)
        }
        OwnedValue::U64(x) => number!(10, x),
        OwnedValue::I64(x) => number!(11, x),
        OwnedValue::F64(x) => number!(12, x),
        OwnedValue::U8s(xs) => numbers!(0, xs),
        OwnedValue::I8s(xs) => numbers!(1, xs),
        OwnedValue::U16s(xs) => numbers!(2, xs),
        OwnedValue::I16s(xs) => numbers!(3, xs),
        OwnedValue::U32s(xs) => numbers!(4, xs),
        OwnedValue::I32s(xs) => numbers!(5, xs),
        OwnedValue::F32s(xs) => numbers!(6, xs),
        OwnedValue::Bools(xs) => {
            write_array(out, 7, xs.len())?;
            xs.iter().try_for_each(|&x| out.write_u8(u8::from(x)))
        }
        OwnedValue::Strs(xs) => {
            write_array(out, 8, xs.len())?;
            xs.iter().try_for_each(|x| write_str(out, x))
        }
        OwnedValue::U64s(xs) => numbers!(10, xs),
        OwnedValue::I64s(xs) => numbers!(11, xs),
        OwnedValue::F64s(xs) => numbers!(12, xs),
    }
}

fn write_array(out: &mut Vec<u8>, element_id: u32, len: usize) -> std::io::Result<()> {
    out.write_u32::<LE>(9)?;
    out.write_u32::<LE>(element_id)?;
    out.write_u64::<LE>(len as u64)
}
