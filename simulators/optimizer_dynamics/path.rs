//! Recorded losses with the evaluations that were left out filled in.

use simfluence_core::Trajectory;
use std::sync::Arc;

/// The losses of all test examples before the first and after every step, and which of them were
/// measured.
///
/// A loss that was not measured lies on the straight line between its neighbours in time, until
/// [`Path::follow`] replaces the line by what a fitted simulator says happens in between. After
/// the last measurement it stays.
#[derive(Debug, Clone)]
pub(super) struct Path {
    test_count: usize,
    /// `[(steps + 1) × tests]`.
    losses: Arc<Vec<f64>>,
    /// For every test example the steps at which it was measured, ascending.
    measured: Arc<Vec<Vec<u32>>>,
    complete: bool,
}

impl Path {
    /// The path of a run over `steps` steps; its losses before the first step must be complete.
    pub(super) fn new(trajectory: &Trajectory, steps: usize) -> Self {
        let m = trajectory.test_count();
        let mut losses = vec![0.0; (steps + 1) * m];
        let mut measured = vec![Vec::new(); m];
        for (row, &step) in trajectory.steps().iter().enumerate() {
            if step as usize > steps {
                break;
            }
            for (test, measured) in measured.iter_mut().enumerate() {
                if let Some(loss) = trajectory.get(row, test) {
                    losses[step as usize * m + test] = f64::from(loss);
                    measured.push(step);
                }
            }
        }
        for (test, measured) in measured.iter().enumerate() {
            for gap in measured.windows(2) {
                let (from, to) = (gap[0], gap[1]);
                let (a, b) = (
                    losses[from as usize * m + test],
                    losses[to as usize * m + test],
                );
                for step in from + 1..to {
                    let part = f64::from(step - from) / f64::from(to - from);
                    losses[step as usize * m + test] = a + part * (b - a);
                }
            }
            let last = *measured.last().expect("step 0 is measured") as usize;
            let value = losses[last * m + test];
            for step in last + 1..=steps {
                losses[step * m + test] = value;
            }
        }
        Self {
            test_count: m,
            complete: measured.iter().all(|steps_of| steps_of.len() == steps + 1),
            losses: losses.into(),
            measured: measured.into(),
        }
    }

    /// The same measurements with other losses `[(steps + 1) × tests]`.
    pub(super) fn with_losses(&self, losses: Vec<f64>) -> Self {
        debug_assert_eq!(losses.len(), self.losses.len());
        Self {
            losses: losses.into(),
            ..self.clone()
        }
    }

    /// Neighbouring measurements of a test example.
    pub(super) fn gaps(&self, test: usize) -> Vec<(u32, u32)> {
        let steps = &self.measured[test];
        steps.windows(2).map(|w| (w[0], w[1])).collect()
    }

    /// Whether every loss was measured.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The losses after a step (0: before the first).
    pub(super) fn row(&self, step: usize) -> &[f64] {
        &self.losses[step * self.test_count..][..self.test_count]
    }

    /// Number of steps.
    pub(super) fn steps(&self) -> usize {
        self.losses.len() / self.test_count - 1
    }

    /// The last step at which a test example was measured.
    pub(super) fn last(&self, test: usize) -> u32 {
        *self.measured[test].last().expect("step 0 is measured")
    }

    /// The loss of one test example after a step.
    pub(super) fn at(&self, step: u32, test: usize) -> f64 {
        self.losses[step as usize * self.test_count + test]
    }

    /// Fills the gaps with `increments` (`[steps × tests]`: what a simulator says each step
    /// changes), shifted evenly so that each gap ends at what was measured.
    pub(super) fn follow(&mut self, increments: &[f64]) {
        let m = self.test_count;
        let losses = Arc::make_mut(&mut self.losses);
        for (test, measured) in self.measured.iter().enumerate() {
            for gap in measured.windows(2).filter(|gap| gap[1] - gap[0] > 1) {
                let (from, to) = (gap[0] as usize, gap[1] as usize);
                let at = |step: usize| step * m + test;
                let said: f64 = (from..to).map(|step| increments[at(step)]).sum();
                let shift = (losses[at(to)] - losses[at(from)] - said) / (to - from) as f64;
                let mut loss = losses[at(from)];
                for step in from + 1..to {
                    loss += increments[at(step - 1)] + shift;
                    losses[at(step)] = loss.max(0.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_lines_and_then_follow_what_is_said() {
        let trajectory = Trajectory::new(vec![0, 2, 4], 1, vec![4.0, 2.0, 2.0]).unwrap();
        let mut path = Path::new(&trajectory, 5);
        let curve = |path: &Path| (0..=5).map(|s| path.row(s)[0]).collect::<Vec<_>>();
        assert_eq!(curve(&path), [4.0, 3.0, 2.0, 2.0, 2.0, 2.0]);
        assert!(!path.is_complete());
        // The first gap is said to fall all at once, by half as much as it does.
        path.follow(&[-1.0, 0.0, 0.5, -0.5, 9.0]);
        assert_eq!(curve(&path), [4.0, 2.5, 2.0, 2.5, 2.0, 2.0]);
    }
}
