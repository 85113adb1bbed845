//! Which runs simulators learn from and which judge them.

use crate::selection::{RunSelection, SelectionError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use simfluence_core::{EditKind, Run, RunStatus, Split};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A run of the counterfactual suite with the run that it is an edit of.
#[derive(Debug, Clone, Copy)]
pub struct SuitePair<'a> {
    /// The run that was edited.
    pub base: &'a Run,
    /// The edited run, really trained.
    pub edited: &'a Run,
    /// Kind of the edit.
    pub kind: EditKind,
}

/// A run that takes no part, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Id of the run.
    pub run: String,
    /// Why, for people.
    pub reason: String,
}

/// The runs of a run set, split.
///
/// Only [`SplitRuns::train`] may reach a fit, a gain, a regularisation strength or a band. Runs
/// with the same curriculum stand on one side, and so do a run and its edits.
#[derive(Debug, Clone, Default)]
pub struct SplitRuns<'a> {
    /// Simulators learn from these.
    pub train: Vec<&'a Run>,
    /// Runs of the design that judge.
    pub held_out: Vec<&'a Run>,
    /// Edits of runs that are not learned from.
    pub suite: Vec<SuitePair<'a>>,
    /// Runs that take no part.
    pub left_out: Vec<LeftOut>,
}

/// How runs are split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitSettings {
    /// Runs to learn from; `None`: as designed, or what the other choice leaves.
    pub train: Option<RunSelection>,
    /// Runs to judge by, edited ones included; `None`: as designed, or what the other choice
    /// leaves.
    pub test: Option<RunSelection>,
    /// Share of the runs held out where nothing says how to split; in (0, 1), default 0.25.
    pub held_out_fraction: f64,
    /// Seed of that draw, default 0.
    pub seed: u64,
}

impl Default for SplitSettings {
    fn default() -> Self {
        Self {
            train: None,
            test: None,
            held_out_fraction: 0.25,
            seed: 0,
        }
    }
}

/// Splits `runs` (all of a run set, in its order).
///
/// - With [`SplitSettings::train`] and [`SplitSettings::test`]: exactly those. With one of them,
///   the other side is every run that is not tied to it; edits of held-out runs join the suite.
/// - Otherwise as designed, if any run's design names a side.
/// - Otherwise a seeded draw over groups of tied runs: [`SplitSettings::held_out_fraction`] of
///   the unedited runs are held out, at least one group on each side.
///
/// Runs are *tied* if they have the same curriculum or one is an edit of the other (also over
/// further runs). A run that diverged or lacks losses is left out by name; so is an edit whose
/// base run is missing or left out, which has no effect to compare.
///
/// ```
/// use simfluence_core::{Curriculum, Run, RunInfo, RunStatus, Step, Trajectory};
/// use simfluence_evaluation::{SplitSettings, split_runs};
/// let runs: Vec<Run> = (0..8)
///     .map(|k| Run {
///         id: format!("run-{k}"),
///         info: RunInfo::new(RunStatus::Complete),
///         curriculum: Curriculum::new(vec![Step::new(vec![k], None)], 8).unwrap(),
///         trajectory: Trajectory::new(vec![0, 1], 1, vec![3.0, 2.0]).unwrap(),
///         batch_losses: vec![None],
///     })
///     .collect();
/// let split = split_runs(&runs, &SplitSettings::default())?;
/// assert_eq!((split.train.len(), split.held_out.len()), (6, 2));
/// # Ok::<(), simfluence_evaluation::SplitError>(())
/// ```
///
/// # Errors
/// A selection that cannot be resolved, tied runs on both sides (with their names), a side
/// without runs, a fraction out of range.
pub fn split_runs<'a>(
    runs: &'a [Run],
    settings: &SplitSettings,
) -> Result<SplitRuns<'a>, SplitError> {
    let fraction = settings.held_out_fraction;
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(SplitError::Fraction { got: fraction });
    }
    let mut left_out = unusable(runs);
    let ties = Ties::of(runs);
    let usable: Vec<usize> = (0..runs.len()).filter(|&k| left_out[k].is_none()).collect();
    let sides = if settings.train.is_some() || settings.test.is_some() {
        selected_sides(runs, settings, &usable, &ties, &mut left_out)?
    } else if runs.iter().any(|run| run.info.design.split.is_some()) {
        designed_sides(runs, &usable, &mut left_out)
    } else {
        drawn_sides(runs, settings, &usable, &ties)
    };
    refuse_straddling(runs, &sides, &ties)?;
    assemble(runs, &sides, left_out)
}

