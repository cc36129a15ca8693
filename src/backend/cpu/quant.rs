//! Rows of activations as signed bytes, and weights of every type as kernels take them.

use longgen_format::TensorType;

use super::simd::{LANES, Lanes, PAIR};

/// Elements of a quantisation block.
pub const BLOCK: usize = 32;

/// Activations in blocks of 32 signed bytes, rows padded with zeros to whole pairs of blocks.
#[derive(Clone, Copy)]
pub struct QuantRows<'a> {
    /// (n_rows, pairs, 64)
    pub quants: &'a [i8],
    /// (n_rows, pairs, 4): the scales of the two blocks, then an eighth of scale times sum of each.
    pub scales: &'a [f32],
    /// Pairs of blocks in a row.
    pub n_pairs: usize,
}

/// Pairs of blocks that hold `n_cols` elements.
pub fn n_pairs(n_cols: usize) -> usize {
    n_cols.div_ceil(PAIR)
}

/// Rounds a row to bytes: `x = scale * quant` with `scale = max |x| / 127` in every block.
///
/// `quants` has 64 bytes and `scales` 4 numbers per pair; a weight block's minimum m contributes m * scale * sum, which is
/// spread over the eight lanes of its block.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low byte is the rounded number, see below")]
pub fn quantize_row(x: &[f32], quants: &mut [i8], scales: &mut [f32]) {
    // Adding 1.5 * 2^23 leaves the integer nearest to a small number, ties to even, in the low bits.
    const BIAS: f32 = 12_582_912.0;
    for ((x, quants), scales) in
        x.chunks(PAIR).zip(quants.chunks_exact_mut(PAIR)).zip(scales.chunks_exact_mut(4))
    {
        quants.fill(0);
        scales.fill(0.0);
        for (i, (x, quants)) in x.chunks(BLOCK).zip(quants.chunks_exact_mut(BLOCK)).enumerate() {
            let max = x.iter().fold(0.0f32, |max, x| if x.abs() > max { x.abs() } else { max });
            let scale = max / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0;
            for (quant, x) in quants.iter_mut().zip(x) {
                *quant = (x * inverse + BIAS).to_bits() as i8;
                sum += i32::from(*quant);
            }
            scales[i] = scale;
            scales[i + 2] = scale * sum as f32 / 8.0;
        }
    }
}

/// A quantised weight type, as integer dot products take it.
pub trait QuantFormat {
    /// Bytes of a block.
    const BLOCK_BYTES: usize;
    /// Whether blocks have a minimum besides the scale.
    const HAS_MIN: bool;
    /// Scale and minimum of a block.
    fn scales<L: Lanes>(block: &[u8]) -> (f32, f32);
    /// The quants of two blocks.
    fn quants<L: Lanes>(first: &[u8], second: &[u8]) -> L::Quants;
    /// Their dot products with 64 activations.
    fn dot<L: Lanes>(quants: L::Quants, x: &[i8]) -> L;
}

#[inline(always)]
fn half<L: Lanes>(bytes: &[u8], at: usize) -> f32 {
    L::half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Blocks of 32 signed bytes with a scale.
pub struct Q8_0;
/// Blocks of 32 nibbles with a scale and an offset of 8.
pub struct Q4_0;
/// Blocks of 32 nibbles with a scale and a minimum.
pub struct Q4_1;

impl QuantFormat for Q8_0 {
    const BLOCK_BYTES: usize = TensorType::Q8_0.block_bytes();
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn scales<L: Lanes>(block: &[u8]) -> (f32, f32) {
        (half::<L>(block, 0), 0.0)
    }
    #[inline(always)]
    fn quants<L: Lanes>(first: &[u8], second: &[u8]) -> L::Quants {
        L::bytes(&first[2..], &second[2..])
    }
    #[inline(always)]
    fn dot<L: Lanes>(quants: L::Quants, x: &[i8]) -> L {
        L::dot_bytes(quants, x)
    }
}

impl QuantFormat for Q4_0 {
    const BLOCK_BYTES: usize = TensorType::Q4_0.block_bytes();
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales<L: Lanes>(block: &[u8]) -> (f32, f32) {
        let scale = half::<L>(block, 0);
        (scale, -8.0 * scale)
    }
    #[inline(always)]
    fn quants<L: Lanes>(first: &[u8], second: &[u8]) -> L::Quants {
        L::nibbles(&first[2..], &second[2..])
    }
    #[inline(always)]
    fn dot<L: Lanes>(quants: L::Quants, x: &[i8]) -> L {
        L::dot_nibbles(quants, x)
    }
}

impl QuantFormat for Q4_1 {
    const BLOCK_BYTES: usize = TensorType::Q4_1.block_bytes();
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales<L: Lanes>(block: &[u8]) -> (f32, f32) {
        (half::<L>(block, 0), half::<L>(block, 2))
    }
    #[inline(always)]
    fn quants<L: Lanes>(first: &[u8], second: &[u8]) -> L::Quants {
        L::nibbles(&first[4..], &second[4..])
    }
    #[inline(always)]
    fn dot<L: Lanes>(quants: L::Quants, x: &[i8]) -> L {
        L::dot_nibbles(quants, x)
    }
}

/// A weight type, widened to f32 sixteen elements at a time.
pub trait WideFormat {
    /// The type.
    const TYPE: TensorType;
    /// Elements `at..at + 16` of a row.
    fn load<L: Lanes>(row: &[u8], at: usize) -> L;
}

/// The elements of a row from `at` on, fewer than sixteen, filled up with zeros. Only types without blocks have rows
/// that end within a vector.
#[inline(always)]
pub fn load_rest<L: Lanes, F: WideFormat>(row: &[u8], at: usize) -> L {
    let mut rest = [0.0f32; LANES];
    let bytes = &row[at * F::TYPE.block_bytes()..];
    bytemuck::cast_slice_mut::<f32, u8>(&mut rest)[..bytes.len()].copy_from_slice(bytes);
    F::load(bytemuck::cast_slice(&rest), 0)
}

/// f32 as it is.
pub struct WideF32;
/// IEEE halves.
pub struct WideF16;
/// Upper halves of f32.
pub struct WideBf16;

impl WideFormat for WideF32 {
    const TYPE: TensorType = TensorType::F32;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        L::load(&bytemuck::cast_slice::<u8, f32>(row)[at..])
    }
}

