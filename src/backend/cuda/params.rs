//! The parameters of the kernels, as `kernels/common/params.cuh` has them.

use crate::attention::mask::Mask;
use crate::backend::args::{KvShape, KvType};

/// Sessions, or copies, of one launch.
pub(super) const MAX_PARTS: usize = 16;

/// Matrices that one launch multiplies with the same rows.
pub(super) const MAX_PRODUCTS: usize = 3;

/// Blocks that one launch copies between the device and the host.
pub(super) const MAX_PLACES: usize = 64;

/// What outputs are rounded to.
pub(super) const OUT_F32: u32 = 0;
pub(super) const OUT_F16: u32 = 1;
pub(super) const OUT_BF16: u32 = 2;

/// Kinds of heads that one launch computes.
pub(super) const HEAD_QUERY: u32 = 0;
pub(super) const HEAD_KEY: u32 = 1;
pub(super) const HEAD_VALUE: u32 = 2;

/// `parts`, at most N and at least one, as kernels take them: whatever fills the rest is not looked at.
pub(super) fn filled<T: Copy, const N: usize>(parts: &[T]) -> [T; N] {
    std::array::from_fn(|i| parts[i.min(parts.len() - 1)])
}

/// An address in device memory.
pub(super) type Address = u64;

/// What a kernel takes: plain data of the same size on both sides.
///
/// # Safety
/// `repr(C)` without padding that matters, and field by field what the kernel declares.
pub(super) unsafe trait Params: Copy {}

macro_rules! params {
    ($($(#[$attribute:meta])* $name:ident = $size:literal { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name { $(pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: the fields are those of params.cuh, whose size is asserted there too.
        unsafe impl Params for $name {}
    )*};
}

params! {
    Weight = 24 { data: Address, scales: Address, rows: u32, cols: u32 }
    #[derive(Default)]
    BlockPlaces = 16 { map: Address, n_blocks: u32, unused: u32 }
    #[derive(Default)]
    Shape = 16 { n_kv_heads: u32, head_dim: u32, block_size: u32, ty: u32 }
    MaskParams = 28 {
        kind: u32, window_tokens: u32, sink_tokens: u32, block_size: u32, local_blocks: u32, sink_blocks: u32,
        stride: u32,
    }
    Segment = 32 { blocks: Address, places: BlockPlaces, end_kind: u32, end: u32 }
    Embed = 48 { out: Address, table: Weight, tokens: Address, scale: f32, unused: u32 }
    RopeTable = 152 {
        out: Address, inv_freq: Address, n_pairs: u32, attention_factor: f32, rows: [Address; MAX_PARTS],
    }
    #[derive(Default)]
    Rope = 16 { table: Address, n_pairs: u32, pairing: u32 }
    #[derive(Default)]
    AppendSeq = 32 { rows: Address, blocks: Address, places: BlockPlaces }
    RopeAppend = 576 {
        q: Address, k: Address, v: Address, rope: Rope, shape: Shape, n_heads: u32, unused: u32,
        seqs: [AppendSeq; MAX_PARTS],
    }
    CopyPart = 88 {
        to: Address, from: Address, to_places: BlockPlaces, from_places: BlockPlaces, rows: Address, slots: Address,
        shape: Shape, pinned: u32, unused: u32,
    }
    CopyBlocks = 1408 { parts: [CopyPart; MAX_PARTS] }
    MoveBlocks = 280 { blocks: Address, held: Address, n_bytes: u32, to_host: u32, places: [u32; MAX_PLACES] }
    AttnSeq = 120 { rows: Address, segments: [Segment; 3], staged: Address, n_segments: u32, stage_blocks: u32 }
    #[derive(Default)]
    Append = 32 { k: Address, v: Address, rope: Rope }
    Attn = 2072 {
        out: Address, q: Address, sink_logits: Address, phases: Address, partials: Address, arrivals: Address,
        append: Append, shape: Shape, mask: MaskParams, n_heads: u32, n_splits: u32, scale: f32, softcap: f32,
        first_token: u32, n_tokens: u32, unused: u32, seqs: [AttnSeq; MAX_PARTS],
    }
    #[derive(Default)]
    #[repr(align(128))]
    TensorMap = 128 { opaque: [u64; 16] }
    AttnHopper = 2688 { maps: [TensorMap; 3], queries: TensorMap, attn: Attn, heads_at_once: u32, out_type: u32 }
    Top = 32 { values: Address, columns: Address, x: Address, width: u32, n: u32 }
    MatvecPart = 48 { out: Address, w: Weight, bias: Address, first_tile: u32, unused: u32 }
    Matvec = 192 {
        parts: [MatvecPart; MAX_PRODUCTS], x: Address, norm: Address, eps: f32, n_parts: u32, n_rows: u32, add: u32,
        is_glu: u32, n_tiles: u32, n_stages: u32, x_rows: u32,
    }
    Convert = 32 { out: Address, x: Address, n_elems: u64, scale: f32, unused: u32 }
    Norm = 32 { out: Address, x: Address, weight: Address, width: u32, eps: f32 }
    Glu = 32 { out: Address, gate: Address, up: Address, n_elems: u64 }
    Dequant = 32 { out: Address, w: Weight }
    Gemm = 48 {
        out: Address, x: Address, w: Address, n: u32, m: u32, k: u32, out_width: u32, add: u32, unused: u32,
    }
    GemmHopper = 512 {
        x: TensorMap, w: [TensorMap; 2], out: Address, n_rows: u32, cols: u32, n_outputs: u32, out_width: u32, add: u32,
        unused: u32,
    }
    #[derive(Default)]
    Heads = 384 {
        x: TensorMap, w: TensorMap, q: Address, seq: AppendSeq, shape: Shape, rope: Address, pairing: u32, kind: u32,
        n_rows: u32, cols: u32, n_heads: u32, first_head: u32, heads_of_all: u32, scale: f32,
    }
    Bias = 24 { out: Address, bias: Address, n_rows: u32, width: u32 }
}

/// A number as kernels take it; what is larger than any number of theirs fails where it is used.
pub(super) fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl From<&KvShape> for Shape {
    fn from(shape: &KvShape) -> Self {
        let ty = match shape.ty {
            KvType::F32 => 0,
            KvType::F16 => 1,
            KvType::Bf16 => 2,
            KvType::Q8 => 3,
        };
        Self {
            n_kv_heads: word(shape.n_kv_heads),
            head_dim: word(shape.head_dim),
            block_size: word(shape.block_size),
            ty,
        }
    }
}

impl From<&Mask> for MaskParams {
    fn from(mask: &Mask) -> Self {
        let (block_size, sink_blocks) = (mask.block_size(), mask.sink_blocks());
        let full = Self {
            kind: 0,
            window_tokens: 0,
            sink_tokens: 0,
            block_size,
            local_blocks: 0,
            sink_blocks,
            stride: 0,
        };
        match *mask {
            Mask::Full => full,
            Mask::Window { window_tokens, sink_tokens } => {
                Self { kind: 1, window_tokens, sink_tokens, ..full }
            }
            Mask::Blocks { local_blocks, stride, .. } => Self { kind: 2, local_blocks, stride, ..full },
        }
    }
}