/// Side of each run; `None`: takes no part.
type Sides = Vec<Option<Split>>;

/// Why each run cannot be used, if it cannot.
fn unusable(runs: &[Run]) -> Vec<Option<String>> {
    let position: HashMap<&str, usize> = positions(runs);
    let own: Vec<Option<String>> = runs.iter().map(own_fault).collect();
    runs.iter()
        .enumerate()
        .map(|(k, run)| {
            let edit = run.info.design.edit.as_ref();
            own[k].clone().or_else(|| {
                let base = &edit?.base_run;
                match position.get(base.as_str()) {
                    None => Some(format!("its base run {base:?} is not in the run set")),
                    Some(&b) => own[b]
                        .as_ref()
                        .map(|fault| format!("its base run {base:?} is left out: {fault}")),
                }
            })
        })
        .collect()
}

fn own_fault(run: &Run) -> Option<String> {
    let reason = if run.is_usable() {
        return None;
    } else if run.info.status == RunStatus::Diverged || run.trajectory.diverged() {
        "it diverged (a loss became NaN or infinite)"
    } else if run.trajectory.initial().is_none() {
        "its losses before the first step are incomplete"
    } else {
        "it has no evaluation after the first step"
    };
    Some(reason.to_owned())
}

fn positions(runs: &[Run]) -> HashMap<&str, usize> {
    let ids = runs.iter().enumerate();
    ids.map(|(k, run)| (run.id.as_str(), k)).collect()
}

/// Groups of tied runs.
struct Ties {
    group: Vec<usize>,
    curriculum: Vec<usize>,
}

impl Ties {
    fn of(runs: &[Run]) -> Self {
        let curriculum = same_curricula(runs);
        let mut parent: Vec<usize> = curriculum.clone();
        let position = positions(runs);
        for (k, run) in runs.iter().enumerate() {
            let base = run
                .info
                .design
                .edit
                .as_ref()
                .map(|edit| edit.base_run.as_str());
            if let Some(&base) = base.and_then(|base| position.get(base)) {
                let (a, b) = (root(&parent, k), root(&parent, base));
                parent[a.max(b)] = a.min(b);
            }
        }
        let group = (0..runs.len()).map(|k| root(&parent, k)).collect();
        Self { group, curriculum }
    }
}

fn root(parent: &[usize], mut k: usize) -> usize {
    while parent[k] != k {
        k = parent[k];
    }
    k
}

/// Per run the first run with the same curriculum, learning rates included.
fn same_curricula(runs: &[Run]) -> Vec<usize> {
    let mut by_hash: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut first = Vec::with_capacity(runs.len());
    for (k, run) in runs.iter().enumerate() {
        let mut hasher = DefaultHasher::new();
        for step in run.curriculum.steps() {
            (&step.batch, step.learning_rate.map(f32::to_bits)).hash(&mut hasher);
        }
        let seen = by_hash.entry(hasher.finish()).or_default();
        let same = seen.iter().find(|&&s| runs[s].curriculum == run.curriculum);
        match same {
            Some(&s) => first.push(s),
            None => {
                seen.push(k);
                first.push(k);
            }
        }
    }
    first
}

