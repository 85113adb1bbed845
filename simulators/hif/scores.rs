//! Scores of a model.

use super::params::{
    Arnoldi, ConjugateGradientSettings, Curved, DampingParam, Drawn, Factored, Hif, HifError,
    LissaSettings, Solver,
};
use super::queries::Queries;
use super::solvers::{
    ConjugateGradients, Deflation, Krylov, LinearOperator, Lissa, SolveError, conjugate_gradients,
    dense, lanczos, lissa,
};
use crate::attribution::{Attributed, AttributionError, by_token, note_cost};
use crate::units::Units;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use simfluence_core::{Progress, Scores, TokenScores};
use simfluence_models::{
    Curvature, CurvatureKind, Damping, FactorKind, InnerProducts, Labels, Metric, Model, Wanted,
    fit_factors, products_with_vectors,
};
use tch::Tensor;

/// Products that look at the spectrum before conjugate gradients and LiSSA.
const SPECTRUM_ITERATIONS: usize = 50;

/// The curvature, with progress counted in products with vectors.
struct Watched<'a, 'm, M: Model> {
    curvature: &'a Curvature<'m, M>,
    progress: &'a dyn Progress,
}

impl<M: Model> LinearOperator for Watched<'_, '_, M> {
    fn times(&self, vectors: &Tensor) -> Tensor {
        let products = self.curvature.times(vectors);
        self.progress.advance(vectors.size()[0] as u64);
        products
    }

    fn support(&self) -> Tensor {
        self.curvature.support()
    }
}

/// What a solver gave: `g_jᵀ (C + δI)⁻¹ g_i` and how it went.
struct Solution {
    products: InnerProducts,
    report: Value,
    gradient_evaluations: u64,
}

impl Hif {
    /// The scores of every training example for every test example.
    ///
    /// - `exposures`: total exposure `x̄_i` of every training example in the reference run.
    /// - `steps`: its steps `T_ref`.
    /// - `layers`: whether to give the scores of each layer, too.
    ///
    /// How the solve went (damping, residual, iterations, largest and smallest Ritz value, scale)
    /// is in the scores' provenance under `solver`.
    ///
    /// # Errors
    /// Another number of examples than keys or exposures; an example that the model cannot read;
    /// a solve that does not converge or an indefinite curvature ([`SolveError`]), with what to
    /// change.
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        exposures: &[f64],
        steps: usize,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, HifError> {
        let queries = Queries { of, units: None };
        self.scores_of(&queries, exposures, steps, layers, progress)
    }

    /// The scores of every training example for the mean loss of each unit of test examples: all
    /// members of a unit have the mean of what [`Hif::scores`] gives them. One system is solved
    /// per unit instead of one per test example, which makes the iterative solvers affordable.
    ///
    /// # Errors
    /// As [`Hif::scores`]; units that are not among the test examples.
    pub fn scores_of_units<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        test_units: &Units,
        exposures: &[f64],
        steps: usize,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, HifError> {
        test_units
            .check(of.test.len())
            .map_err(AttributionError::from)?;
        let units = Some(test_units);
        let queries = Queries { of, units };
        self.scores_of(&queries, exposures, steps, layers, progress)
    }

    fn scores_of<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        exposures: &[f64],
        steps: usize,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, HifError> {
        let of = queries.of;
        let weights = weights_of(of, exposures, steps)?;
        let weights = self.drawn_weights(weights);
        let solution = match self.params.solver {
            Solver::Factored(factored) => {
                let wanted = Wanted {
                    layers,
                    ..Wanted::default()
                };
                self.factored(queries, &weights, factored, wanted, of, progress)?
            }
            Solver::Arnoldi(settings) => {
                self.arnoldi(queries, &weights, settings, layers, progress)?
            }
            Solver::Exact => self.exact(queries, &weights, layers, progress)?,
            Solver::ConjugateGradients(settings) => {
                self.conjugate_gradients(queries, &weights, settings, layers, progress)?
            }
            Solver::Lissa(settings) => self.lissa(queries, &weights, settings, layers, progress)?,
        };
        self.finish(queries, solution, steps)
    }

