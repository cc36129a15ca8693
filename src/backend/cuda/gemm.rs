//! Products of many rows, on the tensor cores in 16 bits: bf16 where the matrix is, f16 elsewhere.
//!
//! The rows are converted once for all products that share them. A matrix that is not of 16 bits is converted too, so many
//! of its rows at a time that their copy fits in the workspace. Hopper's kernel multiplies where it is worth it, else
//! cuBLASLt, or a kernel for every card where neither can.

use std::ops::Range;

use super::device::Matrix16;
use super::matmul::{ELEMENT_THREADS, Output, Rows, blocks_of};
use super::params::{self, Address, word};
use super::weight::{Weight, type_name};
use super::workspace::Workspace;
use super::{CudaBackend, gemm_sm90};
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Elements of a matrix that are converted at once.
pub(super) const MAX_DEQUANTIZED: usize = 32 << 20;

/// What cuBLASLt may use.
pub(super) const BLAS_BYTES: usize = 32 << 20;

/// Rows up to which a product waits for its matrix rather than for its arithmetic.
const FEW_ROWS: usize = 8;

/// The same where the matrix would be converted first, which takes longer than reading it twice.
const FEW_ROWS_CONVERTED: usize = 16;

/// Elements that the kernels that convert take at once, and most threads of one that norms a row.
const CONVERTED_AT_ONCE: usize = 8;
const MAX_NORM_THREADS: u32 = 1024;

/// Matrix rows are converted in multiples of this, so that outputs stay aligned.
const SLAB_ROWS: usize = 64;

/// Tile of our own product for every card, and the shared memory of its three stages.
const GEMM_TILE: usize = 128;
const GEMM_SHARED_BYTES: u32 = 3 * 2 * 128 * (32 + 8) * 2;

/// `out` = x * transpose(w) in rows of floats `out_width` apart, or `out` += that if `add`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub out: Address,
    pub out_width: usize,
    pub x: Matrix16,
    pub w: Matrix16,
    pub add: bool,
}

/// What the rows are made from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Rows(Rows),
    /// `silu(gate) * up`, each (n_rows, cols)
    Glu {
        gate: Address,
        up: Address,
    },
}

/// Whether many rows are multiplied in another way than a few, and these are many.
pub(super) fn takes_many(ws: &Workspace, w: &Weight, n_rows: usize) -> bool {
    let few = if is_16_bit(w) { FEW_ROWS } else { FEW_ROWS_CONVERTED };
    ws.precision == Precision::Fast && n_rows > few && w.cols.is_multiple_of(8)
}

/// Whether the tensor cores take the matrix as it is.
fn is_16_bit(w: &Weight) -> bool {
    matches!(w.ty, TensorType::BF16 | TensorType::F16)
}

pub(super) fn is_bf16(w: &Weight) -> bool {
    w.ty == TensorType::BF16
}

