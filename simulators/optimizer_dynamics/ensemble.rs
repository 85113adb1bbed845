//! Several closed loops that differ in what their state shows, the linearised model beside them, and
//! their mean.

use super::choice::{Chosen, Folded, errors, mse};
use super::correction::clearly_positive;
use super::examples::{ExampleEffects, Recorded, Regression, axes};
use super::inputs::Inputs;
use super::model::{Model, Prepared};
use super::path::Path;
use crate::linearised::LinearisedSimulator;
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How effects of single examples were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExampleChoice {
    /// How strongly they are shrunk to those of their datasets.
    pub strength: f64,
    /// Directions in which they move the losses: as many as the state of the first loop has.
    pub rank: usize,
    /// All-steps mean squared error of simulated left-out runs without them, nats², and
    pub before: f64,
    /// with them.
    pub after: f64,
}

/// Members whose weighted mean is simulated: what one makes too much of, another may not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ensemble {
    /// At least one.
    pub(super) loops: Vec<Model>,
    /// A last member where it has a weight.
    pub(super) linearised: Option<Arc<LinearisedSimulator>>,
    /// One per member, none negative, with a sum of 1.
    pub(super) weights: Vec<f64>,
}

impl Ensemble {
    /// Simulates: `[(steps + 1) × tests]`; `reference_rate` is that of the inputs.
    pub(super) fn roll(
        &self,
        inputs: &Inputs,
        reference_rate: Option<f64>,
        initial: &[f64],
    ) -> Vec<f64> {
        let linearised = (self.linearised.as_ref())
            .filter(|simulator| simulator.starts_at(initial))
            .map(|simulator| roll_linearised(simulator, inputs, reference_rate, initial));
        self.mean(inputs, initial, linearised.as_deref())
    }

    pub(super) fn roll_run(&self, run: &Prepared) -> Vec<f64> {
        self.mean(&run.inputs, run.path.row(0), run.linearised.as_deref())
    }

    /// The mean, with what the linearised model simulates; of the loops alone where that is `None`.
    fn mean(&self, inputs: &Inputs, initial: &[f64], linearised: Option<&[f64]>) -> Vec<f64> {
        let mut mean = vec![0.0; (inputs.len() + 1) * initial.len()];
        let mut add = |weight: f64, losses: &[f64]| {
            for (sum, loss) in mean.iter_mut().zip(losses) {
                *sum += weight * loss;
            }
        };
        let (weights, own) = self.weights.split_at(self.loops.len());
        let share = match linearised {
            Some(_) => 1.0,
            None => weights.iter().sum::<f64>(),
        };
        for (model, &weight) in self.loops.iter().zip(weights) {
            // Where the linearised model has all the weight the loops share it evenly.
            let weight = match share > 0.0 {
                true => weight / share,
                false => 1.0 / weights.len() as f64,
            };
            if weight > 0.0 {
                add(weight, &model.roll(inputs, initial));
            }
        }
        if let (Some(losses), Some(&weight)) = (linearised, own.first()) {
            add(weight, losses);
        }
        mean
    }

    /// The same with effects of single examples, one set per loop.
    fn with_examples(&self, effects: impl Iterator<Item = ExampleEffects>) -> Self {
        let with = |(model, effects): (&Model, ExampleEffects)| Model {
            examples: Some(effects),
            ..model.clone()
        };
        Self {
            loops: self.loops.iter().zip(effects).map(with).collect(),
            ..self.clone()
        }
    }

    /// Effects of single examples, from what each loop misses of some runs: for every loop those
    /// of every strength.
    fn example_effects(
        &self,
        prepared: &[Prepared],
        paths: &[Path],
        runs: &[usize],
        strengths: &[f64],
    ) -> Vec<Vec<ExampleEffects>> {
        let own: Vec<&Path> = runs.iter().map(|&r| &paths[r]).collect();
        let rank = self.loops[0].space.rank;
        let axes = axes(&own, rank);
        let train_count = prepared[0].inputs.groups().len();
        let of_loop = |model: &Model| {
            let recorded: Vec<Recorded<'_>> = (runs.par_iter())
                .map(|&r| model.recorded(&prepared[r], &paths[r], &axes))
                .collect();
            let (datasets, decay) = (model.readout.groups, model.memory.first);
            let regression = Regression::new(&recorded, train_count, rank, datasets, decay);
            let solutions = regression.solve(strengths).into_iter();
            let with_axes = |effects| ExampleEffects {
                rank,
                axes: axes.clone(),
                effects,
            };
            solutions.map(with_axes).collect()
        };
        self.loops.iter().map(of_loop).collect()
    }
}