fn selected_sides(
    runs: &[Run],
    settings: &SplitSettings,
    usable: &[usize],
    ties: &Ties,
    left_out: &mut [Option<String>],
) -> Result<Sides, SplitError> {
    let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
    let select = |selection: &Option<RunSelection>| match selection {
        Some(selection) => selection.select(&ids).map(Some),
        None => Ok(None),
    };
    let (train, test) = (select(&settings.train)?, select(&settings.test)?);
    let mut sides: Sides = vec![None; runs.len()];
    for &k in train.iter().flatten() {
        sides[k] = Some(Split::Train);
    }
    for &k in test.iter().flatten() {
        if sides[k].is_some() {
            return Err(SplitError::OnBothSides {
                run: runs[k].id.clone(),
            });
        }
        sides[k] = Some(Split::HeldOut);
    }
    if train.is_none() || test.is_none() {
        let (given, rest) = match train {
            Some(_) => (Split::Train, Split::HeldOut),
            None => (Split::HeldOut, Split::Train),
        };
        give_rest(runs, usable, ties, given, rest, &mut sides, left_out);
    }
    for (side, reason) in sides.iter_mut().zip(left_out) {
        if reason.is_some() {
            *side = None;
        }
    }
    Ok(sides)
}

/// Puts every run that nobody selected on the side `rest`, except those tied to a selected one.
fn give_rest(
    runs: &[Run],
    usable: &[usize],
    ties: &Ties,
    given: Split,
    rest: Split,
    sides: &mut Sides,
    left_out: &mut [Option<String>],
) {
    let mut chosen: HashMap<usize, usize> = HashMap::new();
    for k in (0..runs.len()).filter(|&k| sides[k].is_some()) {
        chosen.entry(ties.group[k]).or_insert(k);
    }
    for &k in usable {
        match (sides[k], chosen.get(&ties.group[k])) {
            (Some(_), _) => {}
            (None, None) => sides[k] = Some(rest),
            (None, Some(_)) if given == Split::HeldOut && runs[k].info.design.edit.is_some() => {
                sides[k] = Some(Split::HeldOut);
            }
            (None, Some(&other)) => {
                left_out[k] = Some(format!(
                    "it is tied to run {:?} on the other side ({})",
                    runs[other].id,
                    tie_between(runs, ties, k, other)
                ));
            }
        }
    }
}

/// As the design says; an edit without a side goes with its base run.
fn designed_sides(runs: &[Run], usable: &[usize], left_out: &mut [Option<String>]) -> Sides {
    let position = positions(runs);
    let mut sides: Sides = vec![None; runs.len()];
    for &k in usable {
        let design = &runs[k].info.design;
        let base = design
            .edit
            .as_ref()
            .map(|edit| position[edit.base_run.as_str()]);
        sides[k] = design.split.or_else(|| runs[base?].info.design.split);
        if sides[k].is_none() {
            left_out[k] = Some("its design names no side of the split, other runs' do".to_owned());
        }
    }
    sides
}

fn drawn_sides(runs: &[Run], settings: &SplitSettings, usable: &[usize], ties: &Ties) -> Sides {
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for &k in usable {
        match groups.iter_mut().find(|(group, _)| *group == ties.group[k]) {
            Some((_, members)) => members.push(k),
            None => groups.push((ties.group[k], vec![k])),
        }
    }
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    // Edits are questions about held-out runs: groups that have some are held out first.
    let edited = |members: &[usize]| members.iter().any(|&k| runs[k].info.design.edit.is_some());
    groups.sort_by_key(|(_, members)| !edited(members));
    let unedited = |members: &[usize]| {
        let plain = members
            .iter()
            .filter(|&&k| runs[k].info.design.edit.is_none());
        plain.count()
    };
    let total: usize = groups.iter().map(|(_, members)| unedited(members)).sum();
    let wanted = ((total as f64 * settings.held_out_fraction).round() as usize).max(1);
    let mut sides: Sides = vec![None; runs.len()];
    let mut held_out = 0;
    let last = groups.len().saturating_sub(1);
    for (index, (_, members)) in groups.iter().enumerate() {
        let side = if held_out < wanted && index < last {
            held_out += unedited(members);
            Split::HeldOut
        } else {
            Split::Train
        };
        for &k in members {
            sides[k] = Some(side);
        }
    }
    sides
}

