//! Element types: which one a tensor gets, and how its elements become that.

use std::fmt;

use anyhow::{Context, Result, bail};
use longgen_format::{SourceType, TensorType, quant};
use rayon::prelude::*;

use super::source::SourceTensor;

/// Elements that are converted at a time, unless a single row has more.
const CHUNK_ELEMS: usize = 1 << 20;
/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 1 << 22;

/// What `--type` asks for: the type of all matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MatrixType {
    /// as in the source
    #[default]
    Keep,
    /// 4 bytes an element
    F32,
    /// 2 bytes an element
    F16,
    /// 2 bytes an element, the range of f32
    Bf16,
    /// 8.5 bits an element
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits an element
    #[value(name = "q4_0")]
    Q4_0,
}

impl MatrixType {
    /// The type itself, unless it is the source's.
    pub fn tensor_type(self) -> Option<TensorType> {
        match self {
            Self::Keep => None,
            Self::F32 => Some(TensorType::F32),
            Self::F16 => Some(TensorType::F16),
            Self::Bf16 => Some(TensorType::BF16),
            Self::Q8_0 => Some(TensorType::Q8_0),
            Self::Q4_0 => Some(TensorType::Q4_0),
        }
    }

    /// GGUF's number for a file of this type: `general.file_type`.
    pub fn file_type(self) -> Option<u32> {
        match self {
            Self::Keep => None,
            Self::F32 => Some(0),
            Self::F16 => Some(1),
            Self::Bf16 => Some(32),
            Self::Q8_0 => Some(7),
            Self::Q4_0 => Some(2),
        }
    }
}

impl fmt::Display for MatrixType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tensor_type().map_or("keep", TensorType::name))
    }
}

/// The type that a tensor gets: vectors are always F32.
///
/// # Errors
/// A block type for rows that are no whole blocks, and a type of the source that model files do not have.
pub fn target(tensor: &SourceTensor, asked: MatrixType) -> Result<TensorType> {
    if tensor.is_vector() {
        return Ok(TensorType::F32);
    }
    let Some(ty) = asked.tensor_type().or(tensor.ty.stored()) else {
        let (name, ty) = (&tensor.name, tensor.ty);
        bail!(
            "tensor {name:?} is {ty}, which model files do not have: --type q8_0, q4_0, f16, bf16 or f32 works"
        );
    };
    if ty.row_bytes(tensor.row_elems()).is_none() {
        let (name, elems, block) = (&tensor.name, tensor.row_elems(), ty.block_elems());
        bail!(
            "tensor {name:?}: rows of {elems} elements are no whole {ty} blocks of {block}; --type f16 or bf16 works"
        );
    }
    Ok(ty)
}

/// The largest magnitude that a type can hold: from the next number on, a finite one would become infinite.
fn largest(ty: TensorType) -> f32 {
    // Halfway between the largest f16 and what would be the next one; as a scale it is multiplied by the largest quant.
    let largest_f16 = 65_519.996;
    match ty {
        TensorType::F16 => largest_f16,
        TensorType::Q8_0 => largest_f16 * 127.0,
        TensorType::Q4_0 => largest_f16 * 8.0,
        _ => f32::MAX,
    }
}

/// Hands the data of a tensor, as elements of type `to`, to `emit`, part after part.
///
/// # Errors
/// Numbers that `to` cannot hold, and whatever `emit` says.
pub fn convert(
    tensor: &SourceTensor,
    to: TensorType,
    mut emit: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if tensor.ty == to.into() {
        return tensor.bytes().chunks(CHUNK_BYTES).try_for_each(emit);
    }
    let row_elems = tensor.row_elems();
    let row_bytes = |ty: SourceType| {
        ty.row_bytes(row_elems)
            .with_context(|| format!("tensor {:?}: rows are no whole {ty} blocks", tensor.name))
    };
    let (from_bytes, to_bytes) = (row_bytes(tensor.ty)?, row_bytes(to.into())?);
    let chunk_rows = (CHUNK_ELEMS / row_elems).max(1);
    let mut out = vec![0; chunk_rows * to_bytes];
    for (chunk, rows) in tensor.bytes().chunks(chunk_rows * from_bytes).enumerate() {
        let n_rows = rows.len() / from_bytes;
        let out = &mut out[..n_rows * to_bytes];
        let pairs = rows.par_chunks_exact(from_bytes).zip(out.par_chunks_exact_mut(to_bytes)).enumerate();
        pairs.try_for_each_init(
            || vec![0.0; row_elems],
            |numbers, (row, (from, out))| {
                convert_row(tensor.ty, from, to, out, numbers)
                    .with_context(|| format!("tensor {:?}, row {}", tensor.name, chunk * chunk_rows + row))
            },
        )?;
        emit(out)?;
    }
    Ok(())
}

fn convert_row(
    ty: SourceType,
    from: &[u8],
    to: TensorType,
    out: &mut [u8],
    numbers: &mut [f32],
) -> Result<()> {
    ty.dequantize(from, numbers)?;
    let limit = largest(to);
    if let Some(index) = numbers.iter().position(|x| x.is_finite() && x.abs() > limit) {
        bail!("element {index} is {}: beyond what {to} can hold, bf16 and f32 can", numbers[index]);
    }
    quant::quantize(to, numbers, out)?;
    Ok(())
}
