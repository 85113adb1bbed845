//! Dropout masks from a generator of their own, so that runs in parallel threads do not disturb
//! each other and a resumed run draws what it would have drawn.

use crate::decoder::DropoutRates;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// The masks of one step.
#[derive(Clone)]
pub(in crate::torch) struct Dropout {
    pub(super) rates: DropoutRates,
    rng: ChaCha8Rng,
}

impl Dropout {
    /// The masks of step `step` of the run with `seed`; `None` without dropout.
    pub(in crate::torch) fn of_step(rates: DropoutRates, seed: u64, step: u32) -> Option<Self> {
        if !rates.is_active() {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(step));
        Some(Self { rates, rng })
    }

    /// Zero with the probability, else `1 / (1 − probability)`.
    fn mask(&mut self, like: &Tensor, probability: f64) -> Tensor {
        let keep = 1.0 - probability;
        let threshold = (probability * 4_294_967_296.0) as u32;
        let values: Vec<f32> = (0..like.numel())
            .map(|_| {
                if self.rng.next_u32() < threshold {
                    0.0
                } else {
                    (1.0 / keep) as f32
                }
            })
            .collect();
        Tensor::from_slice(&values)
            .to_device(like.device())
            .to_kind(like.kind())
            .view_as(like)
    }
}

/// `values` with the dropout of the rate that `rate` chooses; as they are without dropout.
pub(super) fn drop_out(
    values: Tensor,
    dropout: &mut Option<&mut Dropout>,
    rate: fn(&DropoutRates) -> f64,
) -> Tensor {
    match dropout {
        Some(dropout) if rate(&dropout.rates) > 0.0 => {
            let probability = rate(&dropout.rates);
            let mask = dropout.mask(&values, probability);
            values * mask
        }
        _ => values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::parameters::to_vec;
    use tch::Kind;

    const RATES: DropoutRates = DropoutRates {
        embedding: 0.25,
        residual: 0.0,
        attention: 0.0,
        activation: 0.0,
        output: 0.0,
        adapter: 0.0,
    };

    #[test]
    fn dropout_masks_repeat_per_step_and_keep_the_mean() {
        let rows = Tensor::ones([200, 50], (Kind::Float, tch::Device::Cpu));
        let masked = |seed, step| {
            let mut dropout = Dropout::of_step(RATES, seed, step);
            let rows = rows.shallow_clone();
            to_vec(&drop_out(rows, &mut dropout.as_mut(), |r| r.embedding))
        };
        let mask = masked(1, 1);
        assert_eq!(mask, masked(1, 1));
        assert_ne!(mask, masked(1, 2));
        assert_ne!(mask, masked(2, 1));
        let mean = mask.iter().sum::<f32>() / mask.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert!(Dropout::of_step(DropoutRates::default(), 1, 1).is_none());
    }
}
