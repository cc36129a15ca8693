//! Products of matrices and activations.
//!
//! A few rows, and all rows in `exact` precision, are multiplied in f32, every warp one output; quantised matrices with a
//! few rows in f16, unless exactly. Many rows go through the tensor cores in 16 bits: bf16 where the matrix is, f16
//! elsewhere. Other matrices are converted on the way, so many rows at a time that their copy fits in the workspace.

use super::CudaBackend;
use super::blas::Product;
use super::params::{self, MAX_PRODUCTS, filled, word};
use super::weight::{QUANT_BLOCK, Weight, kernel_name};
use super::workspace::Workspace;
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

/// Rows of a matrix that one block of the kernel multiplies; rows of x that it multiplies with.
const MATVEC_ROWS: usize = 4;
const MATVEC_X_ROWS: [usize; 3] = [1, 4, 8];

/// Rows of a quantised matrix that one block multiplies on the tensor cores, with how many warps; rows of x that it
/// multiplies with.
const QUANT_ROWS: usize = 16;
const QUANT_WARPS: usize = 8;
const QUANT_X_ROWS: usize = 8;

/// Threads of the kernels that go through elements one by one.
const ELEMENT_THREADS: u32 = 256;

/// Matrix rows are converted in multiples of this, so that outputs stay aligned.
const SLAB_ROWS: usize = 64;

/// Tile of our own product, and the shared memory of its three stages.
const GEMM_TILE: usize = 128;
const GEMM_SHARED_BYTES: u32 = 3 * 2 * 128 * (32 + 8) * 2;

pub(super) fn matmul(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: MatmulArgs<'_, '_, CudaBackend>,
) -> Result<()> {
    let MatmulArgs { parts, x, n_rows, add } = args;
    let cols = parts.first().map_or(0, |part| part.w.cols);
    if parts.iter().any(|part| part.w.cols != cols) {
        return Err(Error::invalid("matrices with inputs of different widths"));
    }
    let is_fast = |w: &Weight| {
        let few = if is_16_bit(w) { FEW_ROWS } else { FEW_ROWS_CONVERTED };
        ws.precision == Precision::Fast && n_rows > few && cols % 8 == 0
    };
    let (mut fast, mut slow): (Vec<_>, Vec<_>) = parts.iter_mut().partition(|part| is_fast(part.w));
    let x = x.f32s(n_rows * cols)?;
    // One launch for neighbours of a type.
    for parts in slow.chunk_by_mut(|a, b| a.w.ty == b.w.ty) {
        for parts in parts.chunks_mut(MAX_PRODUCTS) {
            matvec(backend, ws.precision, parts, x, n_rows, add)?;
        }
    }
    if fast.is_empty() {
        return Ok(());
    }
    if n_rows > ws.shape.max_rows || cols > ws.shape.max_cols {
        let (rows, max) = (ws.shape.max_rows, ws.shape.max_cols);
        return Err(Error::invalid(format!("{n_rows} rows of {cols} in a workspace for {rows} of {max}")));
    }
    let mut converted = None;
    for part in &mut fast {
        let is_bf16 = part.w.ty == TensorType::BF16;
        if converted != Some(is_bf16) {
            convert(backend, ws, x, n_rows * cols, is_bf16)?;
            converted = Some(is_bf16);
        }
        many_rows(backend, ws, part, n_rows, is_bf16, add)?;
    }
    Ok(())
}

/// Whether the tensor cores take the matrix as it is.
fn is_16_bit(w: &Weight) -> bool {
    matches!(w.ty, TensorType::BF16 | TensorType::F16)
}

/// Products of matrices of one type, at most [`MAX_PRODUCTS`], with a few rows.
fn matvec(
    backend: &CudaBackend,
    precision: Precision,
    parts: &mut [&mut MatmulPart<'_, CudaBackend>],
    x: params::Address,
    n_rows: usize,
    add: bool,
) -> Result<()> {
    let name = type_name(parts[0].w)?;
    let is_quant = precision == Precision::Fast && parts[0].w.is_quantized();
    let rows_at_once = if is_quant { QUANT_ROWS } else { MATVEC_ROWS };
    let mut n_blocks = 0;
    let mut of_part = |part: &mut &mut MatmulPart<'_, CudaBackend>| {
        let first_block = word(n_blocks);
        n_blocks += part.w.rows.div_ceil(rows_at_once);
        Ok(params::MatvecPart {
            out: part.out.f32s(n_rows * part.w.rows)?,
            w: part.w.params(),
            bias: part.bias.map_or(Ok(0), |bias| bias.f32s(part.w.rows))?,
            first_block,
            unused: 0,
        })
    };
    let described = parts.iter_mut().map(&mut of_part).collect::<Result<Vec<_>>>()?;
    let params = params::Matvec {
        parts: filled(&described),
        x,
        n_parts: word(described.len()),
        n_rows: word(n_rows),
        add: u32::from(add),
        unused: 0,
    };
    if is_quant {
        let grid = [n_blocks, n_rows.div_ceil(QUANT_X_ROWS), 1];
        let shared_bytes = word(quant_shared_bytes(parts[0].w.ty, n_rows.min(QUANT_X_ROWS)));
        let name = format!("matvec_quant_{name}");
        return backend.device.launch(&name, grid, 32 * word(QUANT_WARPS), shared_bytes, &params);
    }
    let largest = MATVEC_X_ROWS[MATVEC_X_ROWS.len() - 1];
    let at_once = MATVEC_X_ROWS.into_iter().find(|&n| n >= n_rows).unwrap_or(largest);
    let grid = [n_blocks, n_rows.div_ceil(at_once), 1];
    backend.device.launch(&format!("matvec{at_once}_{name}"), grid, 32 * word(MATVEC_ROWS), 0, &params)
}

