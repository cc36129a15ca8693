//! Element types of the cache, 16 elements at a time.

use half::f16;

use super::simd::{LANES, Lanes};

/// Largest quant of [`Q8`].
const MAX_QUANT: f32 = 127.0;

/// How the elements of a type lie in a cache block.
pub(super) trait KvElem {
    /// Bytes of one element.
    const BYTES: usize;
    /// The elements that `from` begins with, in units of their row's scale; zeros for those that it lacks.
    fn load<S: Lanes>(simd: S, from: &[u8]) -> S::F;
    /// Writes as many elements, in units of their row's scale, as `to` has room for, at most all.
    fn store<S: Lanes>(simd: S, to: &mut [u8], x: S::F);
    /// Divides a row by its scale, which it returns; types without scales leave the row alone.
    #[inline(always)]
    fn scale_row<S: Lanes>(_: S, _: &mut [f32]) -> f16 {
        f16::ONE
    }
}

/// [`KvType::F32`](crate::backend::args::KvType::F32)
pub(super) struct F32;
/// [`KvType::F16`](crate::backend::args::KvType::F16)
pub(super) struct F16;
/// [`KvType::Bf16`](crate::backend::args::KvType::Bf16)
pub(super) struct Bf16;
/// [`KvType::Q8`](crate::backend::args::KvType::Q8)
pub(super) struct Q8;

impl KvElem for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn load<S: Lanes>(simd: S, from: &[u8]) -> S::F {
        simd.load_f32(from.first_chunk().unwrap_or(&padded(from)))
    }

    #[inline(always)]
    fn store<S: Lanes>(simd: S, to: &mut [u8], x: S::F) {
        let mut elems = [0.0; LANES];
        simd.store(&mut elems, x);
        copy_first(to, bytemuck::bytes_of(&elems));
    }
}

impl KvElem for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Lanes>(simd: S, from: &[u8]) -> S::F {
        simd.load_f16(from.first_chunk().unwrap_or(&padded(from)))
    }

    #[inline(always)]
    fn store<S: Lanes>(simd: S, to: &mut [u8], x: S::F) {
        let mut elems = [0; 32];
        simd.store_f16(&mut elems, x);
        copy_first(to, &elems);
    }
}

impl KvElem for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Lanes>(simd: S, from: &[u8]) -> S::F {
        simd.load_bf16(from.first_chunk().unwrap_or(&padded(from)))
    }

    #[inline(always)]
    fn store<S: Lanes>(simd: S, to: &mut [u8], x: S::F) {
        let mut elems = [0; 32];
        simd.store_bf16(&mut elems, x);
        copy_first(to, &elems);
    }
}

impl KvElem for Q8 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn load<S: Lanes>(simd: S, from: &[u8]) -> S::F {
        simd.load_i8(from.first_chunk().unwrap_or(&padded(from)))
    }

    #[inline(always)]
    fn store<S: Lanes>(simd: S, to: &mut [u8], x: S::F) {
        // A scale that was rounded down, far down if it is subnormal, leaves more than the largest quant.
        let x = simd.max(simd.min(x, simd.splat(MAX_QUANT)), simd.splat(-MAX_QUANT));
        copy_first(to, bytemuck::bytes_of(&simd.to_i8(x)));
    }

    #[inline(always)]
    fn scale_row<S: Lanes>(simd: S, row: &mut [f32]) -> f16 {
        let zero = simd.splat(0.0);
        // The largest number passes NaNs over; zero times a number that is not finite is NaN, and so is the sum then.
        let (mut largest, mut invalid) = (zero, zero);
        for x in row.chunks(LANES) {
            let x = load(simd, x);
            largest = simd.max(simd.abs(x), largest);
            invalid = simd.add(simd.mul(x, zero), invalid);
        }
        let scale = f16::from_f32(simd.largest(largest) / MAX_QUANT + simd.sum(invalid));
        // Clamped quants would be wrong numbers that nobody notices; NaN reaches whoever sees the row.
        let scale = if scale.is_finite() { scale } else { f16::NAN };
        if scale > f16::ZERO {
            let divisor = simd.splat(scale.to_f32());
            for x in row.chunks_mut(LANES) {
                let mut quants = [0.0; LANES];
                simd.store(&mut quants, simd.div(load(simd, x), divisor));
                x.copy_from_slice(&quants[..x.len()]);
            }
        } else {
            row.fill(0.0);
        }
        scale
    }
}

/// The elements that `from` begins with; zeros for those that it lacks.
#[inline(always)]
pub(super) fn load<S: Lanes>(simd: S, from: &[f32]) -> S::F {
    match from.first_chunk() {
        Some(from) => simd.load(from),
        None => {
            let mut elems = [0.0; LANES];
            elems[..from.len()].copy_from_slice(from);
            simd.load(&elems)
        }
    }
}

/// Fills `to` with what `from` begins with.
#[inline(always)]
fn copy_first(to: &mut [u8], from: &[u8]) {
    let n_bytes = to.len().min(from.len());
    to[..n_bytes].copy_from_slice(&from[..n_bytes]);
}

#[inline(always)]
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut all = [0; N];
    let n = bytes.len().min(N);
    all[..n].copy_from_slice(&bytes[..n]);
    all
}
