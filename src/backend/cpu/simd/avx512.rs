//! Lanes as one register of 512 bits.
//!
//! Everything here is called from code that [`Level::run`](super::Level::run) compiled for these instructions on a
//! machine that has them; that is what every SAFETY comment below refers to as "the level".

use std::arch::x86_64::*;

use super::{LANES, Lanes, PAIR};

#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// Wraps intrinsics that only need the level.
macro_rules! level {
    ($e:expr) => {
        // SAFETY: the level; any pointer in it comes from a slice whose length was checked just before.
        unsafe { $e }
    };
}

impl Lanes for Avx512 {
    type Quants = __m512i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(level!(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..LANES];
        Self(level!(_mm512_loadu_ps(from.as_ptr())))
    }

    #[inline(always)]
    fn load_f16(from: &[u16]) -> Self {
        let from = &from[..LANES];
        Self(level!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_i8(from: &[i8]) -> Self {
        let from = &from[..LANES];
        Self(level!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))))
    }

    #[inline(always)]
    fn half(bits: u16) -> f32 {
        level!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.into()))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..LANES];
        level!(_mm512_storeu_ps(to.as_mut_ptr(), self.0));
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16]) {
        let to = &mut to[..LANES];
        level!({
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        });
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(level!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(level!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(level!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(level!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(level!(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(level!(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        Self(level!(_mm512_fmadd_ps(self.0, a.0, b.0)))
    }

    #[inline(always)]
    fn exp2_of_biased(self) -> Self {
        level!({
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000))))
        })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        level!({
            let low = _mm512_castps512_ps256(self.0);
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            super::avx2::sum_of_8(_mm256_add_ps(low, high))
        })
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        level!(_mm512_reduce_max_ps(self.0))
    }

    #[inline(always)]
    fn nibbles(first: &[u8], second: &[u8]) -> Self::Quants {
        let (first, second) = (&first[..16], &second[..16]);
        level!({
            // (first, first >> 4, second, second >> 4), then the upper nibbles away.
            let a = _mm_loadu_si128(first.as_ptr().cast());
            let b = _mm_loadu_si128(second.as_ptr().cast());
            let twice = _mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(_mm256_broadcastsi128_si256(a)),
                _mm256_broadcastsi128_si256(b),
            );
            let shift = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
            _mm512_and_si512(_mm512_srlv_epi64(twice, shift), _mm512_set1_epi8(15))
        })
    }

    #[inline(always)]
    fn bytes(first: &[u8], second: &[u8]) -> Self::Quants {
        let (first, second) = (&first[..32], &second[..32]);
        level!({
            let a = _mm256_loadu_si256(first.as_ptr().cast());
            let b = _mm256_loadu_si256(second.as_ptr().cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
        })
    }

    #[inline(always)]
    fn dot_nibbles(weights: Self::Quants, x: &[i8]) -> Self {
        let x = &x[..PAIR];
        level!({
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, x)))
        })
    }

    #[inline(always)]
    fn dot_bytes(weights: Self::Quants, x: &[i8]) -> Self {
        let x = &x[..PAIR];
        level!({
            // |w| * (x with the sign of w): the instruction wants its first factor unsigned, and |-128| fits there.
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            let negative = _mm512_movepi8_mask(weights);
            let signed = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            let dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_abs_epi8(weights), signed);
            Self(_mm512_cvtepi32_ps(dots))
        })
    }

    #[inline(always)]
    fn halves(first: f32, second: f32) -> Self {
        Self(level!(_mm512_mask_broadcastss_ps(_mm512_set1_ps(first), 0xff00, _mm_set_ss(second))))
    }
}
