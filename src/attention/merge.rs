//! Attention over part of the keys, and how parts become the whole.
//!
//! A [`Partial`] is softmax-weighted attention before its division: with scores `s_j` and values `v_j` over some keys,
//! `max = max_j s_j`, `sum = sum_j exp(s_j - max)`, `out = sum_j exp(s_j - max) v_j`. Partials of disjoint keys merge
//! to the partial of their union; that of no keys is the neutral element. Every backend that splits keys over spans,
//! blocks or devices does this; here is the definition.

/// Attention of one query over a set of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// (head_dim), scaled by `exp(-max)`
    pub out: Vec<f64>,
    /// Highest score; negative infinity if there are no keys.
    pub max: f64,
    /// Sum of the weights, scaled by `exp(-max)`.
    pub sum: f64,
}

impl Partial {
    /// Attention over no keys.
    pub fn empty(head_dim: usize) -> Self {
        Self { out: vec![0.0; head_dim], max: f64::NEG_INFINITY, sum: 0.0 }
    }

    /// Attention over one key.
    pub fn of_key(score: f64, value: &[f32]) -> Self {
        Self { out: value.iter().map(|&v| f64::from(v)).collect(), max: score, sum: 1.0 }
    }

    /// A learned logit that takes its share of the softmax and gives no value.
    pub fn of_sink(logit: f64, head_dim: usize) -> Self {
        Self { out: vec![0.0; head_dim], max: logit, sum: 1.0 }
    }

    /// Attention over the keys of both.
    pub fn merge(&self, other: &Self) -> Self {
        let max = self.max.max(other.max);
        // exp(-inf - -inf) would be NaN: a partial of no keys weighs nothing.
        let weight = |partial: &Self| if partial.sum == 0.0 { 0.0 } else { (partial.max - max).exp() };
        let (a, b) = (weight(self), weight(other));
        Self {
            out: self.out.iter().zip(&other.out).map(|(x, y)| a * x + b * y).collect(),
            max,
            sum: a * self.sum + b * other.sum,
        }
    }

    /// The attention itself: zeros for no keys.
    pub fn finish(&self) -> Vec<f64> {
        let sum = if self.sum == 0.0 { 1.0 } else { self.sum };
        self.out.iter().map(|out| out / sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * (1.0 + a.abs()))
    }

    proptest! {
        #[test]
        fn any_split_of_the_keys_gives_the_softmax(
            keys in prop::collection::vec((-300.0f64..300.0, prop::array::uniform3(-9.0f32..9.0)), 1..40),
            split in 0usize..40, sink in proptest::option::of(-10.0f64..300.0),
        ) {
            let split = split.min(keys.len());
            let fold = |keys: &[(f64, [f32; 3])]| {
                keys.iter().fold(Partial::empty(3), |all, (s, v)| all.merge(&Partial::of_key(*s, v)))
            };
            let mut merged = fold(&keys[split..]).merge(&fold(&keys[..split]));
            if let Some(sink) = sink {
                merged = merged.merge(&Partial::of_sink(sink, 3));
            }
            let max = keys.iter().map(|key| key.0).chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = keys.iter().map(|key| key.0).chain(sink).map(|s| (s - max).exp()).sum();
            let mut expected = [0.0; 3];
            for (score, value) in &keys {
                for (e, &v) in expected.iter_mut().zip(value) {
                    *e += (score - max).exp() / total * f64::from(v);
                }
            }
            prop_assert!(close(&merged.finish(), &expected), "{:?} {:?}", merged.finish(), expected);
        }
    }

    #[test]
    fn nothing_merges_to_nothing() {
        let nothing = Partial::empty(2).merge(&Partial::empty(2));
        assert_eq!(nothing.finish(), [0.0, 0.0]);
    }
}
