//! The exact sign test.

/// Two-sided p-value of the sign test: how probable at most as even a split of `positive` against
/// `negative` differences is if both signs are equally likely, `min(1, 2 P(X ≤ min))` with
/// `X ~ Binomial(positive + negative, ½)`. Differences of 0 are left out beforehand.
///
/// `None` if there is no difference at all.
///
/// ```
/// use simfluence_evaluation::reports::sign_test;
/// // 2 · (1 + 5) / 2⁵
/// assert_eq!(sign_test(4, 1), Some(0.375));
/// assert_eq!(sign_test(0, 0), None);
/// ```
pub fn sign_test(positive: usize, negative: usize) -> Option<f64> {
    let count = positive + negative;
    if count == 0 {
        return None;
    }
    let fewer = positive.min(negative);
    // ln C(n, k) grows from ln C(n, 0) = 0; logarithms keep large counts from under- and overflow.
    let mut log_choices = 0.0;
    let log_half = count as f64 * 0.5f64.ln();
    let mut probability = log_half.exp();
    for k in 1..=fewer {
        log_choices += ((count - k + 1) as f64 / k as f64).ln();
        probability += (log_choices + log_half).exp();
    }
    Some((2.0 * probability).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::ref_reports::REF_SIGN_TESTS;

    #[test]
    fn ref_p_values_of_scipy() {
        for (positive, negative, expected) in REF_SIGN_TESTS {
            let got = sign_test(positive, negative).unwrap();
            assert!(
                (got / expected - 1.0).abs() < 1e-9,
                "{positive} {negative}: {got} {expected}"
            );
        }
    }
}
