//! Products of many rows by Hopper's kernel, `kernels/sm90/gemm.cu`.

use super::CudaBackend;
use super::device::Matrix16;
use super::gemm::Product;
use super::matmul::Output;
use super::params::{self, Params, word};
use crate::backend::args::{KvShape, KvType};
use crate::error::Result;

/// Rows of a tile, which blocks compute two by two, and its outputs; half of them are gates where units are gated.
const TILE_ROWS: usize = 256;
const TILE_OUTPUTS: usize = 256;
const BLOCKS: usize = 2;
const THREADS: u32 = 384;

/// Rows of a matrix that are copied at once, of 64 columns.
const BOX_ROWS: u32 = 128;

/// Four stages of what a block has of a tile, rows of which two of its eight warps have on their way out, its barriers,
/// and what aligning the stages takes.
const SHARED_BYTES: u32 = 4 * (128 + 256) * 128 + 8 * 16 * 256 + 64 + 1024;

/// Outputs of a tile.
fn outputs_of_tile(output: Output) -> usize {
    if output == Output::Glu { TILE_OUTPUTS / 2 } else { TILE_OUTPUTS }
}

fn kernel(output: Output, is_bf16: bool) -> &'static str {
    match (output, is_bf16) {
        (Output::Glu, false) => "gemm_glu_sm90_f16",
        (Output::Glu, true) => "gemm_glu_sm90_bf16",
        (_, false) => "gemm_sm90_f16",
        (_, true) => "gemm_sm90_bf16",
    }
}

/// Blocks that run at once, whole clusters of them.
fn n_blocks(backend: &CudaBackend, kernel: &str) -> Result<usize> {
    let n = backend.device.blocks_at_once(kernel, THREADS, SHARED_BYTES)?.min(backend.limits.blocks);
    Ok((n / BLOCKS).max(1) * BLOCKS)
}

/// Whether the kernel takes such a product, and its tiles would not leave most of the device idle where cuBLASLt has
/// smaller ones.
pub(super) fn takes(backend: &CudaBackend, n_rows: usize, w: [usize; 2], output: Output) -> Result<bool> {
    let [n_outputs, cols] = w;
    if !backend.limits.has_hopper || !n_outputs.is_multiple_of(8) || !cols.is_multiple_of(8) {
        return Ok(false);
    }
    if backend.blas.is_none() {
        return Ok(true);
    }
    let at_once = n_blocks(backend, kernel(output, true))? / BLOCKS;
    let tiles = n_rows.div_ceil(TILE_ROWS) * n_outputs.div_ceil(outputs_of_tile(output));
    let room = tiles.next_multiple_of(at_once) * TILE_ROWS * outputs_of_tile(output);
    Ok(n_rows * n_outputs * 3 >= room * 2)
}

fn map(backend: &CudaBackend, matrix: &Matrix16) -> Result<params::TensorMap> {
    backend.device.tensor_map(matrix, BOX_ROWS)
}

fn launch<P: Params>(
    backend: &CudaBackend,
    kernel: &str,
    n_rows: usize,
    columns_of_tiles: usize,
    params: &P,
) -> Result<()> {
    let n_tiles = n_rows.div_ceil(TILE_ROWS) * columns_of_tiles;
    let n_blocks = n_blocks(backend, kernel)?.min(n_tiles * BLOCKS);
    backend.device.launch(kernel, [n_blocks, 1, 1], THREADS, SHARED_BYTES, params)
}

/// Computes a product that the kernel [takes]; with another matrix, `silu(product) * product with that` in 16 bits.
pub(super) fn run(backend: &CudaBackend, product: &Product, gated: Option<&Matrix16>) -> Result<()> {
    let Product { out, out_width, x, w, add } = *product;
    let output = if gated.is_some() { Output::Glu } else { Output::Replace };
    let params = params::GemmHopper {
        x: map(backend, &x)?,
        w: [map(backend, &w)?, gated.map_or(Ok(params::TensorMap::default()), |gated| map(backend, gated))?],
        out,
        n_rows: word(x.rows),
        cols: word(x.cols),
        n_outputs: word(w.rows),
        out_width: word(out_width),
        add: u32::from(add),
        unused: 0,
    };
    let columns_of_tiles = w.rows.div_ceil(outputs_of_tile(output));
    launch(backend, kernel(output, w.is_bf16), x.rows, columns_of_tiles, &params)
}

/// Computes heads of queries, keys or values, of whose matrix `w` holds some; what is said here of them need not be said in
/// `heads`.
pub(super) fn run_heads(
    backend: &CudaBackend,
    x: &Matrix16,
    w: &Matrix16,
    shape: &KvShape,
    heads: &params::Heads,
) -> Result<()> {
    let head_dim = shape.head_dim;
    let params = params::Heads {
        shape: shape.into(),
        x: map(backend, x)?,
        w: map(backend, w)?,
        n_rows: word(x.rows),
        cols: word(x.cols),
        n_heads: word(w.rows / head_dim),
        ..*heads
    };
    let ty = |is_bf16| if is_bf16 { "bf16" } else { "f16" };
    let kernel = format!("gemm_heads_sm90_{}_{}_{head_dim}", ty(w.is_bf16), ty(shape.ty == KvType::Bf16));
    launch(backend, &kernel, x.rows, w.rows.div_ceil(TILE_OUTPUTS), &params)
}
