//! All methods on all held-out runs and edits.

use crate::bootstrap::{
    BootstrapSettings, Interval, Ratio, bootstrap_interval, paired_interval, ratio_of_sums,
};
use crate::ceiling::{NoiseCeiling, noise_ceiling};
use crate::metrics::{Effects, all_steps_errors, coverage, final_correlations, no_effect};
use crate::split::{LeftOut, SplitRuns};
use crate::truth::LeaveOutReport;
use rayon::prelude::*;
use serde::Serialize;
use simfluence_core::{Banded, EditKind, Run, SimulateError, Simulator, Trajectory};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

/// Name of the baseline that [`compare`] adds on the suite: the original run's real trajectory.
pub const NO_EFFECT: &str = "no-effect";

/// Name of the block of held-out runs.
pub const HELD_OUT: &str = "held-out";

/// The share of real losses that the bands of a method are made to hold.
pub const BAND_LEVEL: f64 = 0.9;

/// Name of the block of all edits.
pub const SUITE: &str = "suite";

/// A simulator that takes part, with what it cost.
#[derive(Clone)]
pub struct Method<'a> {
    /// Name as it is to stand in the table; unique.
    pub name: String,
    /// What predicts.
    pub simulator: &'a dyn Simulator,
    /// Wall time of fitting or attributing, seconds.
    pub fit_seconds: Option<f64>,
    /// Peak memory of fitting or attributing, bytes.
    pub peak_bytes: Option<u64>,
    /// Gradients evaluated while attributing: examples that went forward and backward.
    pub gradient_evaluations: Option<u64>,
}

impl<'a> Method<'a> {
    /// A method under its simulator's own name, its costs unknown.
    pub fn new(simulator: &'a dyn Simulator) -> Self {
        Self {
            name: simulator.name().to_owned(),
            simulator,
            fit_seconds: None,
            peak_bytes: None,
            gradient_evaluations: None,
        }
    }
}

/// A block of several parts together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Union {
    /// Whether the held-out runs are in it.
    pub held_out: bool,
    /// Only the held-out runs of this design (`diversified`, …); `None`: of any.
    pub design: Option<String>,
    /// Kinds of edits in it.
    pub kinds: Vec<EditKind>,
}

impl Union {
    /// Name of the block, such as `held-out + dropped + blocked`.
    pub fn name(&self) -> String {
        let held_out = self.held_out.then(|| match &self.design {
            Some(design) => held_out_by(design),
            None => HELD_OUT.to_owned(),
        });
        let kinds = self.kinds.iter().map(|kind| kind.name().to_owned());
        held_out
            .into_iter()
            .chain(kinds)
            .collect::<Vec<_>>()
            .join(" + ")
    }
}

/// Name of the block of the held-out runs of one design.
fn held_out_by(design: &str) -> String {
    format!("{HELD_OUT} {design}")
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CompareSettings {
    /// How intervals are drawn.
    pub bootstrap: BootstrapSettings,
    /// Further blocks, each of several parts; default none.
    pub unions: Vec<Union>,
    /// Methods whose differences to every other method are listed; empty (the default): all.
    pub focus: Vec<String>,
}

/// A number with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Ends of the bootstrap interval; `None` with fewer than two units.
    pub interval: Option<Interval>,
}

/// One method in one block; `None` is "n/a": not defined there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the method.
    pub method: String,
    /// All-steps mean squared error, nats².
    pub mse: Option<Estimate>,
    /// All-steps mean absolute error, nats.
    pub mae: Option<Estimate>,
    /// Spearman of the final losses, mean over runs.
    pub final_spearman: Option<Estimate>,
    /// Spearman of the final changes `L_T − L_0`, mean over runs.
    pub change_spearman: Option<Estimate>,
    /// R² of the final effect against `no-effect`, pooled over test examples and edits.
    pub effect_r2: Option<Estimate>,
    /// Spearman of the final effect across test examples, mean over edits.
    pub effect_spearman: Option<Estimate>,
    /// Share of test examples whose final effect has the right sign, mean over edits.
    pub sign_agreement: Option<Estimate>,
    /// Share of the real losses at steps ≥ 1 that lie in the bands of level [`BAND_LEVEL`], mean
    /// over runs; n/a for methods without bands.
    pub coverage: Option<Estimate>,
    /// Mean width of those bands, nats.
    pub band_width: Option<Estimate>,
}

