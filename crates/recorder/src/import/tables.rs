//! Plain long tables: steps, losses, and optionally examples and runs.

use super::raw::{RawRun, RawStep, record_all};
use super::sheet::Sheet;
use super::{ImportReport, wrong};
use crate::error::{Place, Problem, RecorderError, Result};
use crate::plan::split_from_name;
use serde_json::{Map, Value};
use simfluence_core::{
    Edit, EditKind, Example, Examples, Optimizer, RunDesign, RunInfo, RunStatus,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Names of the columns in the tables of [`import_tables`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnNames {
    /// Id of the run, default `run`; in `steps`, `losses` and `runs`.
    pub run: String,
    /// Step, default `step`; in `steps` and `losses`.
    pub step: String,
    /// Ids or keys of the training examples of the batch, default `batch`; in `steps`.
    pub batch: String,
    /// Learning rate, default `learning_rate`; in `steps`, optional.
    pub learning_rate: String,
    /// Loss per member of the batch, default `batch_loss`; in `steps`, optional.
    pub batch_loss: String,
    /// Id or key of the test example, default `test_id`; in `losses`.
    pub test_id: String,
    /// Loss in nats per target token, default `loss`; in `losses`.
    pub loss: String,
    /// Id of the example, default `id`; in the tables of examples, optional.
    pub id: String,
    /// Key of the example, default `key`; in the tables of examples, optional.
    pub key: String,
    /// Dataset of the example, default `dataset`; in the tables of examples, optional.
    pub dataset: String,
    /// Name of the optimiser, default `optimiser` (`optimizer` is understood too); in `runs`.
    pub optimizer: String,
}

impl Default for ColumnNames {
    fn default() -> Self {
        Self {
            run: "run".into(),
            step: "step".into(),
            batch: "batch".into(),
            learning_rate: "learning_rate".into(),
            batch_loss: "batch_loss".into(),
            test_id: "test_id".into(),
            loss: "loss".into(),
            id: "id".into(),
            key: "key".into(),
            dataset: "dataset".into(),
            optimizer: "optimiser".into(),
        }
    }
}

/// What [`import_tables`] reads: `.parquet` or `.csv` files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableImport {
    /// `steps(run, step, batch, learning_rate?, batch_loss?)`, one row per step.
    pub steps: PathBuf,
    /// `losses(run, step, test_id, loss)`, one row per measured loss.
    pub losses: PathBuf,
    /// `examples(id?, key?, dataset?, tags?, …)`; further columns are kept. Without it the examples are
    /// those that occur in the batches.
    pub train_examples: Option<PathBuf>,
    /// As `train_examples`; without it the examples are those that occur in `losses`.
    pub test_examples: Option<PathBuf>,
    /// `runs(run, optimiser?, its constants?, …)`; other columns with the name of a setting in
    /// `run.json` become that setting, further ones are kept.
    pub runs: Option<PathBuf>,
    /// Names of the columns.
    pub columns: ColumnNames,
}

/// Imports plain long tables into the run set `out`.
///
/// Steps count from 1 and losses at step 0 are before any step; logs that count from 0 are moved
/// as in [`crate::import_gptdynamics`], with a warning. In CSV a batch is `[1, 2, 3]`,
/// `["a", "b"]` or `1 2 3`. A batch or `test_id` names examples by id or by key: what is the id of
/// an example is its id. An empty cell or null is missing, `NaN` an observation. Stale points are
/// left out as in [`crate::import_gptdynamics`].
///
/// # Errors
/// A missing column, a cell that is not what it should be, an unknown example, a missing step, two
/// losses for one test example at a step, unknown constants of an optimiser: each with file, run,
/// step and example. A run of the same id in `out`; `out` has other examples or cannot be written.
/// Nothing is written unless all runs can be read.
///
/// ```
/// use simfluence_recorder::{RunSet, TableImport, import_tables};
/// let folder = tempfile::tempdir()?;
/// let import = TableImport {
///     steps: folder.path().join("steps.csv"),
///     losses: folder.path().join("losses.csv"),
///     ..TableImport::default()
/// };
/// std::fs::write(&import.steps, "run,step,batch\na,1,0 1\n")?;
/// std::fs::write(&import.losses, "run,step,test_id,loss\na,0,0,3.0\na,1,0,2.5\n")?;
/// let out = folder.path().join("runs");
/// assert!(import_tables(&import, &out)?.warnings.is_empty());
/// assert_eq!(RunSet::open(&out)?.read_run("a")?.trajectory.values(), &[3.0, 2.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import_tables(import: &TableImport, out: &Path) -> Result<ImportReport> {
    let names = &import.columns;
    let mut warnings = Vec::new();
    let steps = Sheet::read(&import.steps)?;
    let losses = Sheet::read(&import.losses)?;
    let step_columns = [
        &names.run,
        &names.step,
        &names.batch,
        &names.learning_rate,
        &names.batch_loss,
    ];
    steps.warn_about_others(&step_columns.map(String::as_str), &mut warnings);
    let loss_columns = [&names.run, &names.step, &names.test_id, &names.loss];
    losses.warn_about_others(&loss_columns.map(String::as_str), &mut warnings);

    let batches = required_lists(&steps, &names.batch)?;
    let tests = losses.required_texts(&names.test_id)?;
    let train = match &import.train_examples {
        Some(path) => Known::read(path, names, "train")?,
        None => {
            let all: Vec<String> = batches.iter().flatten().cloned().collect();
            Known::seen(&all, "train", &steps.place, &mut warnings)?
        }
    };
    let test = match &import.test_examples {
        Some(path) => Known::read(path, names, "test")?,
        None => Known::seen(&tests, "test", &losses.place, &mut warnings)?,
    };
    let mut runs = BTreeMap::new();
    add_steps(&mut runs, import, &steps, &batches, &train)?;
    add_losses(&mut runs, import, &losses, &tests, &test, &mut warnings)?;
    if let Some(path) = &import.runs {
        add_settings(&mut runs, path, names, &mut warnings)?;
    }
    let runs = runs.into_values().collect();
    record_all(out, &train.examples, &test.examples, runs, warnings)
}

