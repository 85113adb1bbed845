//! Training again without each unit, and on random subsets.

use super::{
    Cache, FinalLosses, LeaveOutError, LeaveOutParams, Retraining, SubsetParams, SubsetTruth,
    Truth, Unit,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use simfluence_core::edit::{CurriculumEdit, Fill, Order, apply};
use simfluence_core::{Curriculum, Progress, Retrain, Trajectory};

/// The method with checked settings ([`LeaveOutParams::check`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaveOut {
    pub(super) params: LeaveOutParams,
}

/// What is trained, and what watches over it.
pub struct Work<'a> {
    /// Trains. Only the losses before the first and after the last step are used, so that it
    /// need not measure others.
    pub model: &'a (dyn Retrain + Sync),
    /// The curriculum of the reference run.
    pub curriculum: &'a Curriculum,
    /// Number of training examples `n`.
    pub train_count: usize,
    /// Keeps finished trainings.
    pub cache: &'a dyn Cache,
    /// Told of the steps trained.
    pub progress: &'a dyn Progress,
}

/// What one training differs in from the whole run.
struct Part {
    what: String,
    edit: Option<CurriculumEdit>,
}

impl LeaveOut {
    /// The seeds, in order.
    pub fn seeds(&self) -> Vec<u64> {
        let first = self.params.first_seed;
        (0..u64::from(self.params.seeds))
            .map(|k| first.wrapping_add(k))
            .collect()
    }

    /// Trains on everything and without each unit, `seeds × (units + 1)` times.
    ///
    /// The result is the same whatever [`LeaveOutParams::jobs`] is, and whatever the cache knew.
    ///
    /// # Errors
    /// No unit, a unit that the run never trained on or that is all it trained on, a training that
    /// fails or diverges, a cache that fails; all name the unit and the seed.
    pub fn truth(&self, work: &Work<'_>, units: &[Unit]) -> Result<Truth, LeaveOutError> {
        check_units(units, work.train_count)?;
        let without = units.iter().map(|unit| Part {
            what: format!("without {}", unit.name),
            edit: Some(CurriculumEdit::Drop(unit.members.clone())),
        });
        let everything = Part {
            what: "everything".to_owned(),
            edit: None,
        };
        let parts: Vec<Part> = std::iter::once(everything).chain(without).collect();
        let losses = self.train_all(work, &parts)?;
        let effects = losses.chunks(parts.len()).flat_map(|of_seed| {
            let (everything, without) = of_seed.split_first().expect("there is a first part");
            without
                .iter()
                .flat_map(|edited| differences(&edited.last, &everything.last))
        });
        let exposure = work.curriculum.total_exposure(work.train_count);
        let of_unit = |unit: &Unit| unit.members.iter().map(|&i| exposure[i as usize]).sum();
        Ok(Truth {
            units: units.to_vec(),
            exposures: units.iter().map(of_unit).collect(),
            seeds: self.seeds(),
            test_count: losses[0].last.len(),
            effects: effects.collect(),
        })
    }

    /// Trains on random subsets of the examples that the reference run trained on.
    ///
    /// A subset keeps `round(α n)` of these `n` examples, drawn without replacement; the places of
    /// the others are filled from those kept. Each subset is trained once per seed.
    ///
    /// # Errors
    /// As [`LeaveOut::truth`]; a share that keeps no example or all; a step without a learning
    /// rate, which the prediction for a subset needs.
    pub fn subsets(
        &self,
        work: &Work<'_>,
        params: &SubsetParams,
    ) -> Result<SubsetTruth, LeaveOutError> {
        let subsets = draw_subsets(work, params)?;
        let parts: Vec<Part> = subsets
            .iter()
            .map(|subset| Part {
                what: subset.name.clone(),
                edit: Some(CurriculumEdit::Keep(subset.members.clone())),
            })
            .collect();
        let losses = self.train_all(work, &parts)?;
        Ok(SubsetTruth {
            rate_exposures: self.rate_exposures(work, &parts)?,
            subsets,
            seeds: self.seeds(),
            train_count: work.train_count,
            test_count: losses[0].last.len(),
            decreases: losses
                .iter()
                .flat_map(|l| differences(&l.initial, &l.last))
                .collect(),
        })
    }

