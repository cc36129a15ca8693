//! Activations as 8-bit blocks, and weights in the forms that products want: panels of quants, or rows of f32.

use longgen_format::TensorType;

use super::simd::{Kernel, LANES, Lanes};

/// The types of weights that products and embeddings can use.
pub(super) const SUPPORTED: [TensorType; 6] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
];

/// Elements of a block.
pub(super) const BLOCK: usize = 32;

/// Weight rows of a panel: one per lane.
pub(super) const PANEL_ROWS: usize = LANES;

/// A block of one row of activations, `x = scale * quant` with quants from -127 to 127: eight groups of four quants,
/// their sum, the bits of the scale and those of scale * sum, and one unused.
pub(super) type ActivationBlock = [u32; 12];

/// Sum of the quants.
#[inline(always)]
pub(super) fn sum_of(block: &ActivationBlock) -> i32 {
    block[8].cast_signed()
}

/// Scale of the quants.
#[inline(always)]
pub(super) fn scale_of(block: &ActivationBlock) -> f32 {
    f32::from_bits(block[9])
}

/// Scale times the sum of the quants.
#[inline(always)]
pub(super) fn scaled_sum_of(block: &ActivationBlock) -> f32 {
    f32::from_bits(block[10])
}

/// Rounds whole blocks of activations to 8 bits. A block with a number that is not finite gets NaN for its scale.
pub(super) struct Quantize<'a> {
    pub out: &'a mut [ActivationBlock],
    pub x: &'a [f32],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let (halves, _) = self.x.as_chunks::<16>();
        let (blocks, _) = halves.as_chunks::<2>();
        for (out, [low, high]) in self.out.iter_mut().zip(blocks) {
            let (low, high) = (simd.load(low), simd.load(high));
            let largest = simd.largest(simd.max(simd.abs(low), simd.abs(high)));
            // Zero, or NaN if anything is not finite.
            let zero = simd.splat(0.0);
            let invalid = simd.sum(simd.add(simd.mul(low, zero), simd.mul(high, zero)));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let inverse = simd.splat(inverse.min(f32::MAX));
            let mut quants = [0i8; BLOCK];
            quants[..16].copy_from_slice(&simd.to_i8(simd.mul(low, inverse)));
            quants[16..].copy_from_slice(&simd.to_i8(simd.mul(high, inverse)));
            let mut sum = 0;
            for quant in quants {
                sum += i32::from(quant);
            }
            let scale = largest / 127.0 + invalid;
            let (groups, _) = quants.as_chunks::<4>();
            for (out, group) in out.iter_mut().zip(groups) {
                *out = u32::from_le_bytes(group.map(i8::cast_unsigned));
            }
            out[8] = sum.cast_unsigned();
            out[9] = scale.to_bits();
            out[10] = (scale * sum as f32).to_bits();
            out[11] = 0;
        }
    }
}

/// 16 weight rows side by side, block after block, as [`Lanes::dot`] wants them:
/// `w[row] = scale[row] * quant[row] + minimum[row]`.
pub(super) struct Panel<'a> {
    /// (n_blocks): eight groups of four quants of every row
    pub quants: &'a mut [[[u8; 64]; 8]],
    /// (n_blocks)
    pub scales: &'a mut [[f32; 16]],
    /// (n_blocks); only types with a minimum have it
    pub minima: &'a mut [[f32; 16]],
}

impl<'a> Panel<'a> {
    /// Elements of scratch for one panel of rows with `cols` elements.
    pub const fn scratch_len(cols: usize) -> usize {
        cols.div_ceil(BLOCK) * (BLOCK / 4 + 2) * PANEL_ROWS
    }

    /// A panel in scratch memory of [`scratch_len`](Self::scratch_len).
    pub fn new(scratch: &'a mut [f32], n_blocks: usize) -> Self {
        let (quants, scales) = scratch.split_at_mut(n_blocks * BLOCK / 4 * PANEL_ROWS);
        let (scales, minima) = scales[..2 * n_blocks * PANEL_ROWS].split_at_mut(n_blocks * PANEL_ROWS);
        let (scales, _) = scales.as_chunks_mut();
        let (minima, _) = minima.as_chunks_mut();
        let (groups, _) = bytemuck::cast_slice_mut::<f32, [u8; 64]>(quants).as_chunks_mut();
        Self { quants: groups, scales, minima }
    }
}

