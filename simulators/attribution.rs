//! What the gradient-based attribution methods share: their settings, their axes, their errors.

use crate::units::UnitsError;
use simfluence_core::{Optimizer, Scores, ScoresError, TokenScoresError};
#[cfg(feature = "torch")]
use simfluence_core::{TargetToken, TokenScores};
use simfluence_models::{Approximation, SettingsError};
use std::collections::BTreeMap;

/// Settings of a method that compares gradients.
///
/// ```
/// use simfluence_simulators::attribution::GradientParams;
/// let params = GradientParams::new(1e-3).threads(2).memory(1 << 28);
/// assert!(params.check().is_ok());
/// assert!(GradientParams::new(0.0).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientParams {
    /// `η_ref`: mean learning rate of the reference run; positive.
    pub reference_learning_rate: f64,
    /// Examples per backward pass, default 32, at least 1.
    pub batch_size: usize,
    /// Bytes for the gradients held at once, default 1 GiB.
    pub memory: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
    /// How gradients are kept, default [`Approximation::Exact`].
    pub approximation: Approximation,
}

impl GradientParams {
    /// Defaults, at this reference learning rate.
    pub fn new(reference_learning_rate: f64) -> Self {
        Self {
            reference_learning_rate,
            batch_size: 32,
            memory: 1 << 30,
            threads: 1,
            approximation: Approximation::Exact,
        }
    }

    /// Sets the number of examples per backward pass.
    #[must_use]
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the bytes for the gradients held at once.
    #[must_use]
    pub fn memory(mut self, memory: usize) -> Self {
        self.memory = memory;
        self
    }

    /// Sets the number of LibTorch threads.
    #[must_use]
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// Sets how gradients are kept.
    #[must_use]
    pub fn approximation(mut self, approximation: Approximation) -> Self {
        self.approximation = approximation;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A reference learning rate that is not positive and finite, a count of 0.
    pub fn check(self) -> Result<Self, AttributionError> {
        let rate = self.reference_learning_rate;
        if !(rate.is_finite() && rate > 0.0) {
            return Err(AttributionError::Scores(ScoresError::LearningRate {
                got: rate,
            }));
        }
        for (setting, got) in [
            ("batch_size", self.batch_size),
            ("threads", self.threads as usize),
        ] {
            if got == 0 {
                return Err(AttributionError::Zero { setting });
            }
        }
        Ok(self)
    }

    #[cfg(feature = "torch")]
    pub(crate) fn settings(&self) -> simfluence_models::GradientSettings {
        simfluence_models::GradientSettings {
            batch_size: self.batch_size,
            memory: self.memory,
            threads: self.threads,
            approximation: self.approximation,
        }
    }
}

/// The optimiser of methods that take steps, where none is chosen: Adam without weight decay.
pub(crate) fn plain_adam() -> Optimizer {
    Optimizer::Adam {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
    }
}

/// Fails unless a setting is positive and finite.
pub(crate) fn positive(setting: &'static str, got: f64) -> Result<(), AttributionError> {
    if got.is_finite() && got > 0.0 {
        return Ok(());
    }
    Err(AttributionError::Setting(SettingsError::Range {
        setting,
        expected: "positive and finite",
        got,
    }))
}

/// Fails if a count is 0.
pub(crate) fn at_least_one(setting: &'static str, got: usize) -> Result<(), AttributionError> {
    match got {
        0 => Err(AttributionError::Zero { setting }),
        _ => Ok(()),
    }
}

/// Keys of the training examples (axis 0) and of the test examples (axis 1) of scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axes {
    /// Keys of the training examples by id.
    pub train_keys: Vec<String>,
    /// Keys of the test examples by id.
    pub test_keys: Vec<String>,
}

