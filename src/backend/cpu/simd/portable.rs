//! Lanes as arrays, which the compiler turns into whatever vectors the target always has.

use half::{bf16, f16};

use super::Lanes;

/// Every processor has it.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

type F = [f32; 16];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

/// `to[i] = f(to[i], to[i + n])` for halves, quarters, eighths: the order in which every level folds lanes.
#[inline(always)]
fn fold(mut x: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            x[i] = f(x[i], x[i + n]);
        }
    }
    x[0]
}

impl Lanes for Portable {
    type F = F;
    type I = [i32; 16];
    type B = [u8; 64];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> F {
        *from
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16], x: F) {
        *to = x;
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> F {
        let (elems, _) = from.as_chunks::<4>();
        each(|i| f32::from_le_bytes(elems[i]))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> F {
        let (elems, _) = from.as_chunks::<2>();
        each(|i| f16::from_le_bytes(elems[i]).to_f32())
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u8; 32], x: F) {
        let (elems, _) = to.as_chunks_mut::<2>();
        for (to, x) in elems.iter_mut().zip(x) {
            *to = f16::from_f32(x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> F {
        let (elems, _) = from.as_chunks::<2>();
        each(|i| bf16::from_le_bytes(elems[i]).to_f32())
    }

    #[inline(always)]
    fn store_bf16(self, to: &mut [u8; 32], x: F) {
        let (elems, _) = to.as_chunks_mut::<2>();
        for (to, x) in elems.iter_mut().zip(x) {
            *to = bf16::from_f32(x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> F {
        each(|i| f32::from(from[i].cast_signed()))
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> [F; 2] {
        [each(|i| f32::from(from[i] & 15)), each(|i| f32::from(from[i] >> 4))]
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(self, x: F) -> F {
        each(|i| x[i].abs())
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // Without the instruction a fused product is a slow library call.
        match cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            true => each(|i| a[i].mul_add(b[i], c[i])),
            false => each(|i| a[i] * b[i] + c[i]),
        }
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        // Adding 1.5 * 2^23 leaves no bits for a fraction.
        each(|i| (x[i] + 12_582_912.0) - 12_582_912.0)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "n is a small whole number")]
    fn scale_by_power(self, x: F, n: F) -> F {
        each(|i| f32::from_bits(x[i].to_bits().wrapping_add_signed((n[i] as i32) << 23)))
    }

    #[inline(always)]
    fn select(self, begin: usize, end: usize, a: F, b: F) -> F {
        each(|i| if begin <= i && i < end { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        fold(x, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the values are in range")]
    fn to_i8(self, x: F) -> [i8; 16] {
        let x = self.round(x);
        std::array::from_fn(|i| x[i] as i8)
    }

    #[inline(always)]
    fn dot_start(self, _: i32) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn dot(self, acc: [i32; 16], w: &[u8; 64], x: u32) -> [i32; 16] {
        let x = x.to_le_bytes();
        let product =
            |i: usize, j: usize| i32::from(w[4 * i + j].cast_signed()) * i32::from(x[j].cast_signed());
        std::array::from_fn(|i| acc[i] + product(i, 0) + product(i, 1) + product(i, 2) + product(i, 3))
    }

    #[inline(always)]
    fn to_f32(self, x: [i32; 16]) -> F {
        each(|i| x[i] as f32)
    }

    #[inline(always)]
    fn transpose(self, rows: [&[u8; 16]; 16]) -> [[u8; 64]; 4] {
        std::array::from_fn(|c| std::array::from_fn(|i| rows[i / 4][4 * c + i % 4]))
    }

    #[inline(always)]
    fn nibbles(self, x: [u8; 64], zero: i8) -> [[u8; 64]; 2] {
        let zero = zero.cast_unsigned();
        [x.map(|x| (x & 15).wrapping_sub(zero)), x.map(|x| (x >> 4).wrapping_sub(zero))]
    }

    #[inline(always)]
    fn store_quants(self, to: &mut [u8; 64], x: [u8; 64]) {
        *to = x;
    }

    #[inline(always)]
    fn prefetch(self, _: &[u8; 64]) {}
}