/// Products of matrices with the same many rows.
pub(super) fn many_rows(
    backend: &CudaBackend,
    ws: &mut Workspace,
    parts: &mut [&mut MatmulPart<'_, CudaBackend>],
    source: Source,
    n_rows: usize,
    add: bool,
) -> Result<()> {
    let mut converted: Option<Matrix16> = None;
    for part in parts {
        let x = match converted.filter(|x| x.is_bf16 == is_bf16(part.w)) {
            Some(x) => x,
            None => convert(backend, ws, source, n_rows, part.w)?,
        };
        product(backend, ws, part, &x, add)?;
        converted = Some(x);
    }
    Ok(())
}

/// Leaves the source in 16 bits in the workspace, as products with `w` want it.
pub(super) fn convert(
    backend: &CudaBackend,
    ws: &mut Workspace,
    source: Source,
    n_rows: usize,
    w: &Weight,
) -> Result<Matrix16> {
    let (cols, is_bf16) = (w.cols, is_bf16(w));
    if n_rows > ws.shape.max_rows || cols > ws.shape.max_cols {
        let (rows, max) = (ws.shape.max_rows, ws.shape.max_cols);
        return Err(Error::invalid(format!("{n_rows} rows of {cols} in a workspace for {rows} of {max}")));
    }
    let (out, device) = (ws.activations.address(), &backend.device);
    let ty = if is_bf16 { "bf16" } else { "f16" };
    let n_elems = n_rows * cols;
    match source {
        Source::Rows(Rows { x, norm: None }) => round(backend, out, x, n_elems, is_bf16, 1.0),
        Source::Rows(Rows { x, norm: Some((weight, eps)) }) => {
            let params = params::Norm { out, x, weight, width: word(cols), eps };
            let n_threads = word(cols.div_ceil(32 * CONVERTED_AT_ONCE) * 32).clamp(32, MAX_NORM_THREADS);
            device.launch(&format!("norm_to_{ty}"), [n_rows, 1, 1], n_threads, 0, &params)
        }
        Source::Glu { gate, up } => {
            let params = params::Glu { out, gate, up, n_elems: n_elems as u64 };
            let grid = blocks_of(n_elems / CONVERTED_AT_ONCE);
            device.launch(&format!("glu_to_{ty}"), grid, ELEMENT_THREADS, 0, &params)
        }
    }?;
    Ok(Matrix16 { address: out, rows: n_rows, cols, is_bf16 })
}

/// Leaves `scale` times each of `n_elems` elements at `x` in 16 bits at `out`.
pub(super) fn round(
    backend: &CudaBackend,
    out: Address,
    x: Address,
    n_elems: usize,
    is_bf16: bool,
    scale: f32,
) -> Result<()> {
    let params = params::Convert { out, x, n_elems: n_elems as u64, scale, unused: 0 };
    let kernel = if is_bf16 { "rows_to_bf16" } else { "rows_to_f16" };
    backend.device.launch(kernel, blocks_of(n_elems / CONVERTED_AT_ONCE), ELEMENT_THREADS, 0, &params)
}

/// The product of a matrix and converted rows.
pub(super) fn product(
    backend: &CudaBackend,
    ws: &mut Workspace,
    part: &mut MatmulPart<'_, CudaBackend>,
    x: &Matrix16,
    add: bool,
) -> Result<()> {
    let (rows, n_rows) = (part.w.rows, x.rows);
    let slab = slab_rows(ws, part.w, 1).max(SLAB_ROWS);
    for first in (0..rows).step_by(slab) {
        let w = converted_rows(backend, ws, part.w, first..rows.min(first + slab), 0)?;
        let out = part.out.f32s(n_rows * rows)? + (first * size_of::<f32>()) as u64;
        multiply(backend, ws, &Product { out, out_width: rows, x: *x, w, add })?;
    }
    match part.bias {
        None => Ok(()),
        Some(bias) => {
            let (out, bias) = (part.out.f32s(n_rows * rows)?, bias.f32s(rows)?);
            let params = params::Bias { out, bias, n_rows: word(n_rows), width: word(rows) };
            backend.device.launch("add_bias", blocks_of(n_rows * rows), ELEMENT_THREADS, 0, &params)
        }
    }
}

/// Whether [`gated`] computes `silu(gate) * up` of so many rows, for a product with `down`.
pub(super) fn takes_gated(
    backend: &CudaBackend,
    ws: &Workspace,
    [gate, up, down]: [&Linear<CudaBackend>; 3],
    n_rows: usize,
) -> Result<bool> {
    let (all, w) = ([gate, up, down], &gate.w);
    let is_alike = all.iter().all(|part| is_bf16(&part.w) == is_bf16(w) && takes_many(ws, &part.w, n_rows))
        && is_16_bit(w) == is_16_bit(&up.w)
        && (up.w.rows, up.w.cols) == (w.rows, w.cols);
    let fits = is_alike && gate.bias.is_none() && up.bias.is_none() && slab_rows(ws, w, 2) > 0;
    Ok(fits && gemm_sm90::takes(backend, n_rows, [w.rows, w.cols], Output::Glu)?)
}

/// `silu(gate) * up` of converted rows, in 16 bits, to (x.rows, gate.rows) at `out`.
pub(super) fn gated(
    backend: &CudaBackend,
    ws: &mut Workspace,
    [gate, up]: [&Weight; 2],
    x: &Matrix16,
    out: Address,
) -> Result<Matrix16> {
    let (rows, cols) = (gate.rows, gate.cols);
    let slab = slab_rows(ws, gate, 2);
    for first in (0..rows).step_by(slab) {
        let of_slab = first..rows.min(first + slab);
        let elems = of_slab.len() * cols;
        let gates = converted_rows(backend, ws, gate, of_slab.clone(), 0)?;
        let ups = converted_rows(backend, ws, up, of_slab, elems)?;
        let product = Product { out: out + 2 * first as u64, out_width: rows, x: *x, w: gates, add: false };
        gemm_sm90::run(backend, &product, Some(&ups))?;
    }
    Ok(Matrix16 { address: out, cols: rows, ..*x })
}

/// Whether [`heads`] computes queries, keys and values of so many rows, for attention whose results go through `o`.
pub(super) fn takes_heads(
    backend: &CudaBackend,
    ws: &Workspace,
    [q, k, v, o]: [&Linear<CudaBackend>; 4],
    n_rows: usize,
    head_dim: usize,
) -> Result<bool> {
    let is_bf16 = is_bf16(&q.w);
    let fits = |part: &&Linear<CudaBackend>| {
        part.bias.is_none() && self::is_bf16(&part.w) == is_bf16 && slab_rows(ws, &part.w, 1) >= head_dim
    };
    let fit = [q, k, v].iter().all(fits) && [q, k, v, o].iter().all(|part| takes_many(ws, &part.w, n_rows));
    Ok(fit && gemm_sm90::takes(backend, n_rows, [q.w.rows, q.w.cols], Output::Replace)?)
}

/// Heads of converted rows: queries, keys or values.
pub(super) fn heads(
    backend: &CudaBackend,
    ws: &mut Workspace,
    w: &Weight,
    x: &Matrix16,
    shape: &KvShape,
    heads: &params::Heads,
) -> Result<()> {
    let head_dim = shape.head_dim;
    let slab = slab_rows(ws, w, 1) / head_dim * head_dim;
    for first in (0..w.rows).step_by(slab) {
        let w = converted_rows(backend, ws, w, first..w.rows.min(first + slab), 0)?;
        let heads = params::Heads { first_head: word(first / head_dim), ..*heads };
        gemm_sm90::run_heads(backend, x, &w, shape, &heads)?;
    }
    Ok(())
}

/// Rows of the matrix that are multiplied at once where the workspace has room for those of `n` like it.
fn slab_rows(ws: &Workspace, w: &Weight, n: usize) -> usize {
    if is_16_bit(w) {
        w.rows
    } else {
        w.rows.min(ws.dequantized.n_bytes() / 2 / w.cols / n / SLAB_ROWS * SLAB_ROWS)
    }
}

/// Rows of a matrix in 16 bits: where they are, or converted to the workspace from element `at` on.
fn converted_rows(
    backend: &CudaBackend,
    ws: &mut Workspace,
    w: &Weight,
    rows: Range<usize>,
    at: usize,
) -> Result<Matrix16> {
    let source = w.rows_from(rows.start, rows.len());
    let of = |address| Matrix16 { address, rows: rows.len(), cols: w.cols, is_bf16: is_bf16(w) };
    if is_16_bit(w) {
        return Ok(of(source.data));
    }
    let n_elems = rows.len() * w.cols;
    if (at + n_elems) * 2 > ws.dequantized.n_bytes() {
        return Err(Error::invalid(format!("a matrix of {} columns in a workspace for less", w.cols)));
    }
    let converted = of(ws.dequantized.address() + 2 * at as u64);
    let params = params::Dequant { out: converted.address, w: source };
    let name = format!("dequant_{}", type_name(w)?);
    backend.device.launch(&name, blocks_of(n_elems / CONVERTED_AT_ONCE), ELEMENT_THREADS, 0, &params)?;
    Ok(converted)
}

fn multiply(backend: &CudaBackend, ws: &Workspace, product: &Product) -> Result<()> {
    let Product { out, out_width, x, w, add } = *product;
    let is_aligned = out_width.is_multiple_of(8);
    if is_aligned && gemm_sm90::takes(backend, x.rows, [w.rows, w.cols], Output::Replace)? {
        return gemm_sm90::run(backend, product, None);
    }
    let is_done = match &backend.blas {
        Some(blas) => blas.run(product, &ws.blas)?,
        None => false,
    };
    if is_done {
        return Ok(());
    }
    let params = params::Gemm {
        out,
        x: x.address,
        w: w.address,
        n: word(x.rows),
        m: word(w.rows),
        k: word(w.cols),
        out_width: word(out_width),
        add: u32::from(add),
        unused: 0,
    };
    let grid = [w.rows.div_ceil(GEMM_TILE), x.rows.div_ceil(GEMM_TILE), 1];
    let name = if w.is_bf16 { "gemm_bf16" } else { "gemm_f16" };
    backend.device.launch(name, grid, 256, GEMM_SHARED_BYTES, &params)
}