type Runs = BTreeMap<String, RawRun>;

fn run_of<'a>(runs: &'a mut Runs, import: &TableImport, id: &str) -> &'a mut RawRun {
    if !runs.contains_key(id) {
        let run = RawRun {
            id: id.to_owned(),
            info: RunInfo::new(RunStatus::Recording),
            steps_place: Place::run(&import.steps, id),
            losses_place: Place::run(&import.losses, id),
            steps: BTreeMap::new(),
            losses: BTreeMap::new(),
        };
        runs.insert(id.to_owned(), run);
    }
    runs.get_mut(id).expect("the run was just inserted")
}

fn add_steps(
    runs: &mut Runs,
    import: &TableImport,
    sheet: &Sheet,
    batches: &[Vec<String>],
    train: &Known,
) -> Result<()> {
    let names = &import.columns;
    let ids = sheet.required_texts(&names.run)?;
    let numbers = sheet.integers(&names.step)?;
    let rates = optional(sheet, &names.learning_rate, Sheet::floats)?;
    let batch_losses = optional(sheet, &names.batch_loss, Sheet::lists)?;
    for row in 0..sheet.height() {
        let place = Place::run(&import.steps, &ids[row]);
        let place = place.at_step(u32::try_from(numbers[row]).unwrap_or_default());
        let batch_loss = batch_losses[row].as_ref().map(|texts| {
            let parsed: std::result::Result<Vec<f32>, _> =
                texts.iter().map(|t| t.parse()).collect();
            parsed.map_err(|_| {
                wrong(
                    &place,
                    format!("{} has an entry that is not a number", names.batch_loss),
                )
            })
        });
        let step = RawStep {
            batch: train.resolve_all(&batches[row], "training example", &place)?,
            learning_rate: rates[row],
            batch_loss: batch_loss.transpose()?,
        };
        let run = run_of(runs, import, &ids[row]);
        if run.steps.insert(numbers[row], step).is_some() {
            return Err(wrong(&place, "the step stands in the table twice"));
        }
    }
    Ok(())
}