/// Shared memory of the kernel for quantised matrices: what its warps hold of x, four lanes with 64 bytes of quants each,
/// or the sums of all warps.
fn quant_shared_bytes(ty: TensorType, n_x: usize) -> usize {
    let blocks = if ty == TensorType::Q8_0 { 2 } else { 4 };
    let x_bytes = 4 * (blocks * QUANT_BLOCK * 2 + 8);
    QUANT_WARPS * (n_x * x_bytes).max(QUANT_ROWS * QUANT_X_ROWS * size_of::<f32>())
}

fn convert(
    backend: &CudaBackend,
    ws: &mut Workspace,
    x: params::Address,
    n_elems: usize,
    is_bf16: bool,
) -> Result<()> {
    let name = if is_bf16 { "to_bf16" } else { "to_f16" };
    let params = params::Convert { out: ws.activations.address(), x, n_elems: n_elems as u64 };
    backend.device.launch(name, blocks_of(n_elems), ELEMENT_THREADS, 0, &params)
}

/// The product with the converted activations.
fn many_rows(
    backend: &CudaBackend,
    ws: &mut Workspace,
    part: &mut MatmulPart<'_, CudaBackend>,
    n_rows: usize,
    is_bf16: bool,
    add: bool,
) -> Result<()> {
    let (rows, cols) = (part.w.rows, part.w.cols);
    let is_16_bit = is_16_bit(part.w);
    let slab = match is_16_bit {
        true => rows,
        false => rows.min((ws.dequantized.n_bytes() / 2 / cols / SLAB_ROWS * SLAB_ROWS).max(SLAB_ROWS)),
    };
    for first in (0..rows).step_by(slab) {
        let n = slab.min(rows - first);
        let mut w = part.w.rows_from(first, n);
        if !is_16_bit {
            if n * cols * 2 > ws.dequantized.n_bytes() {
                return Err(Error::invalid(format!("a matrix of {cols} columns in a workspace for less")));
            }
            let params = params::Dequant { out: ws.dequantized.address(), w };
            let name = format!("dequant_{}", type_name(part.w)?);
            backend.device.launch(&name, blocks_of(n * cols / 8), ELEMENT_THREADS, 0, &params)?;
            w.data = ws.dequantized.address();
        }
        let out = part.out.f32s(n_rows * rows)? + (first * size_of::<f32>()) as u64;
        let product = Product { n: n_rows, m: n, k: cols, out_width: rows, is_bf16, add };
        let x = ws.activations.address();
        let is_done = match &backend.blas {
            Some(blas) => blas.run(product, out, x, w.data, &ws.blas)?,
            None => false,
        };
        if !is_done {
            own(backend, product, out, x, w.data)?;
        }
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

/// The product by our own kernel.
fn own(
    backend: &CudaBackend,
    product: Product,
    out: params::Address,
    x: params::Address,
    w: params::Address,
) -> Result<()> {
    let Product { n, m, k, out_width, is_bf16, add } = product;
    let name = if is_bf16 { "gemm_bf16" } else { "gemm_f16" };
    let params = params::Gemm {
        out,
        x,
        w,
        n: word(n),
        m: word(m),
        k: word(k),
        out_width: word(out_width),
        add: u32::from(add),
        unused: 0,
    };
    let grid = [m.div_ceil(GEMM_TILE), n.div_ceil(GEMM_TILE), 1];
    backend.device.launch(name, grid, 256, GEMM_SHARED_BYTES, &params)
}

/// The grid of a kernel that goes through elements one by one.
pub(super) fn blocks_of(n_elems: usize) -> [usize; 3] {
    [n_elems.div_ceil(ELEMENT_THREADS as usize), 1, 1]
}

pub(super) fn type_name(w: &Weight) -> Result<&'static str> {
    kernel_name(w.ty).map(|(name, _)| name).ok_or_else(|| Error::unsupported(format!("{} weights", w.ty)))
}
