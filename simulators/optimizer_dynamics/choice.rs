//! One closed loop: its settings are those with the smallest error of simulated left-out runs.

use super::filling::fill;
use super::model::{Model, Prepared, Shape, State};
use super::params::{Ingredient, OptimizerDynamicsParams};
use super::path::Path;
use crate::memory::{Memory, SecondMoment};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simfluence_core::Progress;

/// Fewest and most components of the state by default.
const RANKS: (usize, usize) = (2, 8);

/// Error of left-out runs with one setting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// What effects depend on.
    pub state: State,
    /// Ridge penalty `λ`.
    pub penalty: f64,
    /// Exponent of the normalisation.
    pub exponent: f64,
    /// Exponent `q` of the learning rate.
    pub rate_exponent: f64,
    /// Components of the state.
    pub rank: usize,
    /// Pull `γ` of the second fit; `None` without one.
    pub pull: Option<f64>,
    /// All-steps mean squared error of simulated left-out runs, nats².
    pub mse: f64,
}

/// What is recorded, and which runs are left out together.
#[derive(Clone, Copy)]
pub(super) struct Folded<'a> {
    pub(super) prepared: &'a [Prepared],
    /// The fold of each run.
    pub(super) folds: &'a [usize],
    pub(super) filled: &'a Filled,
}

/// The paths of the runs with their gaps filled, once for all loops and settings.
pub(super) struct Filled {
    /// From all of them.
    pub(super) all: Vec<Path>,
    /// For every fold from the other runs, those of the others.
    without: Vec<Vec<Path>>,
}

impl Filled {
    /// By a loop of one of these shapes and penalties: of the middle ones first, then of those
    /// whose error on left-out runs is smallest with what the middle ones filled in.
    pub(super) fn new(
        prepared: &[Prepared],
        folds: &[usize],
        shapes: &[Shape],
        penalties: &[f64],
        progress: &dyn Progress,
    ) -> Self {
        let filled = Self::by(prepared, folds, middle(shapes), middle(penalties));
        if prepared.iter().all(|run| run.path.is_complete()) {
            return filled;
        }
        let folded = Folded {
            prepared,
            folds,
            filled: &filled,
        };
        let (_, (shape, chosen)) = choose(folded, shapes, penalties, progress);
        Self::by(prepared, folds, shape, chosen.penalty)
    }

    fn by(prepared: &[Prepared], folds: &[usize], shape: Shape, penalty: f64) -> Self {
        let count = folds.iter().max().map_or(0, |f| f + 1);
        let without = (0..count)
            .into_par_iter()
            .map(|fold| {
                let others = (prepared.iter().zip(folds)).filter(|(_, f)| **f != fold);
                let others: Vec<&Prepared> = others.map(|(run, _)| run).collect();
                fill(&others, shape, penalty)
            })
            .collect();
        Self {
            all: fill(&prepared.iter().collect::<Vec<_>>(), shape, penalty),
            without,
        }
    }
}

fn middle<T: Copy>(of: &[T]) -> T {
    of[of.len() / 2]
}

/// A closed loop with the settings that were chosen for it.
pub(super) struct Chosen {
    pub(super) tried: Vec<Candidate>,
    pub(super) chosen: Candidate,
    /// Fitted on all runs.
    pub(super) model: Model,
    /// For every fold the one that leaves it out.
    pub(super) left_out: Vec<Model>,
}

impl<'a> Folded<'a> {
    pub(super) fn count(&self) -> usize {
        self.folds.iter().max().map_or(0, |f| f + 1)
    }

    /// The runs of a fold, by their place.
    pub(super) fn of(&self, fold: usize) -> Vec<usize> {
        let places = 0..self.folds.len();
        places.filter(|&r| self.folds[r] == fold).collect()
    }

    /// All other runs.
    pub(super) fn others(&self, fold: usize) -> Vec<usize> {
        let places = 0..self.folds.len();
        places.filter(|&r| self.folds[r] != fold).collect()
    }

