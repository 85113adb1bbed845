//! Penalties chosen by how well left-out runs are simulated.

use crate::lanes::LANES;
use crate::parameters::{finish_block, roll_out};
use crate::path::Path;
use crate::teacher_forced::{Block, Rows, Target};
use crate::{FitError, FitSettings, Penalty, Problem, Variant};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simfluence_core::Progress;

/// Tolerance of the fits that are only compared with each other: their errors agree with those of
/// full fits to 2e-6 where there are enough data, to 1e-5 on a small problem with almost no penalty
/// (tested).
const SEARCH_TOLERANCE: f64 = 1e-5;

/// The candidates and folds of leave-run-out validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PenaltySearch {
    /// Candidates; default [`PenaltySearch::default_grid`].
    pub grid: Vec<Penalty>,
    /// Number of folds, at least 2, default 5; fewer where there are fewer groups of runs.
    pub folds: usize,
    /// Seed of the assignment of groups to folds, default 0.
    pub seed: u64,
}

impl Default for PenaltySearch {
    fn default() -> Self {
        Self {
            grid: Self::default_grid(),
            folds: 5,
            seed: 0,
        }
    }
}

impl PenaltySearch {
    /// `λ_B` in decades from 1e-3 to 1e2, `λ_A = λ_B · {0.1, 1, 10}`: 18 candidates.
    pub fn default_grid() -> Vec<Penalty> {
        let mut grid = Vec::new();
        for exponent in -3..=2 {
            for shift in -1..=1 {
                grid.push(Penalty {
                    a: 10f64.powi(exponent + shift),
                    b: 10f64.powi(exponent),
                });
            }
        }
        grid
    }

    /// Checks the grid and the folds.
    ///
    /// # Errors
    /// An empty grid, a penalty that is negative or not finite, fewer than two folds.
    pub fn check(&self) -> Result<(), FitError> {
        if self.grid.is_empty() {
            return Err(FitError::Setting {
                name: "penalty grid",
                got: "empty".to_owned(),
                must: "at least one candidate",
            });
        }
        if self.folds < 2 {
            return Err(FitError::Setting {
                name: "folds",
                got: self.folds.to_string(),
                must: "at least 2",
            });
        }
        self.grid.iter().try_for_each(|penalty| penalty.check())
    }

    /// The candidates that differ for this variant, from strong to weak, so that each starts
    /// well from the solution before it.
    fn path(&self, variant: Variant) -> Vec<Penalty> {
        let mut path = self.grid.clone();
        for penalty in &mut path {
            match variant {
                Variant::Linear => {}
                Variant::Additive => penalty.a = 0.0,
                Variant::Multiplicative => penalty.b = 0.0,
            }
        }
        path.sort_by(|x, y| y.b.total_cmp(&x.b).then(y.a.total_cmp(&x.a)));
        path.dedup();
        path
    }
}

/// How a candidate did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PenaltyScore {
    /// The candidate.
    pub penalty: Penalty,
    /// All-steps MSE of the left-out runs simulated from their true `L_0` (nats²): mean over
    /// steps, then test examples, then runs. `None` where a simulation overflows.
    pub mse: Option<f64>,
}

/// The outcome of leave-run-out validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PenaltyChoice {
    /// The candidate with the smallest error; of equal ones the strongest.
    pub best: Penalty,
    /// All candidates, from strong to weak.
    pub table: Vec<PenaltyScore>,
    /// Number of folds really used.
    pub folds: usize,
}

/// Chooses the penalties by leave-run-out rollouts.
///
/// `groups[k]` is the group of `sequences[k]`; a group never straddles two folds (runs with the
/// same curriculum, an edited run and its base). For every fold and candidate the others are
/// fitted (teacher-forced, by the solver `exact`) and the runs of the fold are simulated.
///
/// # Errors
/// Fewer than two groups, no run that can be simulated, a grid in which every candidate
/// overflows, and what the fits can fail with.
pub fn choose_penalty(
    problem: &Problem,
    sequences: &[usize],
    groups: &[usize],
    settings: &FitSettings,
    search: &PenaltySearch,
    progress: &dyn Progress,
) -> Result<PenaltyChoice, FitError> {
    search.check()?;
    crate::rollout::sequences(problem, sequences)?;
    let fold_of = assign_folds(groups, search.folds, search.seed)?;
    let folds = fold_of.iter().max().map_or(0, |&f| f + 1);
    let path = search.path(settings.variant);
    let parts: Result<Vec<Part>, FitError> = (0..folds)
        .map(|fold| Part::new(problem, sequences, &fold_of, fold))
        .collect();
    let parts = parts?;
    let blocks = problem.test_count.div_ceil(LANES);
    progress.begin(
        "choosing penalties (folds × blocks of test examples)",
        (folds * blocks) as u64,
    );
    let work: Vec<(usize, usize)> = (0..folds)
        .flat_map(|f| (0..blocks).map(move |b| (f, b * LANES)))
        .collect();
    let errors: Result<Vec<Errors>, FitError> = work
        .into_par_iter()
        .map(|(fold, first)| {
            let errors = match settings.variant.terms() {
                1 => validate::<1>(problem, &parts[fold], &path, settings, first),
                _ => validate::<2>(problem, &parts[fold], &path, settings, first),
            }?;
            progress.advance(1);
            Ok(errors)
        })
        .collect();
    progress.end();
    let table = score(problem, &parts, &path, &errors?, blocks);
    choose(table, folds)
}

