//! The ops that go through their rows one by one: little arithmetic, much memory.

use super::CpuBackend;
use super::quant::Widen;
use super::simd::{Kernel, Lanes, Simd};
use super::team::Crew;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Elements of an item: what a thread computes in a few microseconds. Less than two items are not worth handing over.
const ITEM_ELEMS: usize = 16 << 10;

/// Rows of `width` elements that make an item.
fn rows_an_item(width: usize) -> usize {
    (ITEM_ELEMS / width.max(1)).max(1)
}

pub(super) fn embed(simd: Simd, crew: Crew<'_>, args: EmbedArgs<'_, CpuBackend>) -> Result<()> {
    let EmbedArgs { out, table, tokens, n_tokens, scale } = args;
    let tokens = &tokens.of::<u32>()[..n_tokens];
    let (width, row_bytes) = (table.cols, table.bytes().len() / table.rows);
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= table.rows) {
        return Err(Error::invalid(format!("token {token} of a vocabulary of {}", table.rows)));
    }
    let out = &mut out.of_mut::<f32>()[..tokens.len() * width];
    let n_rows = rows_an_item(width);
    crew.for_each_chunk(out, n_rows * width, &mut [], |_, i, out| {
        for (out, &token) in out.chunks_exact_mut(width).zip(&tokens[i * n_rows..]) {
            let at = token as usize * row_bytes;
            simd.dispatch(Widen { out, ty: table.ty, row: &table.bytes()[at..at + row_bytes] });
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    })
}

/// Leaves the norm of `n_rows` rows of `width` elements in `norm.scratch`.
pub(super) fn norm(
    simd: Simd,
    crew: Crew<'_>,
    norm: &mut Norm<'_, CpuBackend>,
    n_rows: usize,
    width: usize,
) -> Result<()> {
    let Norm { x, first_row, weight, eps, scratch } = norm;
    let x = &x.of::<f32>()[*first_row * width..(*first_row + n_rows) * width];
    let (out, weight) = (&mut scratch.of_mut::<f32>()[..n_rows * width], &weight.of::<f32>()[..width]);
    let chunk = rows_an_item(width) * width;
    crew.for_each_chunk(out, chunk, &mut [], |_, i, out| {
        for (out, x) in out.chunks_exact_mut(width).zip(x[i * chunk..].chunks_exact(width)) {
            simd.dispatch(NormRow { out, x, weight, eps: *eps });
        }
    })
}

struct NormRow<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let (chunks, tail) = self.x.as_chunks::<16>();
        let mut last = [0.0; 16];
        last[..tail.len()].copy_from_slice(tail);
        let last = simd.load(&last);
        let mut squares = [simd.splat(0.0), simd.mul(last, last)];
        for (i, x) in chunks.iter().enumerate() {
            let x = simd.load(x);
            squares[i % 2] = simd.fma(x, x, squares[i % 2]);
        }
        let mean = simd.sum(simd.add(squares[0], squares[1])) / self.x.len() as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * factor * weight;
        }
    }
}

pub(super) fn glu(simd: Simd, crew: Crew<'_>, args: GluArgs<'_, CpuBackend>) -> Result<()> {
    let GluArgs { gate, up, activation: Activation::Silu, n_elems } = args;
    let (gate, up) = (&mut gate.of_mut::<f32>()[..n_elems], &up.of::<f32>()[..n_elems]);
    crew.for_each_chunk(gate, ITEM_ELEMS / 2, &mut [], |_, i, gate| {
        let up = &up[i * (ITEM_ELEMS / 2)..][..gate.len()];
        simd.dispatch(Silu { gate, up });
    })
}

struct Silu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

/// x / (1 + exp(-x)) * up
#[inline(always)]
fn silu<S: Lanes>(simd: S, gate: &mut [f32; 16], up: &[f32; 16]) {
    let x = simd.load(gate);
    let power = simd.exp(simd.mul(x, simd.splat(-1.0)));
    let silu = simd.div(x, simd.add(simd.splat(1.0), power));
    simd.store(gate, simd.mul(silu, simd.load(up)));
}

impl Kernel for Silu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let (gates, gate_tail) = self.gate.as_chunks_mut::<16>();
        let (ups, up_tail) = self.up.as_chunks::<16>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            silu(simd, gate, up);
        }
        let (mut gate, mut up) = ([0.0; 16], [0.0; 16]);
        gate[..gate_tail.len()].copy_from_slice(gate_tail);
        up[..up_tail.len()].copy_from_slice(up_tail);
        silu(simd, &mut gate, &up);
        gate_tail.copy_from_slice(&gate[..gate_tail.len()]);
    }
}

pub(super) fn rope_table(crew: Crew<'_>, args: RopeTableArgs<'_, CpuBackend>) -> Result<()> {
    let RopeTableArgs { out, inv_freq, n_pairs, attention_factor, seqs } = args;
    let (inv_freq, width) = (&inv_freq.of::<f32>()[..n_pairs], 2 * n_pairs);
    for desc in seqs.iter().filter(|_| width > 0) {
        let first = desc.row as usize * width;
        let rows = &mut out.of_mut::<f32>()[first..first + desc.n_tokens as usize * width];
        let n_rows = rows_an_item(width * 8);
        crew.for_each_chunk(rows, n_rows * width, &mut [], |_, i, rows| {
            for (row, token) in rows.chunks_exact_mut(width).zip(i * n_rows..) {
                let position = (desc.pos as usize + token) as f32;
                for (pair, &inv_freq) in row.as_chunks_mut::<2>().0.iter_mut().zip(inv_freq) {
                    let (sin, cos) = f64::from(position * inv_freq).sin_cos();
                    *pair = [round(cos) * attention_factor, round(sin) * attention_factor];
                }
            }
        })?;
    }
    Ok(())
}

/// One thread: a row is gone through once, and few of its elements are among the largest so far.
pub(super) fn top(args: TopArgs<'_, CpuBackend>) {
    let TopArgs { values, columns, x, width, n } = args;
    let (values, columns) = (&mut values.of_mut::<f32>()[..n], &mut columns.of_mut::<u32>()[..n]);
    let mut held = 0;
    for (column, &value) in (0u32..).zip(&x.of::<f32>()[..width]) {
        let rank = rank(value);
        if held == n && (n == 0 || rank <= self::rank(values[n - 1])) {
            continue;
        }
        let at = values[..held].partition_point(|&other| self::rank(other) >= rank);
        held = n.min(held + 1);
        values[at..held].rotate_right(1);
        columns[at..held].rotate_right(1);
        (values[at], columns[at]) = (value, column);
    }
}

/// A number in the order of [`f32::total_cmp`], above that of any NaN.
fn rank(x: f32) -> u32 {
    let bits = x.to_bits();
    match (x.is_nan(), bits >> 31) {
        (true, _) => 0,
        (false, 0) => bits | 1 << 31,
        (false, _) => !bits,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is wanted")]
fn round(x: f64) -> f32 {
    x as f32
}