    /// The weights of the examples that curvature is taken over: all, or some drawn with equal
    /// chances that stand for the others, too.
    fn drawn_weights(&self, weights: Vec<f64>) -> Vec<f64> {
        let mut ids: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0.0).collect();
        let count = match self.params.curvature_examples {
            Some(count) if count < ids.len() => count,
            _ => return weights,
        };
        let scale = ids.len() as f64 / count as f64;
        ids.shuffle(&mut ChaCha8Rng::seed_from_u64(self.params.seed ^ 0xd4a3));
        let mut drawn = vec![0.0; weights.len()];
        for &i in &ids[..count] {
            drawn[i] = weights[i] * scale;
        }
        drawn
    }

    /// The scores of every target token of every training example by factored curvature; they sum
    /// to [`Hif::scores`]. With `test_tokens` for every target token of the test examples, too.
    ///
    /// # Errors
    /// As there; another solver than a factored one.
    pub fn token_scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        exposures: &[f64],
        steps: usize,
        test_tokens: bool,
        progress: &dyn Progress,
    ) -> Result<TokenScores, HifError> {
        let method = self.params.solver.method();
        let Solver::Factored(factored) = self.params.solver else {
            return Err(HifError::OnlyFactored {
                method,
                what: "scores by target token",
            });
        };
        let weights = self.drawn_weights(weights_of(of, exposures, steps)?);
        let wanted = by_token(test_tokens);
        let queries = Queries { of, units: None };
        let solution = self.factored(&queries, &weights, factored, wanted, of, progress)?;
        let rate = self.params.gradients.reference_learning_rate;
        let products = solution.products.products.iter();
        let values = products.map(|v| v / steps as f32).collect();
        let mut scores = of.token_scores(method.to_owned(), rate, test_tokens, values)?;
        scores.provenance.insert("solver".into(), solution.report);
        Ok(scores)
    }

    /// The scores of some training examples by the factored curvature of all.
    ///
    /// - `of`: all training examples, whose total exposures are `exposures`.
    /// - `scored`: those that are scored.
    ///
    /// # Errors
    /// As [`Hif::scores`]; another solver than a factored one.
    pub fn candidate_scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        scored: &Attributed<'_, M>,
        exposures: &[f64],
        steps: usize,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, HifError> {
        let Solver::Factored(factored) = self.params.solver else {
            return Err(HifError::OnlyFactored {
                method: self.params.solver.method(),
                what: "scores of candidates only",
            });
        };
        let weights = self.drawn_weights(weights_of(of, exposures, steps)?);
        let wanted = Wanted {
            layers,
            ..Wanted::default()
        };
        let queries = Queries { of, units: None };
        let solution = self.factored(&queries, &weights, factored, wanted, scored, progress)?;
        let scored = Queries {
            of: scored,
            units: None,
        };
        self.finish(&scored, solution, steps)
    }

    fn finish<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        solution: Solution,
        steps: usize,
    ) -> Result<Scores, HifError> {
        let per_step = |values: Vec<f32>| -> Vec<f32> {
            let values = queries.spread(values);
            values.iter().map(|v| v / steps as f32).collect()
        };
        let rate = self.params.gradients.reference_learning_rate;
        let values = per_step(solution.products.products);
        let method = match self.params.curvature {
            Curved::GaussNewton => self.params.solver.method().to_owned(),
            Curved::Hessian => format!("{}-hessian", self.params.solver.method()),
        };
        let mut scores = queries.axes().scores(&method, rate, true, values)?;
        scores.layers = (solution.products.layers.into_iter())
            .map(|(layer, values)| (layer, per_step(values)))
            .collect();
        scores.provenance.insert("solver".into(), solution.report);
        note_cost(
            &mut scores,
            solution.gradient_evaluations + solution.products.gradient_evaluations,
        );
        Ok(scores)
    }

    fn curvature<'a, M: Model>(
        &self,
        of: &Attributed<'a, M>,
        weights: &[f64],
    ) -> Result<Curvature<'a, M>, HifError> {
        let kind = match self.params.curvature {
            Curved::GaussNewton => CurvatureKind::GaussNewton,
            Curved::Hessian => CurvatureKind::Hessian,
        };
        let settings = self.params.gradients.settings();
        Ok(Curvature::new(
            of.model, of.train, weights, kind, &settings,
        )?)
    }

    /// `δ` where the largest eigenvalue is known.
    fn damping(&self, largest: f64) -> f64 {
        match self.params.damping {
            DampingParam::Absolute(damping) => damping,
            DampingParam::Relative(factor) => factor * largest,
        }
    }

    fn factored<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        weights: &[f64],
        factored: Factored,
        wanted: Wanted,
        scored: &Attributed<'_, M>,
        progress: &dyn Progress,
    ) -> Result<Solution, HifError> {
        let kind = match factored {
            Factored::Ekfac(_) => FactorKind::Ekfac,
            Factored::Kfac(_) => FactorKind::Kfac,
            Factored::Diagonal(_) => FactorKind::Diagonal,
        };
        let seed = self.params.seed;
        let labels = match factored.drawn() {
            Drawn::Sampled(draws) => Labels::Sampled { seed, draws },
            Drawn::Given => Labels::Given,
            Drawn::Expected => Labels::Expected,
        };
        let (of, settings) = (queries.of, self.params.gradients.settings());
        let factors = fit_factors(
            of.model, of.train, weights, kind, labels, &settings, progress,
        )?;
        let damping = match self.params.damping {
            DampingParam::Absolute(damping) => Damping::Absolute(damping),
            DampingParam::Relative(factor) => Damping::Relative(factor),
        };
        let products = if queries.units.is_some() {
            let solved = factors.solve(&queries.gradients()?, damping)?;
            self.against(queries, &solved, wanted.layers, progress)?
        } else {
            self.products(scored, &factors.inverse(damping)?, wanted, progress)?
        };
        let blocks: Vec<Value> = (factors.layers().iter())
            .map(|l| {
                json!({"layer": l.layer, "smallest": l.smallest, "mean": l.mean,
                    "largest": l.largest})
            })
            .collect();
        Ok(Solution {
            products,
            report: json!({"damping": self.params.damping, "eigenvalues": blocks,
                "settings": self.params.solver, "seed": seed}),
            gradient_evaluations: factors.gradient_evaluations(),
        })
    }

    fn products<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        metric: &Metric,
        wanted: Wanted,
        progress: &dyn Progress,
    ) -> Result<InnerProducts, HifError> {
        Ok(of.products(metric, wanted, &self.params.gradients, progress)?)
    }

    /// `g_q · g_i`.
    fn plain<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<InnerProducts, HifError> {
        match queries.units {
            Some(_) => self.against(queries, &queries.gradients()?, layers, progress),
            None => {
                let wanted = Wanted {
                    layers,
                    ..Wanted::default()
                };
                self.products(queries.of, &Metric::Identity, wanted, progress)
            }
        }
    }

    /// `v_q · g_i` for solved vectors, with what solving them cost.
    fn against<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        solved: &Tensor,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<InnerProducts, HifError> {
        let wanted = Wanted {
            layers,
            norms: false,
            ..Wanted::default()
        };
        let (of, settings) = (queries.of, self.params.gradients.settings());
        let mut found =
            products_with_vectors(of.model, of.train, solved, wanted, &settings, progress)?;
        found.gradient_evaluations += of.test.len() as u64;
        Ok(found)
    }

    fn exact<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        weights: &[f64],
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Solution, HifError> {
        let curvature = self.curvature(queries.of, weights)?;
        let right = queries.gradients()?;
        let watched = Watched {
            curvature: &curvature,
            progress,
        };
        let parameters = queries.of.model.layout().parameter_count();
        progress.begin("curvature products", parameters as u64);
        let solved = dense(&watched, |largest| self.damping(largest), &right)?;
        progress.end();
        Ok(Solution {
            products: self.against(queries, &solved.solution, layers, progress)?,
            report: json!({"damping": solved.damping, "smallest_eigenvalue": solved.smallest,
                "largest_eigenvalue": solved.largest}),
            gradient_evaluations: curvature.gradient_evaluations(),
        })
    }

    /// A look at the spectrum, and `δ`.
    fn spectrum<M: Model>(
        &self,
        curvature: &Curvature<'_, M>,
        solver: &'static str,
        progress: &dyn Progress,
    ) -> Result<(Krylov, f64), HifError> {
        let seed = self.params.seed;
        let watched = Watched {
            curvature,
            progress,
        };
        progress.begin("curvature products", SPECTRUM_ITERATIONS as u64);
        let krylov = lanczos(&watched, SPECTRUM_ITERATIONS, seed, curvature.kind())?;
        progress.end();
        let damping = self.damping(krylov.largest());
        if krylov.smallest() + damping <= 0.0 {
            return Err(SolveError::Indefinite {
                solver,
                smallest: krylov.smallest(),
                damping,
            }
            .into());
        }
        Ok((krylov, damping))
    }

    fn conjugate_gradients<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        weights: &[f64],
        settings: ConjugateGradientSettings,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Solution, HifError> {
        let curvature = self.curvature(queries.of, weights)?;
        let (krylov, damping) = self.spectrum(&curvature, "conjugate gradients", progress)?;
        let right = queries.gradients()?;
        let settings = ConjugateGradients {
            tolerance: settings.tolerance,
            iterations: settings.iterations,
        };
        let watched = Watched {
            curvature: &curvature,
            progress,
        };
        // At most so many, and one to check.
        let most = (settings.iterations + 1) * queries.count();
        progress.begin("curvature products", most as u64);
        let solved = conjugate_gradients(&watched, damping, &right, &settings)?;
        progress.end();
        Ok(Solution {
            products: self.against(queries, &solved.solution, layers, progress)?,
            report: json!({"damping": damping, "residual": solved.residual,
                "iterations": solved.iterations, "smallest_ritz_value": krylov.smallest(),
                "largest_ritz_value": krylov.largest(), "settings": self.params.solver}),
            gradient_evaluations: curvature.gradient_evaluations(),
        })
    }

    fn lissa<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        weights: &[f64],
        settings: LissaSettings,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Solution, HifError> {
        let whole = self.curvature(queries.of, weights)?;
        let (krylov, damping) = self.spectrum(&whole, "LiSSA", progress)?;
        let deflation = match (settings.deflation, settings.batch_size, settings.scale) {
            (true, None, None) => Deflation::of(&krylov, damping),
            _ => None,
        };
        let scale = match (&deflation, settings.scale, settings.batch_size) {
            (Some(deflation), _, _) => deflation.scale(damping),
            (None, Some(scale), _) => scale,
            (None, None, None) => 1.1 * krylov.largest() + damping,
            (None, None, Some(_)) => 2.2 * krylov.largest() + damping,
        };
        let right = queries.gradients()?;
        let recursion = Lissa {
            depth: settings.depth,
            repeats: settings.repeats,
            tolerance: settings.tolerance,
        };
        let most = settings.depth * settings.repeats * queries.count();
        progress.begin("curvature products", most as u64);
        let watched = Watched {
            curvature: &whole,
            progress,
        };
        let (solved, more) = match settings.batch_size {
            None => {
                let solved =
                    recursion.whole(&watched, damping, scale, deflation.as_ref(), &right)?;
                (solved, 0)
            }
            Some(size) => {
                let parts = self.mini_batches(queries.of, weights, size)?;
                let mut rng = ChaCha8Rng::seed_from_u64(self.params.seed);
                let rounds = settings.depth * settings.repeats;
                let order: Vec<usize> = (0..rounds)
                    .map(|_| rng.random_range(0..parts.len()))
                    .collect();
                let times = |k: usize, x: &Tensor| {
                    progress.advance(x.size()[0] as u64);
                    parts[order[k]].times(x)
                };
                let solved = lissa(&times, damping, scale, &right, &recursion)?;
                (
                    solved,
                    parts.iter().map(Curvature::gradient_evaluations).sum(),
                )
            }
        };
        progress.end();
        let back = whole.times(&solved.solution) + &solved.solution * damping - &right;
        let norms = |t: &Tensor| t.norm_scalaropt_dim(2.0, 1, false);
        let residual = (norms(&back) / norms(&right).clamp_min(f64::MIN_POSITIVE))
            .max()
            .double_value(&[]);
        if residual.is_nan() || residual > 1.01 * settings.tolerance {
            return Err(SolveError::NotConverged {
                solver: "LiSSA",
                iterations: solved.iterations,
                residual,
                tolerance: settings.tolerance,
                damping,
            }
            .into());
        }
        Ok(Solution {
            products: self.against(queries, &solved.solution, layers, progress)?,
            report: json!({"damping": damping, "scale": scale, "residual": residual,
                "iterations": solved.iterations, "change": solved.change,
                "deflated_pairs": deflation.as_ref().map_or(0, Deflation::len),
                "spectral_radius": krylov.largest().max(-krylov.smallest()),
                "smallest_ritz_value": krylov.smallest(), "settings": self.params.solver,
                "seed": self.params.seed}),
            gradient_evaluations: whole.gradient_evaluations() + more,
        })
    }

    /// The curvature of disjoint mini-batches of the shuffled training examples, each weighted so
    /// that their mean is the whole.
    fn mini_batches<'a, M: Model>(
        &self,
        of: &Attributed<'a, M>,
        weights: &[f64],
        size: usize,
    ) -> Result<Vec<Curvature<'a, M>>, HifError> {
        let mut ids: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0.0).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.params.seed ^ 0x5eed);
        for k in (1..ids.len()).rev() {
            ids.swap(k, rng.random_range(0..=k));
        }
        let count = ids.len().div_ceil(size);
        ids.chunks(size)
            .map(|ids| {
                let mut own = vec![0.0; weights.len()];
                ids.iter().for_each(|&i| own[i] = weights[i] * count as f64);
                self.curvature(of, &own)
            })
            .collect()
    }

    fn arnoldi<M: Model>(
        &self,
        queries: &Queries<'_, M>,
        weights: &[f64],
        settings: Arnoldi,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Solution, HifError> {
        let curvature = self.curvature(queries.of, weights)?;
        let watched = Watched {
            curvature: &curvature,
            progress,
        };
        progress.begin("curvature products", settings.iterations as u64);
        let (seed, kind) = (self.params.seed, curvature.kind());
        let krylov = lanczos(&watched, settings.iterations, seed, kind)?;
        progress.end();
        let damping = self.damping(krylov.largest());
        let kept = krylov.dominant(settings.rank);
        let smallest = kept
            .iter()
            .map(|&k| krylov.values[k])
            .fold(f64::INFINITY, f64::min);
        if smallest + damping <= 0.0 {
            return Err(SolveError::Indefinite {
                solver: "Arnoldi's iteration",
                smallest,
                damping,
            }
            .into());
        }
        let index: Vec<i64> = kept.iter().map(|&k| k as i64).collect();
        let basis = krylov.vectors.index_select(
            0,
            &Tensor::from_slice(&index).to_device(krylov.vectors.device()),
        );
        // The space is the same for all: test gradients are projected into it and back.
        let wanted = Wanted::default();
        let engine = self.params.gradients.settings();
        let of = queries.of;
        let projected = if queries.units.is_some() {
            queries.gradients()?.matmul(&basis.transpose(0, 1))
        } else {
            let test = products_with_vectors(of.model, of.test, &basis, wanted, &engine, progress)?;
            Tensor::from_slice(&test.products)
                .view([of.test.len() as i64, kept.len() as i64])
                .to_kind(basis.kind())
        };
        let inverse: Vec<f64> = kept
            .iter()
            .map(|&k| 1.0 / (krylov.values[k] + damping))
            .collect();
        let inverse = Tensor::from_slice(&inverse).to_kind(basis.kind());
        let rest = settings.complement.then_some(1.0 / damping);
        let inverse = match rest {
            // Outside of the space the curvature counts as 0, its damped inverse as 1/δ.
            Some(rest) => inverse - rest,
            None => inverse,
        };
        let mut products = if layers {
            let solved = (projected * inverse).matmul(&basis);
            self.against(queries, &solved, true, progress)?
        } else {
            let train =
                products_with_vectors(of.model, of.train, &basis, wanted, &engine, progress)?;
            let own = Tensor::from_slice(&train.products)
                .view([of.train.len() as i64, kept.len() as i64])
                .to_kind(basis.kind());
            let scores = own.matmul(&(projected * inverse).transpose(0, 1));
            InnerProducts {
                products: Vec::try_from(scores.to_kind(tch::Kind::Float).reshape([-1]))
                    .expect("real numbers"),
                gradient_evaluations: train.gradient_evaluations + of.test.len() as u64,
                ..InnerProducts::default()
            }
        };
        if let Some(rest) = rest {
            let plain = self.plain(queries, layers, progress)?;
            add_scaled(&mut products, &plain, rest as f32);
        }
        let worst = kept
            .iter()
            .map(|&k| krylov.residuals[k])
            .fold(0.0, f64::max);
        Ok(Solution {
            products,
            report: json!({"damping": damping, "ritz_values": kept.len(),
                "largest_ritz_value": krylov.largest(), "smallest_ritz_value": krylov.smallest(),
                "smallest_kept_ritz_value": smallest, "largest_residual_of_a_pair": worst,
                "settings": self.params.solver, "seed": self.params.seed}),
            gradient_evaluations: curvature.gradient_evaluations(),
        })
    }
}

