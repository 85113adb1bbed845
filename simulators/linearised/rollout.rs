//! Training the linearised model, in the space of its outputs.

use super::kernel::{Choice, TangentKernel};
use crate::memory::{Memory, SecondMoment};

/// Added to the second moment's average before its root.
const TINY: f64 = 1e-16;

/// The two numbers that are fitted, and what they are relative to.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Pace {
    /// What the kernel is multiplied with.
    pub(super) gain: f64,
    /// The power `q` of the learning rate.
    pub(super) rate_exponent: f64,
    /// `η_ref`.
    pub(super) reference_rate: f64,
}

impl Pace {
    fn of(self, rate: f64) -> f64 {
        self.gain * self.reference_rate * (rate / self.reference_rate).powf(self.rate_exponent)
    }
}

/// The linearised model on its way through a curriculum.
pub(super) struct Rollout<'a> {
    kernel: &'a TangentKernel,
    /// Of each alternative.
    choice_of: Vec<Choice>,
    memory: Memory,
    pace: Pace,
    /// `[(n + m) k]`.
    log_odds: Vec<f64>,
    /// First moment of `d_t`, `[(n + m) k]`.
    first: Vec<f64>,
    /// Second moment of the gradient.
    second: f64,
    direction: Vec<f64>,
    step: i32,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(kernel: &'a TangentKernel, memory: Memory, pace: Pace) -> Self {
        Self {
            kernel,
            choice_of: kernel.choice_of(),
            memory,
            pace,
            log_odds: kernel.start(),
            first: vec![0.0; kernel.outputs()],
            second: 0.0,
            direction: vec![0.0; kernel.outputs()],
            step: 0,
        }
    }

    /// Trains on a batch, examples with their exposures, with this learning rate.
    pub(super) fn train(&mut self, batch: impl Iterator<Item = (u32, f64)>, rate: f64) {
        let (k, columns) = (self.choice_of.len(), self.kernel.outputs());
        self.step += 1;
        let mut residuals: Vec<(usize, f64)> = Vec::new();
        for (example, exposure) in batch {
            let example = example as usize;
            let log_odds = &self.log_odds[example * k..][..k];
            let path = self.kernel.path(example);
            let share = exposure / path.len() as f64;
            for &taken in path {
                let choice = &self.choice_of[taken as usize];
                let log_sum = choice.log_sum(log_odds);
                for alternative in choice.alternatives.clone() {
                    let target = f64::from(u8::from(alternative == taken as usize));
                    let probability = (log_odds[alternative] - log_sum).exp();
                    residuals.push((example * k + alternative, share * (probability - target)));
                }
            }
        }
        self.direction.fill(0.0);
        for &(row, residual) in &residuals {
            let updates = &self.kernel.updates[row * columns..][..columns];
            for (d, &update) in self.direction.iter_mut().zip(updates) {
                *d += residual * f64::from(update);
            }
        }
        let scale = self.normalise(&residuals);
        let decay = self.memory.first;
        let mut length = self.pace.of(rate);
        // Adam averages gradients and normalises afterwards; SGD and RMSProp add up what is
        // normalised already.
        let entering = match self.memory.second {
            SecondMoment::Decay {
                corrected: true, ..
            } => {
                length *= scale / (1.0 - decay.powi(self.step));
                1.0 - decay
            }
            _ => scale,
        };
        let directions = self.direction.iter().zip(&mut self.first);
        for ((direction, first), log_odds) in directions.zip(&mut self.log_odds) {
            *first = decay * *first + entering * direction;
            *log_odds -= length * *first;
        }
    }

    /// One over the root of the second moment after these residuals.
    fn normalise(&mut self, residuals: &[(usize, f64)]) -> f64 {
        let (decay, filled) = match self.memory.second {
            SecondMoment::None => return 1.0,
            SecondMoment::Decay { beta, corrected } => {
                let filled = if corrected {
                    1.0 - beta.powi(self.step)
                } else {
                    1.0
                };
                (beta, filled)
            }
            SecondMoment::Power { power } => (1.0 - f64::from(self.step).powf(power), 1.0),
        };
        let rows = self.kernel.train_count * self.choice_of.len();
        let mut square = 0.0;
        for &(a, x) in residuals {
            for &(b, y) in residuals {
                square += x * y * f64::from(self.kernel.squares[a * rows + b]);
            }
        }
        self.second = decay * self.second + (1.0 - decay) * square.max(0.0);
        1.0 / (self.second / filled + TINY).sqrt()
    }

    /// The losses of the test examples, in nats per token.
    pub(super) fn losses(&self) -> impl Iterator<Item = f64> + '_ {
        self.kernel.losses(&self.choice_of, &self.log_odds)
    }
}
