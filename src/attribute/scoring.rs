//! Scores of every attribution method from a model's gradients, losses and curvature.

use super::Request;
use super::replay::{Preconditioners, preconditioners};
use crate::cli::{AttributionMethod, CurvatureArg, LabelsArg, MethodSettings, OptimizerArg};
use crate::kept_models::weights_in;
use crate::runs::OpenRuns;
use crate::train::{BaseModel, checkpoints};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use simfluence_core::{Example, Examples, Optimizer, Progress, Run, Scores};
use simfluence_models::{Approximation, Device, Metric, Network, TokenizedExample, Tokenizer};
use simfluence_recorder::write_artifact;
use simfluence_simulators::attribution::{Attributed, Axes, GradientParams};
use simfluence_simulators::empirical::{Empirical, EmpiricalParams};
use simfluence_simulators::gradcos::GradCos;
use simfluence_simulators::graddot::GradDot;
use simfluence_simulators::hif::{
    Arnoldi, ConjugateGradientSettings, Curved, DampingParam, Drawn, Factored, Hif, HifParams,
    LissaSettings, Solver,
};
use simfluence_simulators::pbrf::{Pbrf, PbrfParams};
use simfluence_simulators::prefilter::candidates;
use simfluence_simulators::tracin::{Checkpoint, TracinCp};
use simfluence_simulators::units::Units;
use simfluence_simulators::untrac::{UnlearningParams, Untrac, UntracInv};
use std::path::{Path, PathBuf};

use AttributionMethod as Method;

/// Everything that scoring needs of a run set.
pub(super) struct Scoring<'a> {
    open: &'a OpenRuns,
    pub(super) reference: &'a Run,
    pub(super) request: &'a Request<'a>,
    /// Training examples that are scored.
    pub(super) train: Vec<TokenizedExample>,
    pub(super) test: Vec<TokenizedExample>,
    /// Keys of what is scored.
    pub(super) axes: Axes,
    /// All training examples, where not all are scored.
    all: Option<(Vec<TokenizedExample>, Axes)>,
    pub(super) tokenizer: Tokenizer,
    /// Learning rate and file of each checkpoint.
    checkpoints: Vec<(f64, PathBuf)>,
    device: Device,
    pub(super) params: GradientParams,
    pub(super) progress: &'a dyn Progress,
}

/// The scores that are asked for, from the checkpoints of a run.
pub fn scores(
    request: &Request<'_>,
    open: &OpenRuns,
    reference: &Run,
    progress: &dyn Progress,
) -> Result<Scores> {
    let model = BaseModel::load(&open.set)?;
    let rate = reference.curriculum.mean_learning_rate();
    let rate = rate.with_context(|| format!("run {} has no learning rates", reference.id))?;
    let all_cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = request.threads.unwrap_or_else(all_cores);
    let mut params = GradientParams::new(rate).threads(threads);
    if let Some(memory) = request.memory {
        params = params.memory(memory);
    }
    params.approximation = approximation(request);
    let mut scoring = Scoring {
        open,
        reference,
        request,
        train: model.tokens(open.set.train_examples())?,
        test: model.tokens(open.set.test_examples())?,
        axes: Axes {
            train_keys: open.set.train_examples().keys(),
            test_keys: open.set.test_examples().keys(),
        },
        all: None,
        tokenizer: model.tokenizer,
        checkpoints: checkpoints(open, reference)?,
        device: request.device.parse()?,
        params,
        progress,
    };
    let prefilter = scoring.prefilter()?;
    let mut scores = match &request.settings.tokens {
        None => scoring.scores()?,
        Some(path) => {
            let mut tokens = scoring.token_scores()?;
            let note = settings_note(request.method, request.settings, request.unit);
            tokens.provenance.insert("options".into(), note);
            for (entry, value) in provenance(request, reference, threads) {
                tokens.provenance.insert(entry.into(), value);
            }
            write_artifact(path, &tokens.to_artifact())?;
            tokens.totals()?
        }
    };
    if scoring.is_preconditioned() {
        // The reference run was trained again for its optimiser's state.
        let steps = reference.curriculum.steps();
        let replayed: usize = steps.iter().map(|step| step.batch.len()).sum();
        let count = scores.provenance["gradient_evaluations"].as_u64();
        let count = count.unwrap_or_default() + replayed as u64;
        (scores.provenance).insert("gradient_evaluations".into(), count.into());
    }
    let walks = [Method::Untrac, Method::UntracInv, Method::Empirical];
    if walks.contains(&request.method) && scores.values.iter().all(|&v| v == 0.0) {
        bail!(
            "{}: no loss moved at all; the learning rate is too small for 32-bit floats, give a larger --learning-rate",
            scores.method
        );
    }
    if let Some(note) = prefilter {
        scores.provenance.insert("prefilter".into(), note);
    }
    for (entry, value) in provenance(request, reference, threads) {
        scores.provenance.insert(entry.into(), value);
    }
    let note = settings_note(request.method, request.settings, request.unit);
    if note.as_object().is_some_and(|entries| !entries.is_empty()) {
        scores.provenance.insert("options".into(), note);
    }
    Ok(scores)
}

