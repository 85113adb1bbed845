//! Recorded runs as the arrays that the fitter takes: which are used, and which belong together.

use serde::{Deserialize, Serialize};
use simfluence_core::{Run, RunStatus};
use simfluence_fitter::{Exposures, FitError, Sequence};
use std::collections::HashMap;

/// A run that the fit did not use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Id of the run.
    pub run: String,
    /// Why.
    pub reason: LeftOutReason,
}

/// Why a run was left out of a fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOutReason {
    /// A loss became NaN or infinite.
    Diverged,
    /// No two evaluations to learn from.
    TooShort,
    /// No two consecutive steps were measured, and the objective is teacher-forced.
    NoConsecutiveSteps,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = match self.reason {
            LeftOutReason::Diverged => "it diverged (a loss became NaN or infinite)",
            LeftOutReason::TooShort => "it has fewer than two evaluations",
            LeftOutReason::NoConsecutiveSteps => "no two consecutive steps were measured",
        };
        write!(f, "run {} was left out of the fit: {reason}", self.run)
    }
}

/// Splits runs into those to fit on and those left out, in their order.
pub(crate) fn select<'a>(
    runs: &[&'a Run],
    needs_consecutive: bool,
) -> (Vec<&'a Run>, Vec<LeftOut>) {
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    // Where no run at all has consecutive steps the fitter says so.
    let required = needs_consecutive && runs.iter().any(|run| has_consecutive(run));
    for &run in runs {
        let reason = if run.info.status == RunStatus::Diverged || run.trajectory.diverged() {
            LeftOutReason::Diverged
        } else if run.trajectory.steps().len() < 2 {
            LeftOutReason::TooShort
        } else if required && !has_consecutive(run) {
            LeftOutReason::NoConsecutiveSteps
        } else {
            kept.push(run);
            continue;
        };
        left_out.push(LeftOut {
            run: run.id.clone(),
            reason,
        });
    }
    (kept, left_out)
}

fn has_consecutive(run: &Run) -> bool {
    run.trajectory.steps().windows(2).any(|p| p[1] - p[0] == 1)
}

/// A run as arrays.
///
/// # Errors
/// A training id out of range.
pub(super) fn sequence(run: &Run, train_count: usize) -> Result<Sequence, FitError> {
    let trajectory = &run.trajectory;
    let m = trajectory.test_count();
    let measured = (!trajectory.is_complete()).then(|| {
        let positions = 0..trajectory.values().len();
        positions
            .map(|p| trajectory.get(p / m, p % m).is_some())
            .collect()
    });
    Ok(Sequence {
        exposures: Exposures::from_curriculum(&run.curriculum, train_count)?,
        steps: trajectory.steps().to_vec(),
        losses: trajectory.values().iter().map(|&l| f64::from(l)).collect(),
        measured,
    })
}

/// A group per run: runs with the same batches are one group, and so are an edited run, its base
/// and the other edits of that base. A group never straddles a fold.
pub(crate) fn groups(runs: &[&Run]) -> Vec<usize> {
    let mut groups = Groups::default();
    for run in runs {
        let own = groups.node(format!("run {}", run.id));
        let batches = groups.node(format!("batches {:?}", batches(run)));
        groups.join(own, batches);
        if let Some(edit) = &run.info.design.edit {
            let base = groups.node(format!("run {}", edit.base_run));
            groups.join(own, base);
        }
    }
    runs.iter()
        .map(|run| {
            let node = groups.node(format!("run {}", run.id));
            groups.root(node)
        })
        .collect()
}

/// What the simulators see of a curriculum, bit by bit.
fn batches(run: &Run) -> Vec<(&[u32], Option<Vec<u32>>)> {
    let steps = run.curriculum.steps().iter();
    steps
        .map(|step| {
            let weights = step.weights.as_ref();
            let bits = weights.map(|w| w.iter().map(|w| w.to_bits()).collect());
            (step.batch.as_slice(), bits)
        })
        .collect()
}

/// Disjoint sets of named nodes.
#[derive(Default)]
struct Groups {
    nodes: HashMap<String, usize>,
    parents: Vec<usize>,
}

impl Groups {
    fn node(&mut self, name: String) -> usize {
        let fresh = self.parents.len();
        let node = *self.nodes.entry(name).or_insert(fresh);
        if node == fresh {
            self.parents.push(fresh);
        }
        node
    }

    fn root(&self, mut node: usize) -> usize {
        while self.parents[node] != node {
            node = self.parents[node];
        }
        node
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one.max(other)] = one.min(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::{Curriculum, Edit, EditKind, RunInfo, Step, Trajectory};

    fn run(id: &str, batches: &[u32], losses: Vec<f32>) -> Run {
        let steps: Vec<Step> = batches.iter().map(|&i| Step::new(vec![i], None)).collect();
        let evaluated = (0..losses.len() as u32).collect();
        Run {
            id: id.into(),
            info: RunInfo::new(RunStatus::Complete),
            batch_losses: vec![None; steps.len()],
            curriculum: Curriculum::new(steps, 9).unwrap(),
            trajectory: Trajectory::new(evaluated, 1, losses).unwrap(),
        }
    }

    #[test]
    fn equal_curricula_and_edits_of_one_base_are_one_group() {
        let mut edited = run("edited", &[3, 3], vec![1.0; 3]);
        edited.info.design.edit = Some(Edit {
            base_run: "absent".into(),
            kind: EditKind::Dropped,
            label: "dropped a".into(),
        });
        let mut sibling = run("sibling", &[4, 4], vec![1.0; 3]);
        sibling.info.design.edit = edited.info.design.edit.clone();
        let a = run("a", &[1, 2], vec![1.0; 3]);
        let twin = run("twin", &[1, 2], vec![2.0; 3]);
        let other = run("other", &[2, 1], vec![1.0; 3]);
        let found = groups(&[&a, &edited, &twin, &sibling, &other]);
        assert_eq!(found[0], found[2]);
        assert_eq!(found[1], found[3]);
        let mut distinct = found.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 3);
    }

    #[test]
    fn runs_that_diverged_or_are_too_short_are_named() {
        let good = run("good", &[1, 2], vec![3.0, 2.0, 1.0]);
        let wild = run("wild", &[1, 2], vec![3.0, f32::NAN, 1.0]);
        let short = run("short", &[1], vec![3.0]);
        let (kept, left_out) = select(&[&wild, &good, &short], true);
        assert_eq!(
            kept.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["good"]
        );
        let reasons: Vec<_> = left_out
            .iter()
            .map(|l| (l.run.as_str(), l.reason))
            .collect();
        assert_eq!(
            reasons,
            [
                ("wild", LeftOutReason::Diverged),
                ("short", LeftOutReason::TooShort)
            ]
        );
        assert!(left_out[0].to_string().contains("run wild"));
    }
}
