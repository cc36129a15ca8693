//! `out = x * transpose(w)`.
//!
//! One order of accumulation per output element, whatever the tile: lanes along the contraction, blocks in the order of
//! the file, then one sum over the lanes. Tiles of 4 weight rows by 4 activation rows only reuse loads, so a row gives the
//! same bits alone and among others, on one thread and on many.
//!
//! Quantised weights meet activations that were rounded to bytes (`fast`): integer dot products of 32 elements, exact,
//! then one f32 multiply-add per block with the product of the scales. Everything else is f32 (`exact`, and wide types).
#![allow(clippy::needless_range_loop, reason = "tiles of vectors are walked by index, see below")]

use longgen_format::TensorType;

use super::quant::{QuantFormat, QuantRows, WideFormat, load_rest, n_pairs, quantize_row, with_wide_format};
use super::simd::{Kernel, LANES, Lanes, Level, PAIR};
use super::team::{Matrix, Tile};
use super::{CpuBackend, Workspace, quant};
use crate::alloc::HostBuf;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Weight rows of one item: enough to be worth claiming, few enough to balance.
const ITEM_ROWS: usize = 32;
/// Most products with the same input: query, key and value.
const MAX_PARTS: usize = 3;

/// Bytes that the rounded activations of a step take.
pub fn quant_bytes(max_rows: usize, max_cols: usize) -> (usize, usize) {
    let pairs = max_rows * n_pairs(max_cols);
    (pairs * PAIR, pairs * 4 * size_of::<f32>())
}

fn is_quantised(ty: TensorType) -> bool {
    ty.block_elems() > 1
}

pub fn matmul(level: Level, ws: &mut Workspace, args: MatmulArgs<'_, '_, CpuBackend>) -> Result<()> {
    let MatmulArgs { parts, x, n_rows, add } = args;
    let Some(first) = parts.first() else { return Ok(()) };
    let n_cols = first.w.cols;
    if parts.len() > MAX_PARTS || parts.iter().any(|part| part.w.cols != n_cols) {
        return Err(Error::invalid("products of one call have the same input and are at most three"));
    }
    let x = &x.of::<f32>()[..n_rows * n_cols];
    let fast = ws.precision == Precision::Fast && parts.iter().any(|part| is_quantised(part.w.ty));
    if fast {
        quantize(level, ws, x, n_cols)?;
    }
    let pairs = n_pairs(n_cols);
    let rounded = QuantRows { quants: ws.quants.of::<i8>(), scales: ws.scales.of::<f32>(), n_pairs: pairs };

    let mut weights: [Option<(&WeightData, Option<&HostBuf>)>; MAX_PARTS] = [None; MAX_PARTS];
    let mut matrices = [const { None }; MAX_PARTS];
    for ((part, weight), matrix) in parts.iter_mut().zip(&mut weights).zip(&mut matrices) {
        let n_cols = part.w.rows;
        *weight = Some((part.w, part.bias));
        *matrix = Some(Matrix { out: &mut part.out.of_mut::<f32>()[..n_rows * n_cols], n_rows, n_cols });
    }
    ws.crew.for_each_tile(matrices, n_rows.max(1), ITEM_ROWS, |number, out| {
        let Some((w, bias)) = weights[number] else { return };
        let bias = bias.map(HostBuf::of::<f32>);
        let row_bytes = w.bytes().len() / w.rows;
        let item = Item { w: w.bytes(), row_bytes, bias, out, add };
        if ws.precision == Precision::Fast && is_quantised(w.ty) {
            match w.ty {
                TensorType::Q8_0 => level.run(Rounded { item, x: rounded, format: quant::Q8_0 }),
                TensorType::Q4_0 => level.run(Rounded { item, x: rounded, format: quant::Q4_0 }),
                _ => level.run(Rounded { item, x: rounded, format: quant::Q4_1 }),
            }
        } else {
            with_wide_format!(w.ty, F => level.run(Wide::<F> { item, x, n_cols, format: std::marker::PhantomData }), else ())
        }
    })
}

