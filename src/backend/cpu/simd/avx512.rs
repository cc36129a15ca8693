//! Lanes as one 512-bit register.
#![allow(unsafe_code, reason = "calls intrinsics, whose features an Avx512 proves")]

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Proof that the processor has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// `None` where the processor lacks any of them.
    pub fn new() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }
}

/// Runs a kernel, compiled with the level's features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub fn run<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Bits `begin` to below `end`.
#[inline(always)]
fn lane_mask(begin: usize, end: usize) -> __mmask16 {
    let below = |n: usize| (1u32 << n.min(16)) - 1;
    let mask = below(end) & !below(begin);
    // The mask has 16 bits by construction.
    (mask & 0xffff) as __mmask16
}

// SAFETY of all intrinsics below: an `Avx512` exists only where the processor has their features, and loads and stores
// go through references to arrays of exactly the register's size, which the unaligned forms may point to.
impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], x: __m512) {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 32], x: __m512) {
        // SAFETY: see the top of the impl.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store_bf16(self, to: &mut [u8; 32], x: __m512) {
        // SAFETY: see the top of the impl.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let upper = _mm512_srli_epi32::<16>(bits);
            // Ties to even: one more than just below a half where the last bit that stays is set.
            let last = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_srli_epi32::<16>(rounded);
            // Rounding, or mere cutting, could make something else of a NaN: the highest bit of the fraction keeps it.
            let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let halves = _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, quiet));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> [__m512; 2] {
        // SAFETY: see the top of the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let mask = _mm_set1_epi8(15);
            let low = _mm_and_si128(bytes, mask);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
            let (low, high) = (_mm512_cvtepu8_epi32(low), _mm512_cvtepu8_epi32(high));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_abs_ps(x) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }

    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_scalef_ps(x, n) }
    }

    #[inline(always)]
    fn select(self, begin: usize, end: usize, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_mask_blend_ps(lane_mask(begin, end), b, a) }
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: see the top of the impl.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // SAFETY: see the top of the impl.
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn to_i8(self, x: __m512) -> [i8; 16] {
        let mut out = [0; 16];
        // SAFETY: see the top of the impl.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn dot_start(self, sum: i32) -> __m512i {
        // Stored quants are 128 too large.
        // SAFETY: see the top of the impl.
        unsafe { _mm512_set1_epi32(-128 * sum) }
    }

    #[inline(always)]
    fn dot(self, acc: __m512i, w: &[u8; 64], x: u32) -> __m512i {
        // SAFETY: see the top of the impl.
        unsafe {
            let w = _mm512_loadu_si512(w.as_ptr().cast());
            _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast_signed()))
        }
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        // SAFETY: see the top of the impl.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn transpose(self, rows: [&[u8; 16]; 16]) -> [__m512i; 4] {
        // SAFETY: see the top of the impl.
        unsafe {
            let quarter = |i: usize| _mm_loadu_si128(rows[i].as_ptr().cast());
            // Rows i, i + 4, i + 8, i + 12: a 4 x 4 transposition in each quarter then gives the rows in order.
            let column = |i: usize| {
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(quarter(i)), quarter(i + 4));
                let high =
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(quarter(i + 8)), quarter(i + 12));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
            };
            let (r0, r1, r2, r3) = (column(0), column(1), column(2), column(3));
            let (a, b) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpacklo_epi32(r2, r3));
            let (c, d) = (_mm512_unpackhi_epi32(r0, r1), _mm512_unpackhi_epi32(r2, r3));
            [
                _mm512_unpacklo_epi64(a, b),
                _mm512_unpackhi_epi64(a, b),
                _mm512_unpacklo_epi64(c, d),
                _mm512_unpackhi_epi64(c, d),
            ]
        }
    }

    #[inline(always)]
    fn nibbles(self, x: __m512i, zero: i8) -> [__m512i; 2] {
        // SAFETY: see the top of the impl.
        unsafe {
            let (mask, zero) = (_mm512_set1_epi8(15), _mm512_set1_epi8(zero));
            let low = _mm512_and_si512(x, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask);
            [_mm512_sub_epi8(low, zero), _mm512_sub_epi8(high, zero)]
        }
    }

    #[inline(always)]
    fn store_quants(self, to: &mut [u8; 64], x: __m512i) {
        // The instruction of `dot` takes unsigned weights: 128 is added, and taken off again in `dot_start`.
        // SAFETY: see the top of the impl.
        unsafe {
            let unsigned = _mm512_xor_si512(x, _mm512_set1_epi8(-128));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), unsigned);
        }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8; 64]) {
        // SAFETY: see the top of the impl.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) }
    }
}