/// What every file of scores says about its making.
fn provenance(request: &Request<'_>, reference: &Run, threads: u32) -> [(&'static str, Value); 3] {
    [
        ("reference_run", json!(reference.id)),
        ("seed", json!(request.seed)),
        ("threads", json!(threads)),
    ]
}

fn approximation(request: &Request<'_>) -> Approximation {
    let seed = request.seed;
    match (request.settings.query_rank, request.settings.projection) {
        (Some(rank), _) => Approximation::LowRank {
            rank: rank as usize,
            seed,
        },
        (None, Some(dimensions)) => Approximation::Projection {
            dimensions: dimensions as usize,
            seed,
        },
        (None, None) => Approximation::Exact,
    }
}

/// The text of every example, or its prompt and answer.
fn texts(examples: &Examples) -> Vec<String> {
    let column = |e: &Example, name| e.column(name).unwrap_or_default().to_owned();
    let text = |e| {
        ["text", "prompt", "answer"]
            .map(|name| column(e, name))
            .join(" ")
    };
    examples.as_slice().iter().map(text).collect()
}

impl Scoring<'_> {
    /// Leaves the training examples out that are no candidate of any test example, and says which.
    fn prefilter(&mut self) -> Result<Option<Value>> {
        let Some(top) = self.request.settings.prefilter else {
            return Ok(None);
        };
        if self.tokenizer.image_size().is_some() {
            bail!("--prefilter compares texts, and these examples are images");
        }
        let train = texts(self.open.set.train_examples());
        let test = texts(self.open.set.test_examples());
        let train: Vec<&str> = train.iter().map(String::as_str).collect();
        let test: Vec<&str> = test.iter().map(String::as_str).collect();
        let found = candidates(&train, &test, top as usize)?;
        let keys = &self.axes.train_keys;
        let kept: Vec<String> = found
            .all
            .iter()
            .map(|&i| keys[i as usize].clone())
            .collect();
        let is_left_out = |i: &usize| found.all.binary_search(&(*i as u32)).is_err();
        let left_out: Vec<&String> = (0..keys.len())
            .filter(is_left_out)
            .map(|i| &keys[i])
            .collect();
        let note = json!({"top": top, "similarity": "TF-IDF (Okapi BM25)", "left_out": left_out});
        let scored = found
            .all
            .iter()
            .map(|&i| self.train[i as usize].clone())
            .collect();
        let axes = Axes {
            train_keys: kept,
            test_keys: self.axes.test_keys.clone(),
        };
        let train = std::mem::replace(&mut self.train, scored);
        let axes = std::mem::replace(&mut self.axes, axes);
        self.all = Some((train, axes));
        Ok(Some(note))
    }

    fn scores(&self) -> Result<Scores> {
        match self.request.method {
            Method::Graddot | Method::GraddotPreconditioned => self.graddot(),
            Method::Gradcos | Method::GradcosPreconditioned => self.gradcos(),
            Method::TracinCp | Method::TracinCpPreconditioned => self.tracin_cp(),
            Method::HifExact
            | Method::HifCg
            | Method::HifLissa
            | Method::HifArnoldi
            | Method::HifEkfac
            | Method::HifKfac
            | Method::HifDiagonal => self.hif(),
            Method::Untrac => self.untrac(),
            Method::UntracInv => self.untrac_inv(),
            Method::Empirical => self.empirical(),
            Method::Pbrf => self.pbrf(),
            Method::LeaveOut => {
                bail!("leave-out truth comes from retraining, not from checkpoints")
            }
        }
    }

    pub(super) fn settings(&self) -> &MethodSettings {
        self.request.settings
    }

    fn open_model(&self, path: &Path) -> Result<Network> {
        Ok(Network::open(
            &weights_in(&self.open.set, path)?,
            self.device,
        )?)
    }

    /// The model at the end of the reference run.
    pub(super) fn last_model(&self) -> Result<Network> {
        let (_, last) = self
            .checkpoints
            .last()
            .context("the reference run has no checkpoints")?;
        self.open_model(last)
    }

    pub(super) fn of<'m>(&'m self, model: &'m Network) -> Attributed<'m, Network> {
        Attributed {
            model,
            train: &self.train,
            test: &self.test,
            axes: &self.axes,
        }
    }

    fn is_preconditioned(&self) -> bool {
        matches!(
            self.request.method,
            Method::GraddotPreconditioned
                | Method::GradcosPreconditioned
                | Method::TracinCpPreconditioned
        )
    }

    pub(super) fn preconditioners(&self) -> Result<Preconditioners> {
        if !self.is_preconditioned() {
            return Ok(Preconditioners::default());
        }
        preconditioners(self.open, self.reference, self.device, self.progress)
    }

    fn metric_at(&self, step: u32, preconditioners: &mut Preconditioners) -> Result<Metric> {
        if !self.is_preconditioned() {
            return Ok(Metric::Identity);
        }
        preconditioners.take(step).with_context(|| {
            format!(
                "run {}: no preconditioner after step {step}",
                self.reference.id
            )
        })
    }

    /// The metric at the end of the reference run.
    pub(super) fn last_metric(&self) -> Result<Metric> {
        let last = self.reference.curriculum.len() as u32;
        self.metric_at(last, &mut self.preconditioners()?)
    }

    fn graddot(&self) -> Result<Scores> {
        let model = self.last_model()?;
        let metric = self.last_metric()?;
        let method = GradDot::new(self.params)?;
        let layers = self.settings().layers;
        Ok(method.scores(&self.of(&model), &metric, layers, self.progress)?)
    }

    fn gradcos(&self) -> Result<Scores> {
        let model = self.last_model()?;
        let metric = self.last_metric()?;
        let method = GradCos::new(self.params)?;
        Ok(method.scores(&self.of(&model), &metric, self.progress)?)
    }

    /// The checkpoints of the reference run, opened one by one.
    pub(super) fn opened_checkpoints<'s>(
        &'s self,
        preconditioners: &'s mut Preconditioners,
    ) -> Result<impl Iterator<Item = Result<Checkpoint<Network>>> + 's> {
        let steps = crate::train::checkpoint_steps(self.open, self.reference)?;
        let open = move |((rate, path), step): (&(f64, PathBuf), u32)| {
            Ok(Checkpoint {
                model: self.open_model(path)?,
                learning_rate: *rate,
                metric: self.metric_at(step, preconditioners)?,
            })
        };
        Ok(self.checkpoints.iter().zip(steps).map(open))
    }

    fn tracin_cp(&self) -> Result<Scores> {
        let mut preconditioners = self.preconditioners()?;
        let checkpoints = self.opened_checkpoints(&mut preconditioners)?;
        TracinCp::new(self.params)?.scores(
            checkpoints,
            &self.train,
            &self.test,
            &self.axes,
            self.settings().layers,
            self.progress,
        )
    }

    /// Total exposure of every training example in the reference run.
    pub(super) fn exposures(&self) -> Vec<f64> {
        let count = self.open.set.train_examples().len();
        self.reference.curriculum.total_exposure(count)
    }

    pub(super) fn hif_params(&self) -> HifParams {
        let settings = self.settings();
        let mut params = HifParams::new(self.params, self.solver());
        params.seed = self.request.seed;
        params.curvature_examples =
            curvature_examples(self.request.method, settings).map(|n| n as usize);
        if settings.curvature == Some(CurvatureArg::Hessian) {
            params.curvature = Curved::Hessian;
        }
        if let Some(damping) = settings.damping {
            params.damping = DampingParam::Absolute(damping);
        }
        if let Some(factor) = settings.relative_damping {
            params.damping = DampingParam::Relative(factor);
        }
        params
    }

    fn hif(&self) -> Result<Scores> {
        let model = self.last_model()?;
        let method = Hif::new(self.hif_params())?;
        let exposures = self.exposures();
        let steps = self.reference.curriculum.len();
        let of = self.of(&model);
        let settings = self.settings();
        let (layers, progress) = (settings.layers, self.progress);
        if let Some((train, axes)) = &self.all {
            if settings
                .test_unit
                .as_deref()
                .is_some_and(|unit| unit != "example")
            {
                bail!(
                    "--prefilter scores each test example against its candidates; it does not go with --test-unit"
                );
            }
            let whole = Attributed {
                train,
                axes,
                ..self.of(&model)
            };
            let scores =
                method.candidate_scores(&whole, &of, &exposures, steps, layers, progress)?;
            return Ok(scores);
        }
        Ok(match settings.test_unit.as_deref().unwrap_or("example") {
            "example" => method.scores(&of, &exposures, steps, layers, progress)?,
            column => {
                let units = self.test_units(column)?;
                method.scores_of_units(&of, &units, &exposures, steps, layers, progress)?
            }
        })
    }

    fn solver(&self) -> Solver {
        let s = self.settings();
        let count = |given: Option<u32>, default: usize| given.map_or(default, |n| n as usize);
        let drawn = match s.labels {
            None | Some(LabelsArg::Sampled) => Drawn::Sampled(s.draws.unwrap_or(1)),
            Some(LabelsArg::Given) => Drawn::Given,
            Some(LabelsArg::Expected) => Drawn::Expected,
        };
        match self.request.method {
            Method::HifCg => Solver::ConjugateGradients(ConjugateGradientSettings {
                tolerance: s.tolerance.unwrap_or(1e-3),
                iterations: count(s.iterations, 200),
            }),
            Method::HifLissa => Solver::Lissa(LissaSettings {
                depth: count(s.depth, 500),
                repeats: count(s.repeats, 1),
                batch_size: s.batch_size.map(|n| n as usize),
                scale: s.scale,
                deflation: !s.no_deflation,
                tolerance: s.tolerance.unwrap_or(0.01),
            }),
            Method::HifArnoldi => {
                let iterations = count(s.iterations, 30);
                Solver::Arnoldi(Arnoldi {
                    iterations,
                    rank: count(s.rank, iterations.min(20)),
                    complement: s.complement,
                })
            }
            Method::HifEkfac => Solver::Factored(Factored::Ekfac(drawn)),
            Method::HifKfac => Solver::Factored(Factored::Kfac(drawn)),
            Method::HifDiagonal => Solver::Factored(Factored::Diagonal(drawn)),
            _ => Solver::Exact,
        }
    }

    fn optimizer(&self) -> Optimizer {
        let sgd = |momentum| Optimizer::Sgd {
            momentum,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        };
        match self.settings().optimizer.unwrap_or(OptimizerArg::Adam) {
            OptimizerArg::Sgd => sgd(0.0),
            OptimizerArg::Momentum => sgd(0.9),
            OptimizerArg::Rmsprop => Optimizer::Rmsprop {
                alpha: 0.99,
                eps: 1e-8,
                momentum: 0.0,
                weight_decay: 0.0,
            },
            OptimizerArg::Adam => Optimizer::Adam {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
            },
            OptimizerArg::Adafactor => Optimizer::Adafactor {
                beta2_decay: -0.8,
                eps1: f64::from(f32::EPSILON),
                eps2: 1e-3,
                d: 1.0,
                weight_decay: 0.0,
            },
        }
    }

    fn unlearning(&self, defaults: UnlearningParams) -> UnlearningParams {
        let s = self.settings();
        let mut params = defaults
            .optimizer(self.optimizer())
            .seed(self.request.seed)
            .threads(self.params.threads);
        if let Some(rate) = s.learning_rate {
            params = params.learning_rate(rate);
        }
        if let Some(size) = s.batch_size {
            params = params.batch_size(Some(size as usize));
        }
        if let Some(epochs) = s.epochs {
            params = params.epochs(epochs);
        }
        if let Some(steps) = s.curve_every {
            params = params.curve_every(steps);
        }
        params
    }

    fn test_units(&self, unit: &str) -> Result<Units> {
        let examples = self.open.set.test_examples();
        Ok(match unit {
            "example" => Units::each(&self.axes.test_keys)?,
            column => {
                if (examples.as_slice().iter()).all(|e| e.column(column).is_none()) {
                    bail!(
                        "--test-unit {column}: no test example has such a column; write dataset, example or the name of a column"
                    );
                }
                Units::by(examples, column)?
            }
        })
    }

    /// Units of the training examples; of all of them, whether the reference run trained on them or
    /// not, unless asked otherwise.
    fn train_units(&self, default: &str) -> Result<Units> {
        let examples = self.open.set.train_examples();
        let units = match self.request.unit.unwrap_or(default) {
            "example" => Units::each(&self.axes.train_keys)?,
            column => {
                if examples
                    .as_slice()
                    .iter()
                    .any(|e| e.column(column).is_none())
                {
                    bail!("--unit {column}: not every training example has such a column");
                }
                Units::by(examples, column)?
            }
        };
        if !self.settings().trained_only {
            return Ok(units);
        }
        let exposures = (self.reference.curriculum).total_exposure(self.train.len());
        let mut units = units.as_slice().to_vec();
        for unit in &mut units {
            unit.members.retain(|&id| exposures[id as usize] > 0.0);
        }
        units.retain(|unit| !unit.members.is_empty());
        Ok(Units::new(units)?)
    }

    fn untrac(&self) -> Result<Scores> {
        let model = self.last_model()?;
        let rate = self.params.reference_learning_rate;
        let method = Untrac::new(self.unlearning(UnlearningParams::untrac(rate)))?;
        let units = self.train_units("dataset")?;
        let curves = method.curves(&self.of(&model), &units, self.progress)?;
        if let Some(path) = &self.settings().curves {
            write_artifact(path, &curves.to_artifact())?;
        }
        Ok(method.scores_from_curves(&curves, &self.axes, None)?)
    }

    fn untrac_inv(&self) -> Result<Scores> {
        let model = self.last_model()?;
        let rate = self.params.reference_learning_rate;
        let method = UntracInv::new(self.unlearning(UnlearningParams::untrac_inv(rate)))?;
        let units = self.test_units(self.settings().test_unit.as_deref().unwrap_or("dataset"))?;
        let curves = method.curves(&self.of(&model), &units, self.progress)?;
        if let Some(path) = &self.settings().curves {
            write_artifact(path, &curves.to_artifact())?;
        }
        Ok(method.scores_from_curves(&curves, &self.axes, None)?)
    }

    fn empirical(&self) -> Result<Scores> {
        let s = self.settings();
        let model = match s.from_base {
            true => Network::open(&BaseModel::load(&self.open.set)?.weights, self.device)?,
            false => self.last_model()?,
        };
        let mut params = EmpiricalParams::new(self.params.reference_learning_rate)
            .optimizer(self.optimizer())
            .threads(self.params.threads);
        if let Some(rate) = s.learning_rate {
            params = params.learning_rate(rate);
        }
        if let Some(steps) = s.steps {
            params = params.steps(steps);
        }
        let units = self.train_units("example")?;
        Ok(Empirical::new(params)?.scores(&self.of(&model), &units, self.progress)?)
    }

    fn pbrf(&self) -> Result<Scores> {
        // 32 bits do not resolve the minimum on a model that fits well.
        let (_, last) =
            (self.checkpoints.last()).context("the reference run has no checkpoints")?;
        let model = Network::open_double(&weights_in(&self.open.set, last)?, self.device)?;
        let s = self.settings();
        let steps = self.reference.curriculum.len();
        let mut params = PbrfParams::new(self.params.reference_learning_rate, steps as u32)
            .threads(self.params.threads);
        if let Some(damping) = s.damping {
            params = params.damping(damping);
        }
        if s.epsilon.is_some() {
            params = params.epsilon(s.epsilon);
        }
        if let Some(tolerance) = s.tolerance {
            params = params.tolerance(tolerance);
        }
        if let Some(iterations) = s.iterations {
            params = params.max_iterations(iterations);
        }
        let exposures = (self.reference.curriculum).total_exposure(self.train.len());
        let weights: Vec<f64> = exposures.iter().map(|x| x / steps as f64).collect();
        let units = self.train_units("dataset")?;
        let of = self.of(&model);
        Ok(Pbrf::new(params)?.scores(&of, &weights, &units, self.progress)?)
    }
}