fn refuse_straddling(runs: &[Run], sides: &Sides, ties: &Ties) -> Result<(), SplitError> {
    let mut trained: HashMap<usize, Vec<usize>> = HashMap::new();
    for k in (0..runs.len()).filter(|&k| sides[k] == Some(Split::Train)) {
        trained.entry(ties.group[k]).or_default().push(k);
    }
    let mut conflicts = Vec::new();
    for k in (0..runs.len()).filter(|&k| sides[k] == Some(Split::HeldOut)) {
        for &other in trained.get(&ties.group[k]).into_iter().flatten() {
            conflicts.push(Conflict {
                train: runs[other].id.clone(),
                held_out: runs[k].id.clone(),
                tie: tie_between(runs, ties, other, k),
            });
        }
    }
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(SplitError::Straddles { conflicts })
}

/// What ties two runs, for people.
fn tie_between(runs: &[Run], ties: &Ties, a: usize, b: usize) -> String {
    let base = |k: usize| {
        runs[k]
            .info
            .design
            .edit
            .as_ref()
            .map(|e| e.base_run.as_str())
    };
    if ties.curriculum[a] == ties.curriculum[b] {
        "the same curriculum".to_owned()
    } else if base(a) == Some(&runs[b].id) {
        format!("{:?} is an edit of {:?}", runs[a].id, runs[b].id)
    } else if base(b) == Some(&runs[a].id) {
        format!("{:?} is an edit of {:?}", runs[b].id, runs[a].id)
    } else if base(a).is_some() && base(a) == base(b) {
        format!("both are edits of {:?}", base(a).unwrap_or_default())
    } else {
        "the same curriculum or edits, by way of further runs".to_owned()
    }
}

fn assemble<'a>(
    runs: &'a [Run],
    sides: &Sides,
    left_out: Vec<Option<String>>,
) -> Result<SplitRuns<'a>, SplitError> {
    let position = positions(runs);
    let mut split = SplitRuns::default();
    for (k, run) in runs.iter().enumerate() {
        match (sides[k], &run.info.design.edit) {
            (Some(Split::Train), _) => split.train.push(run),
            (Some(Split::HeldOut), None) => split.held_out.push(run),
            (Some(Split::HeldOut), Some(edit)) => split.suite.push(SuitePair {
                base: &runs[position[edit.base_run.as_str()]],
                edited: run,
                kind: edit.kind,
            }),
            (None, _) => {}
        }
        if let Some(reason) = &left_out[k] {
            split.left_out.push(LeftOut {
                run: run.id.clone(),
                reason: reason.clone(),
            });
        }
    }
    let left_out = split.left_out.len();
    if split.train.is_empty() {
        return Err(SplitError::EmptySide {
            side: "learn from",
            left_out,
        });
    }
    if split.held_out.is_empty() && split.suite.is_empty() {
        return Err(SplitError::EmptySide {
            side: "judge by",
            left_out,
        });
    }
    Ok(split)
}

/// Two tied runs on different sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Id of the run that would be learned from.
    pub train: String,
    /// Id of the run that would be held out.
    pub held_out: String,
    /// What ties them.
    pub tie: String,
}

/// Why runs cannot be split.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// A selection.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// A run selected twice.
    #[error("run {run:?} is selected both to learn from and to judge by")]
    OnBothSides {
        /// Id of the run.
        run: String,
    },
    /// Tied runs on both sides.
    #[error(
        "held-out runs would leak into training: {}; move each pair to one side",
        list(conflicts)
    )]
    Straddles {
        /// Every such pair.
        conflicts: Vec<Conflict>,
    },
    /// A side without usable runs.
    #[error(
        "there is no run to {side} ({left_out} runs are left out as unusable); record more runs or select others"
    )]
    EmptySide {
        /// `learn from` or `judge by`.
        side: &'static str,
        /// Runs that were left out.
        left_out: usize,
    },
    /// A share out of range.
    #[error("the held-out fraction is {got}; it must lie between 0 and 1, both excluded")]
    Fraction {
        /// What was given.
        got: f64,
    },
}