/// Runs that are judged together, one row per method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Block {
    /// `held-out` (and `held-out DESIGN` where there are several), `suite`, a kind of edit, or the
    /// name of a [`Union`].
    pub name: String,
    /// Ids of the runs in it.
    pub runs: Vec<String>,
    /// Number of units that are resampled: a base run with its edits is one.
    pub unit_count: usize,
    /// The methods in the order they were given, then `no-effect` where only edits are judged.
    pub rows: Vec<Row>,
    /// What R² of the final effect noise allows, where edits were made of several base runs.
    pub effect_r2_ceiling: Option<NoiseCeiling>,
}

impl Block {
    /// The row of a method.
    pub fn row(&self, method: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.method == method)
    }
}

/// Difference of two methods' all-steps MSE on the same runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedDifference {
    /// The method.
    pub method: String,
    /// The method it is compared with.
    pub against: String,
    /// Name of the block.
    pub block: String,
    /// MSE of `method` minus MSE of `against`, nats²: below 0 is better.
    pub difference: f64,
    /// Ends of the paired bootstrap interval; `None` with fewer than two units.
    pub interval: Option<Interval>,
}

impl PairedDifference {
    /// Whether `method` is better and the interval lies wholly below 0.
    pub fn is_surely_better(&self) -> bool {
        self.interval.is_some_and(|interval| interval.high < 0.0)
    }
}

/// One method on one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunScore {
    /// Name of the method.
    pub method: String,
    /// Id of the run.
    pub run: String,
    /// For an edit: the run that was edited.
    pub base_run: Option<String>,
    /// For an edit: its kind.
    pub kind: Option<EditKind>,
    /// All-steps mean squared error, nats².
    pub mse: f64,
    /// All-steps mean absolute error, nats.
    pub mae: f64,
    /// Spearman of the final losses across test examples.
    pub final_spearman: Option<f64>,
    /// Spearman of the final changes across test examples.
    pub change_spearman: Option<f64>,
    /// R² of the final effect.
    pub effect_r2: Option<f64>,
    /// Spearman of the final effect across test examples.
    pub effect_spearman: Option<f64>,
    /// Share of test examples whose final effect has the right sign.
    pub sign_agreement: Option<f64>,
    /// `Σ (ê − e)²` and `Σ e²` over test examples, nats².
    pub effect_squares: Option<(f64, f64)>,
    /// Share of the real losses at steps ≥ 1 that lie in the bands.
    pub coverage: Option<f64>,
    /// Mean width of the bands, nats.
    pub band_width: Option<f64>,
    /// How far the curriculum lies from what was recorded ([`Banded::distance`]).
    pub distance: Option<f64>,
}

/// What a method cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodCosts {
    /// Name of the method.
    pub method: String,
    /// Wall time of fitting or attributing, seconds.
    pub fit_seconds: Option<f64>,
    /// Wall time of simulating every run of the comparison, in parallel, seconds.
    pub simulate_seconds: f64,
    /// Peak memory of fitting or attributing, bytes.
    pub peak_bytes: Option<u64>,
    /// Gradients evaluated while attributing: examples that went forward and backward.
    pub gradient_evaluations: Option<u64>,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Ids of the runs that were learned from.
    pub train_runs: Vec<String>,
    /// Runs that took no part.
    pub left_out: Vec<LeftOut>,
    /// Number of test examples `m`.
    pub test_count: usize,
    /// Fewest and most steps `T` of a judged run.
    pub steps: (usize, usize),
    /// How intervals were drawn.
    pub bootstrap: BootstrapSettings,
    /// What each method cost.
    pub costs: Vec<MethodCosts>,
    /// Held-out runs, the suite, each kind of edit, then the unions asked for; those without
    /// runs are absent.
    pub blocks: Vec<Block>,
    /// Differences of all-steps MSE in every block.
    pub pairwise: Vec<PairedDifference>,
    /// Every method on every run.
    pub run_scores: Vec<RunScore>,
    /// Agreement of attribution scores with really retraining without parts of the data; `None`
    /// until the caller, who knows the scores, puts it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_out: Option<LeaveOutReport>,
}