    /// The runs of the other folds, and their paths.
    fn without(&self, fold: usize) -> (Vec<&'a Prepared>, &'a [Path]) {
        let others = self.others(fold).into_iter();
        let others = others.map(|r| &self.prepared[r]).collect();
        (others, &self.filled.without[fold])
    }
}

/// The shapes of a loop with this state that settings are compared with first: one for every
/// normalisation and power of the rate.
pub(super) fn shapes(
    memory: Memory,
    groups: usize,
    rate_exponents: &[f64],
    params: &OptimizerDynamicsParams,
    tests: usize,
    state: State,
) -> Vec<Shape> {
    let exponents = match memory.second {
        SecondMoment::None => &[0.0],
        _ => &params.exponents[..],
    };
    let (least, most) = RANKS;
    let rank = params.rank.unwrap_or(groups.clamp(least, most)).min(tests);
    let of_exponent = |&exponent: &f64| {
        rate_exponents.iter().map(move |&rate_exponent| Shape {
            memory,
            exponent,
            rate_exponent,
            rank,
            groups,
            saturation: params.has(Ingredient::Saturation),
            state,
        })
    };
    exponents.iter().flat_map(of_exponent).collect()
}

/// Chooses the settings of every loop and fits it; `shapes` are those of the first state.
pub(super) fn choose_loops(
    folded: Folded<'_>,
    shapes: &[Shape],
    params: &OptimizerDynamicsParams,
    progress: &dyn Progress,
) -> Vec<Chosen> {
    let mut loops: Vec<Chosen> = Vec::new();
    for state in params.states() {
        // What the optimiser makes of a push does not hang on what the state shows; without one,
        // other powers have to make up for it.
        let powers = match (state, loops.first()) {
            (State::Residuals(_), Some(Chosen { chosen, .. })) => Some(chosen),
            _ => None,
        };
        let like = |shape: &&Shape| {
            powers.is_none_or(|chosen| {
                (shape.exponent, shape.rate_exponent) == (chosen.exponent, chosen.rate_exponent)
            })
        };
        let shapes: Vec<Shape> = (shapes.iter().filter(like))
            .map(|&shape| Shape { state, ..shape })
            .collect();
        loops.push(choose_loop(folded, &shapes, params, progress));
    }
    loops
}

/// Chooses one of the shapes, and components, penalty and pull of a loop, and fits it.
fn choose_loop(
    folded: Folded<'_>,
    shapes: &[Shape],
    params: &OptimizerDynamicsParams,
    progress: &dyn Progress,
) -> Chosen {
    let tests = folded.prepared[0].path.row(0).len();
    let (mut tried, (mut shape, mut chosen)) = choose(folded, shapes, &params.penalties, progress);
    let (least, most) = RANKS;
    let rank = (2 * shape.groups).clamp(least, most).min(tests);
    if params.rank.is_none() && rank > shape.rank && shape.state != State::None {
        let more = [Shape { rank, ..shape }];
        let (more, best) = choose(folded, &more, &params.penalties, progress);
        tried.extend(more);
        if best.1.mse < chosen.mse {
            (shape, chosen) = best;
        }
    }
    let pulls = if params.has(Ingredient::Rollouts) {
        &params.pulls[..]
    } else {
        &[]
    };
    let mut left_out = left_out_models(folded, shape, chosen.penalty, pulls);
    let mut place = 0;
    let first = chosen;
    for (p, &pull) in pulls.iter().enumerate() {
        let errors = (folded.folds.iter().zip(folded.prepared))
            .map(|(&fold, run)| mse(&left_out[fold][1 + p].roll_run(run), run));
        let candidate = Candidate {
            pull: Some(pull),
            mse: errors.sum::<f64>() / folded.prepared.len() as f64,
            ..first
        };
        tried.push(candidate);
        if candidate.mse < chosen.mse {
            (chosen, place) = (candidate, 1 + p);
        }
    }
    let all: Vec<&Prepared> = folded.prepared.iter().collect();
    let paths = &folded.filled.all;
    let mut models = Model::fit(&all, paths, shape, &[chosen.penalty]);
    let mut model = models.pop().expect("one model per penalty");
    if let Some(pull) = chosen.pull {
        let mut refitted = model.refit(&all, paths, chosen.penalty, &[pull]);
        model = refitted.pop().expect("one model per pull");
    }
    Chosen {
        tried,
        chosen,
        model,
        left_out: (left_out.iter_mut())
            .map(|models| models.swap_remove(place))
            .collect(),
    }
}

