//! Lanes as an array: plain loops that a compiler turns into whatever vectors it may use.

use half::f16;

use super::{LANES, Lanes, PAIR};

#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    /// Sums of four neighbouring products.
    #[inline(always)]
    fn dot(weights: [i8; PAIR], x: &[i8]) -> Self {
        let x: &[i8; PAIR] = x[..PAIR].try_into().expect("64 bytes were taken");
        Self(std::array::from_fn(|lane| {
            let products = (lane * 4..lane * 4 + 4).map(|i| i32::from(weights[i]) * i32::from(x[i]));
            products.sum::<i32>() as f32
        }))
    }
}

impl Lanes for Portable {
    type Quants = [i8; PAIR];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(std::array::from_fn(|i| from[i]))
    }

    #[inline(always)]
    fn load_f16(from: &[u16]) -> Self {
        Self(std::array::from_fn(|i| f16::from_bits(from[i]).to_f32()))
    }

    #[inline(always)]
    fn load_i8(from: &[i8]) -> Self {
        Self(std::array::from_fn(|i| f32::from(from[i])))
    }

    #[inline(always)]
    fn half(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn store_f16(self, to: &mut [u16]) {
        for (to, x) in to[..LANES].iter_mut().zip(self.0) {
            *to = f16::from_f32(x).to_bits();
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
    }

    #[inline(always)]
    fn exp2_of_biased(self) -> Self {
        Self(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(0x3f80_0000))))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
    }

    #[inline(always)]
    fn nibbles(first: &[u8], second: &[u8]) -> Self::Quants {
        std::array::from_fn(|i| {
            let byte = if i < 32 { first[i % 16] } else { second[i % 16] };
            (if i % 32 < 16 { byte & 15 } else { byte >> 4 }).cast_signed()
        })
    }

    #[inline(always)]
    fn bytes(first: &[u8], second: &[u8]) -> Self::Quants {
        std::array::from_fn(|i| if i < 32 { first[i] } else { second[i - 32] }.cast_signed())
    }

    #[inline(always)]
    fn dot_nibbles(weights: Self::Quants, x: &[i8]) -> Self {
        Self::dot(weights, x)
    }

    #[inline(always)]
    fn dot_bytes(weights: Self::Quants, x: &[i8]) -> Self {
        Self::dot(weights, x)
    }

    #[inline(always)]
    fn halves(first: f32, second: f32) -> Self {
        Self(std::array::from_fn(|i| if i < LANES / 2 { first } else { second }))
    }
}