impl Comparison {
    /// The block with this name.
    pub fn block(&self, name: &str) -> Option<&Block> {
        self.blocks.iter().find(|block| block.name == name)
    }

    /// The difference of two methods in a block.
    pub fn difference(
        &self,
        method: &str,
        against: &str,
        block: &str,
    ) -> Option<&PairedDifference> {
        self.pairwise
            .iter()
            .find(|d| d.method == method && d.against == against && d.block == block)
    }
}

/// A run that is judged.
struct Judged<'a> {
    run: &'a Run,
    edit: Option<(&'a Run, EditKind)>,
    /// What is resampled with it.
    unit: &'a str,
}

/// The scores of one method, in the order of the judged runs; `None` where it does not apply.
type Scores = Vec<Option<RunScore>>;

/// Simulates every judged run by every method and scores it.
///
/// Per method: all-steps MSE and MAE, Spearman of the final losses and changes, and on edits
/// R², Spearman and sign agreement of the final effect, each with a bootstrap interval over
/// units. A method's predicted effect is `L_sim(edited) − L_sim(original)`; the simulated
/// trajectory of an edited run starts from that run's own real `L_0`. The baseline `no-effect`,
/// the original run's real trajectory, is added wherever only edits are judged.
///
/// ```
/// # use simfluence_core::*;
/// use simfluence_evaluation::{CompareSettings, Method, SplitRuns, compare};
/// # struct Still;
/// # impl Simulator for Still {
/// #     fn name(&self) -> &str { "no-learning" }
/// #     fn train_count(&self) -> usize { 1 }
/// #     fn test_count(&self) -> usize { 1 }
/// #     fn simulate(&self, c: &Curriculum, l: &[f32]) -> Result<Trajectory, SimulateError> {
/// #         let rows = c.len() as u32 + 1;
/// #         Ok(Trajectory::new((0..rows).collect(), 1, l.repeat(rows as usize)).unwrap())
/// #     }
/// # }
/// # let run = Run {
/// #     id: "run-0".into(),
/// #     info: RunInfo::new(RunStatus::Complete),
/// #     curriculum: Curriculum::new(vec![Step::new(vec![0], None)], 1).unwrap(),
/// #     trajectory: Trajectory::new(vec![0, 1], 1, vec![4.0, 2.0]).unwrap(),
/// #     batch_losses: vec![None],
/// # };
/// // `run` fell from 4 to 2 nats; the simulator `Still` says that nothing moves.
/// let split = SplitRuns { held_out: vec![&run], ..SplitRuns::default() };
/// let comparison = compare(&[Method::new(&Still)], &split, &CompareSettings::default())?;
/// let row = comparison.block("held-out").unwrap().row("no-learning").unwrap();
/// assert_eq!(row.mse.unwrap().value, 4.0);
/// # Ok::<(), simfluence_evaluation::CompareError>(())
/// ```
///
/// # Errors
/// No method, two with one name, a focus that is no method; a run that a method cannot simulate
/// or whose losses go beyond its curriculum. All name the method and the run.
pub fn compare(
    methods: &[Method<'_>],
    split: &SplitRuns<'_>,
    settings: &CompareSettings,
) -> Result<Comparison, CompareError> {
    check_methods(methods, settings)?;
    let judged = judged_runs(split)?;
    let mut names: Vec<String> = Vec::new();
    let mut scores: Vec<Scores> = Vec::new();
    let mut costs = Vec::new();
    for method in methods {
        let start = Instant::now();
        let simulated = simulate_all(method, &judged)?;
        costs.push(MethodCosts {
            method: method.name.clone(),
            fit_seconds: method.fit_seconds,
            simulate_seconds: start.elapsed().as_secs_f64(),
            peak_bytes: method.peak_bytes,
            gradient_evaluations: method.gradient_evaluations,
        });
        names.push(method.name.clone());
        scores.push(score_all(&method.name, &judged, &simulated)?);
    }
    if judged.iter().any(|j| j.edit.is_some()) {
        names.push(NO_EFFECT.to_owned());
        scores.push(score_no_effect(&judged)?);
    }
    let lengths = || judged.iter().map(|j| j.run.curriculum.len());
    let blocks = blocks(&names, &scores, &judged, settings);
    Ok(Comparison {
        train_runs: split.train.iter().map(|run| run.id.clone()).collect(),
        left_out: split.left_out.clone(),
        test_count: judged.first().map_or(0, |j| j.run.trajectory.test_count()),
        steps: (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0)),
        bootstrap: settings.bootstrap,
        costs,
        pairwise: blocks.iter().flat_map(|b| b.differences.clone()).collect(),
        blocks: blocks.into_iter().map(|b| b.block).collect(),
        run_scores: scores.into_iter().flatten().flatten().collect(),
        leave_out: None,
    })
}