/// The error of left-out runs for every shape and penalty, and where it is smallest.
fn choose(
    folded: Folded<'_>,
    shapes: &[Shape],
    penalties: &[f64],
    progress: &dyn Progress,
) -> (Vec<Candidate>, (Shape, Candidate)) {
    let work: Vec<(usize, usize)> = (0..shapes.len())
        .flat_map(|s| (0..folded.count()).map(move |f| (s, f)))
        .collect();
    progress.begin(
        "choosing penalties and exponents (settings × folds)",
        work.len() as u64,
    );
    let parts: Vec<Vec<f64>> = work
        .par_iter()
        .map(|&(s, fold)| {
            let (others, paths) = folded.without(fold);
            let models = Model::fit(&others, paths, shapes[s], penalties);
            let left_out = folded.of(fold);
            let error = |model: &Model, r: usize| {
                let run = &folded.prepared[r];
                mse(&model.roll_run(run), run)
            };
            let errors = (models.iter())
                .map(|model| left_out.iter().map(|&r| error(model, r)).sum())
                .collect();
            progress.advance(1);
            errors
        })
        .collect();
    progress.end();
    let mut candidates = Vec::new();
    for (s, shape) in shapes.iter().enumerate() {
        for (p, &penalty) in penalties.iter().enumerate() {
            let of_shape = work
                .iter()
                .zip(&parts)
                .filter(|((shape, _), _)| *shape == s);
            let sum: f64 = of_shape.map(|(_, errors)| errors[p]).sum();
            candidates.push(Candidate {
                state: shape.state,
                penalty,
                exponent: shape.exponent,
                rate_exponent: shape.rate_exponent,
                rank: shape.rank,
                pull: None,
                mse: sum / folded.prepared.len() as f64,
            });
        }
    }
    let best = (0..candidates.len())
        .min_by(|&a, &b| candidates[a].mse.total_cmp(&candidates[b].mse))
        .expect("there is a candidate");
    let best = (shapes[best / penalties.len()], candidates[best]);
    (candidates, best)
}

/// Mean squared error over what was measured after the first step.
pub(super) fn mse(simulated: &[f64], run: &Prepared) -> f64 {
    let errors = errors(simulated, run);
    errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64
}

/// What is missed of what was measured after the first step.
pub(super) fn errors(simulated: &[f64], run: &Prepared) -> Vec<f64> {
    let m = run.path.row(0).len();
    let of_test = |test: usize| {
        let gaps = run.path.gaps(test).into_iter();
        gaps.map(move |(_, step)| simulated[step as usize * m + test] - run.path.at(step, test))
    };
    (0..m).flat_map(of_test).collect()
}

/// For every fold the models that leave it out: without the second fit, and with every pull.
fn left_out_models(
    folded: Folded<'_>,
    shape: Shape,
    penalty: f64,
    pulls: &[f64],
) -> Vec<Vec<Model>> {
    (0..folded.count())
        .into_par_iter()
        .map(|fold| {
            let (others, paths) = folded.without(fold);
            let mut models = Model::fit(&others, paths, shape, &[penalty]);
            models.extend(models[0].refit(&others, paths, penalty, pulls));
            models
        })
        .collect()
}
