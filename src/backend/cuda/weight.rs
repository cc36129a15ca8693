//! Matrices in device memory.

use std::sync::Arc;

use half::f16;

use super::device::{Device, DeviceBuf};
use super::params::{self, word};
use crate::alloc::try_vec;
use crate::backend::args::{TensorType, WeightData};
use crate::error::{Error, Result};

/// Elements of a quantised block.
pub(super) const QUANT_BLOCK: usize = 32;

/// A matrix on the device. Blocks of quantised types are taken apart, so that quants are read 16 bytes at a time: the
/// quants of all blocks in order, and elsewhere their scales.
pub struct Weight {
    pub(super) ty: TensorType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: DeviceBuf,
    scales: Option<DeviceBuf>,
    /// Whether a few rows can be multiplied with it on the tensor cores: in 16 bits, 16 bytes of a row at a time.
    pub(super) fits_mma: bool,
}

/// The largest number of f16.
const MAX_F16: f32 = 65504.0;

/// Whether all elements of blocks with these scales fit in f16.
fn fits_f16(ty: TensorType, scales: &[u8]) -> bool {
    let number = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let most = |scale: &[u8]| match ty {
        TensorType::Q8_0 => number(scale).abs() * 128.0,
        TensorType::Q4_0 => number(scale).abs() * 8.0,
        _ => number(scale).abs() * 15.0 + number(&scale[2..]).abs(),
    };
    scales.chunks_exact(if ty == TensorType::Q4_1 { 4 } else { 2 }).all(|scale| most(scale) <= MAX_F16)
}

/// What kernels call the type, and bytes of a block's scales, for the types that there are products of.
pub(super) fn kernel_name(ty: TensorType) -> Option<(&'static str, usize)> {
    match ty {
        TensorType::F32 => Some(("F32", 0)),
        TensorType::F16 => Some(("F16", 0)),
        TensorType::BF16 => Some(("Bf16", 0)),
        TensorType::Q8_0 => Some(("Q8_0", 2)),
        TensorType::Q4_0 => Some(("Q4_0", 2)),
        TensorType::Q4_1 => Some(("Q4_1", 4)),
        _ => None,
    }
}

/// What kernels call the type of a matrix.
pub(super) fn type_name(w: &Weight) -> Result<&'static str> {
    kernel_name(w.ty).map(|(name, _)| name).ok_or_else(|| Error::unsupported(format!("{} weights", w.ty)))
}

impl Weight {
    /// Copies a matrix to the device.
    pub(super) fn upload(device: &Arc<Device>, weight: &WeightData) -> Result<Self> {
        let WeightData { ty, rows, cols, .. } = *weight;
        let Some((_, scale_bytes)) = kernel_name(ty) else {
            return Err(Error::unsupported(format!("the cuda backend has no product with {ty} weights")));
        };
        let held = (*weight.file).as_ref().get(weight.range.clone());
        let expected = ty.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        let bytes = match (held, expected) {
            (Some(bytes), Some(expected)) if bytes.len() == expected && expected > 0 => bytes,
            _ => {
                let (range, file) = (&weight.range, (*weight.file).as_ref().len());
                return Err(Error::invalid(format!(
                    "a {ty} matrix of {rows} x {cols} in bytes {range:?} of a file of {file}"
                )));
            }
        };
        let upload = |bytes: &[u8]| {
            let mut buf = device.alloc(bytes.len())?;
            buf.upload(0, bytes)?;
            Ok::<_, Error>(buf)
        };
        if scale_bytes == 0 {
            let fits_mma = ty != TensorType::F32 && cols.is_multiple_of(8);
            return Ok(Self { ty, rows, cols, data: upload(bytes)?, scales: None, fits_mma });
        }
        let quant_bytes = ty.block_bytes() - scale_bytes;
        let n_blocks = rows * (cols / QUANT_BLOCK);
        let (mut quants, mut scales) =
            (try_vec(n_blocks * quant_bytes, 0u8)?, try_vec(n_blocks * scale_bytes, 0u8)?);
        let apart = quants.chunks_exact_mut(quant_bytes).zip(scales.chunks_exact_mut(scale_bytes));
        for (block, (quants, scales)) in bytes.chunks_exact(ty.block_bytes()).zip(apart) {
            scales.copy_from_slice(&block[..scale_bytes]);
            quants.copy_from_slice(&block[scale_bytes..]);
        }
        // Rows of scales begin at multiples of 4 bytes.
        let fits_mma = fits_f16(ty, &scales) && (cols / QUANT_BLOCK * scale_bytes).is_multiple_of(4);
        let (data, scales) = (upload(&quants)?, Some(upload(&scales)?));
        Ok(Self { ty, rows, cols, data, scales, fits_mma })
    }

    /// The whole matrix as kernels take it.
    pub(super) fn params(&self) -> params::Weight {
        self.rows_from(0, self.rows)
    }

    /// `n_rows` rows from `first` on.
    pub(super) fn rows_from(&self, first: usize, n_rows: usize) -> params::Weight {
        let row_bytes = |buf: &DeviceBuf| (buf.n_bytes() / self.rows) as u64;
        let at = |buf: &DeviceBuf| buf.address() + first as u64 * row_bytes(buf);
        params::Weight {
            data: at(&self.data),
            scales: self.scales.as_ref().map_or(0, at),
            rows: word(n_rows),
            cols: word(self.cols),
        }
    }
}