/// Rounds the activations of a call, row by row.
fn quantize(level: Level, ws: &mut Workspace, x: &[f32], n_cols: usize) -> Result<()> {
    struct Rows<'a> {
        x: &'a [f32],
        quants: &'a mut [i8],
        scales: &'a mut [f32],
        n_cols: usize,
    }
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let pairs = n_pairs(self.n_cols);
            let rows =
                self.quants.chunks_exact_mut(pairs * PAIR).zip(self.scales.chunks_exact_mut(pairs * 4));
            for (x, (quants, scales)) in self.x.chunks_exact(self.n_cols).zip(rows) {
                quantize_row(x, quants, scales);
            }
        }
    }
    /// Rows of one item.
    const ROWS: usize = 8;
    let pairs = n_pairs(n_cols);
    let n_rows = x.len() / n_cols;
    let quants = &mut ws.quants.of_mut::<i8>()[..n_rows * pairs * PAIR];
    let scales = &mut ws.scales.of_mut::<f32>()[..n_rows * pairs * 4];
    ws.crew.for_each_chunk_pair(quants, ROWS * pairs * PAIR, scales, ROWS * pairs * 4, |i, quants, scales| {
        let begin = i * ROWS * n_cols;
        let x = &x[begin..(begin + ROWS * n_cols).min(x.len())];
        level.run(Rows { x, quants, scales, n_cols });
    })
}

/// Some weight rows and the output columns that they make.
struct Item<'a> {
    /// (rows of the matrix, row_bytes)
    w: &'a [u8],
    row_bytes: usize,
    bias: Option<&'a [f32]>,
    out: Tile<'a>,
    add: bool,
}

impl<'a> Item<'a> {
    #[inline(always)]
    fn weight_row(&self, row: usize) -> &'a [u8] {
        &self.w[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// Covers all outputs with tiles of up to 4 by 4; a tile is (first weight row, first activation row).
    #[inline(always)]
    fn tiles(mut self, tiles: &impl Tiles) {
        let (cols, n_rows) = (self.out.cols.clone(), self.out.rows.end);
        let mut t = 0;
        while t < n_rows {
            let n = if n_rows - t >= 4 { 4 } else { 1 };
            let mut r = cols.start;
            while r < cols.end {
                match (cols.end - r >= 4, n) {
                    (true, 4) => self.put(tiles.tile::<4, 4>(&self, r, t), r, t),
                    (true, _) => self.put(tiles.tile::<4, 1>(&self, r, t), r, t),
                    (false, 4) => self.put(tiles.tile::<1, 4>(&self, r, t), r, t),
                    (false, _) => self.put(tiles.tile::<1, 1>(&self, r, t), r, t),
                }
                r += if cols.end - r >= 4 { 4 } else { 1 };
            }
            t += n;
        }
    }

    #[inline(always)]
    fn put<const R: usize, const T: usize>(&mut self, sums: [[f32; T]; R], r: usize, t: usize) {
        let first = self.out.cols.start;
        for i in 0..T {
            let out = &mut self.out.row_mut(t + i)[r - first..r - first + R];
            for (j, out) in out.iter_mut().enumerate() {
                let value = sums[j][i] + self.bias.map_or(0.0, |bias| bias[r + j]);
                *out = if self.add { *out + value } else { value };
            }
        }
    }
}

trait Tiles {
    /// Products of `R` weight rows from `r` on with `T` activation rows from `t` on.
    fn tile<const R: usize, const T: usize>(&self, item: &Item<'_>, r: usize, t: usize) -> [[f32; T]; R];
}

// Loops below fill arrays of vectors by index: a closure, as in `array::from_fn`, need not be inlined, and where it is
// not, it is compiled without the vector instructions.

#[inline(always)]
fn sums_of_lanes<L: Lanes, const R: usize, const T: usize>(lanes: &[[L; T]; R]) -> [[f32; T]; R] {
    let mut sums = [[0.0; T]; R];
    for j in 0..R {
        for i in 0..T {
            sums[j][i] = lanes[j][i].sum();
        }
    }
    sums
}

/// Quantised weights and rounded activations.
struct Rounded<'a, F> {
    item: Item<'a>,
    x: QuantRows<'a>,
    format: F,
}

impl<F: QuantFormat> Kernel for Rounded<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let _ = self.format;
        self.item.tiles(&RoundedTiles::<L, F> { x: self.x, of: std::marker::PhantomData });
    }
}

struct RoundedTiles<'a, L, F> {
    x: QuantRows<'a>,
    of: std::marker::PhantomData<(L, F)>,
}

/// A block of zeros, for the second half of a pair behind an odd number of blocks.
const NO_BLOCK: [u8; 64] = [0; 64];