/// Weights `x̄_i / T_ref` of the training examples, checked.
fn weights_of<M: Model>(
    of: &Attributed<'_, M>,
    exposures: &[f64],
    steps: usize,
) -> Result<Vec<f64>, HifError> {
    of.axes.check(of.train.len(), of.test.len())?;
    if exposures.len() != of.train.len() || steps == 0 {
        return Err(HifError::Exposures {
            expected: of.train.len(),
            got: exposures.len(),
            steps,
        });
    }
    Ok(exposures.iter().map(|x| x / steps as f64).collect())
}

/// Adds inner products times a factor to others of the same examples and layers.
fn add_scaled(sum: &mut InnerProducts, other: &InnerProducts, factor: f32) {
    let add = |into: &mut [f32], values: &[f32]| {
        for (into, value) in into.iter_mut().zip(values) {
            *into += factor * value;
        }
    };
    add(&mut sum.products, &other.products);
    for (layer, values) in &other.layers {
        if let Some((_, into)) = sum.layers.iter_mut().find(|(name, _)| name == layer) {
            add(into, values);
        }
    }
    sum.gradient_evaluations += other.gradient_evaluations;
}

#[cfg(test)]
mod tests {
    use super::super::params::HifParams;
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, model};
    use simfluence_core::NoProgress;

    #[test]
    fn tokens_sum_to_examples_with_factored_curvature_and_others_say_so() {
        let (train, test) = (examples(4, 0), examples(5, 2));
        let of = Attributed {
            model: &model(3),
            train: &train,
            test: &test,
            axes: &axes(4, 5),
        };
        let hif = |solver, examples| {
            let mut params = HifParams::new(GradientParams::new(0.1), solver);
            params.curvature_examples = examples;
            Hif::new(params).unwrap()
        };
        let exposures = [1.0, 2.0, 0.5, 0.5];
        // By curvature over two of the four, which all have to draw alike.
        let ekfac = hif(Solver::Factored(Factored::Ekfac(Drawn::Given)), Some(2));
        let whole = ekfac
            .scores(&of, &exposures, 4, false, &NoProgress)
            .unwrap();
        let largest = whole.values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for test_tokens in [false, true] {
            let found = ekfac.token_scores(&of, &exposures, 4, test_tokens, &NoProgress);
            let totals = found.unwrap().totals().unwrap();
            assert_eq!(totals.method, whole.method);
            for (a, b) in totals.values.iter().zip(&whole.values) {
                assert!((a - b).abs() < 1e-5 * largest, "{a} {b}");
            }
        }
        let exact = hif(Solver::Exact, None).token_scores(&of, &exposures, 4, false, &NoProgress);
        assert!(
            exact
                .unwrap_err()
                .to_string()
                .contains("hif-exact gives no scores by target")
        );
        let candidates = Attributed {
            train: &train[1..3],
            axes: &axes(2, 5),
            ..of
        };
        let some = ekfac.candidate_scores(&of, &candidates, &exposures, 4, true, &NoProgress);
        for (a, b) in some.unwrap().values.iter().zip(&whole.values[5..15]) {
            assert!((a - b).abs() < 1e-5 * largest, "{a} {b}");
        }
    }
}
