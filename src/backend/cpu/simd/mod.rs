//! Vectors: sixteen lanes, however wide the registers are.
//!
//! Kernels are written once over [`Lanes`] and marked `#[inline(always)]`; [`Level::run`] calls them from inside a
//! function that has the instruction set switched on, so that they are compiled for it. Lane `i` always holds element
//! `16 n + i` and [`Lanes::sum`] always adds in the same tree, so a level's results do not depend on how work is cut.
#![allow(
    unsafe_code,
    reason = "calls functions that are compiled for instructions which were found at run time"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::fmt;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Elements of two quantisation blocks, which is what integer dot products work on.
pub const PAIR: usize = 64;

/// Sixteen f32, and what kernels do with them.
pub trait Lanes: Copy {
    /// Quants of two weight blocks, ready to be multiplied.
    type Quants: Copy;
    /// Whether there are 32 registers of 16 lanes rather than 16 of 8.
    const WIDE: bool;

    /// The same number in all lanes.
    fn splat(x: f32) -> Self;
    /// The first sixteen numbers.
    fn load(from: &[f32]) -> Self;
    /// Sixteen halves, given by their bits.
    fn load_f16(from: &[u16]) -> Self;
    /// Sixteen bytes.
    fn load_i8(from: &[i8]) -> Self;
    /// One half, given by its bits.
    fn half(bits: u16) -> f32;
    /// To the first sixteen places.
    fn store(self, to: &mut [f32]);
    /// Rounded to halves, ties to even.
    fn store_f16(self, to: &mut [u16]);
    /// Lane by lane.
    fn add(self, other: Self) -> Self;
    /// Lane by lane.
    fn sub(self, other: Self) -> Self;
    /// Lane by lane.
    fn mul(self, other: Self) -> Self;
    /// Lane by lane.
    fn div(self, other: Self) -> Self;
    /// Lane by lane; the second where one is NaN.
    fn max(self, other: Self) -> Self;
    /// Lane by lane; the second where one is NaN.
    fn min(self, other: Self) -> Self;
    /// `self * a + b`, rounded once where the processor can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// 2^n for lanes that hold n + 1.5 * 2^23: their low bits are n.
    fn exp2_of_biased(self) -> Self;
    /// All lanes, added in one order: halves onto each other, again and again.
    fn sum(self) -> f32;
    /// The largest lane.
    fn max_lane(self) -> f32;

    /// 16 bytes of 32 nibbles, twice: the elements 0 to 15 of a block are the low nibbles.
    fn nibbles(first: &[u8], second: &[u8]) -> Self::Quants;
    /// Twice 32 signed bytes.
    fn bytes(first: &[u8], second: &[u8]) -> Self::Quants;
    /// Dot products of nibbles with 64 signed bytes: lanes 0 to 7 have four elements each of the first block, the others
    /// of the second.
    fn dot_nibbles(weights: Self::Quants, x: &[i8]) -> Self;
    /// The same for signed bytes, of which none in `x` is -128.
    fn dot_bytes(weights: Self::Quants, x: &[i8]) -> Self;
    /// The first number in lanes 0 to 7, the second in the others.
    fn halves(first: f32, second: f32) -> Self;

    /// e^x within 2 units in the last place, for x up to 88; 0 has no representation below -87, e^-87 is what it gives.
    #[inline(always)]
    fn exp(self) -> Self {
        // x = n ln 2 + r: n by rounding in the low bits of a large number, ln 2 in two parts so that r is exact.
        const BIAS: f32 = 12_582_912.0;
        let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
        let biased = x.mul_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(BIAS));
        let n = biased.sub(Self::splat(BIAS));
        let r = n.mul_add(Self::splat(-0.693_145_75), x);
        let r = n.mul_add(Self::splat(-1.428_606_8e-6), r);
        // The series of e^r up to r^7 / 5040: |r| is at most 0.35.
        let mut e = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            e = e.mul_add(r, Self::splat(coefficient));
        }
        e.mul(biased.exp2_of_biased())
    }
}

/// A computation over vectors.
pub trait Kernel {
    /// What it gives.
    type Output;
    /// Runs it; must be `#[inline(always)]`, down to the last vector.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Whatever the compiler was told that every machine has.
    Portable,
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The levels that this machine has, best first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            if avx2 && avx512 && has!("avx512vnni") {
                levels.push(Self::Avx512);
            }
            if avx2 {
                levels.push(Self::Avx2);
            }
        }
        levels.push(Self::Portable);
        levels
    }

    /// Runs a kernel with these instructions; the level must come from [`available`](Self::available).
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run::<portable::Portable>(),
            // SAFETY: a level is only made where the instructions were found.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
        })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx2::Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<avx512::Avx512>()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<L: Lanes>(self) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            L::load(&self.0).exp().store(&mut out);
            out
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for level in Level::available() {
            for step in 0..20_000 {
                let x = -87.0 + step as f32 * 0.008_749;
                let has = f64::from(level.run(Exp([x; LANES]))[5]);
                let expected = f64::from(x).exp();
                assert!(
                    (has - expected).abs() <= 2.5e-7 * expected,
                    "{level}: e^{x} is {expected}, not {has}"
                );
            }
        }
    }

    struct Dots([u8; PAIR], [i8; PAIR]);

    impl Kernel for Dots {
        type Output = [[f32; LANES]; 2];
        #[inline(always)]
        fn run<L: Lanes>(self) -> [[f32; LANES]; 2] {
            let mut out = [[0.0; LANES]; 2];
            L::dot_nibbles(L::nibbles(&self.0[..16], &self.0[16..32]), &self.1).store(&mut out[0]);
            L::dot_bytes(L::bytes(&self.0[..32], &self.0[32..]), &self.1).store(&mut out[1]);
            out
        }
    }

    #[test]
    fn dot_products_are_exact_at_the_extremes() {
        let mut state = 1u32;
        for round in 0..2000 {
            let mut byte = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match round % 3 {
                    0 => [0u8, 0x7f, 0x80, 0x81, 0xff][(state >> 24) as usize % 5],
                    _ => state.to_be_bytes()[0],
                }
            };
            let weights: [u8; PAIR] = std::array::from_fn(|_| byte());
            let x: [i8; PAIR] = std::array::from_fn(|_| byte().cast_signed().max(-127));
            let nibble = |j: usize| {
                let byte = weights[j / 32 * 16 + j % 16];
                i32::from(if j % 32 < 16 { byte & 15 } else { byte >> 4 })
            };
            // How a block's elements are spread over its eight lanes is a level's own business.
            let block_sums = |lanes: [f32; LANES]| [lanes[..8].iter().sum::<f32>(), lanes[8..].iter().sum()];
            let expected = |weight: &dyn Fn(usize) -> i32| {
                [0, 1].map(|block| {
                    let elements = block * 32..(block + 1) * 32;
                    elements.map(|j| weight(j) * i32::from(x[j])).sum::<i32>() as f32
                })
            };
            for level in Level::available() {
                let [nibbles, bytes] = level.run(Dots(weights, x));
                assert_eq!(block_sums(nibbles), expected(&nibble), "{level}");
                assert_eq!(block_sums(bytes), expected(&|j| i32::from(weights[j].cast_signed())), "{level}");
            }
        }
    }
}