/// The fold of each run: groups in seeded random order, dealt out in turn; fewer than `folds`
/// where there are fewer groups.
///
/// # Errors
/// Fewer than two groups.
pub fn assign_folds(groups: &[usize], folds: usize, seed: u64) -> Result<Vec<usize>, FitError> {
    let mut names: Vec<usize> = groups.to_vec();
    names.sort_unstable();
    names.dedup();
    if names.len() < 2 {
        return Err(FitError::TooFewGroups {
            groups: names.len(),
        });
    }
    let folds = folds.min(names.len());
    names.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    Ok(groups
        .iter()
        .map(|group| {
            let place = names.iter().position(|name| name == group);
            place.expect("every group is among the names") % folds
        })
        .collect())
}

/// What one fold fits and what it leaves out.
struct Part {
    rows: Rows,
    left_out: Vec<usize>,
}

impl Part {
    fn new(
        problem: &Problem,
        sequences: &[usize],
        fold_of: &[usize],
        fold: usize,
    ) -> Result<Self, FitError> {
        let (mut kept, mut left_out) = (Vec::new(), Vec::new());
        for (&sequence, &of) in sequences.iter().zip(fold_of) {
            if of != fold {
                kept.push(sequence);
            } else if problem.can_roll_out(sequence) {
                left_out.push(sequence);
            }
        }
        Ok(Self {
            rows: Rows::new(problem, &kept)?,
            left_out,
        })
    }
}

/// Per candidate and left-out sequence, the mean squared error over the steps of each lane and
/// whether there was any step.
type Errors = Vec<Vec<[Option<f64>; LANES]>>;

fn validate<const K: usize>(
    problem: &Problem,
    part: &Part,
    path: &[Penalty],
    settings: &FitSettings,
    first: usize,
) -> Result<Errors, FitError> {
    let form = settings.target().form;
    let block = Block::<K, LANES>::new(problem, &part.rows, form, first);
    let mut solutions = Path::new(&block);
    let mut errors = Vec::with_capacity(path.len());
    for &penalty in path {
        let target = Target {
            form,
            penalty,
            tolerance: SEARCH_TOLERANCE,
            max_iterations: settings.max_iterations,
        };
        let mut parameters = solutions.solve(&target)?.clone();
        finish_block(form.variant, form.shrinkage, &mut parameters, |id, lane| {
            block.has_seen(id, lane)
        });
        let of = part.left_out.iter();
        errors.push(
            of.map(|&sequence| rollout_error(problem, sequence, form.variant, &parameters, first))
                .collect(),
        );
    }
    Ok(errors)
}

/// Mean squared error over the measured steps `t ≥ 1` of a sequence, per lane.
fn rollout_error(
    problem: &Problem,
    sequence: usize,
    variant: Variant,
    parameters: &[[f64; LANES]],
    first: usize,
) -> [Option<f64>; LANES] {
    let place = &problem.places[sequence];
    let (start, _) = problem.lanes::<LANES>(place.evaluation, first);
    let (mut sum, mut count) = ([0.0; LANES], [0.0; LANES]);
    let (mut step, mut next) = (0, 1);
    roll_out(
        variant,
        parameters,
        &problem.exposures,
        place.row..place.row + place.step_count,
        start,
        |state| {
            step += 1;
            if place.steps.get(next) != Some(&step) {
                return;
            }
            let (losses, weights) = problem.lanes::<LANES>(place.evaluation + next, first);
            next += 1;
            for l in 0..LANES {
                let error = state[l] - losses[l];
                sum[l] += weights[l] * error * error;
                count[l] += weights[l];
            }
        },
    );
    std::array::from_fn(|l| (count[l] > 0.0).then(|| sum[l] / count[l]))
}