/// What the linearised model simulates, `[(steps + 1) × tests]`.
pub(super) fn roll_linearised(
    simulator: &LinearisedSimulator,
    inputs: &Inputs,
    reference_rate: Option<f64>,
    initial: &[f64],
) -> Vec<f64> {
    let reference = reference_rate.unwrap_or(simulator.report().reference_rate);
    let steps = (0..inputs.len()).map(|t| {
        let batch = inputs.exposures(t).iter().copied();
        (batch, inputs.rate(t, 1.0) * reference)
    });
    let initial: Vec<f32> = initial.iter().map(|&l| l as f32).collect();
    let losses = simulator.roll(steps, &initial);
    losses.into_iter().map(f64::from).collect()
}

/// The loops and the linearised model, if there is one, with the weights of [`stacking_weights`],
/// and for every fold those that leave it out.
pub(super) fn stacked(
    folded: Folded<'_>,
    loops: &[Chosen],
    linearised: Option<&Arc<LinearisedSimulator>>,
) -> (Ensemble, Vec<Ensemble>) {
    let left_out: Vec<&[Model]> = loops.iter().map(|l| &l.left_out[..]).collect();
    let weights = stacking_weights(folded, &left_out);
    let linearised = linearised.filter(|_| weights.get(loops.len()).is_some_and(|&w| w > 0.0));
    let with = |loops: Vec<Model>| Ensemble {
        loops,
        linearised: linearised.cloned(),
        weights: weights.clone(),
    };
    let without = |fold: usize| with(left_out.iter().map(|of| of[fold].clone()).collect());
    let all = with(loops.iter().map(|l| l.model.clone()).collect());
    (all, (0..folded.count()).map(without).collect())
}

/// The weights with which the members together miss left-out runs least (stacking): they minimise
/// `wᵀ G w`, none negative, with a sum of 1. `G` sums over runs the products of the members' errors,
/// over the sum of their squares: every run counts the same. The linearised model is the same for
/// every fold: it has gain, power and ceilings from the runs, and no more.
fn stacking_weights(folded: Folded<'_>, left_out: &[&[Model]]) -> Vec<f64> {
    let products: Vec<DMatrix<f64>> = (folded.folds.par_iter().zip(folded.prepared))
        .map(|(&fold, run)| {
            let of_loop = |models: &&[Model]| errors(&models[fold].roll_run(run), run);
            let linearised = run.linearised.as_ref().map(|losses| errors(losses, run));
            let errors: Vec<Vec<f64>> = left_out.iter().map(of_loop).chain(linearised).collect();
            let count = errors.len();
            let gram = DMatrix::from_fn(count, count, |a, b| {
                let pairs = errors[a].iter().zip(&errors[b]);
                pairs.map(|(x, y)| x * y).sum::<f64>()
            });
            // Runs that are hard to simulate would outvote the others.
            let scale = gram.trace();
            if scale > 0.0 { gram / scale } else { gram }
        })
        .collect();
    let gram = products.iter().sum::<DMatrix<f64>>();
    least_on_simplex(&gram)
}

/// The point of the simplex at which `wᵀ G w` is smallest. Where some entries are above 0 and the
/// others 0, the former are `G⁻¹ 1` over its sum: of all such points without a negative entry the
/// best one (there are few entries).
fn least_on_simplex(gram: &DMatrix<f64>) -> Vec<f64> {
    let count = gram.nrows();
    let mut best: Option<(f64, Vec<f64>)> = None;
    for subset in 1..1_usize << count {
        let among: Vec<usize> = (0..count).filter(|k| subset >> k & 1 == 1).collect();
        let part = DMatrix::from_fn(among.len(), among.len(), |a, b| gram[(among[a], among[b])]);
        let ones = DVector::from_element(among.len(), 1.0);
        let share = if among.len() == 1 {
            ones
        } else {
            let Some(solution) = part.clone().lu().solve(&ones) else {
                continue;
            };
            &solution / solution.sum()
        };
        let value = share.dot(&(&part * &share));
        if share.iter().all(|&w| w >= 0.0) && best.as_ref().is_none_or(|(least, _)| value < *least)
        {
            let mut weights = vec![0.0; count];
            for (&k, &w) in among.iter().zip(&share) {
                weights[k] = w;
            }
            best = Some((value, weights));
        }
    }
    // Nothing is best only where loops overflow.
    best.map_or_else(|| vec![1.0 / count as f64; count], |(_, weights)| weights)
}

