//! Element types of tensors.

use std::fmt;

use crate::SourceType;
use crate::SourceType::Stored;

/// Element types of model files, which can be read and written, with GGML's names and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an F32.
    BF16,
    /// Blocks of 32: f16 scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: f16 scale, 32 nibbles with an offset of 8.
    Q4_0,
    /// Blocks of 32: f16 scale, f16 minimum, 32 nibbles.
    Q4_1,
}

/// (GGML id, name, elements of a block, bytes of a block, what can be read)
type Row = (u32, &'static str, u64, u64, Option<SourceType>);

/// The row of a type that can be read.
const fn row(ty: SourceType) -> Row {
    (ty.id(), ty.name(), ty.block_elems() as u64, ty.block_bytes() as u64, Some(ty))
}

/// Every type that GGML has given a number to and not taken back.
const TYPES: &[Row] = &[
    row(Stored(TensorType::F32)),
    row(Stored(TensorType::F16)),
    row(Stored(TensorType::Q4_0)),
    row(Stored(TensorType::Q4_1)),
    row(SourceType::Q5_0),
    row(SourceType::Q5_1),
    row(Stored(TensorType::Q8_0)),
    (9, "Q8_1", 32, 36, None),
    (10, "Q2_K", 256, 84, None),
    (11, "Q3_K", 256, 110, None),
    row(SourceType::Q4K),
    row(SourceType::Q5K),
    row(SourceType::Q6K),
    (15, "Q8_K", 256, 292, None),
    (16, "IQ2_XXS", 256, 66, None),
    (17, "IQ2_XS", 256, 74, None),
    (18, "IQ3_XXS", 256, 98, None),
    (19, "IQ1_S", 256, 50, None),
    (20, "IQ4_NL", 32, 18, None),
    (21, "IQ3_S", 256, 110, None),
    (22, "IQ2_S", 256, 82, None),
    (23, "IQ4_XS", 256, 136, None),
    (24, "I8", 1, 1, None),
    (25, "I16", 1, 2, None),
    (26, "I32", 1, 4, None),
    (27, "I64", 1, 8, None),
    (28, "F64", 1, 8, None),
    (29, "IQ1_M", 256, 56, None),
    row(Stored(TensorType::BF16)),
    (34, "TQ1_0", 256, 54, None),
    (35, "TQ2_0", 256, 66, None),
    (39, "MXFP4", 32, 17, None),
    (40, "NVFP4", 64, 36, None),
    (41, "Q1_0", 128, 18, None),
    (42, "Q2_0", 64, 18, None),
];

/// What is known of a type number.
#[derive(Clone, Copy)]
pub(crate) struct KnownType {
    pub name: &'static str,
    pub block_elems: u64,
    pub block_bytes: u64,
    pub readable: Option<SourceType>,
}

pub(crate) fn known_type(id: u32) -> Option<KnownType> {
    let &(_, name, block_elems, block_bytes, readable) = TYPES.iter().find(|row| row.0 == id)?;
    Some(KnownType { name, block_elems, block_bytes, readable })
}

impl TensorType {
    /// All types.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// GGML's number.
    pub const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::BF16 => 30,
        }
    }

    /// GGML's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// Elements of a block; rows are made of whole blocks.
    pub const fn block_elems(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Bytes of `n_elems` elements, or `None` if they are no whole number of blocks or beyond 64 bits.
    pub const fn row_bytes(self, n_elems: usize) -> Option<usize> {
        Stored(self).row_bytes(n_elems)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
