//! What the optimiser makes of the batches: filtered, normalised pushes, dataset by dataset.

use super::examples::Passage;
use super::readout::Readout;
use super::space::ResidualSpace;
use serde::{Deserialize, Serialize};
use simfluence_core::Optimizer;

/// Floor of the second moment, in squared shares of a batch.
const FLOOR: f64 = 0.05;

/// How the optimiser of the recorded runs remembers and normalises gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Decay of the first moment: `β₁`, or the momentum; 0: none.
    pub first: f64,
    /// How the squares of gradients are averaged.
    pub second: SecondMoment,
}

/// How an optimiser averages squared gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondMoment {
    /// Not at all (SGD): pushes are not normalised.
    None,
    /// With a constant decay, corrected for its start (Adam: `β₂`) or not (RMSProp: `α`).
    Decay {
        /// The decay.
        beta: f64,
        /// Whether the average is divided by `1 − β^t`.
        corrected: bool,
    },
    /// With the decay `1 − t^power` (Adafactor).
    Power {
        /// The power, negative.
        power: f64,
    },
}

impl Memory {
    /// The constants of a recorded optimiser; PyTorch's AdamW where none was recorded.
    pub fn of(optimizer: Option<&Optimizer>) -> Self {
        match *optimizer.unwrap_or(&Optimizer::default()) {
            Optimizer::Sgd { momentum, .. } => Self {
                first: momentum,
                second: SecondMoment::None,
            },
            Optimizer::Rmsprop {
                alpha, momentum, ..
            } => Self {
                first: momentum,
                second: SecondMoment::Decay {
                    beta: alpha,
                    corrected: false,
                },
            },
            Optimizer::Adam { beta1, beta2, .. } | Optimizer::Adamw { beta1, beta2, .. } => Self {
                first: beta1,
                second: SecondMoment::Decay {
                    beta: beta2,
                    corrected: true,
                },
            },
            Optimizer::Adafactor { beta2_decay, .. } => Self {
                first: 0.0,
                second: SecondMoment::Power { power: beta2_decay },
            },
        }
    }

    /// The decays of the moving averages that the simulator follows: none, the optimiser's own,
    /// and one that reaches twice as far (the losses themselves lag behind the parameters).
    pub(super) fn decays(self) -> Vec<f64> {
        if self.first > 0.0 {
            vec![0.0, self.first, (1.0 + self.first) / 2.0]
        } else {
            vec![0.0]
        }
    }
}

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
