//! Comparing vectors of numbers that two implementations computed.

/// How far two numbers may be apart: the larger of both bounds counts.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of the difference.
    pub absolute: f32,
    /// Of the difference, relative to the expected number.
    pub relative: f32,
    /// Of 1 - cosine of the angle between the vectors.
    pub angle: f64,
}

/// What f32 arithmetic in another order may change in numbers of about 1.
pub const ROUNDING: Tolerance = Tolerance { absolute: 2e-5, relative: 2e-5, angle: 1e-9 };

/// Panics unless the same elements are finite, each of them is near enough, and the vectors point the same way.
#[track_caller]
pub fn assert_close(what: &str, has: &[f32], expected: &[f32], tolerance: Tolerance) {
    assert_eq!(has.len(), expected.len(), "{what}: length");
    let pairs = || has.iter().zip(expected);
    if let Some(i) = pairs().position(|(a, b)| a.is_finite() != b.is_finite()) {
        panic!("{what}: element {i} of {} is {}, expected {}", has.len(), has[i], expected[i]);
    }
    let excess = |a: f32, b: f32| (a - b).abs() - tolerance.absolute.max(tolerance.relative * b.abs());
    let finite = pairs().enumerate().filter(|(_, (a, _))| a.is_finite());
    let worst = finite.map(|(i, (&a, &b))| (i, excess(a, b))).max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((i, excess)) = worst {
        assert!(excess <= 0.0, "{what}: worst is element {i}: {}, expected {}", has[i], expected[i]);
    }
    let dot = |a: &[f32], b: &[f32]| {
        let finite = a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite());
        finite.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    let lengths = (dot(has, has) * dot(expected, expected)).sqrt();
    if lengths > 0.0 {
        let angle = 1.0 - dot(has, expected) / lengths;
        assert!(angle <= tolerance.angle, "{what}: 1 - cosine is {angle:e}");
    }
}

/// Panics unless both have the same bits.
#[track_caller]
pub fn assert_same_bits(what: &str, has: &[f32], expected: &[f32]) {
    assert_eq!(has.len(), expected.len(), "{what}: length");
    let differs = has.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differs {
        panic!("{what}: element {i} of {} is {:e}, expected {:e}", has.len(), has[i], expected[i]);
    }
}