fn add_losses(
    runs: &mut Runs,
    import: &TableImport,
    sheet: &Sheet,
    tests: &[String],
    test: &Known,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let names = &import.columns;
    let ids = sheet.required_texts(&names.run)?;
    let numbers = sheet.integers(&names.step)?;
    let losses = sheet.floats(&names.loss)?;
    let mut missing = 0usize;
    for row in 0..sheet.height() {
        let id = match test.resolve(&tests[row]) {
            Some(id) => id,
            None => {
                let place = Place::run(&import.losses, &ids[row]);
                let place = place.at_step(u32::try_from(numbers[row]).unwrap_or_default());
                return Err(unknown(&place, "test example", &tests[row]));
            }
        };
        let run = run_of(runs, import, &ids[row]);
        let values = run.losses.entry(numbers[row]).or_default();
        match losses[row] {
            Some(loss) => values.push((id, loss)),
            None => missing += 1,
        }
    }
    for run in runs.values_mut() {
        run.losses.retain(|_, values| !values.is_empty());
    }
    if missing > 0 {
        let file = import.losses.display();
        warnings.push(format!(
            "{file}: {missing} losses are empty, that is missing"
        ));
    }
    Ok(())
}

/// Settings of `run.json` that may be columns of `runs`.
const SETTINGS: [&str; 8] = [
    "seed",
    "base_model",
    "batch_size",
    "planned_steps",
    "trainable_parameters",
    "loss",
    "threads",
    "device",
];

/// Constants of optimisers that may be columns of `runs`.
const CONSTANTS: [&str; 12] = [
    "momentum",
    "dampening",
    "nesterov",
    "weight_decay",
    "alpha",
    "eps",
    "beta1",
    "beta2",
    "beta2_decay",
    "eps1",
    "eps2",
    "d",
];

fn add_settings(
    runs: &mut Runs,
    path: &Path,
    names: &ColumnNames,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let sheet = Sheet::read(path)?;
    let ids = sheet.required_texts(&names.run)?;
    let mut columns = BTreeMap::new();
    for name in sheet.columns() {
        if name != names.run {
            columns.insert(name.clone(), sheet.texts(&name)?);
        }
    }
    let mut seen = BTreeSet::new();
    for (row, id) in ids.iter().enumerate() {
        let place = Place::run(path, id);
        if !seen.insert(id) {
            return Err(wrong(&place, "the run stands in the table twice"));
        }
        let mut cells: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, values) in &columns {
            if let Some(text) = &values[row] {
                cells.insert(name, text);
            }
        }
        match runs.get_mut(id) {
            Some(run) => run.info = settings(cells, names, &place)?,
            None => warnings.push(format!(
                "{place}: the run has neither steps nor losses; it is not imported"
            )),
        }
    }
    for id in runs.keys().filter(|id| !seen.contains(id)) {
        warnings.push(format!(
            "{}: run {id} is not in the table; its settings are unknown",
            path.display()
        ));
    }
    Ok(())
}

