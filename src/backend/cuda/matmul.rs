//! Products of matrices and activations.
//!
//! In `exact` precision everything is multiplied in f32, every warp one output. In `fast` precision products go through the
//! tensor cores in 16 bits: bf16 where the matrix is, f16 elsewhere. A few rows wait for the matrix, which is read as it
//! lies, in f32 if the tensor cores cannot take it so; for many, a matrix that is not of 16 bits is converted, so many of its
//! rows at a time that their copy fits in the workspace.

use super::CudaBackend;
use super::blas::Product;
use super::matvec::{self, Output};
use super::params::{self, MAX_PRODUCTS, word};
use super::weight::{Weight, kernel_name};
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

/// Threads of the kernels that go through elements one by one; elements that those that convert take at once.
const ELEMENT_THREADS: u32 = 256;
const CONVERTED_AT_ONCE: usize = 8;

/// Most threads that norm a row.
const MAX_NORM_THREADS: u32 = 1024;

/// Matrix rows are converted in multiples of this, so that outputs stay aligned.
const SLAB_ROWS: usize = 64;

/// Tile of our own product, and the shared memory of its three stages.
const GEMM_TILE: usize = 128;
const GEMM_SHARED_BYTES: u32 = 3 * 2 * 128 * (32 + 8) * 2;

/// Rows that are multiplied, (n_rows, cols) floats, as they are or normed.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub x: params::Address,
    /// The weight of the norm, and what is added to the mean square
    pub norm: Option<(params::Address, f32)>,
}

impl Rows {
    fn new(input: &Input<'_, CudaBackend>, n_rows: usize, cols: usize) -> Result<Self> {
        match input {
            Input::Rows(x) => Ok(Self { x: x.f32s(n_rows * cols)?, norm: None }),
            Input::Norm(Norm { x, first_row, weight, eps, .. }) => {
                let first = x.f32s((first_row + n_rows) * cols)?;
                let x = first + (first_row * cols * size_of::<f32>()) as u64;
                Ok(Self { x, norm: Some((weight.f32s(cols)?, *eps)) })
            }
        }
    }
}

/// What is converted to 16 bits.
#[derive(Clone, Copy)]
enum Source {
    Rows(Rows),
    /// `silu(gate) * up`, each (n_rows, cols)
    Glu {
        gate: params::Address,
        up: params::Address,
    },
}

pub(super) fn matmul(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: MatmulArgs<'_, '_, CudaBackend>,
) -> Result<()> {
    let MatmulArgs { parts, input, n_rows, add } = args;
    let cols = parts.first().map_or(0, |part| part.w.cols);
    if parts.iter().any(|part| part.w.cols != cols) {
        return Err(Error::invalid("matrices with inputs of different widths"));
    }
    let rows = Rows::new(&input, n_rows, cols)?;
    let (mut many, mut few): (Vec<_>, Vec<_>) =
        parts.iter_mut().partition(|part| takes_many(ws, part.w, n_rows));
    let output = if add { Output::Add } else { Output::Replace };
    // One launch for neighbours of a type.
    for parts in few.chunk_by_mut(|a, b| a.w.ty == b.w.ty) {
        for parts in parts.chunks_mut(MAX_PRODUCTS) {
            matvec::few_rows(backend, ws, parts, rows, n_rows, output)?;
        }
    }
    many_rows(backend, ws, &mut many, Source::Rows(rows), n_rows, add)
}

pub(super) fn glu(backend: &CudaBackend, args: GluArgs<'_, CudaBackend>) -> Result<()> {
    let GluArgs { gate, up, activation: Activation::Silu, n_elems } = args;
    let (gate, up) = (gate.f32s(n_elems)?, up.f32s(n_elems)?);
    let params = params::Glu { out: gate, gate, up, n_elems: n_elems as u64 };
    backend.device.launch("glu_silu", blocks_of(n_elems), ELEMENT_THREADS, 0, &params)
}

