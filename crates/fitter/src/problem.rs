//! Recorded runs as arrays, and what is fitted to them.

use crate::aligned::Aligned;
use crate::lanes::LANES;
use crate::{Exposures, FitError};
use serde::{Deserialize, Serialize};

/// Which terms of `L_t = α_t L_{t-1} + β_t` are fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// `α_t = Σ_i x_t(i) A_i` and `β_t = Σ_i x_t(i) B_i`.
    #[default]
    Linear,
    /// `α_t ≡ 1`.
    Additive,
    /// `β_t ≡ 0`.
    Multiplicative,
}

impl Variant {
    /// Parameters per training example: 2 for linear, else 1.
    pub fn terms(self) -> usize {
        match self {
            Self::Linear => 2,
            Self::Additive | Self::Multiplicative => 1,
        }
    }

    /// Whether `A` is fitted.
    pub fn has_a(self) -> bool {
        self != Self::Additive
    }

    /// Whether `B` is fitted.
    pub fn has_b(self) -> bool {
        self != Self::Multiplicative
    }
}

/// What `A` is shrunk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shrinkage {
    /// `A₀ = 1`: an example about which nothing is known changes nothing.
    #[default]
    One,
    /// `A₀ = 0`, as Guu et al. (2023).
    Zero,
}

impl Shrinkage {
    /// `A₀`.
    pub fn value(self) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Zero => 0.0,
        }
    }
}

/// Ridge penalties `λ_A‖A − A₀‖² + λ_B‖B‖²`, in units of squared exposure (λ_A times nats²).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Penalty {
    /// `λ_A ≥ 0`.
    pub a: f64,
    /// `λ_B ≥ 0`.
    pub b: f64,
}

impl Penalty {
    /// The penalties of the fitted terms, in order.
    pub(crate) fn of(self, variant: Variant) -> [f64; 2] {
        match variant {
            Variant::Linear | Variant::Multiplicative => [self.a, self.b],
            Variant::Additive => [self.b, 0.0],
        }
    }

    pub(crate) fn check(self) -> Result<(), FitError> {
        for (name, value) in [("λ_A", self.a), ("λ_B", self.b)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(FitError::Setting {
                    name,
                    got: value.to_string(),
                    must: "finite and not negative",
                });
            }
        }
        Ok(())
    }
}

/// One run: its exposures and its measured losses.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Exposures of the steps `1..=T`, one row each.
    pub exposures: Exposures,
    /// Evaluated steps, increasing, in `0..=T`.
    pub steps: Vec<u32>,
    /// Losses, row-major `[evaluations × test_count]`, in nats per target token.
    pub losses: Vec<f64>,
    /// Which losses were measured (same shape); `None`: all. The others are never read.
    pub measured: Option<Vec<bool>>,
}

/// Where a sequence lies in the shared arrays.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Its first row of exposures.
    pub row: usize,
    /// Its number of steps `T`.
    pub step_count: usize,
    /// Its first evaluation.
    pub evaluation: usize,
    /// Its evaluated steps.
    pub steps: Vec<u32>,
    /// Whether it starts with a complete `L_0` and is evaluated later.
    pub can_roll_out: bool,
}

/// Recorded runs over the same training and test examples, as arrays that all fits share.
///
/// ```
/// use simfluence_fitter::{Exposures, Problem, Sequence};
/// let mut exposures = Exposures::new(2);
/// exposures.push([(0, 0.5), (1, 0.5)])?;
/// let run = Sequence { exposures, steps: vec![0, 1], losses: vec![3.0, 2.5], measured: None };
/// let problem = Problem::new(2, 1, vec![run])?;
/// assert_eq!(problem.sequence_count(), 1);
/// # Ok::<(), simfluence_fitter::FitError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) exposures: Exposures,
    pub(crate) places: Vec<Place>,
    pub(crate) test_count: usize,
    evaluation_count: usize,
    /// In blocks of [`LANES`] test examples, `[evaluations × LANES]` each, because that is how a
    /// fit reads them: from begin to end. Lanes beyond the last test example are never read.
    losses: Aligned<f64, LANES>,
    measured: Option<Vec<[bool; LANES]>>,
}