fn settings(
    mut cells: BTreeMap<&str, &str>,
    names: &ColumnNames,
    place: &Place,
) -> Result<RunInfo> {
    let mut object = Map::new();
    object.insert("status".into(), "recording".into());
    for name in SETTINGS {
        if let Some(text) = cells.remove(name) {
            // Names stay texts even where they look like numbers.
            let named = matches!(name, "base_model" | "loss" | "device");
            let value = if named {
                Value::from(text)
            } else {
                guess(text)
            };
            object.insert(name.into(), value);
        }
    }
    let optimizer = cells
        .remove(names.optimizer.as_str())
        .or_else(|| cells.remove("optimizer"));
    if let Some(optimizer) = optimizer {
        let mut constants = Map::new();
        constants.insert("name".into(), optimizer.to_lowercase().into());
        for name in CONSTANTS {
            if let Some(text) = cells.remove(name) {
                constants.insert(name.into(), guess(text));
            }
        }
        let parsed: Optimizer = serde_json::from_value(Value::Object(constants))
            .map_err(|e| wrong(place, format!("the optimiser {optimizer:?}: {e}")))?;
        object.insert(
            "optimizer".into(),
            serde_json::to_value(parsed).unwrap_or_default(),
        );
    }
    let design = design(&mut cells, place)?;
    let mut info: RunInfo = serde_json::from_value(Value::Object(object))
        .map_err(|e| wrong(place, format!("a setting is not what it should be: {e}")))?;
    info.design = design;
    info.extra = cells
        .into_iter()
        .map(|(k, text)| (k.to_owned(), guess(text)))
        .collect();
    Ok(info)
}

fn design(cells: &mut BTreeMap<&str, &str>, place: &Place) -> Result<RunDesign> {
    let split = cells.remove("split").map(|name| {
        split_from_name(name).ok_or_else(|| {
            wrong(
                place,
                format!("unknown split {name:?}; it is train or held-out"),
            )
        })
    });
    let edit = match (cells.remove("base_run"), cells.remove("edit")) {
        (Some(base_run), Some(kind)) => Some(Edit {
            base_run: base_run.to_owned(),
            kind: EditKind::from_name(kind)
                .ok_or_else(|| wrong(place, format!("unknown kind of edit {kind:?}")))?,
            label: cells.remove("edit_label").unwrap_or_default().to_owned(),
        }),
        (None, None) => None,
        _ => {
            return Err(wrong(
                place,
                "base_run and edit must both be given, or neither",
            ));
        }
    };
    Ok(RunDesign {
        design: cells.remove("design").unwrap_or_default().to_owned(),
        split: split.transpose()?,
        edit,
    })
}

/// A number or truth value where the text is one.
fn guess(text: &str) -> Value {
    match text {
        "True" => return Value::Bool(true),
        "False" => return Value::Bool(false),
        _ => {}
    }
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::from(text),
    }
}

/// Name of the column of tags.
const TAGS: &str = "tags";

/// Examples and the names by which tables may call them.
struct Known {
    examples: Examples,
    by_id: HashMap<i64, u32>,
}

impl Known {
    /// The examples that occur, ids as keys.
    fn seen(
        tokens: &[String],
        dataset: &str,
        place: &Place,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let keys = ordered_keys(tokens);
        warnings.extend(renumbering(dataset, &keys));
        let by_id = (0..)
            .zip(&keys)
            .filter_map(|(position, key)| Some((key.parse().ok()?, position)))
            .collect();
        let all = keys
            .into_iter()
            .map(|key| Example::new(key, dataset))
            .collect();
        let examples = Examples::new(all).map_err(|e| RecorderError::invalid(place.clone(), e))?;
        Ok(Self { examples, by_id })
    }