/// With a few rows, the norm and the gated units are computed within the products; with many, where their inputs are
/// converted to 16 bits.
pub(super) fn mlp(backend: &CudaBackend, ws: &mut Workspace, args: MlpArgs<'_, CudaBackend>) -> Result<()> {
    let MlpArgs { x, n_rows, norm, eps, gate, up, down, d_ff, activation, scratch } = args;
    let Activation::Silu = activation;
    let [normed, gates, ups] = scratch;
    let widths = [gate.w.rows, up.w.rows, down.w.cols];
    if widths != [d_ff; 3] {
        return Err(Error::invalid(format!("a perceptron of {d_ff} with matrices for {widths:?}")));
    }
    let input = Input::Norm(Norm { x: &*x, first_row: 0, weight: norm, eps, scratch: normed });
    let mut parts = [gate.to(gates), up.to(ups)];
    let is_alike = gate.w.ty == up.w.ty && gate.w.cols == up.w.cols;
    let is_mma = matvec::takes_mma(ws, &gate.w) && matvec::takes_mma(ws, &up.w);
    if is_alike && is_mma && !takes_many(ws, &gate.w, n_rows) {
        let rows = Rows::new(&input, n_rows, gate.w.cols)?;
        matvec::few_rows(backend, ws, &mut parts.each_mut(), rows, n_rows, Output::Glu)?;
    } else {
        matmul(backend, ws, MatmulArgs { parts: &mut parts, input, n_rows, add: false })?;
        if takes_many(ws, &down.w, n_rows) {
            let n_elems = n_rows * d_ff;
            let source = Source::Glu { gate: gates.f32s(n_elems)?, up: ups.f32s(n_elems)? };
            return many_rows(backend, ws, &mut [&mut down.to(x)], source, n_rows, true);
        }
        glu(backend, GluArgs { gate: gates, up: ups, activation, n_elems: n_rows * d_ff })?;
    }
    let parts = &mut [down.to(x)];
    matmul(backend, ws, MatmulArgs { parts, input: Input::Rows(gates), n_rows, add: true })
}

/// Whether many rows are multiplied in another way than a few, and these are many.
fn takes_many(ws: &Workspace, w: &Weight, n_rows: usize) -> bool {
    let few = if is_16_bit(w) { FEW_ROWS } else { FEW_ROWS_CONVERTED };
    ws.precision == Precision::Fast && n_rows > few && w.cols.is_multiple_of(8)
}

/// Whether the tensor cores take the matrix as it is.
fn is_16_bit(w: &Weight) -> bool {
    matches!(w.ty, TensorType::BF16 | TensorType::F16)
}

/// Products of matrices with the same many rows.
fn many_rows(
    backend: &CudaBackend,
    ws: &mut Workspace,
    parts: &mut [&mut MatmulPart<'_, CudaBackend>],
    source: Source,
    n_rows: usize,
    add: bool,
) -> Result<()> {
    let Some(cols) = parts.first().map(|part| part.w.cols) else { return Ok(()) };
    if n_rows > ws.shape.max_rows || cols > ws.shape.max_cols {
        let (rows, max) = (ws.shape.max_rows, ws.shape.max_cols);
        return Err(Error::invalid(format!("{n_rows} rows of {cols} in a workspace for {rows} of {max}")));
    }
    let mut converted = None;
    for part in parts {
        let is_bf16 = part.w.ty == TensorType::BF16;
        if converted != Some(is_bf16) {
            convert(backend, ws, source, n_rows, cols, is_bf16)?;
            converted = Some(is_bf16);
        }
        product(backend, ws, part, n_rows, is_bf16, add)?;
    }
    Ok(())
}

/// Leaves the source in 16 bits in the workspace.
fn convert(
    backend: &CudaBackend,
    ws: &mut Workspace,
    source: Source,
    n_rows: usize,
    cols: usize,
    is_bf16: bool,
) -> Result<()> {
    let (out, device) = (ws.activations.address(), &backend.device);
    let ty = if is_bf16 { "bf16" } else { "f16" };
    let n_elems = (n_rows * cols) as u64;
    let grid = blocks_of(n_rows * cols / CONVERTED_AT_ONCE);
    match source {
        Source::Rows(Rows { x, norm: None }) => {
            let params = params::Convert { out, x, n_elems };
            device.launch(&format!("rows_to_{ty}"), grid, ELEMENT_THREADS, 0, &params)
        }
        Source::Rows(Rows { x, norm: Some((weight, eps)) }) => {
            let params = params::Norm { out, x, weight, width: word(cols), eps };
            let n_threads = word(cols.div_ceil(32 * CONVERTED_AT_ONCE) * 32).clamp(32, MAX_NORM_THREADS);
            device.launch(&format!("norm_to_{ty}"), [n_rows, 1, 1], n_threads, 0, &params)
        }
        Source::Glu { gate, up } => {
            let params = params::Glu { out, gate, up, n_elems };
            device.launch(&format!("glu_to_{ty}"), grid, ELEMENT_THREADS, 0, &params)
        }
    }
}

/// The product with the converted activations.
fn product(
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
fn blocks_of(n_elems: usize) -> [usize; 3] {
    [n_elems.div_ceil(ELEMENT_THREADS as usize), 1, 1]
}

pub(super) fn type_name(w: &Weight) -> Result<&'static str> {
    kernel_name(w.ty).map(|(name, _)| name).ok_or_else(|| Error::unsupported(format!("{} weights", w.ty)))
}