impl Axes {
    /// Scores of a method, checked.
    pub(crate) fn scores(
        &self,
        method: &str,
        reference_learning_rate: f64,
        has_natural_unit: bool,
        values: Vec<f32>,
    ) -> Result<Scores, AttributionError> {
        let scores = Scores {
            method: method.to_owned(),
            train_keys: self.train_keys.clone(),
            test_keys: self.test_keys.clone(),
            reference_learning_rate,
            has_natural_unit,
            values,
            layers: Vec::new(),
            provenance: BTreeMap::new(),
        };
        scores.check()?;
        Ok(scores)
    }

    /// Fails unless there are as many examples as keys.
    #[cfg(feature = "torch")]
    pub(crate) fn check(&self, train: usize, test: usize) -> Result<(), AttributionError> {
        for (axis, expected, got) in [
            ("training", self.train_keys.len(), train),
            ("test", self.test_keys.len(), test),
        ] {
            if expected != got {
                return Err(AttributionError::Keys {
                    axis,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }
}

/// A model with the examples whose influence on each other is asked for.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct Attributed<'a, M: simfluence_models::Model> {
    /// The model, at the parameters of the final state of the reference run.
    pub model: &'a M,
    /// Training examples by id.
    pub train: &'a [M::Example],
    /// Test examples by id.
    pub test: &'a [M::Example],
    /// Their keys.
    pub axes: &'a Axes,
}

#[cfg(feature = "torch")]
impl<M: simfluence_models::Model> Attributed<'_, M> {
    /// Inner products of all training with all test gradients, in a metric.
    pub(crate) fn products(
        &self,
        metric: &simfluence_models::Metric,
        wanted: simfluence_models::Wanted,
        params: &GradientParams,
        progress: &dyn simfluence_core::Progress,
    ) -> Result<simfluence_models::InnerProducts, AttributionError> {
        self.axes.check(self.train.len(), self.test.len())?;
        Ok(simfluence_models::inner_products(
            self.model,
            self.train,
            self.test,
            metric,
            wanted,
            &params.settings(),
            progress,
        )?)
    }
}

#[cfg(feature = "torch")]
impl<M: simfluence_models::Model> Attributed<'_, M> {
    /// Scores by target token from values `[rows × columns]`, in the order of
    /// [`simfluence_models::inner_products`].
    pub(crate) fn token_scores(
        &self,
        method: String,
        reference_learning_rate: f64,
        test_tokens: bool,
        values: Vec<f32>,
    ) -> Result<TokenScores, AttributionError> {
        let scores = TokenScores {
            method,
            train_keys: self.axes.train_keys.clone(),
            test_keys: self.axes.test_keys.clone(),
            reference_learning_rate,
            has_natural_unit: true,
            rows: self.target_tokens(self.train),
            columns: test_tokens.then(|| self.target_tokens(self.test)),
            values,
            provenance: BTreeMap::new(),
        };
        scores.check()?;
        Ok(scores)
    }

    fn target_tokens(&self, examples: &[M::Example]) -> Vec<TargetToken> {
        let of = |(example, e): (usize, &M::Example)| {
            (0..self.model.targets(e)).map(move |position| TargetToken {
                example: example as u32,
                position: position as u32,
                id: None,
                text: None,
            })
        };
        examples.iter().enumerate().flat_map(of).collect()
    }
}

/// What is wanted of inner products by target token.
#[cfg(feature = "torch")]
pub(crate) fn by_token(test_tokens: bool) -> simfluence_models::Wanted {
    simfluence_models::Wanted {
        train_targets: true,
        test_targets: test_tokens,
        ..simfluence_models::Wanted::default()
    }
}

/// Name of a method whose inner products are taken in a metric.
#[cfg(feature = "torch")]
pub(crate) fn method_name(method: &str, metric: &simfluence_models::Metric) -> String {
    match metric {
        simfluence_models::Metric::Identity => method.to_owned(),
        _ => format!("{method}-preconditioned"),
    }
}

/// Notes how many gradients the scores cost.
#[cfg(feature = "torch")]
pub(crate) fn note_cost(scores: &mut Scores, gradient_evaluations: u64) {
    let count = serde_json::Value::from(gradient_evaluations);
    scores
        .provenance
        .insert("gradient_evaluations".into(), count);
}

/// Why scores cannot be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AttributionError {
    /// A count of 0.
    #[error("{setting} is 0; it must be at least 1")]
    Zero {
        /// Name of the setting.
        setting: &'static str,
    },
    /// Another number of examples than keys.
    #[error("{got} {axis} examples, but keys for {expected}")]
    Keys {
        /// `training` or `test`.
        axis: &'static str,
        /// Number of keys.
        expected: usize,
        /// Number of examples.
        got: usize,
    },
    /// No checkpoint of the reference run.
    #[error(
        "TracIn-CP needs at least one checkpoint of the reference run; record with training.checkpoint_every"
    )]
    NoCheckpoint,
    /// Learning rates at the checkpoints that cannot weigh them.
    #[error(
        "the learning rate at checkpoint {checkpoint} is {got}; it must be finite and not negative, and one must be above 0"
    )]
    CheckpointRate {
        /// Position of the checkpoint.
        checkpoint: usize,
        /// Its learning rate.
        got: f64,
    },
    /// A setting out of its range.
    #[error(transparent)]
    Setting(#[from] SettingsError),
    /// Units of examples.
    #[error(transparent)]
    Units(#[from] UnitsError),
    /// A model or examples that give NaN or infinities to begin with.
    #[error("{method}: {what} is {got} before any step; the model's parameters are broken")]
    NotFinite {
        /// Name of the method.
        method: String,
        /// What is not finite.
        what: String,
        /// Its value.
        got: f64,
    },
    /// Steps that led to a NaN or an infinity.
    #[error(
        "{method}: after step {step} on unit {unit:?} {what} is {got}; lower the learning rate (now {learning_rate:e}) or take fewer steps"
    )]
    Diverged {
        /// Name of the method.
        method: String,
        /// Name of the unit.
        unit: String,
        /// Finished steps.
        step: u32,
        /// What is not finite.
        what: String,
        /// Its value.
        got: f64,
        /// Learning rate of the steps.
        learning_rate: f64,
    },
    /// A step of a curve after which nothing was measured.
    #[error(
        "no losses were measured after step {step} of unit {unit:?}; take a step above 0 that curve_every keeps, or lower curve_every"
    )]
    NotMeasured {
        /// Name of the unit.
        unit: String,
        /// The step.
        step: u32,
    },
    /// A minimisation that did not reach its tolerance.
    #[error(
        "{method}: for unit {unit:?} the gradient came to {reached:.1e} of its start in {iterations} iterations, not to the tolerance {tolerance:.1e}; raise the damping (now {damping:e}), the iterations (now {max_iterations}) or the tolerance, or lower epsilon (now {epsilon:e})"
    )]
    NotConverged {
        /// Name of the method.
        method: String,
        /// Name of the unit.
        unit: String,
        /// Iterations made.
        iterations: u32,
        /// Iterations allowed.
        max_iterations: u32,
        /// Norm of the gradient over that at the start.
        reached: f64,
        /// What it should have fallen to.
        tolerance: f64,
        /// The damping.
        damping: f64,
        /// The extra weight of the unit.
        epsilon: f64,
    },
    /// The scores themselves: a NaN or an infinity, with its place.
    #[error(transparent)]
    Scores(#[from] ScoresError),
    /// Scores by target token.
    #[error(transparent)]
    TokenScores(#[from] TokenScoresError),
    /// The gradients.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Gradients(#[from] simfluence_models::GradientError),
}

#[cfg(all(test, feature = "torch"))]
pub(crate) mod test_support {
    use super::Axes;
    use simfluence_core::{BoxError, Curriculum, Optimizer, Step};
    use simfluence_models::{
        Activation, Architecture, DenseExample, Device, Evaluation, EvaluationSet, Mlp,
        ModelSettings, Network, Prediction, StepRecord, Target, TokenizedExample, TrainingObserver,
        TrainingSettings, TrainingState, Weights, fine_tune,
    };

    /// A small transformer.
    pub fn model(seed: u64) -> Network {
        Network::open(&weights(seed), Device::Cpu).expect("the processor")
    }

    /// Its parameters.
    pub fn weights(seed: u64) -> Weights {
        let model = ModelSettings {
            layers: 2,
            heads: 2,
            width: 16,
            context: 16,
            ..ModelSettings::default()
        };
        Weights::random(&Architecture::new(model, 11).expect("valid settings"), seed)
    }

    /// Examples that the model can read.
    pub fn examples(count: u32, seed: u32) -> Vec<TokenizedExample> {
        let example = |i: u32| {
            let length = 5 + (i * 3 + seed) % 7;
            TokenizedExample {
                tokens: (0..length)
                    .map(|p| (i * 7 + p * p * 3 + seed) % 11)
                    .collect(),
                answer_start: (length - 1 - i % 2) as usize,
                ..TokenizedExample::default()
            }
        };
        (0..count).map(example).collect()
    }

    /// A network of these layers in 64-bit floats, and examples for it, all different.
    pub fn dense(sizes: &[usize], prediction: Prediction, count: u32) -> (Mlp, Vec<DenseExample>) {
        let values: Vec<f64> = (0..Mlp::layout_of(sizes).parameter_count())
            .map(|k| (0.7 * k as f64 + 0.2).sin())
            .collect();
        let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
        let model = Mlp::new(sizes, Activation::Tanh, prediction, &values, kind, device);
        let outputs = sizes[sizes.len() - 1] as u32;
        let example = |i: u32| DenseExample {
            features: (0..sizes[0] as u32)
                .map(|k| (0.9 * f64::from((i + 2) * (k + 2))).sin())
                .collect(),
            target: match prediction {
                Prediction::Classes => Target::Class((i * i + i / 2) % outputs),
                Prediction::Values => {
                    Target::Values((0..outputs).map(|k| f64::from(i + 2 * k).cos()).collect())
                }
            },
        };
        (model.expect("valid"), (0..count).map(example).collect())
    }

    /// Plain stochastic gradient descent.
    pub fn sgd() -> Optimizer {
        Optimizer::Sgd {
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        }
    }

    /// The parameters as bits.
    pub fn bits<M: simfluence_models::Model>(model: &M) -> Vec<u64> {
        let flat = model.flat().to_kind(tch::Kind::Double);
        let values = Vec::<f64>::try_from(flat).expect("a flat buffer of floats");
        values.into_iter().map(f64::to_bits).collect()
    }

    /// Keys for so many training and test examples.
    pub fn axes(train: usize, test: usize) -> Axes {
        let keys = |count| (0..count).map(|k: usize| k.to_string()).collect();
        Axes {
            train_keys: keys(train),
            test_keys: keys(test),
        }
    }

    /// Test losses before and after one really made step of SGD on one example.
    pub fn losses_after_one_step(
        weights: &Weights,
        train: &[TokenizedExample],
        test: &[TokenizedExample],
        example: u32,
        rate: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        struct Losses(Vec<Vec<f32>>);
        impl TrainingObserver for Losses {
            fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
                self.0.push(evaluation.losses.clone());
                Ok(())
            }
            fn step(&mut self, r: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
                self.0.push(
                    r.evaluation
                        .ok_or("evaluated at every step")?
                        .losses
                        .clone(),
                );
                Ok(())
            }
        }
        let settings = TrainingSettings {
            optimizer: sgd(),
            ..TrainingSettings::default()
        };
        let step = Step::new(vec![example], Some(rate));
        let curriculum = Curriculum::new(vec![step], train.len()).expect("a valid curriculum");
        let set = EvaluationSet::new(test.to_vec(), 64);
        let mut losses = Losses(Vec::new());
        fine_tune(
            weights,
            train,
            &set,
            &curriculum,
            &settings,
            0,
            Device::Cpu,
            &mut losses,
            None,
        )
        .expect("training works");
        let after = losses.0.pop().expect("losses after the step");
        (losses.0.pop().expect("losses before"), after)
    }
}