/// Training examples that curvature is drawn over unless a number is given, where a product with
/// it goes through all of them: one of every system's many.
const CURVATURE_EXAMPLES: u32 = 256;

/// How many training examples curvature is taken over; `None`: all.
fn curvature_examples(method: AttributionMethod, settings: &MethodSettings) -> Option<u32> {
    use AttributionMethod::{HifArnoldi, HifCg, HifLissa};
    let drawn = matches!(method, HifCg | HifLissa | HifArnoldi).then_some(CURVATURE_EXAMPLES);
    settings.curvature_examples.or(drawn)
}

/// What decides scores besides the method and the run: kept with them, so that others are not
/// mistaken for them.
pub fn settings_note(
    method: AttributionMethod,
    settings: &MethodSettings,
    unit: Option<&str>,
) -> Value {
    let text = |v: Option<String>| v.map_or(Value::Null, Value::from);
    let debug = |v: Option<&dyn std::fmt::Debug>| text(v.map(|v| format!("{v:?}").to_lowercase()));
    let mut note = json!({
        "curvature": debug(settings.curvature.as_ref().map(|v| v as _)),
        "damping": settings.damping,
        "relative_damping": settings.relative_damping,
        "epsilon": settings.epsilon,
        "tolerance": settings.tolerance,
        "iterations": settings.iterations,
        "rank": settings.rank,
        "depth": settings.depth,
        "repeats": settings.repeats,
        "scale": settings.scale,
        "complement": settings.complement.then_some(true),
        "no_deflation": settings.no_deflation.then_some(true),
        "labels": debug(settings.labels.as_ref().map(|v| v as _)),
        "draws": settings.draws,
        "optimizer": debug(settings.optimizer.as_ref().map(|v| v as _)),
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "steps": settings.steps,
        "from_base": settings.from_base.then_some(true),
        "test_unit": settings.test_unit,
        "query_rank": settings.query_rank,
        "projection": settings.projection,
        "prefilter": settings.prefilter,
        "test_tokens": settings.test_tokens.then_some(true),
        "curvature_examples": curvature_examples(method, settings),
        "curve_every": settings.curve_every,
        "trained_only": settings.trained_only.then_some(true),
        "unit": unit,
    });
    if let Some(entries) = note.as_object_mut() {
        entries.retain(|_, value| !value.is_null());
    }
    note
}
