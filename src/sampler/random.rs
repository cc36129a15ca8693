//! Random numbers.

use super::{Choice, filters};

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): small, and the same
/// numbers on every machine and in every release.
#[derive(Clone, Debug)]
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), in steps of 2^-53.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of the choices by its probability; `None` if there are none.
    pub(super) fn draw(&mut self, choices: &[Choice]) -> Option<u32> {
        let mut left = self.unit() * filters::total(choices);
        let drawn = choices.iter().find(|choice| {
            left -= f64::from(choice.p);
            left < 0.0
        });
        // Rounding can leave a last sliver of the unit interval uncovered.
        drawn.or(choices.last()).map(|choice| choice.token)
    }
}