fn list(conflicts: &[Conflict]) -> String {
    const SHOWN: usize = 4;
    let shown = conflicts.iter().take(SHOWN).map(|c| {
        format!(
            "{:?} (training) and {:?} (held out): {}",
            c.train, c.held_out, c.tie
        )
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if conflicts.len() > SHOWN {
        text.push_str(&format!("; and {} more pairs", conflicts.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simfluence_core::{Curriculum, Edit, RunInfo, Step, Trajectory};

    fn run(id: &str, batch: u32) -> Run {
        Run {
            id: id.into(),
            info: RunInfo::new(RunStatus::Complete),
            curriculum: Curriculum::new(vec![Step::new(vec![batch], Some(0.1))], 1000).unwrap(),
            trajectory: Trajectory::new(vec![0, 1], 1, vec![3.0, 2.0]).unwrap(),
            batch_losses: vec![None],
        }
    }

    fn edit_of(base: &str, id: &str, batch: u32) -> Run {
        let mut run = run(id, batch);
        run.info.design.edit = Some(Edit {
            base_run: base.into(),
            kind: EditKind::Dropped,
            label: "dropped a".into(),
        });
        run
    }

    fn on(side: Split, mut run: Run) -> Run {
        run.info.design.split = Some(side);
        run
    }

    fn ids(runs: &[&Run]) -> Vec<String> {
        runs.iter().map(|run| run.id.clone()).collect()
    }

    fn selecting(train: Option<&str>, test: Option<&str>) -> SplitSettings {
        let parse = |text: &str| RunSelection::parse(text).unwrap();
        SplitSettings {
            train: train.map(parse),
            test: test.map(parse),
            ..SplitSettings::default()
        }
    }

    #[test]
    fn the_designed_split_is_kept_and_edits_form_the_suite() {
        let runs = vec![
            on(Split::Train, run("a", 0)),
            on(Split::HeldOut, run("b", 1)),
            on(Split::HeldOut, edit_of("b", "b-dropped", 2)),
            edit_of("b", "b-sideless", 3),
            run("stray", 4),
        ];
        let split = split_runs(&runs, &SplitSettings::default()).unwrap();
        assert_eq!(ids(&split.train), ["a"]);
        assert_eq!(ids(&split.held_out), ["b"]);
        let edited: Vec<&str> = split.suite.iter().map(|p| p.edited.id.as_str()).collect();
        assert_eq!(edited, ["b-dropped", "b-sideless"]);
        assert!(split.suite.iter().all(|p| p.base.id == "b"));
        assert_eq!(split.left_out[0].run, "stray");
    }

    #[test]
    fn diverged_runs_and_their_edits_are_left_out_with_the_reason() {
        let mut bad = on(Split::HeldOut, run("bad", 1));
        bad.info.status = RunStatus::Diverged;
        let runs = vec![
            on(Split::Train, run("a", 0)),
            bad,
            edit_of("bad", "edit", 2),
            edit_of("gone", "orphan", 3),
            on(Split::HeldOut, run("b", 4)),
        ];
        let split = split_runs(&runs, &SplitSettings::default()).unwrap();
        let reasons: Vec<&str> = split.left_out.iter().map(|l| l.reason.as_str()).collect();
        assert_eq!(reasons.len(), 3);
        assert!(reasons[0].contains("diverged"));
        assert!(reasons[1].contains("\"bad\" is left out"));
        assert!(reasons[2].contains("\"gone\" is not in the run set"));
    }

    #[test]
    fn an_explicit_split_with_one_curriculum_on_both_sides_is_refused() {
        let runs = vec![run("a", 7), run("b", 7), run("c", 8)];
        let error = split_runs(&runs, &selecting(Some("a,c"), Some("b"))).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("\"a\" (training) and \"b\" (held out)"),
            "{message}"
        );
        assert!(message.contains("the same curriculum"), "{message}");
    }

    #[test]
    fn an_edit_in_training_whose_base_is_held_out_is_refused() {
        let runs = vec![run("a", 0), run("b", 1), edit_of("b", "b-dropped", 2)];
        let error = split_runs(&runs, &selecting(Some("a,b-dropped"), Some("b"))).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("\"b-dropped\" is an edit of \"b\""),
            "{message}"
        );
        let error = split_runs(&runs, &selecting(Some("a,b"), Some("b-dropped"))).unwrap_err();
        assert!(matches!(error, SplitError::Straddles { .. }));
    }

    #[test]
    fn a_run_on_both_sides_is_refused() {
        let runs = vec![run("a", 0), run("b", 1)];
        assert_eq!(
            split_runs(&runs, &selecting(Some("*"), Some("b"))).unwrap_err(),
            SplitError::OnBothSides { run: "b".into() }
        );
    }

    #[test]
    fn one_selection_gives_the_rest_to_the_other_side_but_never_tied_runs() {
        let runs = vec![
            run("a", 0),
            run("b", 1),
            edit_of("b", "b-dropped", 2),
            run("twin-of-b", 1),
            run("c", 3),
        ];
        let split = split_runs(&runs, &selecting(None, Some("b"))).unwrap();
        assert_eq!(ids(&split.train), ["a", "c"]);
        assert_eq!(ids(&split.held_out), ["b"]);
        assert_eq!(split.suite.len(), 1);
        assert_eq!(split.left_out[0].run, "twin-of-b");
        let split = split_runs(&runs, &selecting(Some("b"), None)).unwrap();
        assert_eq!(ids(&split.train), ["b"]);
        assert_eq!(ids(&split.held_out), ["a", "c"]);
        assert!(split.suite.is_empty());
        assert_eq!(split.left_out.len(), 2);
    }

    #[test]
    fn a_set_with_one_run_cannot_be_split() {
        let runs = vec![run("a", 0)];
        let error = split_runs(&runs, &SplitSettings::default()).unwrap_err();
        assert!(matches!(
            error,
            SplitError::EmptySide {
                side: "judge by",
                ..
            }
        ));
    }

    proptest! {
        #[test]
        fn a_drawn_split_never_separates_tied_runs(
            curricula in prop::collection::vec(0u32..12, 4..30),
            edits in prop::collection::vec((0usize..30, 100u32..140), 0..10),
            seed in any::<u64>(), fraction in 0.05f64..0.9,
        ) {
            let mut runs: Vec<Run> = curricula.iter().enumerate()
                .map(|(k, &c)| run(&format!("run-{k}"), c)).collect();
            for (k, &(base, batch)) in edits.iter().enumerate() {
                let base = format!("run-{}", base % curricula.len());
                runs.push(edit_of(&base, &format!("edit-{k}"), batch));
            }
            let settings = SplitSettings { held_out_fraction: fraction, seed, ..Default::default() };
            let Ok(split) = split_runs(&runs, &settings) else { return Ok(()) };
            let again = split_runs(&runs, &settings).unwrap();
            prop_assert_eq!(ids(&split.train), ids(&again.train));
            let judged: Vec<&Run> = split.held_out.iter().copied()
                .chain(split.suite.iter().map(|p| p.edited)).collect();
            prop_assert_eq!(judged.len() + split.train.len(), runs.len());
            for train in &split.train {
                for other in &judged {
                    prop_assert_ne!(&train.curriculum, &other.curriculum);
                }
                prop_assert!(split.suite.iter().all(|p| p.base.id != train.id));
            }
        }
    }
}