impl<L: Lanes, F: QuantFormat> Tiles for RoundedTiles<'_, L, F> {
    #[inline(always)]
    fn tile<const R: usize, const T: usize>(&self, item: &Item<'_>, r: usize, t: usize) -> [[f32; T]; R] {
        let rows: [&[u8]; R] = std::array::from_fn(|i| item.weight_row(r + i));
        let pairs = self.x.n_pairs;
        let quants: [&[i8]; T] =
            std::array::from_fn(|i| &self.x.quants[(t + i) * pairs * PAIR..][..pairs * PAIR]);
        let scales: [&[f32]; T] = std::array::from_fn(|i| &self.x.scales[(t + i) * pairs * 4..][..pairs * 4]);
        let mut sums = [[L::splat(0.0); T]; R];
        for pair in 0..pairs {
            let begin = pair * 2 * F::BLOCK_BYTES;
            let mut x_scale = [L::splat(0.0); T];
            let mut x_sum = [L::splat(0.0); T];
            for i in 0..T {
                let scales = &scales[i][pair * 4..pair * 4 + 4];
                x_scale[i] = L::halves(scales[0], scales[1]);
                x_sum[i] = L::halves(scales[2], scales[3]);
            }
            for j in 0..R {
                let blocks = &rows[j][begin..];
                let (first, second) = match blocks.len() >= 2 * F::BLOCK_BYTES {
                    true => (&blocks[..F::BLOCK_BYTES], &blocks[F::BLOCK_BYTES..2 * F::BLOCK_BYTES]),
                    false => (&blocks[..F::BLOCK_BYTES], &NO_BLOCK[..F::BLOCK_BYTES]),
                };
                let ((scale_0, min_0), (scale_1, min_1)) = (F::scales::<L>(first), F::scales::<L>(second));
                let w = F::quants::<L>(first, second);
                let scale = L::halves(scale_0, scale_1);
                let min = L::halves(min_0, min_1);
                for i in 0..T {
                    let dot: L = F::dot(w, &quants[i][pair * PAIR..pair * PAIR + PAIR]);
                    sums[j][i] = dot.mul_add(scale.mul(x_scale[i]), sums[j][i]);
                    if F::HAS_MIN {
                        sums[j][i] = min.mul_add(x_sum[i], sums[j][i]);
                    }
                }
            }
        }
        sums_of_lanes(&sums)
    }
}

/// Weights of any type, widened, and f32 activations.
struct Wide<'a, F> {
    item: Item<'a>,
    /// (n_rows, n_cols)
    x: &'a [f32],
    n_cols: usize,
    format: std::marker::PhantomData<F>,
}

impl<F: WideFormat> Kernel for Wide<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        self.item.tiles(&WideTiles::<L, F> { x: self.x, n_cols: self.n_cols, of: std::marker::PhantomData });
    }
}

struct WideTiles<'a, L, F> {
    x: &'a [f32],
    n_cols: usize,
    of: std::marker::PhantomData<(L, F)>,
}

impl<L: Lanes, F: WideFormat> Tiles for WideTiles<'_, L, F> {
    #[inline(always)]
    fn tile<const R: usize, const T: usize>(&self, item: &Item<'_>, r: usize, t: usize) -> [[f32; T]; R] {
        let n = self.n_cols;
        let rows: [&[u8]; R] = std::array::from_fn(|i| item.weight_row(r + i));
        let x: [&[f32]; T] = std::array::from_fn(|i| &self.x[(t + i) * n..(t + i + 1) * n]);
        let mut sums = [[L::splat(0.0); T]; R];
        let whole = n / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let mut lanes = [L::splat(0.0); T];
            for i in 0..T {
                lanes[i] = L::load(&x[i][at..at + LANES]);
            }
            for j in 0..R {
                let w: L = F::load(rows[j], at);
                for i in 0..T {
                    sums[j][i] = w.mul_add(lanes[i], sums[j][i]);
                }
            }
        }
        if whole < n {
            let mut lanes = [L::splat(0.0); T];
            for i in 0..T {
                let mut rest = [0.0; LANES];
                rest[..n - whole].copy_from_slice(&x[i][whole..]);
                lanes[i] = L::load(&rest);
            }
            for j in 0..R {
                let w: L = load_rest::<L, F>(rows[j], whole);
                for i in 0..T {
                    sums[j][i] = w.mul_add(lanes[i], sums[j][i]);
                }
            }
        }
        sums_of_lanes(&sums)
    }
}
