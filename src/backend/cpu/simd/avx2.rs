//! Lanes as two registers of 256 bits.
//!
//! Everything here is called from code that [`Level::run`](super::Level::run) compiled for these instructions on a
//! machine that has them; that is what every SAFETY comment below refers to as "the level".

use std::arch::x86_64::*;

use super::{LANES, Lanes, PAIR};

#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// Wraps intrinsics that only need the level.
macro_rules! level {
    ($e:expr) => {
        // SAFETY: the level; any pointer in it comes from a slice whose length was checked just before.
        unsafe { $e }
    };
}

/// Eight lanes, halves onto each other.
///
/// # Safety
/// The caller runs at a level that has AVX.
#[inline(always)]
pub unsafe fn sum_of_8(lanes: __m256) -> f32 {
    level!({
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    })
}

/// Sums of four neighbouring products of unsigned and signed bytes; sums of two must fit 16 bits.
#[inline(always)]
fn dot(unsigned: __m256i, signed: __m256i) -> __m256 {
    level!({
        let twos = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_cvtepi32_ps(_mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
    })
}

/// The same for signed bytes: |w| * (x with the sign of w), since |-128| fits an unsigned byte.
#[inline(always)]
fn dot_signed(w: __m256i, x: __m256i) -> __m256 {
    level!(dot(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)))
}

#[inline(always)]
fn exp2_of_biased(x: __m256) -> __m256 {
    level!({
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
        _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
    })
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> __m256i {
    let bytes = &bytes[..16];
    level!({
        let low = _mm_loadu_si128(bytes.as_ptr().cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), _mm_srli_epi16::<4>(low));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    })
}

#[inline(always)]
fn load_32_bytes(from: &[i8]) -> __m256i {
    let from = &from[..32];
    level!(_mm256_loadu_si256(from.as_ptr().cast()))
}

impl Lanes for Avx2 {
    type Quants = (__m256i, __m256i);
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let x = level!(_mm256_set1_ps(x));
        Self(x, x)
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..LANES];
        level!(Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())))
    }

    #[inline(always)]
    fn load_f16(from: &[u16]) -> Self {
        let from = &from[..LANES];
        level!(Self(
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
        ))
    }

    #[inline(always)]
    fn load_i8(from: &[i8]) -> Self {
        let from = &from[..LANES];
        level!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
            )
        })
    }

    #[inline(always)]
    fn half(bits: u16) -> f32 {
        level!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.into()))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..LANES];
        level!({
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), self.1);
        });
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let to = &mut to[..LANES];
        level!({
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<NEAREST>(self.0));
            _mm_storeu_si128(to[8..].as_mut_ptr().cast(), _mm256_cvtps_ph::<NEAREST>(self.1));
        });
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        level!(Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        level!(Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        level!(Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        level!(Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        level!(Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        level!(Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        level!(Self(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1)))
    }

    #[inline(always)]
    fn exp2_of_biased(self) -> Self {
        Self(exp2_of_biased(self.0), exp2_of_biased(self.1))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        level!(sum_of_8(_mm256_add_ps(self.0, self.1)))
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        level!({
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn nibbles(first: &[u8], second: &[u8]) -> Self::Quants {
        (nibbles(first), nibbles(second))
    }

    #[inline(always)]
    fn bytes(first: &[u8], second: &[u8]) -> Self::Quants {
        let (first, second) = (&first[..32], &second[..32]);
        level!((_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())))
    }

    #[inline(always)]
    fn dot_nibbles(weights: Self::Quants, x: &[i8]) -> Self {
        let x = &x[..PAIR];
        Self(dot(weights.0, load_32_bytes(x)), dot(weights.1, load_32_bytes(&x[32..])))
    }

    #[inline(always)]
    fn dot_bytes(weights: Self::Quants, x: &[i8]) -> Self {
        let x = &x[..PAIR];
        Self(dot_signed(weights.0, load_32_bytes(x)), dot_signed(weights.1, load_32_bytes(&x[32..])))
    }

    #[inline(always)]
    fn halves(first: f32, second: f32) -> Self {
        level!(Self(_mm256_set1_ps(first), _mm256_set1_ps(second)))
    }
}
