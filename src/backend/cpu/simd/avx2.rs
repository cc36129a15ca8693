//! Lanes as two 256-bit registers: lanes 0 to 7, then 8 to 15.
#![allow(unsafe_code, reason = "calls intrinsics, whose features an Avx2 proves")]

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// `None` where the processor lacks any of them.
    pub fn new() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }
}

/// Runs a kernel, compiled with the level's features.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn run<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Lanes whose number, counted from `first`, lies between `begin` and below `end`.
#[inline(always)]
unsafe fn lane_mask(first: i32, begin: usize, end: usize) -> __m256 {
    // SAFETY: the caller holds an Avx2.
    unsafe {
        let at = |n: usize| _mm256_set1_epi32(i32::try_from(n.min(16)).unwrap_or(16) - first);
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let too_early = _mm256_cmpgt_epi32(at(begin), lane);
        _mm256_castsi256_ps(_mm256_andnot_si256(too_early, _mm256_cmpgt_epi32(at(end), lane)))
    }
}

/// Unsigned bytes as floats.
#[inline(always)]
unsafe fn widen_bytes(x: __m128i) -> F {
    // SAFETY: the caller holds an Avx2.
    unsafe {
        let (low, high) = (_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x)));
        [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
    }
}

/// Upper halves of floats, rounded to nearest, in the lower halves of the lanes.
#[inline(always)]
unsafe fn round_to_bf16(x: __m256) -> __m256i {
    // SAFETY: the caller holds an Avx2.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let upper = _mm256_srli_epi32::<16>(bits);
        // Ties to even: one more than just below a half where the last bit that stays is set.
        let last = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
        // Rounding, or mere cutting, could make something else of a NaN: the highest bit of the fraction keeps it.
        let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(_mm256_srli_epi32::<16>(rounded), quiet, is_nan)
    }
}

/// Rows i and i + 4.
#[inline(always)]
unsafe fn two_rows(rows: &[&[u8; 16]], i: usize) -> __m256i {
    // SAFETY: the caller holds an Avx2; the rows have the size of the loads.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(rows[i].as_ptr().cast()));
        _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(rows[i + 4].as_ptr().cast()))
    }
}

/// Group i of vector c is the c-th four bytes of row i.
#[inline(always)]
unsafe fn transpose_eight(rows: &[&[u8; 16]]) -> [__m256i; 4] {
    // SAFETY: the caller holds an Avx2.
    unsafe {
        // A 4 x 4 transposition in each half of the registers gives the rows in order.
        let (r0, r1, r2, r3) = (two_rows(rows, 0), two_rows(rows, 1), two_rows(rows, 2), two_rows(rows, 3));
        let (a, b) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpacklo_epi32(r2, r3));
        let (c, d) = (_mm256_unpackhi_epi32(r0, r1), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    }
}

// SAFETY of all intrinsics below: an `Avx2` exists only where the processor has their features, and loads and stores go
// through references to arrays of exactly the registers' size, which the unaligned forms may point to.
impl Lanes for Avx2 {
    type F = F;
    type I = I;
    type B = I;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> F {
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], x: F) {
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> F {
        let from = from.as_ptr().cast::<f32>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))] }
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 32], x: F) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        let to = to.as_mut_ptr().cast::<__m128i>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe {
            _mm_storeu_si128(to, _mm256_cvtps_ph::<NEAREST>(x[0]));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<NEAREST>(x[1]));
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe {
            [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))]
                .map(|x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
        }
    }

    #[inline(always)]
    fn store_bf16(self, to: &mut [u8; 32], x: F) {
        // SAFETY: see the top of the impl.
        unsafe {
            // Packing works on quarters; the permutation puts them in order.
            let halves = _mm256_packus_epi32(round_to_bf16(x[0]), round_to_bf16(x[1]));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> F {
        // SAFETY: see the top of the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [bytes, _mm_srli_si128::<8>(bytes)].map(|x| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)))
        }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> [F; 2] {
        // SAFETY: see the top of the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let mask = _mm_set1_epi8(15);
            let low = _mm_and_si128(bytes, mask);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
            [widen_bytes(low), widen_bytes(high)]
        }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn abs(self, x: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1])]
        }
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_round_ps::<NEAREST>(x[0]), _mm256_round_ps::<NEAREST>(x[1])] }
    }

    #[inline(always)]
    fn scale_by_power(self, x: F, n: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe {
            // Adds n to the exponent.
            let scale = |x, n| {
                let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n))
            };
            [scale(x[0], n[0]), scale(x[1], n[1])]
        }
    }

    #[inline(always)]
    fn select(self, begin: usize, end: usize, a: F, b: F) -> F {
        // SAFETY: see the top of the impl.
        unsafe {
            [
                _mm256_blendv_ps(b[0], a[0], lane_mask(0, begin, end)),
                _mm256_blendv_ps(b[1], a[1], lane_mask(8, begin, end)),
            ]
        }
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        // SAFETY: see the top of the impl.
        unsafe {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        // SAFETY: see the top of the impl.
        unsafe {
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn to_i8(self, x: F) -> [i8; 16] {
        let mut out = [0; 16];
        // SAFETY: see the top of the impl.
        unsafe {
            // Packing works on quarters; the permutation puts them in order.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn dot_start(self, _: i32) -> I {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn dot(self, acc: I, w: &[u8; 64], x: u32) -> I {
        let w = w.as_ptr().cast::<__m256i>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe {
            let x = _mm256_set1_epi32(x.cast_signed());
            // |w| is unsigned and takes its sign to x. Pairs of products stay below 2 * 128 * 127, within 16 bits.
            let add = |acc, w| {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            };
            [add(acc[0], _mm256_loadu_si256(w)), add(acc[1], _mm256_loadu_si256(w.add(1)))]
        }
    }

    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        // SAFETY: see the top of the impl.
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    #[inline(always)]
    fn transpose(self, rows: [&[u8; 16]; 16]) -> [I; 4] {
        let (low, high) = rows.split_at(8);
        // SAFETY: see the top of the impl.
        let (low, high) = unsafe { (transpose_eight(low), transpose_eight(high)) };
        [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
    }

    #[inline(always)]
    fn nibbles(self, x: I, zero: i8) -> [I; 2] {
        // SAFETY: see the top of the impl.
        unsafe {
            let (mask, zero) = (_mm256_set1_epi8(15), _mm256_set1_epi8(zero));
            let low = |x| _mm256_sub_epi8(_mm256_and_si256(x, mask), zero);
            let high = |x| low(_mm256_srli_epi16::<4>(x));
            [[low(x[0]), low(x[1])], [high(x[0]), high(x[1])]]
        }
    }

    #[inline(always)]
    fn store_quants(self, to: &mut [u8; 64], x: I) {
        let to = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: see the top of the impl; the second half begins within the array.
        unsafe {
            _mm256_storeu_si256(to, x[0]);
            _mm256_storeu_si256(to.add(1), x[1]);
        }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8; 64]) {
        // SAFETY: see the top of the impl.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) }
    }
}