    /// `Σ_t η_t x_t(i)` of what was really trained, mean over seeds, `[part × train]`.
    fn rate_exposures(&self, work: &Work<'_>, parts: &[Part]) -> Result<Vec<f64>, LeaveOutError> {
        let seeds = self.seeds();
        let mut all = Vec::with_capacity(parts.len() * work.train_count);
        for part in parts {
            let mut sum = vec![0.0; work.train_count];
            for &seed in &seeds {
                let trained = retraining(work.curriculum, part, seed)?.curriculum;
                for (step, number) in trained.steps().iter().zip(1..) {
                    let rate = step
                        .learning_rate
                        .ok_or(LeaveOutError::NoLearningRate { step: number })?;
                    for (example, exposure) in step.exposures() {
                        sum[example as usize] += f64::from(rate) * exposure;
                    }
                }
            }
            all.extend(sum.iter().map(|s| s / seeds.len() as f64));
        }
        Ok(all)
    }

    /// The losses of every part under every seed, `[seed × part]`; what the cache has is not
    /// trained again.
    fn train_all(
        &self,
        work: &Work<'_>,
        parts: &[Part],
    ) -> Result<Vec<FinalLosses>, LeaveOutError> {
        let seeds = self.seeds();
        let nth = |k: usize| {
            retraining(
                work.curriculum,
                &parts[k % parts.len()],
                seeds[k / parts.len()],
            )
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.params.jobs)
            .build()
            .map_err(|source| LeaveOutError::Threads { source })?;
        let mut losses = pool.install(|| {
            (0..seeds.len() * parts.len())
                .into_par_iter()
                .map(|k| kept(work, &nth(k)?))
                .collect::<Result<Vec<Option<FinalLosses>>, _>>()
        })?;
        let missing: Vec<usize> = (0..losses.len()).filter(|&k| losses[k].is_none()).collect();
        let steps = missing.len() * work.curriculum.len();
        work.progress.begin("retraining (steps)", steps as u64);
        let trained = pool.install(|| {
            missing
                .par_iter()
                .map(|&k| train(work, &nth(k)?))
                .collect::<Result<Vec<FinalLosses>, _>>()
        });
        work.progress.end();
        for (k, result) in missing.into_iter().zip(trained?) {
            losses[k] = Some(result);
        }
        let losses: Vec<FinalLosses> = losses.into_iter().flatten().collect();
        let expected = losses[0].last.len();
        for (k, result) in losses.iter().enumerate() {
            check(
                result,
                expected,
                &parts[k % parts.len()].what,
                seeds[k / parts.len()],
            )?;
        }
        Ok(losses)
    }
}

fn check_units(units: &[Unit], train_count: usize) -> Result<(), LeaveOutError> {
    if units.is_empty() {
        return Err(LeaveOutError::NoUnits);
    }
    for unit in units {
        let unknown = |&&id: &&u32| id as usize >= train_count;
        if let Some(&id) = unit.members.iter().find(unknown) {
            return Err(LeaveOutError::UnknownExample {
                unit: unit.name.clone(),
                id,
                train_count,
            });
        }
    }
    Ok(())
}

/// `a − b` in f64.
fn differences<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b))
}

/// The training of one part under one seed: the run's examples in the seed's order, then the part's
/// edit with the seed's replacements.
fn retraining(reference: &Curriculum, part: &Part, seed: u64) -> Result<Retraining, LeaveOutError> {
    let failed = |source| LeaveOutError::Edit {
        what: part.what.clone(),
        source,
    };
    let order = CurriculumEdit::Reorder(Order::Random);
    let mut curriculum = apply(reference, &order, Fill::Resample, seed).map_err(failed)?;
    if let Some(edit) = &part.edit {
        // Another stream of chance than the order's.
        curriculum = apply(&curriculum, edit, Fill::Resample, !seed).map_err(failed)?;
    }
    Ok(Retraining {
        what: part.what.clone(),
        seed,
        curriculum,
    })
}

