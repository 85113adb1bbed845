//! How the curricula of a run set are drawn.
//!
//! With ordinary runs alone no simulator can answer a what-if: every dataset is present all the
//! time, so its effect cannot be told from time itself. A *diversified* run changes its mixture
//! of datasets from segment to segment; a *counterfactual suite* edits held-out runs the way
//! users ask about them.

use crate::edit::{CurriculumEdit, EditError, Fill, Order, apply};
use crate::{Curriculum, Edit, EditKind, RunDesign, Schedule, ScheduleKind, Split, Step};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};
use serde::{Deserialize, Serialize};

/// How ordinary training and held-out runs are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesignKind {
    /// Shuffled epochs over a random subset of the training examples.
    Ordinary,
    /// Segments with their own mixture of the datasets, learning rate varied per run.
    #[default]
    Diversified,
}

impl DesignKind {
    /// The name as it stands in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Diversified => "diversified",
        }
    }
}

/// The experimental design of a run set (`[design]` of a task file).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DesignSettings {
    /// How training and held-out runs are drawn, default `diversified`.
    pub kind: DesignKind,
    /// Number of training runs, default 24.
    pub runs: u32,
    /// How many of the training runs, the first ones, are ordinary, default 0. They show what the
    /// runs that users edit are like.
    pub ordinary: u32,
    /// Number of held-out runs of the same kind, default 8.
    pub held_out: u32,
    /// Number of ordinary held-out runs besides, default 2. They are what most people train, so
    /// the counterfactual suite edits them first.
    pub held_out_ordinary: u32,
    /// Training examples in an ordinary run (default: all).
    pub subset: Option<u32>,
    /// Fewest and most segments of a diversified run, default `[3, 6]`.
    pub segments: [u32; 2],
    /// Concentration of the Dirichlet distribution of a segment's mixture, default 0.4: the
    /// smaller, the more one dataset dominates a segment.
    pub concentration: f64,
    /// Whether datasets are left out, default false: from a whole run each with a probability of a
    /// quarter, and from each of several segments all but a random subset of those that remain,
    /// every size as likely as the others. Mixtures are over what is left then.
    pub subsets: bool,
    /// Range of a diversified run's learning-rate factor, drawn log-uniformly, default
    /// `[0.5, 2]`; a fair coin chooses a constant rate or linear decay.
    pub learning_rate_factors: [f64; 2],
    /// The counterfactual suite.
    pub suite: SuiteSettings,
    /// Seed of everything drawn, default 0.
    pub seed: u64,
}

impl Default for DesignSettings {
    fn default() -> Self {
        Self {
            kind: DesignKind::Diversified,
            runs: 24,
            ordinary: 0,
            held_out: 8,
            held_out_ordinary: 2,
            subset: None,
            segments: [3, 6],
            concentration: 0.4,
            subsets: false,
            learning_rate_factors: [0.5, 2.0],
            suite: SuiteSettings::default(),
            seed: 0,
        }
    }
}

/// The counterfactual suite: really retrained edits of held-out runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuiteSettings {
    /// How many held-out runs are edited, ordinary ones first, default 1; 0 for no suite.
    pub bases: u32,
    /// Kinds of edits, default all five.
    pub kinds: Vec<EditKind>,
    /// How often a repeated dataset is seen, relative to the base run, default 3.
    pub repeat: u32,
    /// How many orders of the datasets a base run is trained in, block by block, default 2.
    pub blocked_orders: u32,
    /// How many pairs of datasets are kept alone, default 2.
    pub kept_pairs: u32,
    /// Factors of the learning rate, default `[0.5, 2]`.
    pub learning_rate_factors: Vec<f64>,
}

impl Default for SuiteSettings {
    fn default() -> Self {
        Self {
            bases: 1,
            kinds: vec![
                EditKind::Dropped,
                EditKind::Repeated,
                EditKind::KeptOnly,
                EditKind::Blocked,
                EditKind::LearningRate,
            ],
            repeat: 3,
            blocked_orders: 2,
            kept_pairs: 2,
            learning_rate_factors: vec![0.5, 2.0],
        }
    }
}

/// What every run of the set has in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunShape {
    /// Steps `T`.
    pub steps: u32,
    /// Examples per batch.
    pub batch_size: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Schedule of ordinary runs.
    pub schedule: Schedule,
}

