//! Element types that other programs' files have: what a converter reads. Model files hold only [`TensorType`]s.

use byteorder::{ByteOrder, LittleEndian as LE};

use crate::quant::{self, check_length, read_f16};
use crate::{Error, TensorType};

/// Element types that can be read. Those that are not [`Stored`](Self::Stored) cannot be written.
///
/// Their blocks, after GGML's definitions, with bit i of a number x as `x[i]`; all numbers are little-endian:
///
/// | type | elements | a block | element j |
/// | --- | --- | --- | --- |
/// | Q5_0 | 32 | f16 d, u32 h, 16 bytes of nibbles q as in Q4_0 | `(q + 16 h[j] - 16) d` |
/// | Q5_1 | 32 | f16 d, f16 m, u32 h, 16 bytes of nibbles q as in Q4_1 | `(q + 16 h[j]) d + m` |
/// | Q4_K | 256 | f16 d, f16 m, 12 bytes of eight pairs (s, t) of 6 bits, 128 bytes of nibbles q | `q (s d) - t m` |
/// | Q5_K | 256 | f16 d, f16 m, the same pairs, 32 bytes h, 128 bytes of nibbles q | `(q + 16 h) (s d) - t m` |
/// | Q6_K | 256 | 128 bytes of nibbles q, 64 bytes of 2 bits h, 16 × i8 s, f16 d | `(q + 16 h - 32) (s d)` |
///
/// Pairs serve 32 elements each, in order, and the scales of Q6_K 16. Of nibbles of Q4_K and Q5_K, 32 bytes have 32 elements
/// in their low halves and the next 32 in their high ones; byte j of h has bit g for element `32 g + j`. Of Q6_K, 64 bytes
/// have 64 elements in their low halves and the next 64 in their high ones; byte j of 32 bytes of h has two bits for each
/// of the elements j, j + 32, j + 64 and j + 96 of 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceType {
    /// One that model files have, too.
    Stored(TensorType),
    /// 5.5 bits an element.
    Q5_0,
    /// 6 bits an element.
    Q5_1,
    /// 4.5 bits an element.
    Q4K,
    /// 5.5 bits an element.
    Q5K,
    /// 6.5625 bits an element.
    Q6K,
}

/// Elements of a block of the smaller kind, and of the larger one.
const SMALL: usize = 32;
const LARGE: usize = 256;

impl SourceType {
    /// Those that model files do not have.
    pub const FOREIGN: [Self; 5] = [Self::Q5_0, Self::Q5_1, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The same type, if model files have it.
    pub const fn stored(self) -> Option<TensorType> {
        match self {
            Self::Stored(ty) => Some(ty),
            _ => None,
        }
    }

    /// GGML's number.
    pub const fn id(self) -> u32 {
        match self {
            Self::Stored(ty) => ty.id(),
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// GGML's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored(ty) => ty.name(),
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of a block; rows are made of whole blocks.
    pub const fn block_elems(self) -> usize {
        match self {
            Self::Stored(ty) => ty.block_elems(),
            Self::Q5_0 | Self::Q5_1 => SMALL,
            Self::Q4K | Self::Q5K | Self::Q6K => LARGE,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Stored(ty) => ty.block_bytes(),
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `n_elems` elements, or `None` if they are no whole number of blocks or beyond 64 bits.
    pub const fn row_bytes(self, n_elems: usize) -> Option<usize> {
        match n_elems.is_multiple_of(self.block_elems()) {
            true => (n_elems / self.block_elems()).checked_mul(self.block_bytes()),
            false => None,
        }
    }

    /// Turns elements into numbers, to the bit those of the Python package `gguf`.
    ///
    /// # Errors
    /// [`Error::Length`] if `bytes` are not those of `out.len()` elements.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
        let block: fn(&[u8], &mut [f32]) = match self {
            Self::Stored(ty) => return quant::dequantize(ty, bytes, out),
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        check_length(self, out.len(), bytes.len())?;
        let blocks = bytes.chunks_exact(self.block_bytes());
        out.chunks_exact_mut(self.block_elems()).zip(blocks).for_each(|(out, bytes)| block(bytes, out));
        Ok(())
    }
}

impl From<TensorType> for SourceType {
    fn from(ty: TensorType) -> Self {
        Self::Stored(ty)
    }
}

impl std::fmt::Display for SourceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Five bits of each of 32 elements: `high` has the fifth ones, as bits.
fn five_bits(high: u32, nibbles: &[u8]) -> impl Iterator<Item = (usize, f32)> {
    nibbles.iter().enumerate().flat_map(move |(j, &byte)| {
        let fifth = |j: usize| u8::from(high >> j & 1 == 1) << 4;
        [(j, f32::from(byte & 15 | fifth(j))), (j + 16, f32::from(byte >> 4 | fifth(j + 16)))]
    })
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = read_f16(block);
    for (j, quant) in five_bits(LE::read_u32(&block[2..]), &block[6..]) {
        out[j] = (quant - 16.0) * scale;
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (read_f16(block), read_f16(&block[2..]));
    for (j, quant) in five_bits(LE::read_u32(&block[4..]), &block[8..]) {
        out[j] = quant * scale + minimum;
    }
}

/// The scale and the minimum of the `i`-th 32 elements: of the first four, the low six bits of bytes i and i + 4; of the
/// others, the halves of byte i + 4, and as their upper two bits those that the first ones leave.
fn pair(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = match i < 4 {
        true => (packed[i] & 63, packed[i + 4] & 63),
        false => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
    };
    (f32::from(scale), f32::from(minimum))
}

/// Blocks of 256 in eights: `fifth` is the fifth bit of element j of the i-th 32, in place.
fn eights(block: &[u8], nibbles: &[u8], fifth: impl Fn(usize, usize) -> u8, out: &mut [f32]) {
    let (scales, minima, packed) = (read_f16(block), read_f16(&block[2..]), &block[4..16]);
    for (i, out) in out.chunks_exact_mut(SMALL).enumerate() {
        let (scale, minimum) = pair(packed, i);
        let (scale, minimum) = (scales * scale, minima * minimum);
        for (j, out) in out.iter_mut().enumerate() {
            let byte = nibbles[i / 2 * SMALL + j];
            let nibble = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
            *out = scale * f32::from(nibble | fifth(i, j)) - minimum;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    eights(block, &block[16..], |_, _| 0, out);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (high, nibbles) = block[16..].split_at(SMALL);
    eights(block, nibbles, |i, j| (high[j] >> i & 1) << 4, out);
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (nibbles, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = read_f16(&block[208..]);
    for (j, out) in out.iter_mut().enumerate() {
        // Which 128 elements, which 32 of them, and which one.
        let (half, quarter, i) = (j / 128, j % 128 / 32, j % 32);
        let byte = nibbles[half * 64 + quarter % 2 * 32 + i];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let quant = nibble | (high[half * 32 + i] >> (2 * quarter) & 3) << 4;
        *out = scale * f32::from(scales[j / 16].cast_signed()) * (f32::from(quant) - 32.0);
    }
}