/// The simulated trajectory of a run, from its real `L_0`.
///
/// # Errors
/// What [`Simulator::simulate`] refuses; a run without complete losses before the first step.
pub fn simulate_run(simulator: &dyn Simulator, run: &Run) -> Result<Trajectory, SimulateError> {
    simulator.simulate(&run.curriculum, initial(run)?)
}

fn initial(run: &Run) -> Result<&[f32], SimulateError> {
    run.trajectory.initial().ok_or_else(|| {
        SimulateError::Other("its losses before the first step are incomplete".to_owned())
    })
}

fn check_methods(methods: &[Method<'_>], settings: &CompareSettings) -> Result<(), CompareError> {
    if methods.is_empty() {
        return Err(CompareError::NoMethods);
    }
    let mut names = HashSet::from([NO_EFFECT]);
    for method in methods {
        if !names.insert(&method.name) {
            return Err(CompareError::DuplicateMethod {
                method: method.name.clone(),
            });
        }
    }
    match settings
        .focus
        .iter()
        .find(|name| !names.contains(name.as_str()))
    {
        Some(name) => Err(CompareError::UnknownFocus {
            method: name.clone(),
        }),
        None => Ok(()),
    }
}

fn judged_runs<'a>(split: &SplitRuns<'a>) -> Result<Vec<Judged<'a>>, CompareError> {
    let held_out = split.held_out.iter().map(|&run| Judged {
        run,
        edit: None,
        unit: &run.id,
    });
    let suite = split.suite.iter().map(|pair| {
        let own_base = pair.base.info.design.edit.as_ref();
        Judged {
            run: pair.edited,
            edit: Some((pair.base, pair.kind)),
            unit: own_base.map_or(&pair.base.id, |edit| &edit.base_run),
        }
    });
    let judged: Vec<Judged<'a>> = held_out.chain(suite).collect();
    if judged.is_empty() {
        return Err(CompareError::NoRuns);
    }
    for run in judged
        .iter()
        .flat_map(|j| [Some(j.run), j.edit.map(|e| e.0)])
        .flatten()
    {
        let last = run.trajectory.steps().last().copied().unwrap_or(0);
        if last as usize > run.curriculum.len() {
            return Err(CompareError::StepBeyondCurriculum {
                run: run.id.clone(),
                step: last,
                steps: run.curriculum.len(),
            });
        }
    }
    Ok(judged)
}

/// A simulated run, with bands where the method has them.
struct Simulated {
    trajectory: Trajectory,
    bands: Option<Banded>,
}

/// Simulations by run id; each run is simulated once.
fn simulate_all<'a>(
    method: &Method<'_>,
    judged: &[Judged<'a>],
) -> Result<BTreeMap<&'a str, Simulated>, CompareError> {
    let mut runs: BTreeMap<&'a str, &'a Run> = BTreeMap::new();
    for judged in judged {
        runs.insert(&judged.run.id, judged.run);
        if let Some((base, _)) = judged.edit {
            runs.insert(&base.id, base);
        }
    }
    runs.into_par_iter()
        .map(
            |(id, run)| match simulate_with_bands(method.simulator, run) {
                Ok(simulated) => Ok((id, simulated)),
                Err(source) => Err(CompareError::Simulate {
                    method: method.name.clone(),
                    run: id.to_owned(),
                    source,
                }),
            },
        )
        .collect()
}