/// A run that is still to be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRun {
    /// Id of the run.
    pub id: String,
    /// Seed of the run's training.
    pub seed: u64,
    /// What the run is for.
    pub design: RunDesign,
    /// What it trains on.
    pub curriculum: Curriculum,
}

/// Draws all runs: training, held out, ordinary held out, then the suite.
///
/// `datasets` names the datasets, `dataset_of[i]` is the dataset of training example `i`. The
/// same settings give the same plan.
///
/// # Errors
/// Settings out of their range (named), no training example, a dataset index out of range.
pub fn draw_plan(
    settings: &DesignSettings,
    shape: &RunShape,
    datasets: &[String],
    dataset_of: &[usize],
) -> Result<Vec<PlannedRun>, DesignError> {
    check(settings, shape, datasets, dataset_of)?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut plan = Vec::new();
    for (count, ordinary_count, split, name) in [
        (settings.runs, settings.ordinary, Split::Train, "train"),
        (settings.held_out, 0, Split::HeldOut, "held-out"),
    ] {
        for index in 0..count {
            let kind = if index < ordinary_count {
                DesignKind::Ordinary
            } else {
                settings.kind
            };
            let curriculum = match kind {
                DesignKind::Ordinary => ordinary(settings, shape, dataset_of.len(), &mut rng),
                DesignKind::Diversified => {
                    diversified(settings, shape, datasets.len(), dataset_of, &mut rng)
                }
            };
            let id = format!("{name}-{index:03}");
            plan.push(planned(id, kind, split, curriculum, &mut rng));
        }
    }
    for index in 0..settings.held_out_ordinary {
        let curriculum = ordinary(settings, shape, dataset_of.len(), &mut rng);
        let id = format!("ordinary-{index:03}");
        let run = planned(
            id,
            DesignKind::Ordinary,
            Split::HeldOut,
            curriculum,
            &mut rng,
        );
        plan.push(run);
    }
    let suite = draw_suite(settings, &plan, datasets, dataset_of, &mut rng)?;
    plan.extend(suite);
    Ok(plan)
}

fn planned(
    id: String,
    kind: DesignKind,
    split: Split,
    steps: Vec<Step>,
    rng: &mut ChaCha8Rng,
) -> PlannedRun {
    PlannedRun {
        id,
        seed: run_seed(rng),
        design: RunDesign {
            design: kind.name().to_owned(),
            split: Some(split),
            edit: None,
        },
        curriculum: drawn(steps),
    }
}

/// Seeds fit into the 53 bits that every JSON reader keeps exactly.
fn run_seed(rng: &mut ChaCha8Rng) -> u64 {
    rng.next_u64() >> 11
}

fn drawn(steps: Vec<Step>) -> Curriculum {
    Curriculum::new(steps, usize::MAX).expect("drawn steps have examples and a valid rate")
}