/// Packs the weight rows that `rows` begins with, at most 16, into a panel; the lanes of missing rows repeat the last.
pub(super) struct Pack<'a, 'p> {
    pub panel: &'a mut Panel<'p>,
    pub ty: TensorType,
    /// Whole rows of bytes.
    pub rows: &'a [u8],
    /// What will be packed next.
    pub next: &'a [u8],
}

impl Kernel for Pack<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        match self.ty {
            TensorType::Q8_0 => self.pack::<34, S>(simd, |simd, out, blocks| {
                for half in 0..2 {
                    let groups = simd.transpose(rows_at(blocks, 2 + 16 * half));
                    for (out, x) in out[4 * half..].iter_mut().zip(groups) {
                        simd.store_quants(out, x);
                    }
                }
            }),
            TensorType::Q4_0 => self.pack::<18, S>(simd, |simd, out, blocks| {
                store_nibbles(simd, out, simd.transpose(rows_at(blocks, 2)), 8);
            }),
            TensorType::Q4_1 => self.pack::<20, S>(simd, |simd, out, blocks| {
                store_nibbles(simd, out, simd.transpose(rows_at(blocks, 4)), 0);
            }),
            _ => debug_assert!(false, "{} has no quants", self.ty),
        }
    }
}

#[inline(always)]
fn rows_at<'b, const N: usize>(blocks: &[&'b [u8; N]; 16], at: usize) -> [&'b [u8; 16]; 16] {
    let mut rows = [&[0; 16]; 16];
    for (row, block) in rows.iter_mut().zip(blocks) {
        if let Some(bytes) = block[at..].first_chunk() {
            *row = bytes;
        }
    }
    rows
}

#[inline(always)]
fn store_nibbles<S: Lanes>(simd: S, out: &mut [[u8; 64]; 8], groups: [S::B; 4], zero: i8) {
    let (low_groups, high_groups) = out.split_at_mut(4);
    for ((to_low, to_high), group) in low_groups.iter_mut().zip(high_groups).zip(groups) {
        let [low, high] = simd.nibbles(group, zero);
        simd.store_quants(to_low, low);
        simd.store_quants(to_high, high);
    }
}

impl Pack<'_, '_> {
    #[inline(always)]
    fn pack<const BYTES: usize, S: Lanes>(
        self,
        simd: S,
        store: impl Fn(S, &mut [[u8; 64]; 8], &[&[u8; BYTES]; 16]),
    ) {
        let n_blocks = self.panel.quants.len();
        let (blocks, _) = self.rows.as_chunks::<BYTES>();
        let n_rows = blocks.len() / n_blocks;
        let rows: [&[[u8; BYTES]]; 16] = std::array::from_fn(|i| {
            let row = i.min(n_rows - 1);
            &blocks[row * n_blocks..(row + 1) * n_blocks]
        });
        let has_minimum = self.ty == TensorType::Q4_1;
        let mut next = self.next.chunks(BYTES * PANEL_ROWS);
        for b in 0..n_blocks {
            for line in next.next().unwrap_or_default().as_chunks().0 {
                simd.prefetch(line);
            }
            let mut of_rows = [&rows[0][b]; 16];
            let (mut scales, mut minima) = ([0u8; 32], [0u8; 32]);
            for (i, row) in rows.iter().enumerate() {
                of_rows[i] = &row[b];
                scales[2 * i..2 * i + 2].copy_from_slice(&row[b][..2]);
                if has_minimum {
                    minima[2 * i..2 * i + 2].copy_from_slice(&row[b][2..4]);
                }
            }
            store(simd, &mut self.panel.quants[b], &of_rows);
            simd.store(&mut self.panel.scales[b], simd.load_f16(&scales));
            if has_minimum {
                simd.store(&mut self.panel.minima[b], simd.load_f16(&minima));
            }
        }
    }
}

