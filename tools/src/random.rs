//! Random numbers that are the same in every run.

use rayon::prelude::*;

/// SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
pub struct SplitMix(u64);

impl SplitMix {
    /// The numbers of part `part` of what `seed` stands for, so that parts can be made side by side.
    pub fn new(seed: u64, part: usize) -> Self {
        Self(seed << 32 ^ part as u64)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Fills `values` with numbers that are about normal, with mean 0 and variance 1.
pub fn fill_normal(values: &mut [f32], seed: u64) {
    const PART: usize = 1 << 16;
    // A sum of four bytes: nearly the bell, and made in no time.
    let of_bytes = |bytes: &[u8]| {
        let sum: u16 = bytes.iter().copied().map(u16::from).sum();
        // Of each byte the mean is 255 / 2 and the variance (256^2 - 1) / 12.
        (f32::from(sum) - 510.0) / (4.0f32 * 65_535.0 / 12.0).sqrt()
    };
    values.par_chunks_mut(PART).enumerate().for_each(|(i, part)| {
        let mut random = SplitMix::new(seed, i);
        for pair in part.chunks_mut(2) {
            let bytes = random.bits().to_le_bytes();
            for (value, bytes) in pair.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = of_bytes(bytes);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_moments() {
        let mut values = vec![0.0; 200_001];
        fill_normal(&mut values, 3);
        let moment = |k| values.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{} {}", moment(1), moment(2));
        // 3 for the bell, 1.8 for numbers that are spread evenly.
        assert!((moment(4) - 2.7).abs() < 0.1, "{}", moment(4));
        let mut others = vec![0.0; 200_001];
        fill_normal(&mut others, 4);
        let product = values.iter().zip(&others).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        assert!((product / values.len() as f64).abs() < 0.01);
    }
}