fn check(
    settings: &DesignSettings,
    shape: &RunShape,
    datasets: &[String],
    dataset_of: &[usize],
) -> Result<(), DesignError> {
    let n = dataset_of.len();
    let refuse = |setting: &'static str, got: String, wanted: String| {
        Err(DesignError::Setting {
            setting,
            got,
            wanted,
        })
    };
    if n == 0 {
        return Err(DesignError::NoExamples);
    }
    if let Some(example) = dataset_of.iter().position(|&d| d >= datasets.len()) {
        return Err(DesignError::UnknownDataset {
            example,
            dataset: dataset_of[example],
            count: datasets.len(),
        });
    }
    if shape.steps == 0 || shape.batch_size == 0 {
        let got = format!("{} steps of {}", shape.steps, shape.batch_size);
        return refuse("steps and batch_size", got, "at least 1 each".into());
    }
    if !(shape.learning_rate.is_finite() && shape.learning_rate > 0.0) {
        let got = shape.learning_rate.to_string();
        return refuse("learning_rate", got, "positive and finite".into());
    }
    if let Some(subset) = settings.subset
        && (subset == 0 || subset as usize > n)
    {
        return refuse("design.subset", subset.to_string(), format!("1 to {n}"));
    }
    if settings.ordinary > settings.runs {
        let wanted = format!("at most the {} training runs", settings.runs);
        return refuse("design.ordinary", settings.ordinary.to_string(), wanted);
    }
    let [fewest, most] = settings.segments;
    if fewest == 0 || fewest > most || most > shape.steps {
        let wanted = format!("[a, b] with 1 ≤ a ≤ b ≤ {} steps", shape.steps);
        return refuse(
            "design.segments",
            format!("{:?}", settings.segments),
            wanted,
        );
    }
    if !(settings.concentration.is_finite() && settings.concentration > 0.0) {
        let got = settings.concentration.to_string();
        return refuse("design.concentration", got, "positive and finite".into());
    }
    let [low, high] = settings.learning_rate_factors;
    if !(low > 0.0 && low <= high && high.is_finite()) {
        let got = format!("{:?}", settings.learning_rate_factors);
        return refuse(
            "design.learning_rate_factors",
            got,
            "[a, b] with 0 < a ≤ b".into(),
        );
    }
    if settings.suite.repeat < 2 && settings.suite.kinds.contains(&EditKind::Repeated) {
        let got = settings.suite.repeat.to_string();
        return refuse("design.suite.repeat", got, "at least 2".into());
    }
    let available = settings.held_out + settings.held_out_ordinary;
    if settings.suite.bases > available {
        let wanted = format!("at most the {available} held-out runs");
        return refuse(
            "design.suite.bases",
            settings.suite.bases.to_string(),
            wanted,
        );
    }
    if settings.suite.bases > 0 && settings.suite.kinds.contains(&EditKind::Other) {
        let got = "other".to_owned();
        return refuse("design.suite.kinds", got, "a kind that can be drawn".into());
    }
    Ok(())
}

fn ordinary(
    settings: &DesignSettings,
    shape: &RunShape,
    n: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Step> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    all.shuffle(rng);
    all.truncate(settings.subset.map_or(n, |s| s as usize));
    let mut pool = Pool::new(all);
    (1..=shape.steps)
        .map(|t| {
            let batch = (0..shape.batch_size).map(|_| pool.next(rng)).collect();
            let rate = shape.learning_rate * shape.schedule.factor(t, shape.steps);
            Step::new(batch, Some(rate as f32))
        })
        .collect()
}

fn diversified(
    settings: &DesignSettings,
    shape: &RunShape,
    dataset_count: usize,
    dataset_of: &[usize],
    rng: &mut ChaCha8Rng,
) -> Vec<Step> {
    let mut pools: Vec<Pool> = (0..dataset_count)
        .map(|d| {
            let members = (0..dataset_of.len()).filter(|&i| dataset_of[i] == d);
            Pool::new(members.map(|i| i as u32).collect())
        })
        .collect();
    let lengths = segment_lengths(settings.segments, shape.steps, rng);
    let [low, high] = settings.learning_rate_factors.map(f64::ln);
    let peak = shape.learning_rate * (low + (high - low) * rng.random::<f64>()).exp();
    let schedule = Schedule {
        kind: if rng.random::<bool>() {
            ScheduleKind::Linear
        } else {
            ScheduleKind::Constant
        },
        warmup_steps: shape.schedule.warmup_steps,
    };
    let several = lengths.len() > 1;
    let left_out = if settings.subsets {
        leave_out(&pools, rng)
    } else {
        Vec::new()
    };
    let mut steps = Vec::with_capacity(shape.steps as usize);
    for length in lengths {
        let mut weights = mixture(settings.concentration, &pools, rng);
        if settings.subsets {
            for (weight, _) in weights.iter_mut().zip(&left_out).filter(|(_, out)| **out) {
                *weight = 0.0;
            }
            if several {
                keep_some(&mut weights, rng);
            }
        }
        for _ in 0..length {
            let batch = (0..shape.batch_size)
                .map(|_| pools[choose(&weights, rng)].next(rng))
                .collect();
            let t = steps.len() as u32 + 1;
            let rate = peak * schedule.factor(t, shape.steps);
            steps.push(Step::new(batch, Some(rate as f32)));
        }
    }
    steps
}