impl Problem {
    /// Puts the sequences together.
    ///
    /// # Errors
    /// Parts of a sequence that do not fit together, evaluated steps that do not increase or lie
    /// outside the sequence, a measured loss that is NaN or infinite; each with its place.
    pub fn new(
        train_count: usize,
        test_count: usize,
        sequences: Vec<Sequence>,
    ) -> Result<Self, FitError> {
        for (index, sequence) in sequences.iter().enumerate() {
            check(index, sequence, train_count, test_count)?;
        }
        let evaluation_count = sequences.iter().map(|s| s.steps.len()).sum();
        let size = evaluation_count * test_count.div_ceil(LANES);
        let any_missing = sequences.iter().any(|s| s.measured.is_some());
        let mut problem = Self {
            exposures: Exposures::new(train_count),
            places: Vec::with_capacity(sequences.len()),
            test_count,
            evaluation_count,
            losses: Aligned::zeros(size),
            measured: any_missing.then(|| vec![[true; LANES]; size]),
        };
        let mut evaluation = 0;
        for sequence in sequences {
            problem.take_losses(evaluation, &sequence);
            problem.exposures.extend(&sequence.exposures);
            problem.places.push(Place {
                row: problem.exposures.len() - sequence.exposures.len(),
                step_count: sequence.exposures.len(),
                evaluation,
                can_roll_out: starts_complete(&sequence, test_count),
                steps: sequence.steps,
            });
            evaluation += problem.places[problem.places.len() - 1].steps.len();
        }
        Ok(problem)
    }

    /// Copies the losses of a sequence whose first evaluation is `evaluation` into the blocks.
    fn take_losses(&mut self, evaluation: usize, sequence: &Sequence) {
        let blocks = self.losses.chunks_mut(self.evaluation_count.max(1));
        for (block, own) in blocks.enumerate() {
            scatter(
                &sequence.losses,
                self.test_count,
                block,
                &mut own[evaluation..],
            );
        }
        let (Some(all), Some(measured)) = (&mut self.measured, &sequence.measured) else {
            return;
        };
        let blocks = all.chunks_mut(self.evaluation_count.max(1));
        for (block, own) in blocks.enumerate() {
            scatter(measured, self.test_count, block, &mut own[evaluation..]);
        }
    }

    /// Number of training examples `n`.
    pub fn train_count(&self) -> usize {
        self.exposures.train_count()
    }

    /// Number of test examples `m`.
    pub fn test_count(&self) -> usize {
        self.test_count
    }

    /// Number of sequences.
    pub fn sequence_count(&self) -> usize {
        self.places.len()
    }

    /// The indices of all sequences.
    pub fn all_sequences(&self) -> Vec<usize> {
        (0..self.places.len()).collect()
    }

    /// Whether a sequence can be simulated from its true `L_0` and judged at a later step.
    pub fn can_roll_out(&self, sequence: usize) -> bool {
        self.places[sequence].can_roll_out
    }

    /// The loss of a test example at an evaluation (counted over all sequences), if measured.
    #[inline]
    pub(crate) fn loss(&self, evaluation: usize, test: usize) -> Option<f64> {
        let place = test / LANES * self.evaluation_count + evaluation;
        match &self.measured {
            Some(measured) if !measured[place][test % LANES] => None,
            _ => Some(self.losses[place][test % LANES]),
        }
    }

    /// The losses and weights (1 measured, 0 not) of the test examples `first..first + N` at an
    /// evaluation, all of one block; lanes beyond the last test example have weight 0.
    #[inline(always)]
    pub(crate) fn lanes<const N: usize>(
        &self,
        evaluation: usize,
        first: usize,
    ) -> ([f64; N], [f64; N]) {
        let place = first / LANES * self.evaluation_count + evaluation;
        let lanes = first % LANES..first % LANES + N;
        let losses = &self.losses[place][lanes.clone()];
        let mut weights = std::array::from_fn(|l| f64::from(u8::from(first + l < self.test_count)));
        let Some(measured) = &self.measured else {
            return (std::array::from_fn(|l| losses[l]), weights);
        };
        let measured = &measured[place][lanes];
        for l in 0..N {
            weights[l] *= f64::from(u8::from(measured[l]));
        }
        let losses = std::array::from_fn(|l| if measured[l] { losses[l] } else { 0.0 });
        (losses, weights)
    }
}