fn draw_subsets(work: &Work<'_>, params: &SubsetParams) -> Result<Vec<Unit>, LeaveOutError> {
    let exposure = work.curriculum.total_exposure(work.train_count);
    let mut trained: Vec<u32> = (0..work.train_count as u32)
        .filter(|&i| exposure[i as usize] > 0.0)
        .collect();
    let keep = (params.fraction * trained.len() as f64).round() as usize;
    if keep == 0 || keep == trained.len() {
        return Err(LeaveOutError::SubsetSize {
            fraction: params.fraction,
            keep,
            trained: trained.len(),
        });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
    Ok((0..params.count)
        .map(|k| {
            trained.shuffle(&mut rng);
            let mut examples = trained[..keep].to_vec();
            examples.sort_unstable();
            Unit {
                name: format!("subset {k}"),
                members: examples,
            }
        })
        .collect())
}

fn kept(work: &Work<'_>, retraining: &Retraining) -> Result<Option<FinalLosses>, LeaveOutError> {
    work.cache
        .load(retraining)
        .map_err(|source| LeaveOutError::Cache {
            what: retraining.what.clone(),
            seed: retraining.seed,
            source,
        })
}

fn train(work: &Work<'_>, retraining: &Retraining) -> Result<FinalLosses, LeaveOutError> {
    let (what, seed) = (&retraining.what, retraining.seed);
    let trajectory = work
        .model
        .retrain(&retraining.curriculum, seed, &StepsOf(work.progress))
        .map_err(|source| LeaveOutError::Training {
            what: what.clone(),
            seed,
            source,
        })?;
    let result = ends(&trajectory, retraining)?;
    work.cache
        .store(retraining, &result)
        .map_err(|source| LeaveOutError::Cache {
            what: what.clone(),
            seed,
            source,
        })?;
    Ok(result)
}

fn ends(trajectory: &Trajectory, retraining: &Retraining) -> Result<FinalLosses, LeaveOutError> {
    let at = |step: u32| {
        let row = trajectory.index_of(step)?;
        (0..trajectory.test_count())
            .map(|test| trajectory.get(row, test))
            .collect::<Option<Vec<f32>>>()
            .filter(|losses| !losses.is_empty())
    };
    let steps = retraining.curriculum.len() as u32;
    let measured = |step| {
        at(step).ok_or_else(|| LeaveOutError::NotMeasured {
            what: retraining.what.clone(),
            seed: retraining.seed,
            step,
        })
    };
    Ok(FinalLosses {
        initial: measured(0)?,
        last: measured(steps)?,
    })
}

fn check(
    result: &FinalLosses,
    expected: usize,
    what: &str,
    seed: u64,
) -> Result<(), LeaveOutError> {
    for losses in [&result.initial, &result.last] {
        if losses.len() != expected {
            return Err(LeaveOutError::TestCount {
                what: what.to_owned(),
                seed,
                expected,
                got: losses.len(),
            });
        }
        if let Some(test) = losses.iter().position(|l| !l.is_finite()) {
            return Err(LeaveOutError::Diverged {
                what: what.to_owned(),
                seed,
                test,
                got: losses[test],
            });
        }
    }
    Ok(())
}

/// Passes steps on and keeps phases back: many trainings are one phase.
struct StepsOf<'a>(&'a dyn Progress);