/// Turns a row of weights into f32, exactly as the format defines it; what `out` has beyond it is filled with zeros.
pub(super) struct Widen<'a> {
    pub out: &'a mut [f32],
    pub ty: TensorType,
    pub row: &'a [u8],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        match self.ty {
            TensorType::F32 => self.widen::<S, F32, 64, 1>(simd),
            TensorType::F16 => self.widen::<S, F16, 32, 1>(simd),
            TensorType::BF16 => self.widen::<S, BF16, 32, 1>(simd),
            TensorType::Q8_0 => self.widen::<S, Q8_0, 34, 2>(simd),
            TensorType::Q4_0 => self.widen::<S, Q4_0, 18, 2>(simd),
            TensorType::Q4_1 => self.widen::<S, Q4_1, 20, 2>(simd),
            _ => debug_assert!(false, "{} is not supported", self.ty),
        }
    }
}

impl Widen<'_> {
    #[inline(always)]
    fn widen<S: Lanes, E: Elements<BYTES, N>, const BYTES: usize, const N: usize>(self, simd: S) {
        let (whole, tail) = self.row.as_chunks::<BYTES>();
        let mut last = [0; BYTES];
        last[..tail.len()].copy_from_slice(tail);
        let last = if tail.is_empty() { None } else { Some(&last) };
        let mut out = self.out;
        for bytes in whole.iter().chain(last) {
            for x in E::widen(simd, bytes) {
                let part = out.len().min(LANES);
                match out.first_chunk_mut::<16>() {
                    Some(out) => simd.store(out, x),
                    None => {
                        let mut elems = [0.0; 16];
                        simd.store(&mut elems, x);
                        out.copy_from_slice(&elems[..part]);
                    }
                }
                out = &mut out[part..];
            }
        }
        out.fill(0.0);
    }
}

/// What `BYTES` bytes of a type mean: 16 N numbers. Not a closure, which might not be inlined into vector code.
trait Elements<const BYTES: usize, const N: usize> {
    fn widen<S: Lanes>(simd: S, bytes: &[u8; BYTES]) -> [S::F; N];
}

struct F32;
struct F16;
struct BF16;
struct Q8_0;
struct Q4_0;
struct Q4_1;

impl Elements<64, 1> for F32 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, bytes: &[u8; 64]) -> [S::F; 1] {
        [simd.load_f32(bytes)]
    }
}

impl Elements<32, 1> for F16 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, bytes: &[u8; 32]) -> [S::F; 1] {
        [simd.load_f16(bytes)]
    }
}

impl Elements<32, 1> for BF16 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, bytes: &[u8; 32]) -> [S::F; 1] {
        [simd.load_bf16(bytes)]
    }
}

impl Elements<34, 2> for Q8_0 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, &[d0, d1, ref quants @ ..]: &[u8; 34]) -> [S::F; 2] {
        let (scale, quants) = (simd.splat_f16([d0, d1]), quants.as_chunks::<16>().0);
        [simd.mul(simd.load_i8(&quants[0]), scale), simd.mul(simd.load_i8(&quants[1]), scale)]
    }
}

impl Elements<18, 2> for Q4_0 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, &[d0, d1, ref nibbles @ ..]: &[u8; 18]) -> [S::F; 2] {
        let (scale, zero) = (simd.splat_f16([d0, d1]), simd.splat(8.0));
        let [low, high] = simd.load_nibbles(nibbles);
        [simd.mul(simd.sub(low, zero), scale), simd.mul(simd.sub(high, zero), scale)]
    }
}

impl Elements<20, 2> for Q4_1 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, &[d0, d1, m0, m1, ref nibbles @ ..]: &[u8; 20]) -> [S::F; 2] {
        let (scale, minimum) = (simd.splat_f16([d0, d1]), simd.splat_f16([m0, m1]));
        let [low, high] = simd.load_nibbles(nibbles);
        [simd.add(simd.mul(low, scale), minimum), simd.add(simd.mul(high, scale), minimum)]
    }
}