/// Copies the columns of a block out of a row-major table `[evaluations × test_count]`.
fn scatter<T: Copy>(table: &[T], test_count: usize, block: usize, own: &mut [[T; LANES]]) {
    let first = block * LANES;
    let last = test_count.min(first + LANES);
    for (row, lanes) in table.chunks_exact(test_count).zip(own) {
        lanes[..last - first].copy_from_slice(&row[first..last]);
    }
}

fn check(
    index: usize,
    sequence: &Sequence,
    train_count: usize,
    test_count: usize,
) -> Result<(), FitError> {
    let shape = |what, expected, got| {
        if expected == got {
            return Ok(());
        }
        Err(FitError::Shape {
            sequence: index,
            what,
            expected,
            got,
        })
    };
    let count = sequence.steps.len() * test_count;
    shape(
        "training examples",
        train_count,
        sequence.exposures.train_count(),
    )?;
    shape("losses", count, sequence.losses.len())?;
    if let Some(measured) = &sequence.measured {
        shape("measured flags", count, measured.len())?;
    }
    let mut before = None;
    for &step in &sequence.steps {
        if before.is_some_and(|b| step <= b) || step as usize > sequence.exposures.len() {
            return Err(FitError::EvaluatedSteps {
                sequence: index,
                before,
                got: step,
                steps: sequence.exposures.len(),
            });
        }
        before = Some(step);
    }
    let read = |p: usize| sequence.measured.as_ref().is_none_or(|m| m[p]);
    match (0..count).find(|&p| read(p) && !sequence.losses[p].is_finite()) {
        Some(position) => Err(FitError::LossNotFinite {
            sequence: index,
            step: sequence.steps[position / test_count],
            test: position % test_count,
            got: sequence.losses[position],
        }),
        None => Ok(()),
    }
}

fn starts_complete(sequence: &Sequence, test_count: usize) -> bool {
    let complete = sequence
        .measured
        .as_ref()
        .is_none_or(|m| m.iter().take(test_count).all(|&m| m));
    sequence.steps.first() == Some(&0) && sequence.steps.len() > 1 && complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence() -> Sequence {
        let mut exposures = Exposures::new(1);
        exposures.push([(0, 1.0)]).unwrap();
        Sequence {
            exposures,
            steps: vec![0, 1],
            losses: vec![3.0, 2.0, 2.5, 1.5],
            measured: None,
        }
    }

    #[test]
    fn an_infinite_loss_is_reported_with_its_place() {
        let mut broken = sequence();
        broken.losses[3] = f64::INFINITY;
        let error = Problem::new(1, 2, vec![sequence(), broken]).unwrap_err();
        assert_eq!(
            error,
            FitError::LossNotFinite {
                sequence: 1,
                step: 1,
                test: 1,
                got: f64::INFINITY
            }
        );
    }

    #[test]
    fn a_nan_that_was_never_measured_is_never_read() {
        let mut partial = sequence();
        partial.losses[3] = f64::NAN;
        partial.measured = Some(vec![true, true, true, false]);
        let problem = Problem::new(1, 2, vec![partial]).unwrap();
        assert_eq!(problem.loss(1, 1), None);
        assert_eq!(
            problem.lanes::<4>(1, 0),
            ([2.5, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])
        );
    }

    #[test]
    fn an_evaluation_after_the_last_step_is_refused() {
        let mut broken = sequence();
        broken.steps = vec![0, 2];
        assert!(matches!(
            Problem::new(1, 2, vec![broken]),
            Err(FitError::EvaluatedSteps { got: 2, .. })
        ));
    }

    #[test]
    fn a_sequence_without_the_losses_before_the_first_step_cannot_roll_out() {
        let mut late = sequence();
        late.steps = vec![1];
        late.losses.truncate(2);
        let problem = Problem::new(1, 2, vec![sequence(), late]).unwrap();
        assert!(problem.can_roll_out(0) && !problem.can_roll_out(1));
    }
}