/// Cuts `steps` at random into segments, each at least half as long as equal ones would be.
fn segment_lengths([fewest, most]: [u32; 2], steps: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let count = rng.random_range(fewest..=most);
    let least = (steps / count / 2).max(1);
    let spare = steps - least * count;
    let mut cuts: Vec<u32> = (1..count).map(|_| rng.random_range(0..=spare)).collect();
    cuts.sort_unstable();
    let bounds = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(spare));
    bounds.zip(ends).map(|(a, b)| b - a + least).collect()
}

/// A Dirichlet draw over the datasets that have examples.
fn mixture(concentration: f64, pools: &[Pool], rng: &mut ChaCha8Rng) -> Vec<f64> {
    let gamma = Gamma::new(concentration, 1.0).expect("the concentration was checked");
    loop {
        let weights: Vec<f64> = pools
            .iter()
            .map(|pool| {
                if pool.members.is_empty() {
                    0.0
                } else {
                    gamma.sample(rng)
                }
            })
            .collect();
        // A very small concentration can underflow to all zeros.
        if weights.iter().sum::<f64>() > 0.0 {
            return weights;
        }
    }
}

/// Which datasets a run does without: each with a probability of a quarter, but not all that have
/// examples.
fn leave_out(pools: &[Pool], rng: &mut ChaCha8Rng) -> Vec<bool> {
    loop {
        let out: Vec<bool> = pools.iter().map(|_| rng.random_range(0..4) == 0).collect();
        let mut kept = pools.iter().zip(&out);
        if kept.any(|(pool, &out)| !out && !pool.members.is_empty()) {
            return out;
        }
    }
}

/// Sets all but a random subset of the positive weights to 0; its size is uniform over 1 to all.
fn keep_some(weights: &mut [f64], rng: &mut ChaCha8Rng) {
    let mut present: Vec<usize> = (0..weights.len()).filter(|&d| weights[d] > 0.0).collect();
    present.shuffle(rng);
    let kept = rng.random_range(1..=present.len());
    for &left_out in &present[kept..] {
        weights[left_out] = 0.0;
    }
}

fn choose(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (index, &weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    weights
        .iter()
        .rposition(|&w| w > 0.0)
        .expect("a mixture has a positive weight")
}

/// Examples drawn in shuffled epochs: each once before any comes again.
struct Pool {
    members: Vec<u32>,
    next: usize,
}

impl Pool {
    fn new(members: Vec<u32>) -> Self {
        let next = members.len();
        Self { members, next }
    }

    fn next(&mut self, rng: &mut ChaCha8Rng) -> u32 {
        if self.next == self.members.len() {
            self.members.shuffle(rng);
            self.next = 0;
        }
        self.next += 1;
        self.members[self.next - 1]
    }
}

fn draw_suite(
    settings: &DesignSettings,
    plan: &[PlannedRun],
    datasets: &[String],
    dataset_of: &[usize],
    rng: &mut ChaCha8Rng,
) -> Result<Vec<PlannedRun>, DesignError> {
    let held_out = |ordinary: bool| {
        plan.iter().filter(move |run| {
            run.design.split == Some(Split::HeldOut) && run.id.starts_with("ordinary") == ordinary
        })
    };
    let bases = held_out(true).chain(held_out(false));
    let mut suite = Vec::new();
    for base in bases.take(settings.suite.bases as usize) {
        suite.extend(edits_of(&settings.suite, base, datasets, dataset_of, rng)?);
    }
    Ok(suite)
}

/// Draws the edits that a counterfactual suite makes of one run; [`SuiteSettings::bases`] plays no
/// part. Datasets as in [`draw_plan`].
///
/// # Errors
/// An edit that cannot be made.
pub fn draw_edits(
    settings: &SuiteSettings,
    base: &PlannedRun,
    datasets: &[String],
    dataset_of: &[usize],
    seed: u64,
) -> Result<Vec<PlannedRun>, DesignError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    edits_of(settings, base, datasets, dataset_of, &mut rng)
}

