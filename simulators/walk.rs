//! Walks of the parameters along the gradient of each unit, with losses measured on the way.

use crate::attribution::{Attributed, AttributionError};
use crate::curves::{Curve, Direction, LossCurves, UnitAxis};
use crate::units::{Unit, Units};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use simfluence_core::{Optimizer, Progress};
use simfluence_models::{GradientError, Model, PreparedExamples, Snapshot, Updater, check_all};

/// How walks step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalkSettings {
    /// Starts afresh for every unit.
    pub optimizer: Optimizer,
    /// Constant.
    pub learning_rate: f64,
    /// Examples per step; `None`: the whole unit.
    pub batch_size: Option<usize>,
    /// Passes over the unit.
    pub epochs: u32,
    /// Of the order of the examples.
    pub seed: u64,
    /// Losses are measured after every so many steps and after the last.
    pub curve_every: u32,
    /// Examples per forward or backward pass.
    pub examples_per_pass: usize,
    /// LibTorch threads.
    pub threads: u32,
}

/// The walks of all units of one method.
pub(crate) struct Walks<'a, M: Model> {
    pub method: &'static str,
    pub direction: Direction,
    pub unit_axis: UnitAxis,
    pub settings: WalkSettings,
    pub of: &'a Attributed<'a, M>,
    pub units: &'a Units,
}

impl<M: Model> Walks<'_, M> {
    /// Walks from the model's parameters along each unit, and puts them back after each.
    pub(crate) fn curves(&self, progress: &dyn Progress) -> Result<LossCurves, AttributionError> {
        self.check()?;
        tch::set_num_threads(self.settings.threads as i32);
        let model = self.of.model;
        let members: Vec<&M::Example> = self.measured().iter().collect();
        let measured = PreparedExamples::new(model, &members, self.settings.examples_per_pass);
        let steps = |unit: &Unit| u64::from(self.steps(unit));
        let total = self.units.as_slice().iter().map(steps).sum();
        let mut curves = LossCurves {
            method: self.method.to_owned(),
            direction: self.direction,
            unit_axis: self.unit_axis,
            learning_rate: self.settings.learning_rate,
            units: self.units.clone(),
            measured_keys: self.measured_keys().to_vec(),
            curves: Vec::new(),
            gradient_evaluations: 0,
            loss_evaluations: measured.len() as u64,
        };
        let start = measured.losses(model);
        if let Some(k) = start.iter().position(|loss| !loss.is_finite()) {
            return Err(AttributionError::NotFinite {
                method: self.method.to_owned(),
                what: self.loss_of(k),
                got: start[k],
            });
        }
        let snapshot = Snapshot::of(model);
        progress.begin("steps on units", total);
        for unit in self.units.as_slice() {
            let curve = self.walk(unit, &start, &measured, progress)?;
            snapshot.restore();
            let examples = unit.members.len() as u64 * u64::from(self.settings.epochs);
            curves.gradient_evaluations += examples;
            curves.loss_evaluations += ((curve.steps.len() - 1) * measured.len()) as u64;
            curves.curves.push(curve);
        }
        progress.end();
        Ok(curves)
    }

    fn check(&self) -> Result<(), AttributionError> {
        let Attributed {
            model, train, test, ..
        } = *self.of;
        self.of.axes.check(train.len(), test.len())?;
        self.units.check(self.stepped_on().len())?;
        check_all(model, train)
            .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
        check_all(model, test)
            .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
        Ok(())
    }

    fn stepped_on(&self) -> &[M::Example] {
        match self.unit_axis {
            UnitAxis::Train => self.of.train,
            UnitAxis::Test => self.of.test,
        }
    }

    fn measured(&self) -> &[M::Example] {
        match self.unit_axis {
            UnitAxis::Train => self.of.test,
            UnitAxis::Test => self.of.train,
        }
    }

    fn measured_keys(&self) -> &[String] {
        match self.unit_axis {
            UnitAxis::Train => &self.of.axes.test_keys,
            UnitAxis::Test => &self.of.axes.train_keys,
        }
    }

    /// Examples per step of a unit.
    fn batch_size(&self, unit: &Unit) -> usize {
        let all = unit.members.len();
        self.settings.batch_size.map_or(all, |size| size.min(all))
    }

    fn steps(&self, unit: &Unit) -> u32 {
        unit.members.len().div_ceil(self.batch_size(unit)) as u32 * self.settings.epochs
    }

    fn walk(
        &self,
        unit: &Unit,
        start: &[f64],
        measured: &PreparedExamples<M>,
        progress: &dyn Progress,
    ) -> Result<Curve, AttributionError> {
        let (model, steps) = (self.of.model, self.steps(unit));
        let mut updater = Updater::new(model, self.settings.optimizer);
        let mut batches = Batches::new(self, unit);
        let mut curve = Curve {
            steps: vec![0],
            losses: start.to_vec(),
        };
        for step in 1..=steps {
            let mut gradient = batches.next().mean_gradient(model);
            if self.direction == Direction::Ascent {
                let _ = gradient.neg_();
            }
            let norm = updater.update_with(model, &gradient, None, self.settings.learning_rate);
            if !norm.is_finite() {
                let what = "the norm of the gradient before it".to_owned();
                return Err(self.diverged(unit, step, what, norm));
            }
            if step == steps || step.is_multiple_of(self.settings.curve_every) {
                let losses = measured.losses(model);
                self.check_losses(unit, step, &losses)?;
                curve.steps.push(step);
                curve.losses.extend(losses);
            }
            progress.advance(1);
        }
        Ok(curve)
    }

    fn check_losses(&self, unit: &Unit, step: u32, losses: &[f64]) -> Result<(), AttributionError> {
        match losses.iter().position(|loss| !loss.is_finite()) {
            Some(k) => Err(self.diverged(unit, step, self.loss_of(k), losses[k])),
            None => Ok(()),
        }
    }

    fn loss_of(&self, measured: usize) -> String {
        format!("the loss of example {:?}", self.measured_keys()[measured])
    }

    fn diverged(&self, unit: &Unit, step: u32, what: String, got: f64) -> AttributionError {
        AttributionError::Diverged {
            method: self.method.to_owned(),
            unit: unit.name.clone(),
            step,
            what,
            got,
            learning_rate: self.settings.learning_rate,
        }
    }
}

