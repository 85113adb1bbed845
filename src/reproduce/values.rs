//! What a method says about each training dataset, kept so that it is computed once.

use super::rows::Row;
use crate::attribute::scoring::settings_note;
use crate::attribute::{Request, compute};
use crate::runs::OpenRuns;
use crate::truth::Source;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use simfluence_core::{NoProgress, Run, Scores};
use simfluence_recorder::write_atomically;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The training datasets of a run, and the test datasets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Names of the training datasets.
    pub datasets: Vec<String>,
    /// Dataset of each training example.
    #[serde(skip)]
    pub dataset_of: Vec<usize>,
    /// Names of the test datasets.
    pub tests: Vec<String>,
    /// Test dataset of each test example.
    #[serde(skip)]
    pub test_of: Vec<usize>,
}

impl Groups {
    /// Of a run set.
    pub fn of(open: &OpenRuns) -> Self {
        let (datasets, dataset_of) = open.set.train_examples().groups("dataset");
        let (tests, test_of) = open.set.test_examples().groups("dataset");
        Self {
            datasets,
            dataset_of,
            tests,
            test_of,
        }
    }

    /// Members of each test dataset.
    pub fn test_members(&self, test: usize) -> Vec<usize> {
        (0..self.test_of.len())
            .filter(|&j| self.test_of[j] == test)
            .collect()
    }
}

/// Influence of every training dataset on the mean loss of every test dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Influences {
    /// What it was made from; anything else makes it worthless.
    key: Value,
    /// The names of the axes.
    groups: Groups,
    /// `Σ_{i ∈ Z} x̄_i mean_{j ∈ Z'} E(i,j)`, `[test dataset][training dataset]`.
    pub values: Vec<Vec<f64>>,
    /// What it cost.
    pub seconds: f64,
}

/// Where influences are computed and kept.
pub struct Work<'a> {
    /// The runs.
    pub open: &'a OpenRuns,
    /// The datasets.
    pub groups: &'a Groups,
    /// LibTorch threads.
    pub threads: u32,
}

impl Work<'_> {
    fn file(&self, run: &Run, row: &Row, kind: &str) -> PathBuf {
        let folder = self.open.set.path().join("influences").join(&run.id);
        folder.join(format!("{}.{kind}", row.name.replace(' ', "-")))
    }

    /// Where the losses along the unlearning of a run are.
    pub fn curves_file(&self, run: &Run, row: &Row) -> PathBuf {
        self.file(run, row, "curves.safetensors")
    }

    /// The influences if they have been kept.
    pub fn kept(&self, run: &Run, row: &Row) -> Result<Option<Influences>> {
        let path = self.file(run, row, "json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let kept: Influences =
            serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
        let is_whole = !has_curves(row) || self.curves_file(run, row).exists();
        Ok((kept.key == self.key(run, row) && is_whole).then_some(kept))
    }

    /// Computes the influences and keeps them.
    pub fn compute(&self, run: &Run, row: &Row) -> Result<Influences> {
        let path = self.file(run, row, "json");
        make_folder(path.parent().expect("it is in a folder"))?;
        let mut settings = row.settings.clone();
        if has_curves(row) {
            settings.curves = Some(self.curves_file(run, row));
        }
        let request = Request {
            method: row.method,
            settings: &settings,
            unit: row.unit,
            memory: None,
            seed: run.info.seed.unwrap_or_default(),
            device: "cpu",
            threads: Some(self.threads),
        };
        let scores = compute(&request, self.open, run, &NoProgress)
            .with_context(|| format!("{}, run {}", row.name, run.id))?;
        let exposure = run.curriculum.total_exposure(self.open.train_count());
        let influences = Influences {
            key: self.key(run, row),
            groups: self.groups.clone(),
            values: self.summed(&scores, &exposure)?,
            seconds: scores.provenance["cost"]["seconds"]
                .as_f64()
                .unwrap_or_default(),
        };
        write_atomically(&path, &serde_json::to_vec_pretty(&influences)?)?;
        Ok(influences)
    }

    fn key(&self, run: &Run, row: &Row) -> Value {
        json!({
            "source": Source::of(self.open, run),
            "method": crate::attribute::name(row.method),
            "settings": settings_note(row.method, &row.settings, row.unit),
            "library": simfluence_models::LIBTORCH_VERSION,
        })
    }

    /// `Σ_{i ∈ Z} x̄_i mean_{j ∈ Z'} E(i,j)`; an example without a score must not have been
    /// trained on.
    fn summed(&self, scores: &Scores, exposure: &[f64]) -> Result<Vec<Vec<f64>>> {
        let places =
            |keys: &[String]| -> HashMap<String, usize> { keys.iter().cloned().zip(0..).collect() };
        let (train, test) = (places(&scores.train_keys), places(&scores.test_keys));
        let columns: Vec<usize> = (self.open.set.test_examples().keys().iter())
            .map(|key| test.get(key).copied())
            .collect::<Option<_>>()
            .context("a test example has no score")?;
        let groups = self.groups;
        let mut values = vec![vec![0.0; groups.datasets.len()]; groups.tests.len()];
        let counts: Vec<f64> = (0..groups.tests.len())
            .map(|t| groups.test_members(t).len() as f64)
            .collect();
        let width = scores.test_keys.len();
        for (i, key) in self.open.set.train_examples().keys().iter().enumerate() {
            if exposure[i] == 0.0 {
                continue;
            }
            let row = *train
                .get(key)
                .with_context(|| format!("training example {key:?} has no score"))?;
            let row = &scores.values[row * width..][..width];
            for (j, &column) in columns.iter().enumerate() {
                let test = groups.test_of[j];
                values[test][groups.dataset_of[i]] +=
                    exposure[i] * f64::from(row[column]) / counts[test];
            }
        }
        Ok(values)
    }
}

/// Whether the losses along the unlearning are kept.
fn has_curves(row: &Row) -> bool {
    use crate::cli::AttributionMethod::{Untrac, UntracInv};
    row.swept.is_none() && matches!(row.method, Untrac | UntracInv)
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}