fn edits_of(
    settings: &SuiteSettings,
    base: &PlannedRun,
    datasets: &[String],
    dataset_of: &[usize],
    rng: &mut ChaCha8Rng,
) -> Result<Vec<PlannedRun>, DesignError> {
    let mut edits = Vec::new();
    for (kind, label, edit) in suite_edits(settings, base, datasets, dataset_of, rng) {
        let seed = run_seed(rng);
        let curriculum =
            apply(&base.curriculum, &edit, Fill::Resample, seed).map_err(|source| {
                DesignError::Suite {
                    base: base.id.clone(),
                    label: label.clone(),
                    source,
                }
            })?;
        edits.push(PlannedRun {
            id: format!("{}.{}", base.id, file_name(&label)),
            // The edit of a run trains with the run's own seed: only the data differ.
            seed: base.seed,
            design: RunDesign {
                design: "suite".to_owned(),
                split: Some(Split::HeldOut),
                edit: Some(Edit {
                    base_run: base.id.clone(),
                    kind,
                    label,
                }),
            },
            curriculum,
        });
    }
    Ok(edits)
}

fn suite_edits(
    settings: &SuiteSettings,
    base: &PlannedRun,
    datasets: &[String],
    dataset_of: &[usize],
    rng: &mut ChaCha8Rng,
) -> Vec<(EditKind, String, CurriculumEdit)> {
    let exposure = base.curriculum.total_exposure(dataset_of.len());
    let present: Vec<usize> = (0..datasets.len())
        .filter(|&d| (0..dataset_of.len()).any(|i| dataset_of[i] == d && exposure[i] > 0.0))
        .collect();
    let members = |chosen: &[usize]| -> Vec<u32> {
        (0..dataset_of.len() as u32)
            .filter(|&i| chosen.contains(&dataset_of[i as usize]))
            .collect()
    };
    let mut edits = Vec::new();
    for &kind in &settings.kinds {
        match kind {
            // With a single dataset there would be nothing left to train on.
            EditKind::Dropped if present.len() > 1 => {
                edits.extend(present.iter().map(|&d| {
                    let label = format!("dropped {}", datasets[d]);
                    (kind, label, CurriculumEdit::Drop(members(&[d])))
                }));
            }
            EditKind::Repeated if present.len() > 1 => {
                edits.extend(present.iter().map(|&d| {
                    let label = format!("repeated {} x{}", datasets[d], settings.repeat);
                    let edit = CurriculumEdit::Repeat {
                        examples: members(&[d]),
                        times: f64::from(settings.repeat),
                    };
                    (kind, label, edit)
                }));
            }
            EditKind::KeptOnly if present.len() > 2 => {
                let mut pairs: Vec<[usize; 2]> = present
                    .iter()
                    .enumerate()
                    .flat_map(|(k, &a)| present[k + 1..].iter().map(move |&b| [a, b]))
                    .collect();
                pairs.shuffle(rng);
                edits.extend(pairs.iter().take(settings.kept_pairs as usize).map(|pair| {
                    let label = format!("kept {} and {}", datasets[pair[0]], datasets[pair[1]]);
                    (kind, label, CurriculumEdit::Keep(members(pair)))
                }));
            }
            EditKind::Blocked if present.len() > 1 => {
                for index in 0..settings.blocked_orders {
                    let mut order = present.clone();
                    order.shuffle(rng);
                    let mut rank = vec![0; datasets.len()];
                    for (position, &d) in order.iter().enumerate() {
                        rank[d] = position;
                    }
                    let ranks = dataset_of.iter().map(|&d| rank[d] as u32).collect();
                    let names: Vec<&str> = order.iter().map(|&d| datasets[d].as_str()).collect();
                    let label = format!("blocked {} {}", index + 1, names.join(" then "));
                    edits.push((kind, label, CurriculumEdit::Reorder(Order::Ranked(ranks))));
                }
            }
            EditKind::LearningRate => {
                edits.extend(settings.learning_rate_factors.iter().map(|&factor| {
                    let label = format!("learning rate x{factor}");
                    (kind, label, CurriculumEdit::LearningRate(factor))
                }));
            }
            _ => {}
        }
    }
    edits
}