impl Progress for StepsOf<'_> {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, units: u64) {
        self.0.advance(units);
    }
    fn end(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{
        AdditiveWorld, MemoryCache, Regression, Watched, Weight, dot, in_turn, noise, scores, solve,
    };
    use super::*;
    use simfluence_core::{BoxError, NoProgress};

    fn method(seeds: u32, jobs: usize) -> LeaveOut {
        let params = LeaveOutParams::new().seeds(seeds).jobs(jobs);
        params.check().unwrap()
    }

    fn work<'a>(
        model: &'a (dyn Retrain + Sync),
        curriculum: &'a Curriculum,
        cache: &'a dyn Cache,
    ) -> Work<'a> {
        Work {
            model,
            curriculum,
            train_count: 12,
            cache,
            progress: &NoProgress,
        }
    }

    /// Three units of four examples.
    fn thirds() -> Vec<Unit> {
        (0..3u32)
            .map(|u| Unit {
                name: format!("third {u}"),
                members: (0..4).map(|k| 3 * k + u).collect(),
            })
            .collect()
    }

    fn world() -> AdditiveWorld {
        AdditiveWorld(scores(12, 5, |i, j| noise(100 * i + j)))
    }

    fn sorted(curriculum: &Curriculum) -> Vec<u32> {
        let steps = curriculum.steps().iter();
        let mut ids: Vec<u32> = steps.flat_map(|s| s.batch.clone()).collect();
        ids.sort_unstable();
        ids
    }

    fn rates(curriculum: &Curriculum) -> Vec<Option<f32>> {
        curriculum.steps().iter().map(|s| s.learning_rate).collect()
    }

    #[test]
    fn every_training_has_the_steps_of_the_run_and_never_the_unit() {
        let curriculum = in_turn(18, 4, 12);
        let model = Watched::new(world(), usize::MAX);
        let units = thirds();
        let truth = method(2, 1).truth(&work(&model, &curriculum, &MemoryCache::default()), &units);
        assert_eq!(truth.unwrap().effects.len(), 2 * 3 * 5);
        let trained = model.trained.lock().unwrap();
        assert_eq!(trained.len(), 2 * 4);
        for (k, (seed, edited)) in trained.iter().enumerate() {
            assert_eq!(*seed, (k / 4) as u64);
            assert_eq!(rates(edited), rates(&curriculum));
            assert!(edited.steps().iter().all(|s| s.batch.len() == 4));
            match k % 4 {
                0 => assert_eq!(sorted(edited), sorted(&curriculum)),
                unit => {
                    let left_out = &units[unit - 1].members;
                    assert!(sorted(edited).iter().all(|id| !left_out.contains(id)));
                    let kept = |id: &u32| !left_out.contains(id);
                    for (before, after) in trained[k - unit].1.steps().iter().zip(edited.steps()) {
                        for (before, after) in before.batch.iter().zip(&after.batch) {
                            assert!(before == after || !kept(before));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_seed_has_its_own_order_none_the_recorded_one() {
        let curriculum = in_turn(18, 4, 12);
        let model = Watched::new(world(), usize::MAX);
        let truth = method(3, 1)
            .truth(
                &work(&model, &curriculum, &MemoryCache::default()),
                &thirds(),
            )
            .unwrap();
        let trained = model.trained.lock().unwrap();
        let orders = [&curriculum, &trained[0].1, &trained[4].1, &trained[8].1];
        for a in 0..4 {
            for b in 0..a {
                assert_ne!(orders[a], orders[b]);
            }
        }
        assert_ne!(truth.of_seed(0), truth.of_seed(1));
        assert_ne!(truth.of_seed(1), truth.of_seed(2));
    }

    #[test]
    fn ref_leaving_out_one_example_is_the_hat_matrix_formula() {
        // θ₋ᵢ = θ − A⁻¹ xᵢ eᵢ / (1 − hᵢᵢ) with A = XᵀX, eᵢ = yᵢ − xᵢ·θ, hᵢᵢ = xᵢᵀ A⁻¹ xᵢ.
        let mut model = Regression::new(12, 7, 3, Weight::Presence);
        let (a, b) = model.normal_equations(&[1.0; 12]);
        let theta = solve(a.clone(), b);
        // The last tests lie on the fitted plane: their effect is the whole loss, which f32 holds
        // to 6e-8 of it.
        for j in 4..7 {
            model.test_y[j] = dot(&model.test_x[j], &theta);
        }
        let curriculum = in_turn(36, 4, 12);
        let units: Vec<Unit> = (0..12)
            .map(|i| Unit {
                name: i.to_string(),
                members: vec![i],
            })
            .collect();
        let truth = method(2, 2)
            .truth(&work(&model, &curriculum, &MemoryCache::default()), &units)
            .unwrap();
        let everything = model.losses(&theta);
        for i in 0..12 {
            let direction = solve(a.clone(), model.x[i].clone());
            let residual = model.y[i] - dot(&model.x[i], &theta);
            let scale = residual / (1.0 - dot(&model.x[i], &direction));
            let without: Vec<f64> = theta
                .iter()
                .zip(&direction)
                .map(|(t, d)| t - scale * d)
                .collect();
            let without = model.losses(&without);
            for j in 0..7 {
                let expected = without[j] - everything[j];
                // Elsewhere half a unit in the last place of each loss.
                let tolerance = match j {
                    4.. => 1e-6 * expected,
                    _ => f64::from(f32::EPSILON) * (without[j] + everything[j]),
                };
                for seed in 0..2 {
                    let got = truth.of_seed(seed)[i][j];
                    assert!((got - expected).abs() <= tolerance, "{got} {expected}");
                }
            }
        }
    }

    #[test]
    fn ref_leaving_out_a_dataset_moves_weighted_least_squares_by_rank_one_updates() {
        // From the weights of the run to those without the unit, one example at a time:
        // (A + δ x xᵀ)⁻¹ = A⁻¹ − δ A⁻¹x xᵀA⁻¹ / (1 + δ xᵀA⁻¹x)   (Sherman–Morrison)
        let model = Watched::new(Regression::new(12, 5, 3, Weight::Exposure), usize::MAX);
        let curriculum = in_turn(36, 4, 12);
        let truth = method(1, 1)
            .truth(
                &work(&model, &curriculum, &MemoryCache::default()),
                &thirds(),
            )
            .unwrap();
        let (model, trained) = (&model.model, model.trained.lock().unwrap());
        let before = model.weights(&curriculum);
        let (a, b) = model.normal_equations(&before);
        let everything = model.losses(&solve(a.clone(), b.clone()));
        for unit in 0..3 {
            let after = model.weights(&trained[unit + 1].1);
            assert!(
                thirds()[unit]
                    .members
                    .iter()
                    .all(|&i| after[i as usize] == 0.0)
            );
            let basis = |p: usize| (0..3).map(|q| f64::from(u8::from(p == q))).collect();
            let mut inverse: Vec<Vec<f64>> = (0..3).map(|p| solve(a.clone(), basis(p))).collect();
            let mut b = b.clone();
            for i in 0..12 {
                let (x, change) = (&model.x[i], after[i] - before[i]);
                let ax: Vec<f64> = inverse.iter().map(|row| dot(row, x)).collect();
                let factor = change / (1.0 + change * dot(x, &ax));
                for p in 0..3 {
                    b[p] += change * model.y[i] * x[p];
                    for q in 0..3 {
                        inverse[p][q] -= factor * ax[p] * ax[q];
                    }
                }
            }
            let theta: Vec<f64> = inverse.iter().map(|row| dot(row, &b)).collect();
            let without = model.losses(&theta);
            for j in 0..5 {
                let rounding = f64::from(f32::EPSILON) * (without[j] + everything[j]);
                let got = truth.of_seed(0)[unit][j];
                let expected = without[j] - everything[j];
                assert!((got - expected).abs() <= rounding, "{got} {expected}");
            }
        }
    }

    #[test]
    fn leaving_out_what_helps_is_a_positive_effect() {
        let curriculum = in_turn(18, 4, 12);
        // Only the members of the first third do anything: they lower test 0 and raise test 1.
        let helps = |i: usize, j: usize| match (i % 3, j) {
            (0, 0) => 0.2,
            (0, 1) => -0.2,
            _ => 0.0,
        };
        let model = AdditiveWorld(scores(12, 2, helps));
        let truth = method(2, 1)
            .truth(
                &work(&model, &curriculum, &MemoryCache::default()),
                &thirds(),
            )
            .unwrap();
        let mean = truth.mean();
        assert!(mean[0][0] > 0.1 && mean[0][1] < -0.1, "{mean:?}");
        // The others' places are filled with more of what helps.
        assert!(mean[1][0] < 0.0 && mean[2][0] < 0.0, "{mean:?}");
    }

    #[test]
    fn an_interrupted_computation_goes_on_where_it_stopped() {
        let curriculum = in_turn(18, 4, 12);
        let cache = MemoryCache::default();
        let first = Watched::new(world(), 5);
        let error = method(3, 1)
            .truth(&work(&first, &curriculum, &cache), &thirds())
            .unwrap_err();
        assert!(error.to_string().contains("pulled the plug"), "{error}");
        assert_eq!(
            (first.trainings(), cache.kept.lock().unwrap().len()),
            (5, 5)
        );
        let second = Watched::new(world(), usize::MAX);
        let resumed = method(3, 1)
            .truth(&work(&second, &curriculum, &cache), &thirds())
            .unwrap();
        assert_eq!(second.trainings(), 12 - 5);
        let fresh = MemoryCache::default();
        let whole = method(3, 1).truth(&work(&world(), &curriculum, &fresh), &thirds());
        assert_eq!(resumed, whole.unwrap());
        // A further seed trains nothing again.
        let third = Watched::new(world(), usize::MAX);
        let more = method(4, 1)
            .truth(&work(&third, &curriculum, &cache), &thirds())
            .unwrap();
        assert_eq!(third.trainings(), 4);
        assert_eq!(more.effects[..resumed.effects.len()], resumed.effects);
    }

    #[test]
    fn what_was_kept_under_other_settings_is_not_used() {
        let curriculum = in_turn(18, 4, 12);
        let mut cache = MemoryCache {
            context: r#"{"optimizer":"adam"}"#.into(),
            ..MemoryCache::default()
        };
        let trainings = |curriculum: &Curriculum, cache: &MemoryCache| {
            let model = Watched::new(world(), usize::MAX);
            method(2, 1)
                .truth(&work(&model, curriculum, cache), &thirds())
                .unwrap();
            model.trainings()
        };
        assert_eq!(trainings(&curriculum, &cache), 8);
        assert_eq!(trainings(&curriculum, &cache), 0);
        cache.context = r#"{"optimizer":"sgd"}"#.into();
        assert_eq!(trainings(&curriculum, &cache), 8);
        let mut faster = curriculum.into_steps();
        faster[3].learning_rate = Some(0.5);
        let faster = Curriculum::new(faster, 12).unwrap();
        assert_eq!(trainings(&faster, &cache), 8);
    }

    #[test]
    fn the_number_of_jobs_changes_nothing() {
        let curriculum = in_turn(18, 4, 12);
        let truth = |jobs| {
            method(3, jobs)
                .truth(
                    &work(&world(), &curriculum, &MemoryCache::default()),
                    &thirds(),
                )
                .unwrap()
        };
        assert_eq!(truth(1), truth(4));
    }

    #[test]
    fn what_cannot_be_left_out_is_named() {
        let curriculum = in_turn(2, 4, 12);
        let (model, cache) = (world(), MemoryCache::default());
        let unit = |examples: Vec<u32>| Unit {
            name: "mine".into(),
            members: examples,
        };
        for (examples, wanted) in [
            (vec![9, 10], "none of the 2"),
            ((0..12).collect(), "nothing to train on"),
            (vec![0, 12], "12 is out of range"),
        ] {
            let error = method(1, 1)
                .truth(&work(&model, &curriculum, &cache), &[unit(examples)])
                .unwrap_err()
                .to_string();
            assert!(error.contains(wanted) && error.contains("mine"), "{error}");
        }
        let nothing = method(1, 1).truth(&work(&model, &curriculum, &cache), &[]);
        assert!(matches!(nothing, Err(LeaveOutError::NoUnits)));
    }

    struct Explodes;

    impl Retrain for Explodes {
        fn retrain(
            &self,
            c: &Curriculum,
            _: u64,
            _: &dyn Progress,
        ) -> Result<Trajectory, BoxError> {
            let last = if sorted(c).contains(&0) {
                1.0
            } else {
                f32::NAN
            };
            Ok(Trajectory::new(
                vec![0, c.len() as u32],
                1,
                vec![2.0, last],
            )?)
        }
    }

    #[test]
    fn a_training_that_diverged_is_named_and_not_patched() {
        let curriculum = in_turn(18, 4, 12);
        let error = method(2, 1)
            .truth(
                &work(&Explodes, &curriculum, &MemoryCache::default()),
                &thirds(),
            )
            .unwrap_err();
        let expected = "without third 0, seed 0: the training diverged (the loss of test example 0";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