/// Gives `all` and the ensembles that leave a fold out (`left_out`) effects of single examples, of
/// the strength that lowers the error of left-out runs most, if they clearly do.
pub(super) fn choose_examples(
    folded: Folded<'_>,
    paths: &[Path],
    all: &mut Ensemble,
    left_out: &mut [Ensemble],
    strengths: &[f64],
) -> Option<ExampleChoice> {
    let (prepared, folds) = (folded.prepared, folded.folds);
    let of_strength = |ensemble: &Ensemble, effects: &[Vec<ExampleEffects>], s: usize| {
        ensemble.with_examples(effects.iter().map(|of_loop| of_loop[s].clone()))
    };
    let tried: Vec<Vec<Ensemble>> = (left_out.par_iter().enumerate())
        .map(|(fold, ensemble)| {
            let others = folded.others(fold);
            let effects = ensemble.example_effects(prepared, paths, &others, strengths);
            let strengths = 0..strengths.len();
            strengths
                .map(|s| of_strength(ensemble, &effects, s))
                .collect()
        })
        .collect();
    let miss = |of_folds: Vec<&Ensemble>| -> Vec<f64> {
        (folds.par_iter().zip(prepared))
            .map(|(&fold, run)| mse(&of_folds[fold].roll_run(run), run))
            .collect()
    };
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    let without = miss(left_out.iter().collect());
    let with: Vec<Vec<f64>> = (0..strengths.len())
        .map(|s| miss(tried.iter().map(|of_fold| &of_fold[s]).collect()))
        .collect();
    let best = (0..with.len()).min_by(|&a, &b| mean(&with[a]).total_cmp(&mean(&with[b])))?;
    let gains: Vec<f64> = (without.iter().zip(&with[best]))
        .map(|(without, with)| without - with)
        .collect();
    if !clearly_positive(&gains) {
        return None;
    }
    let choice = ExampleChoice {
        strength: strengths[best],
        rank: all.loops[0].space.rank,
        before: mean(&without),
        after: mean(&with[best]),
    };
    for (ensemble, mut tried) in left_out.iter_mut().zip(tried) {
        *ensemble = tried.swap_remove(best);
    }
    let every: Vec<usize> = (0..prepared.len()).collect();
    let effects = all.example_effects(prepared, paths, &every, &[choice.strength]);
    *all = of_strength(all, &effects, 0);
    Some(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_best_ones_of_the_simplex() {
        // Errors of three loops on four points: the third errs most, but against the others.
        let cases = [
            [
                [1.0, -1.0, 2.0, 0.5],
                [0.5, 1.5, -1.0, 1.0],
                [-2.0, 1.0, 1.0, -3.0],
            ],
            [
                [1.0, 1.0, 1.0, 1.0],
                [1.5, 1.4, 1.6, 1.5],
                [3.0, 2.0, 1.0, 4.0],
            ],
        ];
        for errors in cases {
            let gram = DMatrix::from_fn(3, 3, |a, b| {
                (0..4).map(|p| errors[a][p] * errors[b][p]).sum::<f64>()
            });
            let value = |w: &[f64]| {
                let w = DVector::from_column_slice(w);
                w.dot(&(&gram * &w))
            };
            let weights = least_on_simplex(&gram);
            assert!(
                (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12,
                "{weights:?}"
            );
            assert!(weights.iter().all(|&w| w >= 0.0), "{weights:?}");
            let least = value(&weights);
            for a in 0..=100 {
                for b in 0..=100 - a {
                    let w = [a, b, 100 - a - b].map(|x| f64::from(x) / 100.0);
                    assert!(least <= value(&w) + 1e-12, "{weights:?} {w:?}");
                }
            }
        }
        // Where one is better everywhere and the others err alike, it stands alone.
        let weights = least_on_simplex(&DMatrix::from_row_slice(2, 2, &[1.0, 1.5, 1.5, 2.5]));
        assert_eq!(weights, [1.0, 0.0]);
        // A loop that errs nowhere gets everything, also where the equations are singular.
        assert_eq!(
            least_on_simplex(&DMatrix::from_row_slice(1, 1, &[0.0])),
            [1.0]
        );
    }
}
