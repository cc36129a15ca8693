//! The element types as numbers: what bytes mean, and how numbers become bytes.
//!
//! These are the definitions, one element after the other; fast versions are tested against them. All numbers are
//! little-endian. A block holds 32 elements; nibble j of its 16 quant bytes is element j if it is the low one of byte j,
//! and element j + 16 if it is the high one.

use byteorder::{ByteOrder, LittleEndian as LE};
use half::{bf16, f16};

use crate::{Error, SourceType, TensorType};

const BLOCK: usize = 32;

pub(crate) fn check_length(ty: impl Into<SourceType>, n_elems: usize, n_bytes: usize) -> Result<(), Error> {
    let ty = ty.into();
    match ty.row_bytes(n_elems) {
        Some(expected) if expected == n_bytes => Ok(()),
        Some(expected) => Err(Error::Length {
            what: "bytes of the elements",
            expected: expected as u64,
            got: n_bytes as u64,
        }),
        None => Err(Error::Length {
            what: "elements (whole blocks)",
            expected: (n_elems / ty.block_elems() * ty.block_elems()) as u64,
            got: n_elems as u64,
        }),
    }
}

/// Turns elements of type `ty` into numbers.
///
/// # Errors
/// [`Error::Length`] if `bytes` are not those of `out.len()` elements.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    check_length(ty, out.len(), bytes.len())?;
    let blocks = bytes.chunks_exact(ty.block_bytes());
    match ty {
        TensorType::F32 => LE::read_f32_into(bytes, out),
        TensorType::F16 => {
            for (out, bytes) in out.iter_mut().zip(blocks) {
                *out = read_f16(bytes);
            }
        }
        TensorType::BF16 => {
            for (out, bytes) in out.iter_mut().zip(blocks) {
                *out = bf16::from_bits(LE::read_u16(bytes)).to_f32();
            }
        }
        TensorType::Q8_0 => {
            for (out, block) in out.chunks_exact_mut(BLOCK).zip(blocks) {
                let scale = read_f16(block);
                for (out, &quant) in out.iter_mut().zip(&block[2..]) {
                    *out = f32::from(quant.cast_signed()) * scale;
                }
            }
        }
        TensorType::Q4_0 => {
            for (out, block) in out.chunks_exact_mut(BLOCK).zip(blocks) {
                let scale = read_f16(block);
                for (j, &byte) in block[2..].iter().enumerate() {
                    out[j] = (f32::from(byte & 15) - 8.0) * scale;
                    out[j + BLOCK / 2] = (f32::from(byte >> 4) - 8.0) * scale;
                }
            }
        }
        TensorType::Q4_1 => {
            for (out, block) in out.chunks_exact_mut(BLOCK).zip(blocks) {
                let (scale, minimum) = (read_f16(block), read_f16(&block[2..]));
                for (j, &byte) in block[4..].iter().enumerate() {
                    out[j] = f32::from(byte & 15) * scale + minimum;
                    out[j + BLOCK / 2] = f32::from(byte >> 4) * scale + minimum;
                }
            }
        }
    }
    Ok(())
}

/// Turns numbers into elements of type `ty`, rounded as GGML rounds them.
///
/// # Errors
/// [`Error::Length`] if `out` is not as long as the elements; for block types [`Error::NotFinite`] for an infinite or
/// undefined number, and [`Error::ScaleOverflow`] for a block that needs a scale beyond half precision.
pub fn quantize(ty: TensorType, numbers: &[f32], out: &mut [u8]) -> Result<(), Error> {
    check_length(ty, numbers.len(), out.len())?;
    if ty.block_elems() > 1
        && let Some(index) = numbers.iter().position(|x| !x.is_finite())
    {
        return Err(Error::NotFinite { index, value: numbers[index] });
    }
    let blocks = out.chunks_exact_mut(ty.block_bytes());
    match ty {
        TensorType::F32 => LE::write_f32_into(numbers, out),
        TensorType::F16 => {
            for (out, &x) in blocks.zip(numbers) {
                LE::write_u16(out, f16::from_f32(x).to_bits());
            }
        }
        TensorType::BF16 => {
            for (out, &x) in blocks.zip(numbers) {
                LE::write_u16(out, bf16::from_f32(x).to_bits());
            }
        }
        TensorType::Q8_0 => {
            for (i, (out, x)) in blocks.zip(numbers.chunks_exact(BLOCK)).enumerate() {
                let scale = x.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                write_scale(out, scale, i)?;
                for (out, &x) in out[2..].iter_mut().zip(x) {
                    *out = to_i8((x * inverse).round()).cast_unsigned();
                }
            }
        }
        TensorType::Q4_0 => {
            for (i, (out, x)) in blocks.zip(numbers.chunks_exact(BLOCK)).enumerate() {
                // The first number of the largest magnitude, with its sign, becomes -8.
                let extreme = x.iter().fold(x[0], |max, &x| if x.abs() > max.abs() { x } else { max });
                let scale = extreme / -8.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                write_scale(out, scale, i)?;
                write_nibbles(&mut out[2..], |j| (x[j] * inverse + 8.5).trunc());
            }
        }
        TensorType::Q4_1 => {
            for (i, (out, x)) in blocks.zip(numbers.chunks_exact(BLOCK)).enumerate() {
                // Compared, since `f32::min` may return either of two zeros: the same input must give the same bytes.
                let minimum = x.iter().fold(x[0], |min, &x| if x < min { x } else { min });
                let maximum = x.iter().fold(x[0], |max, &x| if x > max { x } else { max });
                let scale = (maximum - minimum) / 15.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                write_scale(out, scale, i)?;
                write_scale(&mut out[2..], minimum, i)?;
                write_nibbles(&mut out[4..], |j| ((x[j] - minimum) * inverse + 0.5).trunc());
            }
        }
    }
    Ok(())
}

pub(crate) fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_bits(LE::read_u16(bytes)).to_f32()
}

/// Writes a scale or minimum of the `i_block`-th block: beyond half precision, all of its elements would be infinite.
fn write_scale(out: &mut [u8], scale: f32, i_block: usize) -> Result<(), Error> {
    let half = f16::from_f32(scale);
    if !half.is_finite() {
        return Err(Error::ScaleOverflow { index: i_block * BLOCK, scale });
    }
    LE::write_u16(out, half.to_bits());
    Ok(())
}

fn write_nibbles(out: &mut [u8], value: impl Fn(usize) -> f32) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = to_nibble(value(j)) | to_nibble(value(j + BLOCK / 2)) << 4;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the value is clamped first")]
fn to_i8(x: f32) -> i8 {
    x.clamp(-128.0, 127.0) as i8
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped first")]
fn to_nibble(x: f32) -> u8 {
    x.clamp(0.0, 15.0) as u8
}
