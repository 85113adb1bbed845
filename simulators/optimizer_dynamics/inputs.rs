//! What a curriculum does to the losses: shares of the batch, by dataset and by example, and
//! learning rates.

use simfluence_core::{Curriculum, SimulateError};
use std::sync::Arc;

/// A curriculum as the dynamics sees it.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    group_count: usize,
    /// `[training examples]`: the dataset of each.
    groups: Arc<[u32]>,
    /// Example and exposure, step after step.
    exposures: Vec<(u32, f64)>,
    /// `[steps + 1]`: where the exposures of each step begin.
    starts: Vec<usize>,
    /// `[steps × groups]`: the share of the batch that each dataset has, `n_c(t)`.
    shares: Vec<f64>,
    /// `[steps]`: the learning rate over the reference rate; 1 where rates are unknown.
    rates: Vec<f64>,
}

impl Inputs {
    /// The inputs of a curriculum; `reference_rate` is `None` where the simulator was fitted on
    /// runs without learning rates.
    pub(super) fn new(
        curriculum: &Curriculum,
        groups: &Arc<[u32]>,
        group_count: usize,
        reference_rate: Option<f64>,
        method: &str,
    ) -> Result<Self, SimulateError> {
        let mut shares = vec![0.0; curriculum.len() * group_count];
        let mut rates = Vec::with_capacity(curriculum.len());
        let mut exposures = Vec::new();
        let mut starts = vec![0];
        for (t, step) in curriculum.steps().iter().enumerate() {
            for (example, exposure) in step.exposures() {
                shares[t * group_count + groups[example as usize] as usize] += exposure;
                exposures.push((example, exposure));
            }
            starts.push(exposures.len());
            rates.push(match (reference_rate, step.learning_rate) {
                (None, _) => 1.0,
                (Some(reference), Some(rate)) => f64::from(rate) / reference,
                (Some(_), None) => {
                    return Err(SimulateError::NoLearningRate {
                        step: t as u32 + 1,
                        method: method.to_owned(),
                    });
                }
            });
        }
        Ok(Self {
            group_count,
            groups: groups.clone(),
            exposures,
            starts,
            shares,
            rates,
        })
    }

    /// Number of steps.
    pub(super) fn len(&self) -> usize {
        self.rates.len()
    }

    /// Shares of the batch at a step (0 is the first).
    pub(super) fn shares(&self, step: usize) -> &[f64] {
        &self.shares[step * self.group_count..][..self.group_count]
    }

    /// The dataset of each training example.
    pub(super) fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Examples with their exposures at a step (0 is the first).
    pub(super) fn exposures(&self, step: usize) -> &[(u32, f64)] {
        &self.exposures[self.starts[step]..self.starts[step + 1]]
    }

    /// Relative learning rate at a step (0 is the first), `(η_t/η_ref)^q`.
    pub(super) fn rate(&self, step: usize, exponent: f64) -> f64 {
        self.rates[step].powf(exponent)
    }
}

/// Exposures to each dataset so far, at the learning rate, forgotten at several paces:
/// `E_h(t) = (1 − 1/h) E_h(t−1) + (η_t/η_ref)^q n(t)`, over the horizons `h` (infinite: the sum).
#[derive(Debug, Clone)]
pub(super) struct Exposed {
    decays: Vec<f64>,
    /// `[horizons × groups]`.
    values: Vec<f64>,
    /// `Σ (η_t/η_ref)^q` so far.
    spent: f64,
    steps: usize,
}

impl Exposed {
    /// Nothing yet.
    pub(super) fn new(horizons: &[f64], group_count: usize) -> Self {
        Self {
            decays: horizons.iter().map(|h| 1.0 - 1.0 / h).collect(),
            values: vec![0.0; horizons.len() * group_count],
            spent: 0.0,
            steps: 0,
        }
    }

    /// Takes a step.
    pub(super) fn step(&mut self, shares: &[f64], rate: f64) {
        for (decay, values) in self
            .decays
            .iter()
            .zip(self.values.chunks_exact_mut(shares.len()))
        {
            for (value, share) in values.iter_mut().zip(shares) {
                *value = decay * *value + rate * share;
            }
        }
        self.spent += rate;
        self.steps += 1;
    }

    /// The exposures, horizon by horizon, over the mean rate so far: what was trained on, in
    /// steps, whatever the rate; the clock has that.
    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let mean = self.spent / self.steps.max(1) as f64;
        let scale = if mean > 0.0 { 1.0 / mean } else { 1.0 };
        self.values.iter().map(move |value| scale * value)
    }

    /// `ln t`, and the logarithm of the mean of `(η/η_ref)^q` so far: how far training has come,
    /// and at which rate.
    pub(super) fn clock(&self) -> [f64; 2] {
        let steps = self.steps.max(1) as f64;
        [steps.ln(), ((self.spent + 0.5) / (steps + 0.5)).ln()]
    }
}