/// Means over test examples, then runs, in a fixed order.
fn score(
    problem: &Problem,
    parts: &[Part],
    path: &[Penalty],
    errors: &[Errors],
    blocks: usize,
) -> Vec<PenaltyScore> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let run_error = |fold: usize, candidate: usize, run: usize| {
        let of_blocks = errors[fold * blocks..(fold + 1) * blocks].iter();
        let lanes = of_blocks.flat_map(|block| block[candidate][run]);
        let values: Vec<f64> = lanes.take(problem.test_count).flatten().collect();
        (!values.is_empty()).then(|| mean(&values))
    };
    path.iter()
        .enumerate()
        .map(|(candidate, &penalty)| {
            let mut runs = Vec::new();
            for (fold, part) in parts.iter().enumerate() {
                let of = 0..part.left_out.len();
                runs.extend(of.filter_map(|run| run_error(fold, candidate, run)));
            }
            let mse = mean(&runs);
            PenaltyScore {
                penalty,
                mse: mse.is_finite().then_some(mse),
            }
        })
        .collect()
}

fn choose(table: Vec<PenaltyScore>, folds: usize) -> Result<PenaltyChoice, FitError> {
    let finite = table
        .iter()
        .filter_map(|row| row.mse.map(|mse| (row.penalty, mse)));
    // `min_by` keeps the first of equal ones, which is the strongest.
    let best = finite.min_by(|x, y| x.1.total_cmp(&y.1));
    match best {
        Some((best, _)) => Ok(PenaltyChoice { best, table, folds }),
        None => Err(FitError::NoFinitePenalty {
            candidates: table.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noisy_problem;
    use simfluence_core::NoProgress;

    #[test]
    fn groups_never_straddle_folds_and_folds_are_even() {
        let groups = [0, 1, 1, 2, 3, 3, 4, 5];
        let search = PenaltySearch {
            folds: 3,
            ..PenaltySearch::default()
        };
        let folds = assign_folds(&groups, search.folds, search.seed).unwrap();
        assert_eq!(folds[1], folds[2]);
        assert_eq!(folds[4], folds[5]);
        for fold in 0..3 {
            let mut of: Vec<usize> = groups
                .iter()
                .zip(&folds)
                .filter(|(_, f)| **f == fold)
                .map(|(g, _)| *g)
                .collect();
            of.dedup();
            assert_eq!(of.len(), 2);
        }
    }

    #[test]
    fn one_group_of_runs_is_an_error() {
        let error = assign_folds(&[4, 4, 4], 5, 0).unwrap_err();
        assert_eq!(error, FitError::TooFewGroups { groups: 1 });
    }

    #[test]
    fn the_chosen_penalty_has_the_smallest_error_of_separate_fits_and_rollouts() {
        let problem = noisy_problem(10, 11, 6, 20, 3, 1);
        let sequences = problem.all_sequences();
        let groups: Vec<usize> = sequences.clone();
        let settings = FitSettings::new(Penalty { a: 1.0, b: 1.0 });
        let search = PenaltySearch {
            folds: 3,
            ..PenaltySearch::default()
        };
        let choice = choose_penalty(
            &problem,
            &sequences,
            &groups,
            &settings,
            &search,
            &NoProgress,
        )
        .unwrap();
        let folds = assign_folds(&groups, search.folds, search.seed).unwrap();
        for row in &choice.table {
            let expected = literal_error(&problem, &folds, row.penalty);
            let got = row.mse.unwrap();
            assert!(
                (got - expected).abs() <= 1e-5 * expected,
                "{got} against {expected}"
            );
            assert!(
                choice
                    .table
                    .iter()
                    .any(|r| r.penalty == choice.best && r.mse <= Some(got))
            );
        }
    }

    /// Leave-run-out error by one fit per fold and one simulation per run.
    fn literal_error(problem: &Problem, folds: &[usize], penalty: Penalty) -> f64 {
        let mut runs = Vec::new();
        for fold in 0..=folds.iter().copied().max().unwrap() {
            let kept: Vec<usize> = (0..folds.len()).filter(|&s| folds[s] != fold).collect();
            let settings = FitSettings::new(penalty);
            let fitted = crate::fit(problem, &kept, &settings, &NoProgress).unwrap();
            for sequence in (0..folds.len()).filter(|&s| folds[s] == fold) {
                let place = &problem.places[sequence];
                let rows = place.row..place.row + place.step_count;
                let exposures = problem.exposures.select(rows);
                let m = problem.test_count;
                let loss =
                    |step: usize, j: usize| problem.loss(place.evaluation + step, j).unwrap();
                let initial: Vec<f32> = (0..m).map(|j| loss(0, j) as f32).collect();
                let simulated = fitted.parameters.simulate(&exposures, &initial);
                let mut sum = 0.0;
                for step in 1..=place.step_count {
                    for j in 0..m {
                        sum += (f64::from(simulated[step * m + j]) - loss(step, j)).powi(2);
                    }
                }
                runs.push(sum / (place.step_count * m) as f64);
            }
        }
        runs.iter().sum::<f64>() / runs.len() as f64
    }
}