    /// The examples of a table, in order of their ids.
    fn read(path: &Path, names: &ColumnNames, dataset: &str) -> Result<Self> {
        let sheet = Sheet::read(path)?;
        let ids = if sheet.has(&names.id) {
            sheet.integers(&names.id)?
        } else {
            (0..sheet.height() as i64).collect()
        };
        let keys = optional(&sheet, &names.key, Sheet::texts)?;
        let datasets = optional(&sheet, &names.dataset, Sheet::texts)?;
        let tags = optional(&sheet, TAGS, Sheet::lists)?;
        let known = [&names.id, &names.key, &names.dataset].map(String::as_str);
        let mut others = BTreeMap::new();
        for name in sheet.columns() {
            if !known.contains(&name.as_str()) && name != TAGS {
                others.insert(name.clone(), sheet.texts(&name)?);
            }
        }
        let mut rows: Vec<(i64, Example)> = Vec::with_capacity(ids.len());
        for (row, id) in ids.into_iter().enumerate() {
            let key = keys[row].clone().unwrap_or_else(|| id.to_string());
            let dataset = datasets[row].clone().unwrap_or_else(|| dataset.to_owned());
            let mut example = Example::new(key, dataset);
            example.tags = tags[row].clone().unwrap_or_default();
            for (name, values) in &others {
                if let Some(value) = &values[row] {
                    example.extra.insert(name.clone(), value.clone());
                }
            }
            rows.push((id, example));
        }
        rows.sort_by_key(|(id, _)| *id);
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let message = format!("two examples have the id {}", pair[0].0);
            return Err(wrong(&sheet.place, message));
        }
        let by_id = rows.iter().map(|(id, _)| *id).zip(0..).collect();
        let all = rows.into_iter().map(|(_, example)| example).collect();
        let examples = Examples::new(all).map_err(|e| RecorderError::invalid(sheet.place, e))?;
        Ok(Self { examples, by_id })
    }

    fn resolve(&self, token: &str) -> Option<u32> {
        let by_id = token
            .parse()
            .ok()
            .and_then(|id: i64| self.by_id.get(&id).copied());
        by_id.or_else(|| self.examples.id_of(token))
    }

    fn resolve_all(&self, tokens: &[String], what: &str, place: &Place) -> Result<Vec<u32>> {
        tokens
            .iter()
            .map(|token| {
                self.resolve(token)
                    .ok_or_else(|| unknown(place, what, token))
            })
            .collect()
    }
}

fn unknown(place: &Place, what: &str, token: &str) -> RecorderError {
    let place = place.at_example(format!("{what} {token:?}"));
    wrong(&place, "there is no example with this id or key")
}

/// The distinct ids: in numerical order if all are whole numbers, else in order of the texts.
pub(super) fn ordered_keys(ids: &[String]) -> Vec<String> {
    let distinct: BTreeSet<&String> = ids.iter().collect();
    let mut keys: Vec<String> = distinct.into_iter().cloned().collect();
    if keys.iter().all(|key| key.parse::<i64>().is_ok()) {
        keys.sort_by_key(|key| key.parse::<i64>().unwrap_or_default());
    }
    keys
}

/// What to say if the ids of a log are not the ids of the run set.
pub(super) fn renumbering(dataset: &str, keys: &[String]) -> Option<String> {
    let same = (0..)
        .zip(keys)
        .all(|(id, key): (usize, _)| key.parse() == Ok(id));
    (!same && !keys.is_empty()).then(|| {
        format!(
            "the {dataset} examples are numbered anew from 0 in the order of their ids {} to {}; their ids are now their keys",
            keys[0],
            keys[keys.len() - 1]
        )
    })
}

fn required_lists(sheet: &Sheet, column: &str) -> Result<Vec<Vec<String>>> {
    let lists = sheet.lists(column)?;
    let mut all = Vec::with_capacity(lists.len());
    for (row, list) in lists.into_iter().enumerate() {
        let problem = Problem::NullValue {
            column: column.to_owned(),
            row,
        };
        all.push(list.ok_or_else(|| RecorderError::invalid(sheet.place.clone(), problem))?);
    }
    Ok(all)
}

/// A column that may be absent: then every row is `None`.
fn optional<T: Clone>(
    sheet: &Sheet,
    column: &str,
    read: impl Fn(&Sheet, &str) -> Result<Vec<Option<T>>>,
) -> Result<Vec<Option<T>>> {
    if sheet.has(column) {
        read(sheet, column)
    } else {
        Ok(vec![None; sheet.height()])
    }
}