impl WideFormat for WideF16 {
    const TYPE: TensorType = TensorType::F16;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        L::load_f16(&bytemuck::cast_slice::<u8, u16>(row)[at..])
    }
}

impl WideFormat for WideBf16 {
    const TYPE: TensorType = TensorType::BF16;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        let bits = &bytemuck::cast_slice::<u8, u16>(row)[at..at + LANES];
        let numbers: [f32; LANES] = std::array::from_fn(|i| f32::from_bits(u32::from(bits[i]) << 16));
        L::load(&numbers)
    }
}

impl WideFormat for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        let block = &row[at / BLOCK * Self::TYPE.block_bytes()..][..Self::TYPE.block_bytes()];
        L::load_i8(&bytemuck::cast_slice(&block[2..])[at % BLOCK..]).mul(L::splat(half::<L>(block, 0)))
    }
}

/// Sixteen nibbles of a block: the low ones, or the high ones.
#[inline(always)]
fn nibbles<L: Lanes>(bytes: &[u8], high: bool) -> L {
    let shift = if high { 4 } else { 0 };
    let nibbles: [i8; LANES] = std::array::from_fn(|i| (bytes[i] >> shift & 15).cast_signed());
    L::load_i8(&nibbles)
}

impl WideFormat for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        let block = &row[at / BLOCK * Self::TYPE.block_bytes()..][..Self::TYPE.block_bytes()];
        let quants: L = nibbles(&block[2..], at % BLOCK >= LANES);
        quants.sub(L::splat(8.0)).mul(L::splat(half::<L>(block, 0)))
    }
}

impl WideFormat for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    #[inline(always)]
    fn load<L: Lanes>(row: &[u8], at: usize) -> L {
        let block = &row[at / BLOCK * Self::TYPE.block_bytes()..][..Self::TYPE.block_bytes()];
        let quants: L = nibbles(&block[4..], at % BLOCK >= LANES);
        quants.mul_add(L::splat(half::<L>(block, 0)), L::splat(half::<L>(block, 2)))
    }
}

/// Runs a generic function for the wide format of a type.
macro_rules! with_wide_format {
    ($ty:expr, $format:ident => $body:expr, else $other:expr) => {
        match $ty {
            TensorType::F32 => {
                type $format = $crate::backend::cpu::quant::WideF32;
                $body
            }
            TensorType::F16 => {
                type $format = $crate::backend::cpu::quant::WideF16;
                $body
            }
            TensorType::BF16 => {
                type $format = $crate::backend::cpu::quant::WideBf16;
                $body
            }
            TensorType::Q8_0 => {
                type $format = $crate::backend::cpu::quant::Q8_0;
                $body
            }
            TensorType::Q4_0 => {
                type $format = $crate::backend::cpu::quant::Q4_0;
                $body
            }
            TensorType::Q4_1 => {
                type $format = $crate::backend::cpu::quant::Q4_1;
                $body
            }
            _ => $other,
        }
    };
}
pub(super) use with_wide_format;