/// The batches of one walk in order: every epoch a new order of the unit's examples, drawn from
/// the seed and the unit's first example, so that it does not depend on the other units.
struct Batches<'a, M: Model> {
    walks: &'a Walks<'a, M>,
    order: Vec<u32>,
    /// Members of this epoch that were taken.
    taken: usize,
    size: usize,
    rng: ChaCha8Rng,
    /// The whole unit, where every step takes it.
    whole: Option<PreparedExamples<M>>,
    current: Option<PreparedExamples<M>>,
}

impl<'a, M: Model> Batches<'a, M> {
    fn new(walks: &'a Walks<'a, M>, unit: &Unit) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(walks.settings.seed);
        rng.set_stream(u64::from(unit.members[0]));
        let size = walks.batch_size(unit);
        let mut batches = Self {
            walks,
            order: unit.members.clone(),
            taken: unit.members.len(),
            size,
            rng,
            whole: None,
            current: None,
        };
        if size == unit.members.len() {
            batches.whole = Some(batches.prepare(&unit.members));
        }
        batches
    }

    fn prepare(&self, ids: &[u32]) -> PreparedExamples<M> {
        let examples = self.walks.stepped_on();
        let members: Vec<&M::Example> = ids.iter().map(|&id| &examples[id as usize]).collect();
        let size = self.walks.settings.examples_per_pass;
        PreparedExamples::new(self.walks.of.model, &members, size)
    }

    fn next(&mut self) -> &PreparedExamples<M> {
        if let Some(whole) = &self.whole {
            return whole;
        }
        if self.taken == self.order.len() {
            self.order.shuffle(&mut self.rng);
            self.taken = 0;
        }
        let end = self.order.len().min(self.taken + self.size);
        let batch = self.prepare(&self.order[self.taken..end]);
        self.taken = end;
        self.current.insert(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::Axes;
    use crate::attribution::test_support::{axes, bits, dense, sgd};
    use simfluence_core::NoProgress;
    use simfluence_models::{DenseExample, Mlp, Prediction};

    struct Case {
        model: Mlp,
        train: Vec<DenseExample>,
        test: Vec<DenseExample>,
        axes: Axes,
    }

    impl Case {
        fn new() -> Self {
            let (model, mut train) = dense(&[4, 7, 3], Prediction::Classes, 15);
            let test = train.split_off(11);
            Self {
                model,
                train,
                test,
                axes: axes(11, 4),
            }
        }

        fn of(&self) -> Attributed<'_, Mlp> {
            Attributed {
                model: &self.model,
                train: &self.train,
                test: &self.test,
                axes: &self.axes,
            }
        }

        fn walk(
            &self,
            units: &Units,
            direction: Direction,
            settings: WalkSettings,
        ) -> Result<LossCurves, AttributionError> {
            let walks = Walks {
                method: "walk",
                direction,
                unit_axis: UnitAxis::Train,
                settings,
                of: &self.of(),
                units,
            };
            walks.curves(&NoProgress)
        }
    }

    fn settings() -> WalkSettings {
        WalkSettings {
            optimizer: Optimizer::default(),
            learning_rate: 1e-2,
            batch_size: Some(2),
            epochs: 2,
            seed: 0,
            curve_every: 1,
            examples_per_pass: 64,
            threads: 1,
        }
    }

    fn units(members: &[&[u32]]) -> Units {
        let unit = |members: &&[u32]| Unit {
            name: format!("from {}", members[0]),
            members: members.to_vec(),
        };
        Units::new(members.iter().map(unit).collect()).unwrap()
    }

    const A: &[u32] = &[0, 2, 4, 5, 9];
    const B: &[u32] = &[1, 3, 7];

    #[test]
    fn every_epoch_takes_every_example_once_in_a_new_order() {
        let case = Case::new();
        let (of, units) = (case.of(), units(&[A]));
        let walks = Walks {
            method: "walk",
            direction: Direction::Ascent,
            unit_axis: UnitAxis::Train,
            settings: settings(),
            of: &of,
            units: &units,
        };
        let unit = &units.as_slice()[0];
        assert_eq!(walks.steps(unit), 6);
        let mut batches = Batches::new(&walks, unit);
        let mut orders = Vec::new();
        for _ in 0..4 {
            let sizes: Vec<usize> = (0..3).map(|_| batches.next().len()).collect();
            assert_eq!(sizes, [2, 2, 1]);
            let mut sorted = batches.order.clone();
            orders.push(batches.order.clone());
            sorted.sort_unstable();
            assert_eq!(sorted, A);
        }
        orders.dedup();
        assert!(orders.len() > 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_no_unit_feels_another() {
        let case = Case::new();
        let before = bits(&case.model);
        let walk = |members: &[&[u32]], settings| {
            let curves = case.walk(&units(members), Direction::Ascent, settings);
            curves.unwrap().curves
        };
        let both = walk(&[A, B], settings());
        assert_eq!(walk(&[A, B], settings()), both);
        assert_eq!(walk(&[B], settings())[0], both[1]);
        let reseeded = WalkSettings {
            seed: 1,
            ..settings()
        };
        assert_ne!(walk(&[A], reseeded)[0], both[0]);
        assert_eq!(bits(&case.model), before);
    }

    #[test]
    fn a_curve_of_fewer_points_has_the_losses_of_the_whole_one() {
        let case = Case::new();
        let walk = |curve_every| {
            let settings = WalkSettings {
                curve_every,
                ..settings()
            };
            case.walk(&units(&[A]), Direction::Ascent, settings)
                .unwrap()
        };
        let (whole, sparse) = (walk(1), walk(4));
        assert_eq!(whole.curves[0].steps, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(sparse.curves[0].steps, [0, 4, 6]);
        let expected: Vec<f64> = [0, 4, 6]
            .iter()
            .flat_map(|&step| whole.curves[0].losses[step * 4..][..4].to_vec())
            .collect();
        assert_eq!(sparse.curves[0].losses, expected);
        assert_eq!(whole.gradient_evaluations, 10);
        assert_eq!((whole.loss_evaluations, sparse.loss_evaluations), (28, 12));
    }

    #[test]
    fn passes_over_parts_of_a_batch_change_rounding_only() {
        let case = Case::new();
        let walk = |examples_per_pass| {
            let settings = WalkSettings {
                batch_size: None,
                examples_per_pass,
                ..settings()
            };
            case.walk(&units(&[A]), Direction::Ascent, settings)
                .unwrap()
        };
        let (whole, parts) = (walk(64), walk(2));
        let pairs = whole.curves[0].losses.iter().zip(&parts.curves[0].losses);
        for (a, b) in pairs {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
    }

    /// Ascent and descent with every optimiser differ by what is of second order in the rate.
    #[test]
    fn unlearning_is_training_backwards_with_every_optimizer() {
        let case = Case::new();
        let named = |text: &str| serde_json::from_str::<Optimizer>(text).unwrap();
        for optimizer in [
            sgd(),
            named(r#"{"name": "sgd", "momentum": 0.9}"#),
            named(r#"{"name": "rmsprop"}"#),
            named(r#"{"name": "adam"}"#),
            named(r#"{"name": "adafactor"}"#),
        ] {
            let decrease = |direction, learning_rate| {
                let settings = WalkSettings {
                    optimizer,
                    learning_rate,
                    batch_size: None,
                    epochs: 3,
                    ..settings()
                };
                let curves = case.walk(&units(&[A]), direction, settings).unwrap();
                curves.decreases_per_step(0, None).unwrap()
            };
            let difference = |rate: f64| {
                let (up, down) = (
                    decrease(Direction::Ascent, rate),
                    decrease(Direction::Descent, rate),
                );
                let largest = |values: &[f64]| values.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
                let gap: Vec<f64> = up.iter().zip(&down).map(|(a, b)| a - b).collect();
                assert!(largest(&gap) < 0.1 * largest(&up), "{optimizer:?}");
                largest(&gap)
            };
            let ratio = difference(2e-5) / difference(1e-5);
            assert!((ratio - 4.0).abs() < 0.1, "{optimizer:?} {ratio}");
        }
    }

    #[test]
    fn a_walk_that_diverges_is_named_and_leaves_the_model_as_it_was() {
        let (model, mut train) = dense(&[3, 2], Prediction::Values, 6);
        let test = train.split_off(4);
        let axes = axes(4, 2);
        let of = Attributed {
            model: &model,
            train: &train,
            test: &test,
            axes: &axes,
        };
        let before = bits(&model);
        let walks = Walks {
            method: "untrac",
            direction: Direction::Ascent,
            unit_axis: UnitAxis::Train,
            settings: WalkSettings {
                optimizer: sgd(),
                learning_rate: 1e60,
                batch_size: None,
                epochs: 9,
                ..settings()
            },
            of: &of,
            units: &units(&[&[0, 1], &[3]]),
        };
        let message = walks.curves(&NoProgress).unwrap_err().to_string();
        let expected = "untrac: after step 3 on unit \"from 0\" the loss of example \"0\" is inf; \
                        lower the learning rate (now 1e60) or take fewer steps";
        assert_eq!(message, expected);
        assert_eq!(bits(&model), before);
    }

    #[test]
    fn broken_parameters_and_wrong_units_are_named() {
        let case = Case::new();
        let error = case.walk(&units(&[&[11]]), Direction::Ascent, settings());
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("has example 11, but there are 11"),
            "{message}"
        );
        let _ = case.model.flat().shallow_clone().fill_(f64::NAN);
        let error = case.walk(&units(&[A]), Direction::Ascent, settings());
        let message = error.unwrap_err().to_string();
        assert!(message.contains("is NaN before any step"), "{message}");
    }
}
