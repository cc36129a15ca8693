//! Sixteen lanes of f32, whatever the processor has.
//!
//! A kernel is written once, generic over [`Lanes`], and compiled once per level: [`Simd::dispatch`] enters it through
//! a function with that level's target features, into which everything marked `#[inline(always)]` is inlined. A value
//! of a level's type proves that the processor has its features, which is what makes the methods safe to call.
//!
//! Fused multiply-add apart, which the portable level may have to round twice, all levels compute the same bits.
#![allow(unsafe_code, reason = "enters functions with target features")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::fmt;

/// Number of lanes.
pub(super) const LANES: usize = 16;

/// What kernels need of the processor. Arrays are unaligned memory; methods compute lane by lane unless they say more.
pub(super) trait Lanes: Copy {
    /// 16 floats.
    type F: Copy;
    /// 16 integers of 32 bits.
    type I: Copy;
    /// 16 groups of 4 bytes.
    type B: Copy;
    /// Whether there are registers for 16 accumulators and more; half of that otherwise.
    const MANY_REGISTERS: bool;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; 16]) -> Self::F;
    fn store(self, to: &mut [f32; 16], x: Self::F);
    /// Little-endian f32.
    fn load_f32(self, from: &[u8; 64]) -> Self::F;
    /// Little-endian IEEE halves.
    fn load_f16(self, from: &[u8; 32]) -> Self::F;
    /// Rounds to nearest, ties to even.
    fn store_f16(self, to: &mut [u8; 32], x: Self::F);
    /// Little-endian upper halves of f32.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    fn store_bf16(self, to: &mut [u8; 32], x: Self::F);
    /// Signed bytes.
    fn load_i8(self, from: &[u8; 16]) -> Self::F;
    /// The low halves of the bytes, 0 to 15, then the high ones.
    fn load_nibbles(self, from: &[u8; 16]) -> [Self::F; 2];

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, x: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even, for numbers below 2^22.
    fn round(self, x: Self::F) -> Self::F;
    /// `x * 2^n` for whole `n` between -126 and 127 and `x` between 1/2 and 2.
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F;
    /// `a` in the lanes from `begin` to below `end`, `b` in the others.
    fn select(self, begin: usize, end: usize, a: Self::F, b: Self::F) -> Self::F;
    /// The sum of all lanes: halves onto each other, (0 + 8), then (0 + 4), (0 + 2), (0 + 1).
    fn sum(self, x: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::F) -> f32;
    /// Whole numbers nearest to `x`, ties to even, for `x` between -128 and 127.
    fn to_i8(self, x: Self::F) -> [i8; 16];

    /// An accumulator for [`dot`](Self::dot) with activations that add up to `sum`.
    fn dot_start(self, sum: i32) -> Self::I;
    /// Adds the four products of each group of `w` with the bytes of `x`, which are signed and not -128. Exact.
    fn dot(self, acc: Self::I, w: &[u8; 64], x: u32) -> Self::I;
    fn to_f32(self, x: Self::I) -> Self::F;
    /// Group i of vector c is the c-th four bytes of row i.
    fn transpose(self, rows: [&[u8; 16]; 16]) -> [Self::B; 4];
    /// The low halves of the bytes, then the high ones, less `zero`.
    fn nibbles(self, x: Self::B, zero: i8) -> [Self::B; 2];
    /// Stores signed bytes in the form that [`dot`](Self::dot) wants.
    fn store_quants(self, to: &mut [u8; 64], x: Self::B);

    /// Asks for bytes that will be read soon.
    fn prefetch(self, bytes: &[u8; 64]);

    /// A little-endian IEEE half in all lanes.
    #[inline(always)]
    fn splat_f16(self, from: [u8; 2]) -> Self::F {
        let mut halves = [0; 32];
        for half in halves.as_chunks_mut().0 {
            *half = from;
        }
        self.load_f16(&halves)
    }

    /// e^x with a relative error of 1e-7, for `x` clamped to +-87; NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first with few bits so that n times it is exact.
        // Where an operand is NaN, max and min return the second.
        let x = self.max(self.splat(-87.0), self.min(self.splat(87.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        // The Taylor series of e^r: the first term left out is below 2^-27.
        let mut p = self.splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        self.scale_by_power(p, n)
    }

    /// tanh(x) with an absolute error of 2e-7.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        // With t = exp(-2|x|): (1 - t) / (1 + t), times the sign of x.
        let t = self.exp(self.mul(self.abs(x), self.splat(-2.0)));
        let one = self.splat(1.0);
        let y = self.div(self.sub(one, t), self.add(one, t));
        // x / |x| would be NaN for zero; y is zero there anyway.
        let tiny = self.splat(f32::MIN_POSITIVE);
        self.mul(y, self.div(x, self.max(self.abs(x), tiny)))
    }
}

/// A computation that is written for any level. Implementations mark `run` as `#[inline(always)]`, and everything in
/// it that touches lanes.
pub(super) trait Kernel {
    /// What it returns.
    type Output;
    /// Computes.
    fn run<S: Lanes>(self, simd: S) -> Self::Output;
}

/// A set of instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What the target always has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

impl SimdLevel {
    const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The levels that this processor has, the best one last.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|&level| Simd::new(level).is_some()).collect()
    }

    /// The one that is used where none is asked for.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        })
    }
}

/// A level that this processor has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Simd {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Simd {
    /// `None` where the processor lacks it.
    pub fn new(level: SimdLevel) -> Option<Self> {
        match level {
            SimdLevel::Portable => Some(Self::Portable(portable::Portable)),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => avx2::Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => avx512::Avx512::new().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// The best that the processor has.
    pub fn best() -> Self {
        let levels = SimdLevel::ALL.into_iter().rev();
        levels.filter_map(Self::new).next().unwrap_or(Self::Portable(portable::Portable))
    }

    /// Runs a kernel, compiled for this level.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Avx2 exists only where the processor has the features of `run`.
            Self::Avx2(simd) => unsafe { avx2::run(simd, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Avx512 exists only where the processor has the features of `run`.
            Self::Avx512(simd) => unsafe { avx512::run(simd, kernel) },
        }
    }
}
