//! `out = x * transpose(w)`, in two ways that share their plan: cut the outputs into tiles, bring the weights of a tile
//! into a convenient form once, and use it for all its activation rows.
//!
//! The order in which an output element is accumulated is the same wherever it is computed:
//! - quantised weights, `Precision::Fast`: block after block, the exact integer product of a block times its scales is
//!   added to one f32;
//! - otherwise: lane i of 16 adds the products of elements i, i + 16, ... in f32, then the lanes are summed.

use longgen_format::TensorType;

use super::CpuBackend;
use super::quant::*;
use super::rowwise;
use super::simd::{Kernel, Lanes, Simd};
use super::team::{Crew, Grid, Tile};
use super::workspace::Workspace;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Products of one call; more are done in several calls.
const MAX_PARTS: usize = 4;

/// Weight rows of a register tile of the f32 product.
const WIDE_ROWS: usize = 4;

/// Bytes of activations that a thread goes through again and again: they should stay in its level-2 cache.
const ACTIVATION_BYTES: usize = 384 << 10;

/// Items per thread that an op is cut into where it is large enough, so that threads end together.
const ITEMS_PER_THREAD: usize = 8;

/// Elements of scratch that a thread needs for inputs of `cols` elements.
pub(super) fn scratch_len(cols: usize) -> usize {
    Panel::scratch_len(cols).max(WIDE_ROWS * cols.next_multiple_of(16))
}

pub(super) fn matmul(
    simd: Simd,
    crew: Crew<'_>,
    ws: &mut Workspace,
    args: MatmulArgs<'_, '_, CpuBackend>,
) -> Result<()> {
    let MatmulArgs { parts, mut input, n_rows, add } = args;
    let Some(first) = parts.first().filter(|_| n_rows > 0) else { return Ok(()) };
    let cols = first.w.cols;
    if let Some(other) = parts.iter().find(|part| part.w.cols != cols) {
        return Err(Error::invalid(format!("one product of {cols} inputs, another of {}", other.w.cols)));
    }
    if n_rows > ws.shape.max_rows || cols > ws.shape.max_cols {
        return Err(Error::invalid(format!(
            "a product of {n_rows} rows of {cols} in a workspace for {} of {}",
            ws.shape.max_rows, ws.shape.max_cols
        )));
    }
    if let Input::Norm(norm) = &mut input {
        rowwise::norm(simd, crew, norm, n_rows, cols)?;
    }
    let x = match &input {
        Input::Rows(x) => *x,
        Input::Norm(norm) => &*norm.scratch,
    };
    let x = &x.of::<f32>()[..n_rows * cols];
    let is_quantised = |part: &MatmulPart<'_, CpuBackend>| part.w.ty.block_elems() == BLOCK;
    let fast = ws.precision == Precision::Fast;
    let (blocks, scratch) = ws.for_matmul();
    let blocks_a_row = cols / BLOCK;
    if fast && parts.iter().any(is_quantised) {
        let blocks = &mut blocks[..n_rows * blocks_a_row];
        let rows_an_item = n_rows.div_ceil(crew.n_threads() * ITEMS_PER_THREAD).max(1);
        crew.for_each_chunk(blocks, rows_an_item * blocks_a_row, &mut [], |_, i, out| {
            let x = &x[i * rows_an_item * cols..][..out.len() * BLOCK];
            simd.dispatch(Quantize { out, x });
        })?;
    }
    let blocks = &*blocks;

    for parts in parts.chunks_mut(MAX_PARTS) {
        let total_rows: usize = parts.iter().map(|part| part.w.rows).sum();
        let row_bytes = if fast { blocks_a_row * size_of::<ActivationBlock>() } else { cols * 4 };
        let tile_rows = (ACTIVATION_BYTES / row_bytes.max(1)).clamp(16, 256).next_multiple_of(8).min(n_rows);
        let n_row_tiles = n_rows.div_ceil(tile_rows);
        let n_items = crew.n_threads() * ITEMS_PER_THREAD;
        let tile_cols = (total_rows * n_row_tiles / n_items).clamp(PANEL_ROWS, 512) / PANEL_ROWS * PANEL_ROWS;
        let mut weights = [None; MAX_PARTS];
        for (weight, part) in weights.iter_mut().zip(&*parts) {
            *weight = Some(Weights { w: part.w, bias: part.bias.map(|bias| &bias.of()[..part.w.rows]) });
        }
        let mut n_grids = 0;
        let mut outs = parts.iter_mut();
        let mut grids: [Grid<'_>; MAX_PARTS] = std::array::from_fn(|_| match outs.next() {
            Some(part) => {
                n_grids += 1;
                Grid::new(part.out.of_mut(), [n_rows, part.w.rows], [tile_rows, tile_cols])
            }
            None => Grid::new(&mut [], [0, 0], [1, 1]),
        });
        crew.for_each_tile(&mut grids[..n_grids], scratch, |scratch, g, tile| {
            let Some(Weights { w, bias }) = weights[g] else { return };
            let epilogue = Epilogue { tile, bias, add };
            if fast && w.ty.block_elems() == BLOCK {
                simd.dispatch(QuantTile { epilogue, w, blocks, blocks_a_row, scratch });
            } else {
                simd.dispatch(WideTile { epilogue, w, x, scratch });
            }
        })?;
    }
    Ok(())
}

