//! The other member: the mean change of the recorded runs.

use super::path::Path;

/// `L_0(j)` plus the mean change `L_t(j) − L_0(j)` of the runs that reach step `t`; after the
/// last step of the longest run it stays.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MeanChange {
    pub(super) tests: usize,
    /// `[(longest run + 1) × tests]`.
    pub(super) changes: Vec<f64>,
}

impl MeanChange {
    pub(super) fn new(paths: &[&Path]) -> Self {
        let tests = paths[0].row(0).len();
        let longest = paths.iter().map(|path| path.steps()).max().unwrap_or(0);
        let mut changes = Vec::with_capacity((longest + 1) * tests);
        for step in 0..=longest {
            let reach: Vec<&&Path> = paths.iter().filter(|path| path.steps() >= step).collect();
            for test in 0..tests {
                let change = |path: &&&Path| path.row(step)[test] - path.row(0)[test];
                changes.push(reach.iter().map(change).sum::<f64>() / reach.len() as f64);
            }
        }
        Self { tests, changes }
    }

    /// `[(steps + 1) × tests]`.
    pub(super) fn simulate(&self, steps: usize, initial: &[f64]) -> Vec<f64> {
        let last = self.changes.len() / self.tests - 1;
        (0..=steps)
            .flat_map(|step| {
                let changes = &self.changes[step.min(last) * self.tests..][..self.tests];
                changes.iter().zip(initial).map(|(c, l)| (l + c).max(0.0))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Trajectory;

    #[test]
    fn steps_that_not_all_runs_reach_take_those_that_do() {
        let path = |losses: Vec<f32>| {
            let steps = losses.len() as u32;
            Path::new(
                &Trajectory::new((0..steps).collect(), 1, losses).unwrap(),
                steps as usize - 1,
            )
        };
        let (long, short) = (path(vec![4.0, 3.0, 1.0]), path(vec![5.0, 5.0]));
        let mean = MeanChange::new(&[&long, &short]);
        assert_eq!(mean.simulate(3, &[2.0]), [2.0, 1.5, 0.0, 0.0]);
    }
}