fn simulate_with_bands(simulator: &dyn Simulator, run: &Run) -> Result<Simulated, SimulateError> {
    let bands = simulator.simulate_banded(&run.curriculum, initial(run)?, BAND_LEVEL)?;
    let trajectory = match &bands {
        Some(bands) => bands.simulated.clone(),
        None => simulate_run(simulator, run)?,
    };
    Ok(Simulated { trajectory, bands })
}

fn score_all(
    method: &str,
    judged: &[Judged<'_>],
    simulated: &BTreeMap<&str, Simulated>,
) -> Result<Scores, CompareError> {
    judged
        .par_iter()
        .map(|j| {
            let own = &simulated[j.run.id.as_str()];
            let effects = j.edit.map(|(base, _)| {
                let original = &simulated[base.id.as_str()].trajectory;
                Effects::of(
                    (&base.trajectory, original),
                    (&j.run.trajectory, &own.trajectory),
                )
            });
            let mut scored = score(method, j, &own.trajectory, effects)?;
            if let Some(bands) = &own.bands {
                let held = coverage(&j.run.trajectory, &bands.low, &bands.high);
                (scored.coverage, scored.band_width) = held.unzip();
                scored.distance = Some(bands.distance);
            }
            Ok(Some(scored))
        })
        .collect()
}

fn score_no_effect(judged: &[Judged<'_>]) -> Result<Scores, CompareError> {
    judged
        .par_iter()
        .map(|j| {
            let Some((base, _)) = j.edit else {
                return Ok(None);
            };
            let held = no_effect(&base.trajectory, &j.run.trajectory);
            let held = held.ok_or_else(|| not_comparable(NO_EFFECT, j.run))?;
            let original = (&base.trajectory, &base.trajectory);
            let mut effects = Effects::of(original, (&j.run.trajectory, &held));
            effects.predicted.fill(0.0);
            score(NO_EFFECT, j, &held, Some(effects)).map(Some)
        })
        .collect()
}

fn score(
    method: &str,
    judged: &Judged<'_>,
    simulated: &Trajectory,
    effects: Option<Effects>,
) -> Result<RunScore, CompareError> {
    let real = &judged.run.trajectory;
    let errors = all_steps_errors(real, simulated);
    let errors = errors.ok_or_else(|| not_comparable(method, judged.run))?;
    let correlations = final_correlations(real, simulated);
    let effects = effects.as_ref();
    Ok(RunScore {
        method: method.to_owned(),
        run: judged.run.id.clone(),
        base_run: judged.edit.map(|(base, _)| base.id.clone()),
        kind: judged.edit.map(|(_, kind)| kind),
        mse: errors.mse,
        mae: errors.mae,
        final_spearman: correlations.losses,
        change_spearman: correlations.changes,
        effect_r2: effects.and_then(Effects::r2),
        effect_spearman: effects.and_then(Effects::spearman),
        sign_agreement: effects.and_then(Effects::sign_agreement),
        effect_squares: effects.map(Effects::squares),
        coverage: None,
        band_width: None,
        distance: None,
    })
}

fn not_comparable(method: &str, run: &Run) -> CompareError {
    CompareError::NotComparable {
        method: method.to_owned(),
        run: run.id.clone(),
    }
}

/// A block and the differences in it.
struct Judgement {
    block: Block,
    differences: Vec<PairedDifference>,
}

fn blocks(
    names: &[String],
    scores: &[Scores],
    judged: &[Judged<'_>],
    settings: &CompareSettings,
) -> Vec<Judgement> {
    let kind = |k: usize| judged[k].edit.map(|(_, kind)| kind);
    let design = |k: usize| judged[k].run.info.design.design.as_str();
    let select = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> {
        (0..judged.len()).filter(|&k| wanted(k)).collect()
    };
    let mut parts = vec![(HELD_OUT.to_owned(), select(&|k| kind(k).is_none()))];
    let designs: BTreeSet<&str> = parts[0].1.iter().map(|&k| design(k)).collect();
    if designs.len() > 1 {
        for name in designs {
            let members = select(&|k| kind(k).is_none() && design(k) == name);
            parts.push((held_out_by(name), members));
        }
    }
    parts.push((SUITE.to_owned(), select(&|k| kind(k).is_some())));
    let kinds: BTreeSet<EditKind> = (0..judged.len()).filter_map(kind).collect();
    for wanted in kinds {
        let members = select(&|k| kind(k) == Some(wanted));
        parts.push((wanted.name().to_owned(), members));
    }
    for union in &settings.unions {
        let is_wanted = |name: &str| union.design.as_deref().is_none_or(|d| d == name);
        let members = select(&|k| match kind(k) {
            Some(kind) => union.kinds.contains(&kind),
            None => union.held_out && is_wanted(design(k)),
        });
        parts.push((union.name(), members));
    }
    parts
        .into_par_iter()
        .filter(|(_, members)| !members.is_empty())
        .map(|(name, members)| judge(name, &members, names, scores, judged, settings))
        .collect()
}

fn judge(
    name: String,
    members: &[usize],
    names: &[String],
    scores: &[Scores],
    judged: &[Judged<'_>],
    settings: &CompareSettings,
) -> Judgement {
    let mut unit_names: Vec<&str> = Vec::new();
    let units: Vec<usize> = members
        .iter()
        .map(|&k| {
            let unit = judged[k].unit;
            unit_names
                .iter()
                .position(|&u| u == unit)
                .unwrap_or_else(|| {
                    unit_names.push(unit);
                    unit_names.len() - 1
                })
        })
        .collect();
    // A method that does not apply to every run of the block (no-effect) has no row in it.
    let rows: Vec<(&str, Vec<&RunScore>)> = names
        .iter()
        .zip(scores)
        .filter_map(|(name, scores)| {
            let own: Option<Vec<&RunScore>> = members.iter().map(|&k| scores[k].as_ref()).collect();
            own.map(|own| (name.as_str(), own))
        })
        .collect();
    let table = Units {
        unit_of: units,
        count: unit_names.len(),
        bootstrap: settings.bootstrap,
    };
    Judgement {
        differences: table.differences(&name, &rows, &settings.focus),
        block: Block {
            name,
            runs: members.iter().map(|&k| judged[k].run.id.clone()).collect(),
            unit_count: table.count,
            rows: rows
                .iter()
                .map(|(name, own)| table.row(name, own))
                .collect(),
            effect_r2_ceiling: ceiling_of(members.iter().map(|&k| &judged[k])),
        },
    }
}

/// Of the edits among the runs of a block.
fn ceiling_of<'a>(judged: impl Iterator<Item = &'a Judged<'a>>) -> Option<NoiseCeiling> {
    noise_ceiling(judged.filter_map(|j| {
        let (base, _) = j.edit?;
        let label = &j.run.info.design.edit.as_ref()?.label;
        if label.is_empty() {
            return None;
        }
        let real = (&base.trajectory, &base.trajectory);
        let effects = Effects::of(real, (&j.run.trajectory, &j.run.trajectory));
        Some((label.as_str(), effects.real))
    }))
}

/// The runs of a block, gathered into units.
struct Units {
    unit_of: Vec<usize>,
    count: usize,
    bootstrap: BootstrapSettings,
}

impl Units {
    fn ratios(
        &self,
        scores: &[&RunScore],
        part: impl Fn(&RunScore) -> Option<(f64, f64)>,
    ) -> Vec<Ratio> {
        let mut ratios = vec![Ratio::default(); self.count];
        for (score, &unit) in scores.iter().zip(&self.unit_of) {
            if let Some((numerator, denominator)) = part(score) {
                ratios[unit] += Ratio {
                    numerator,
                    denominator,
                };
            }
        }
        ratios
    }

    fn mean(
        &self,
        scores: &[&RunScore],
        value: impl Fn(&RunScore) -> Option<f64>,
    ) -> Option<Estimate> {
        let ratios = self.ratios(scores, |score| value(score).map(|v| (v, 1.0)));
        Some(Estimate {
            value: ratio_of_sums(&ratios)?,
            interval: bootstrap_interval(&ratios, &self.bootstrap),
        })
    }

    fn r2(&self, scores: &[&RunScore]) -> Option<Estimate> {
        let ratios = self.ratios(scores, |score| score.effect_squares);
        let interval = bootstrap_interval(&ratios, &self.bootstrap);
        Some(Estimate {
            value: 1.0 - ratio_of_sums(&ratios)?,
            interval: interval.map(|interval| Interval {
                low: 1.0 - interval.high,
                high: 1.0 - interval.low,
            }),
        })
    }

    fn row(&self, method: &str, scores: &[&RunScore]) -> Row {
        Row {
            method: method.to_owned(),
            mse: self.mean(scores, |s| Some(s.mse)),
            mae: self.mean(scores, |s| Some(s.mae)),
            final_spearman: self.mean(scores, |s| s.final_spearman),
            change_spearman: self.mean(scores, |s| s.change_spearman),
            effect_r2: self.r2(scores),
            effect_spearman: self.mean(scores, |s| s.effect_spearman),
            sign_agreement: self.mean(scores, |s| s.sign_agreement),
            coverage: self.mean(scores, |s| s.coverage),
            band_width: self.mean(scores, |s| s.band_width),
        }
    }

    fn differences(
        &self,
        block: &str,
        rows: &[(&str, Vec<&RunScore>)],
        focus: &[String],
    ) -> Vec<PairedDifference> {
        let errors: Vec<Vec<Ratio>> = rows
            .iter()
            .map(|(_, scores)| self.ratios(scores, |s| Some((s.mse, 1.0))))
            .collect();
        let mut differences = Vec::new();
        for (a, (method, _)) in rows.iter().enumerate() {
            if !focus.is_empty() && !focus.iter().any(|name| name == method) {
                continue;
            }
            for (b, (against, _)) in rows.iter().enumerate().filter(|&(b, _)| b != a) {
                let of = |k: usize| ratio_of_sums(&errors[k]).unwrap_or(f64::NAN);
                differences.push(PairedDifference {
                    method: (*method).to_owned(),
                    against: (*against).to_owned(),
                    block: block.to_owned(),
                    difference: of(a) - of(b),
                    interval: paired_interval(&errors[a], &errors[b], &self.bootstrap),
                });
            }
        }
        differences
    }
}

/// Why methods cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CompareError {
    /// Nothing to compare.
    #[error("no method was given to compare")]
    NoMethods,
    /// Two methods with one name.
    #[error("two methods are named {method:?} (no-effect is taken); give each its own name")]
    DuplicateMethod {
        /// The name.
        method: String,
    },
    /// A focus that is no method.
    #[error("{method:?} is none of the compared methods")]
    UnknownFocus {
        /// The name.
        method: String,
    },
    /// Nothing to judge by.
    #[error("there is no held-out run and no edit to judge by")]
    NoRuns,
    /// A run that a method cannot simulate.
    #[error("{method} cannot simulate run {run:?}: {source}")]
    Simulate {
        /// Name of the method.
        method: String,
        /// Id of the run.
        run: String,
        /// Why.
        source: SimulateError,
    },
    /// A simulation that cannot be laid beside the real run.
    #[error(
        "{method}: run {run:?} has no measured loss after its first evaluation, or the simulation lacks a step or test example of it"
    )]
    NotComparable {
        /// Name of the method.
        method: String,
        /// Id of the run.
        run: String,
    },
    /// Losses after more steps than the curriculum has.
    #[error("run {run:?} has losses after step {step}, but its curriculum has {steps} steps")]
    StepBeyondCurriculum {
        /// Id of the run.
        run: String,
        /// The step.
        step: u32,
        /// Steps of the curriculum.
        steps: usize,
    },
}