/// The weights of a product.
#[derive(Clone, Copy)]
struct Weights<'a> {
    w: &'a WeightData,
    bias: Option<&'a [f32]>,
}

/// Where the sums of a tile go.
struct Epilogue<'a> {
    tile: Tile<'a>,
    bias: Option<&'a [f32]>,
    add: bool,
}

impl Epilogue<'_> {
    /// Writes the outputs of one row from column `col` on, as many of `sums` as the tile has.
    #[inline(always)]
    fn write(&mut self, row: usize, col: usize, sums: &[f32]) {
        let first = col - self.tile.cols().start;
        let bias = self.bias.map(|bias| &bias[col..]);
        let out = &mut self.tile.row_mut(row)[first..];
        for (i, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
            let sum = bias.map_or(sum, |bias| sum + bias[i]);
            *out = if self.add { *out + sum } else { sum };
        }
    }
}

/// A tile of a product with quantised weights and activations.
struct QuantTile<'a> {
    epilogue: Epilogue<'a>,
    w: &'a WeightData,
    /// (n_rows, blocks_a_row)
    blocks: &'a [ActivationBlock],
    blocks_a_row: usize,
    scratch: &'a mut [f32],
}

impl Kernel for QuantTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let Self { mut epilogue, w, blocks, blocks_a_row, scratch } = self;
        let (rows, cols) = (epilogue.tile.rows(), epilogue.tile.cols());
        let has_minimum = w.ty == TensorType::Q4_1;
        let row_bytes = blocks_a_row * w.ty.block_bytes();
        let mut panel = Panel::new(scratch, blocks_a_row);
        for col in cols.clone().step_by(PANEL_ROWS) {
            let end = cols.end.min(col + PANEL_ROWS);
            let weight_rows = &w.bytes()[col * row_bytes..end * row_bytes];
            // Panels are contiguous, but read as 16 streams, which processors do not see coming.
            let next = &w.bytes()[end * row_bytes..cols.end.min(end + PANEL_ROWS) * row_bytes];
            Pack { panel: &mut panel, ty: w.ty, rows: weight_rows, next }.run(simd);
            let mut row = rows.start;
            while row < rows.end {
                let x = &blocks[row * blocks_a_row..rows.end * blocks_a_row];
                let mut sums = [[0.0; PANEL_ROWS]; 8];
                let n = match (rows.end - row, S::MANY_REGISTERS, has_minimum) {
                    (8.., true, false) => quant_rows::<S, 8, false>(simd, &panel, x, &mut sums),
                    (8.., true, true) => quant_rows::<S, 8, true>(simd, &panel, x, &mut sums),
                    (2.., _, false) => quant_rows::<S, 2, false>(simd, &panel, x, &mut sums),
                    (2.., _, true) => quant_rows::<S, 2, true>(simd, &panel, x, &mut sums),
                    (_, _, false) => quant_rows::<S, 1, false>(simd, &panel, x, &mut sums),
                    (_, _, true) => quant_rows::<S, 1, true>(simd, &panel, x, &mut sums),
                };
                for (i, sums) in sums[..n].iter().enumerate() {
                    epilogue.write(row + i, col, sums);
                }
                row += n;
            }
        }
    }
}

