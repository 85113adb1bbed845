//! What the optimiser makes of the batches: filtered, normalised pushes, dataset by dataset.

use super::examples::Passage;
use super::readout::Readout;
use super::space::ResidualSpace;
use crate::memory::{Memory, SecondMoment};

/// Floor of the second moment, in squared shares of a batch.
const FLOOR: f64 = 0.05;

/// The state of the optimiser in a simulation.
#[derive(Debug, Clone)]
pub(super) struct Pushes<'a> {
    memory: Memory,
    exponent: f64,
    space: &'a ResidualSpace,
    readout: &'a Readout,
    decays: Vec<f64>,
    /// `[decays × groups]`.
    first: Vec<f64>,
    second: Vec<f64>,
    step: i32,
    z: Vec<f64>,
    rho: Vec<f64>,
    /// Normalisation of each dataset at the last step.
    scales: Vec<f64>,
}

impl<'a> Pushes<'a> {
    /// Before the first step.
    pub(super) fn new(
        memory: Memory,
        exponent: f64,
        space: &'a ResidualSpace,
        readout: &'a Readout,
    ) -> Self {
        let groups = readout.groups;
        let decays = memory.decays();
        Self {
            memory,
            exponent,
            space,
            readout,
            first: vec![0.0; decays.len() * groups],
            decays,
            second: vec![0.0; groups],
            step: 0,
            z: vec![0.0; space.rank],
            rho: vec![0.0; groups],
            scales: vec![1.0; groups],
        }
    }

    /// Number of pushes of a step: datasets times moving averages.
    pub(super) fn count(memory: Memory, group_count: usize) -> usize {
        memory.decays().len() * group_count
    }

    /// Number of datasets.
    pub(super) fn groups(&self) -> usize {
        self.rho.len()
    }

    /// Decay of the optimiser's own first moment.
    pub(super) fn decay(&self) -> f64 {
        self.memory.first
    }

    /// How the pushes of each dataset passed through the optimiser at the last step.
    pub(super) fn passages(&self, rate: f64) -> impl Iterator<Item = Passage> + '_ {
        let decay = self.decay();
        let filled = 1.0 - decay.powi(self.step);
        let factors = self.rho.iter().zip(&self.scales);
        factors.map(move |(rho, scale)| Passage {
            entering: (1.0 - decay) * rho,
            leaving: rate * scale / filled,
        })
    }

    /// Number of values that a step gives.
    pub(super) fn width(&self) -> usize {
        self.first.len() * (1 + self.space.rank)
    }

    /// The pushes `F` of a step at the losses before it, then `F ⊗ z`.
    pub(super) fn step(&mut self, losses: &[f64], shares: &[f64], rate: f64, out: &mut [f64]) {
        let groups = shares.len();
        self.step += 1;
        self.space.project(losses, &mut self.z);
        self.readout.residuals(&self.z, &mut self.rho);
        for c in 0..groups {
            let gradient = shares[c] * self.rho[c];
            let scale = self.scale(c, gradient);
            self.scales[c] = scale;
            for (h, decay) in self.decays.iter().enumerate() {
                let average = &mut self.first[h * groups + c];
                *average = decay * *average + (1.0 - decay) * gradient;
                let corrected = if *decay > 0.0 {
                    *average / (1.0 - decay.powi(self.step))
                } else {
                    *average
                };
                out[h * groups + c] = corrected * scale * rate;
            }
        }
        let pushes = self.decays.len() * groups;
        let (pushed, crossed) = out.split_at_mut(pushes);
        for (push, crossed) in pushed.iter().zip(crossed.chunks_exact_mut(self.z.len())) {
            for (out, z) in crossed.iter_mut().zip(&self.z) {
                *out = push * z;
            }
        }
    }

    /// `(v̂_c + floor)^(−exponent)`, after the second moment took this step's gradient; times
    /// `(1 − β^t)^(−1/2)` where the optimiser does not correct the start of its average.
    fn scale(&mut self, c: usize, gradient: f64) -> f64 {
        let v = &mut self.second[c];
        let square = gradient * gradient;
        let (moment, start) = match self.memory.second {
            SecondMoment::None => return 1.0,
            SecondMoment::Decay { beta, corrected } => {
                *v = beta * *v + (1.0 - beta) * square;
                let filled = 1.0 - beta.powi(self.step);
                (*v / filled, if corrected { 1.0 } else { filled })
            }
            SecondMoment::Power { power } => {
                let new = f64::from(self.step).powf(power);
                *v = (1.0 - new) * *v + new * square;
                (*v, 1.0)
            }
        };
        (moment + FLOOR).powf(-self.exponent) / start.sqrt()
    }
}
