//! Products of matrices and activations.
//!
//! In `exact` precision everything is multiplied in f32, every warp one output. In `fast` precision products go through the
//! tensor cores in 16 bits. A few rows wait for the matrix, which is read as it lies, in f32 if the tensor cores cannot take
//! it so; for many, see [`gemm`].

use super::gemm::{self, Source, many_rows, takes_many};
use super::params::{self, MAX_PRODUCTS};
use super::workspace::Workspace;
use super::{CudaBackend, matvec};
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Threads of the kernels that go through elements one by one.
pub(super) const ELEMENT_THREADS: u32 = 256;

/// The grid of such a kernel.
pub(super) fn blocks_of(n_elems: usize) -> [usize; 3] {
    [n_elems.div_ceil(ELEMENT_THREADS as usize), 1, 1]
}

/// What becomes of the products.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Replace,
    Add,
    /// `silu(first) * second` of two
    Glu,
}

/// Rows that are multiplied, (n_rows, cols) floats, as they are or normed.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub x: params::Address,
    /// The weight of the norm, and what is added to the mean square
    pub norm: Option<(params::Address, f32)>,
}

impl Rows {
    pub fn new(input: &Input<'_, CudaBackend>, n_rows: usize, cols: usize) -> Result<Self> {
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

/// With a few rows, the norm and the gated units are computed within the products; with many, where they are converted to
/// 16 bits.
pub(super) fn mlp(backend: &CudaBackend, ws: &mut Workspace, args: MlpArgs<'_, CudaBackend>) -> Result<()> {
    let MlpArgs { x, n_rows, norm, eps, gate, up, down, d_ff, activation, scratch } = args;
    let Activation::Silu = activation;
    let [normed, gates, ups] = scratch;
    let widths = [gate.w.rows, up.w.rows, down.w.cols];
    if widths != [d_ff; 3] {
        return Err(Error::invalid(format!("a perceptron of {d_ff} with matrices for {widths:?}")));
    }
    let n_elems = n_rows * d_ff;
    let input = Input::Norm(Norm { x: &*x, first_row: 0, weight: norm, eps, scratch: normed });
    let is_alike = gate.w.ty == up.w.ty && gate.w.cols == up.w.cols;
    let is_mma = matvec::takes_mma(ws, &gate.w) && matvec::takes_mma(ws, &up.w);
    if is_alike && is_mma && !takes_many(ws, &gate.w, n_rows) {
        let rows = Rows::new(&input, n_rows, gate.w.cols)?;
        let mut parts = [gate.to(gates), up.to(ups)];
        matvec::few_rows(backend, ws, &mut parts.each_mut(), rows, n_rows, Output::Glu)?;
    } else if gemm::takes_gated(backend, ws, [gate, up, down], n_rows)? {
        let rows = Rows::new(&input, n_rows, gate.w.cols)?;
        let normed = gemm::convert(backend, ws, Source::Rows(rows), n_rows, &gate.w)?;
        let hidden = gemm::gated(backend, ws, [&gate.w, &up.w], &normed, gates.f32s(n_elems)?)?;
        return gemm::product(backend, ws, &mut down.to(x), &hidden, true);
    } else {
        let parts = &mut [gate.to(gates), up.to(ups)];
        matmul(backend, ws, MatmulArgs { parts, input, n_rows, add: false })?;
        if takes_many(ws, &down.w, n_rows) {
            let source = Source::Glu { gate: gates.f32s(n_elems)?, up: ups.f32s(n_elems)? };
            return many_rows(backend, ws, &mut [&mut down.to(x)], source, n_rows, true);
        }
        glu(backend, GluArgs { gate: gates, up: ups, activation, n_elems })?;
    }
    let parts = &mut [down.to(x)];
    matmul(backend, ws, MatmulArgs { parts, input: Input::Rows(gates), n_rows, add: true })
}