/// A label as the end of a folder name.
fn file_name(label: &str) -> String {
    let mut name = String::new();
    for c in label.chars() {
        if c.is_ascii_alphanumeric() || c == '.' {
            name.push(c.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(60);
    name.trim_end_matches('-').to_owned()
}

/// Why a plan cannot be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DesignError {
    /// There is nothing to train on.
    #[error("a plan needs at least one training example")]
    NoExamples,
    /// A dataset index out of range.
    #[error("training example {example} is in dataset {dataset}, but there are {count} datasets")]
    UnknownDataset {
        /// Id of the example.
        example: usize,
        /// Index of its dataset.
        dataset: usize,
        /// Number of datasets.
        count: usize,
    },
    /// A setting out of its range.
    #[error("{setting} is {got}; it must be {wanted}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What was given.
        got: String,
        /// What is allowed.
        wanted: String,
    },
    /// An edit of the suite that cannot be made.
    #[error("suite: {base}, {label}: {source}")]
    Suite {
        /// Id of the base run.
        base: String,
        /// The edit.
        label: String,
        /// Why not.
        source: EditError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn four_datasets() -> (Vec<String>, Vec<usize>) {
        let names = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        (names, (0..80).map(|i| i % 4).collect())
    }

    fn shape() -> RunShape {
        RunShape {
            steps: 60,
            batch_size: 4,
            learning_rate: 1e-3,
            schedule: Schedule::default(),
        }
    }

    fn plan(settings: &DesignSettings) -> Vec<PlannedRun> {
        let (names, of) = four_datasets();
        draw_plan(settings, &shape(), &names, &of).unwrap()
    }

    #[test]
    fn the_same_seed_draws_the_same_plan_and_another_seed_another() {
        let settings = DesignSettings::default();
        assert_eq!(plan(&settings), plan(&settings));
        let other = DesignSettings {
            seed: 1,
            ..settings.clone()
        };
        assert_ne!(plan(&settings), plan(&other));
    }

    #[test]
    fn every_run_has_the_shape_asked_for_and_its_own_id() {
        let runs = plan(&DesignSettings::default());
        assert!(runs.iter().all(|r| r.curriculum.len() == 60));
        assert!(
            runs.iter()
                .flat_map(|r| r.curriculum.steps())
                .all(|s| s.batch.len() == 4)
        );
        let ids: HashSet<&str> = runs.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids.len(), runs.len());
        // 24 training, 8 held out, 2 ordinary; 4 dropped, 4 repeated, 2 kept, 2 blocked, 2 rates.
        assert_eq!(runs.len(), 24 + 8 + 2 + 14);
    }

    #[test]
    fn an_ordinary_run_sees_each_example_of_its_subset_once_per_epoch() {
        let settings = DesignSettings {
            kind: DesignKind::Ordinary,
            subset: Some(40),
            ..DesignSettings::default()
        };
        let runs = plan(&settings);
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for step in runs[0].curriculum.steps() {
            for &id in &step.batch {
                *counts.entry(id).or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 40);
        assert!(counts.values().all(|&c| c == 6));
    }

    #[test]
    fn diversified_runs_differ_in_mixture_over_time_and_in_rate() {
        let runs = plan(&DesignSettings::default());
        let (_, of) = four_datasets();
        let share = |run: &PlannedRun, steps: std::ops::Range<usize>| {
            let slots: Vec<u32> = run.curriculum.steps()[steps]
                .iter()
                .flat_map(|s| s.batch.clone())
                .collect();
            slots.iter().filter(|&&i| of[i as usize] == 0).count() as f64 / slots.len() as f64
        };
        let moved = runs[..24]
            .iter()
            .filter(|r| (share(r, 0..10) - share(r, 50..60)).abs() > 0.25)
            .count();
        assert!(moved >= 6, "only {moved} of 24 runs changed their mixture");
        let peaks: Vec<f32> = runs[..24]
            .iter()
            .map(|r| r.curriculum.steps()[0].learning_rate.unwrap())
            .collect();
        assert!(peaks.iter().all(|&p| (4.99e-4..=2.01e-3).contains(&p)));
        assert!(peaks.iter().any(|&p| p < 8e-4) && peaks.iter().any(|&p| p > 1.25e-3));
    }

    #[test]
    fn the_suite_edits_ordinary_held_out_runs_first_and_keeps_their_seed() {
        let runs = plan(&DesignSettings::default());
        let base = runs.iter().find(|r| r.id == "ordinary-000").unwrap();
        for run in &runs[34..] {
            let edit = run.design.edit.as_ref().unwrap();
            assert_eq!(edit.base_run, "ordinary-000");
            assert_eq!(run.seed, base.seed);
            assert_eq!(run.design.split, Some(Split::HeldOut));
        }
        let (_, of) = four_datasets();
        let dropped = &runs[34];
        assert_eq!(dropped.id, "ordinary-000.dropped-a");
        assert!(
            dropped
                .curriculum
                .steps()
                .iter()
                .flat_map(|s| &s.batch)
                .all(|&i| of[i as usize] != 0)
        );
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let (names, of) = four_datasets();
        let settings = DesignSettings {
            segments: [5, 3],
            ..DesignSettings::default()
        };
        let error = draw_plan(&settings, &shape(), &names, &of).unwrap_err();
        assert!(error.to_string().contains("design.segments"), "{error}");
    }

    #[test]
    fn the_edits_of_any_run_are_those_of_a_suite() {
        let (names, of) = four_datasets();
        let settings = SuiteSettings {
            bases: 0,
            ..SuiteSettings::default()
        };
        let base = plan(&DesignSettings::default()).remove(0);
        let edits = draw_edits(&settings, &base, &names, &of, 5).unwrap();
        // Dropped, repeated, kept pairs, orders, learning rates.
        assert_eq!(edits.len(), 4 + 4 + 2 + 2 + 2);
        for edit in &edits {
            assert!(edit.id.starts_with("train-000."), "{}", edit.id);
            assert_eq!(edit.design.edit.as_ref().unwrap().base_run, base.id);
            assert_eq!(edit.seed, base.seed);
        }
        assert_eq!(edits, draw_edits(&settings, &base, &names, &of, 5).unwrap());
    }

    #[test]
    fn datasets_are_left_out_of_runs_and_segments_where_asked_for() {
        let settings = DesignSettings {
            runs: 400,
            segments: [1, 2],
            concentration: 20.0,
            subsets: true,
            ..DesignSettings::default()
        };
        let seen = |steps: &[Step]| -> HashSet<u32> {
            steps.iter().flat_map(|s| &s.batch).map(|i| i % 4).collect()
        };
        let mut without = [0; 4];
        let mut fewer_at_first = 0;
        for run in plan(&settings).iter().take(400) {
            let steps = run.curriculum.steps();
            let whole = seen(steps);
            for (dataset, count) in (0..).zip(&mut without) {
                *count += u32::from(!whole.contains(&dataset));
            }
            // The first segment of two has a quarter of the steps at least.
            fewer_at_first += u32::from(seen(&steps[..15]).len() < whole.len());
        }
        // A run lacks a dataset with a probability of (64 - 1) / 255, or more if its segments leave
        // it out as well.
        assert!(
            without.iter().all(|n| (90..=180).contains(n)),
            "{without:?}"
        );
        assert!((50..=250).contains(&fewer_at_first), "{fewer_at_first}");
    }

    #[test]
    fn the_first_training_runs_are_ordinary_where_asked_for() {
        let settings = DesignSettings {
            ordinary: 2,
            ..DesignSettings::default()
        };
        let runs = plan(&settings);
        let designs: Vec<&str> = runs.iter().map(|r| r.design.design.as_str()).collect();
        assert_eq!(designs[..3], ["ordinary", "ordinary", "diversified"]);
        assert!(
            runs[..2]
                .iter()
                .all(|r| r.design.split == Some(Split::Train))
        );
        assert_eq!(
            runs.iter().filter(|r| r.id.starts_with("train")).count(),
            24
        );
        let rates = |run: &PlannedRun| run.curriculum.mean_learning_rate();
        let held_out = runs.iter().find(|r| r.id == "ordinary-000").unwrap();
        assert_eq!(rates(&runs[0]), rates(held_out));
        let too_many = DesignSettings {
            ordinary: 25,
            ..DesignSettings::default()
        };
        let (names, of) = four_datasets();
        let error = draw_plan(&too_many, &shape(), &names, &of).unwrap_err();
        assert!(error.to_string().contains("design.ordinary"), "{error}");
    }

    #[test]
    fn segments_fill_the_run_exactly() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for steps in [6, 7, 60, 97] {
            for _ in 0..50 {
                let lengths = segment_lengths([3, 6], steps, &mut rng);
                assert_eq!(lengths.iter().sum::<u32>(), steps);
                assert!(lengths.iter().all(|&l| l > 0));
            }
        }
    }
}