/// Products of a panel with the first R rows of `x`; returns R.
#[inline(always)]
fn quant_rows<S: Lanes, const R: usize, const MINIMUM: bool>(
    simd: S,
    panel: &Panel<'_>,
    x: &[ActivationBlock],
    sums: &mut [[f32; PANEL_ROWS]; 8],
) -> usize {
    let n_blocks = panel.quants.len();
    let (scales, minima) = (&panel.scales[..n_blocks], &panel.minima[..n_blocks]);
    let mut rows = [&x[..n_blocks]; R];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &x[i * n_blocks..(i + 1) * n_blocks];
    }
    let mut acc = [simd.splat(0.0); R];
    for (b, groups) in panel.quants.iter().enumerate() {
        let mut products = [simd.dot_start(0); R];
        for r in 0..R {
            products[r] = simd.dot_start(sum_of(&rows[r][b]));
        }
        for (k, group) in groups.iter().enumerate() {
            for r in 0..R {
                products[r] = simd.dot(products[r], group, rows[r][b][k]);
            }
        }
        let scale = simd.load(&scales[b]);
        for r in 0..R {
            let scales = simd.mul(scale, simd.splat(scale_of(&rows[r][b])));
            acc[r] = simd.fma(simd.to_f32(products[r]), scales, acc[r]);
        }
        if MINIMUM {
            let minimum = simd.load(&minima[b]);
            for r in 0..R {
                acc[r] = simd.fma(minimum, simd.splat(scaled_sum_of(&rows[r][b])), acc[r]);
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        simd.store(sums, acc);
    }
    R
}

/// A tile of a product in f32.
struct WideTile<'a> {
    epilogue: Epilogue<'a>,
    w: &'a WeightData,
    /// (n_rows, w.cols)
    x: &'a [f32],
    scratch: &'a mut [f32],
}

impl Kernel for WideTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let Self { mut epilogue, w, x, scratch } = self;
        let (rows, cols) = (epilogue.tile.rows(), epilogue.tile.cols());
        let row_bytes = w.bytes().len() / w.rows;
        let width = w.cols.next_multiple_of(16);
        let wide = &mut scratch[..WIDE_ROWS * width];
        for col in cols.clone().step_by(WIDE_ROWS) {
            // The lanes of missing rows repeat the last one and are not written.
            for (i, out) in wide.chunks_exact_mut(width).enumerate() {
                let at = (col + i).min(cols.end - 1) * row_bytes;
                Widen { out, ty: w.ty, row: &w.bytes()[at..at + row_bytes] }.run(simd);
            }
            let mut row = rows.start;
            while row < rows.end {
                let x = &x[row * w.cols..rows.end * w.cols];
                let mut sums = [[0.0; WIDE_ROWS]; 4];
                let n = match rows.end - row {
                    4.. if S::MANY_REGISTERS => wide_rows::<S, 4>(simd, wide, x, w.cols, &mut sums),
                    _ => wide_rows::<S, 1>(simd, wide, x, w.cols, &mut sums),
                };
                for (i, sums) in sums[..n].iter().enumerate() {
                    epilogue.write(row + i, col, sums);
                }
                row += n;
            }
        }
    }
}

/// Products of the widened rows with the first R rows of `x`; returns R.
#[inline(always)]
fn wide_rows<S: Lanes, const R: usize>(
    simd: S,
    wide: &[f32],
    x: &[f32],
    cols: usize,
    sums: &mut [[f32; WIDE_ROWS]; 4],
) -> usize {
    let (wide, _) = wide.as_chunks::<16>();
    let n_chunks = wide.len() / WIDE_ROWS;
    let mut w = [&wide[..n_chunks]; WIDE_ROWS];
    for (i, w) in w.iter_mut().enumerate() {
        *w = &wide[i * n_chunks..(i + 1) * n_chunks];
    }
    let n_whole = cols / 16;
    let mut rows = [x[..cols].as_chunks::<16>(); R];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = x[i * cols..(i + 1) * cols].as_chunks();
    }
    let mut acc = [[simd.splat(0.0); WIDE_ROWS]; R];
    for k in 0..n_whole {
        let w = [simd.load(&w[0][k]), simd.load(&w[1][k]), simd.load(&w[2][k]), simd.load(&w[3][k])];
        for r in 0..R {
            let x = simd.load(&rows[r].0[k]);
            for c in 0..WIDE_ROWS {
                acc[r][c] = simd.fma(w[c], x, acc[r][c]);
            }
        }
    }
    if n_whole < n_chunks {
        for r in 0..R {
            let mut tail = [0.0; 16];
            tail[..rows[r].1.len()].copy_from_slice(rows[r].1);
            let x = simd.load(&tail);
            for c in 0..WIDE_ROWS {
                acc[r][c] = simd.fma(simd.load(&w[c][n_whole]), x, acc[r][c]);
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = simd.sum(acc);
        }
    }
    R
}
