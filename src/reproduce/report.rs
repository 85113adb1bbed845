//! What came out.

use super::experiment::{SIMILAR, Setting};
use super::spread::{Spread, standardised};
use super::values::{Groups, Influences};
use crate::runs::OpenRuns;
use anyhow::{Context, Result};
use serde::Serialize;
use simfluence_core::Run;
use simfluence_evaluation::{attainable, pearson, seed_to_seed};
use simfluence_simulators::leave_out::Truth;

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the experiment.
    pub experiment: &'static str,
    /// Where it was published.
    pub reference: &'static str,
    /// One part per setting.
    pub settings: Vec<SettingReport>,
}

/// One setting: one kind of runs.
#[derive(Debug, Clone, Serialize)]
pub struct SettingReport {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The training datasets.
    pub datasets: Vec<String>,
    /// Training examples of each.
    pub sizes: Vec<usize>,
    /// Steps of a run.
    pub steps: usize,
    /// Runs, and retrainings behind the truth.
    pub seeds: usize,
    /// One part per test dataset.
    pub tests: Vec<TestReport>,
}

/// Influence on one test dataset.
#[derive(Debug, Clone, Serialize)]
pub struct TestReport {
    /// Its name.
    pub test: String,
    /// Its examples.
    pub examples: usize,
    /// Mean loss before training, nats per target token.
    pub initial_loss: f64,
    /// Mean loss after training, over the runs.
    pub final_loss: Spread,
    /// Leave-one-out.
    pub truth: TruthRow,
    /// The methods.
    pub methods: Vec<MethodRow>,
}

/// What really happens without each training dataset.
#[derive(Debug, Clone, Serialize)]
pub struct TruthRow {
    /// Loss without the dataset less loss with it, nats, `[seed][dataset]`.
    pub effects: Vec<Vec<f64>>,
    /// Mean over seeds.
    pub mean: Vec<f64>,
    /// Standardised over datasets in each seed, then over seeds.
    pub standardised: Option<Vec<Spread>>,
    /// Mean Pearson correlation between two seeds.
    pub ceiling: Option<f64>,
    /// Pearson correlation with the mean that a perfect method can expect.
    pub attainable: Option<f64>,
    /// Seeds in which both similar tasks are above all others.
    pub similar_first: Option<usize>,
}

/// What one method says.
#[derive(Debug, Clone, Serialize)]
pub struct MethodRow {
    /// Name of the method with its settings.
    pub name: String,
    /// Which column of the sweep, if it is part of it.
    pub swept: Option<&'static str>,
    /// Influence of each dataset by the method's account, `[run][dataset]`, nats where the method
    /// has a natural unit.
    pub influences: Vec<Vec<f64>>,
    /// Standardised over datasets in each run, then over runs.
    pub standardised: Option<Vec<Spread>>,
    /// Pearson correlation with the mean truth, over runs; `None` if it is undefined in one.
    pub pearson: Option<Spread>,
    /// Runs in which both similar tasks are above all others.
    pub similar_first: Option<usize>,
    /// Mean seconds per run, for all test datasets together.
    pub seconds: f64,
    /// Why there is nothing.
    pub failure: Option<String>,
}

/// What a row gave for every run, or why it gave nothing.
pub struct Outcome {
    /// Name of the row.
    pub name: String,
    /// Which column of the sweep, if it is part of it.
    pub swept: Option<&'static str>,
    /// One per run.
    pub influences: Result<Vec<Influences>, String>,
}

/// Puts a setting's results together.
pub fn setting_report(
    setting: &Setting,
    open: &OpenRuns,
    runs: &[&Run],
    groups: &Groups,
    truth: &Truth,
    outcomes: &[Outcome],
) -> Result<SettingReport> {
    let exposure = runs[0].curriculum.total_exposure(open.train_count());
    let size = |d: usize| {
        let is_member = |i: &usize| groups.dataset_of[*i] == d && exposure[*i] > 0.0;
        (0..open.train_count()).filter(is_member).count()
    };
    let tests = (0..groups.tests.len())
        .map(|test| test_report(test, runs, groups, truth, outcomes))
        .collect::<Result<_>>()?;
    Ok(SettingReport {
        name: setting.name,
        about: setting.about,
        sizes: (0..groups.datasets.len()).map(size).collect(),
        datasets: groups.datasets.clone(),
        steps: runs[0].curriculum.len(),
        seeds: runs.len(),
        tests,
    })
}

fn test_report(
    test: usize,
    runs: &[&Run],
    groups: &Groups,
    truth: &Truth,
    outcomes: &[Outcome],
) -> Result<TestReport> {
    let members = groups.test_members(test);
    let losses = |run: &Run, row: usize| -> Result<f64> {
        let losses = members.iter().map(|&j| run.trajectory.get(row, j));
        let losses: Vec<f64> = losses
            .map(|loss| loss.map(f64::from))
            .collect::<Option<_>>()
            .with_context(|| format!("run {}: a test loss was not measured", run.id))?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    };
    let last: Vec<f64> = runs
        .iter()
        .map(|run| losses(run, run.trajectory.steps().len() - 1))
        .collect::<Result<_>>()?;
    let truth = truth_row(truth, groups, &members);
    let methods = outcomes
        .iter()
        .map(|outcome| method_row(outcome, test, groups, &truth))
        .collect();
    Ok(TestReport {
        test: groups.tests[test].clone(),
        examples: members.len(),
        initial_loss: losses(runs[0], 0)?,
        final_loss: Spread::of(&last),
        truth,
        methods,
    })
}

fn truth_row(truth: &Truth, groups: &Groups, members: &[usize]) -> TruthRow {
    // Units come in order of first appearance, as the datasets do; by name is safer.
    let unit = |name: &String| truth.units.iter().position(|unit| unit.name == *name);
    let order: Vec<usize> = groups.datasets.iter().filter_map(unit).collect();
    let of_seed = |seed: usize| -> Vec<f64> {
        let rows = truth.of_seed(seed);
        let mean =
            |row: &Vec<f64>| members.iter().map(|&j| row[j]).sum::<f64>() / members.len() as f64;
        order.iter().map(|&u| mean(&rows[u])).collect()
    };
    let effects: Vec<Vec<f64>> = (0..truth.seeds.len()).map(of_seed).collect();
    let columns: Vec<Vec<Vec<f64>>> = (effects.iter())
        .map(|seed| seed.iter().map(|&effect| vec![effect]).collect())
        .collect();
    let ceiling = seed_to_seed(&columns).and_then(|agreement| agreement.pearson);
    let mean = |d: usize| effects.iter().map(|e| e[d]).sum::<f64>() / effects.len() as f64;
    TruthRow {
        mean: (0..order.len()).map(mean).collect(),
        standardised: standardised_spread(&effects),
        ceiling,
        attainable: ceiling.and_then(|r| attainable(r, effects.len())),
        similar_first: similar_first(&effects, &groups.datasets),
        effects,
    }
}

fn method_row(outcome: &Outcome, test: usize, groups: &Groups, truth: &TruthRow) -> MethodRow {
    let mut row = MethodRow {
        name: outcome.name.clone(),
        swept: outcome.swept,
        influences: Vec::new(),
        standardised: None,
        pearson: None,
        similar_first: None,
        seconds: 0.0,
        failure: None,
    };
    let found = match &outcome.influences {
        Ok(found) => found,
        Err(problem) => {
            row.failure = Some(problem.clone());
            return row;
        }
    };
    row.influences = found
        .iter()
        .map(|of_run| of_run.values[test].clone())
        .collect();
    row.seconds = found.iter().map(|f| f.seconds).sum::<f64>() / found.len() as f64;
    row.standardised = standardised_spread(&row.influences);
    let correlations = row
        .influences
        .iter()
        .map(|values| pearson(values, &truth.mean));
    let correlations: Option<Vec<f64>> = correlations.collect();
    row.pearson = correlations.map(|all| Spread::of(&all));
    row.similar_first = similar_first(&row.influences, &groups.datasets);
    row
}

/// Standardised over datasets, then mean and deviation over seeds; `None` if one seed's are all
/// the same.
fn standardised_spread(values: &[Vec<f64>]) -> Option<Vec<Spread>> {
    let rows: Option<Vec<Vec<f64>>> = values.iter().map(|row| standardised(row)).collect();
    let rows = rows?;
    let of = |d: usize| Spread::of(&rows.iter().map(|row| row[d]).collect::<Vec<_>>());
    Some((0..rows[0].len()).map(of).collect())
}

/// In how many rows both tasks that resemble the test's are above all others; `None` unless both
/// are among the datasets.
fn similar_first(rows: &[Vec<f64>], datasets: &[String]) -> Option<usize> {
    let is_similar = |d: usize| SIMILAR.contains(&datasets[d].as_str());
    let similar = (0..datasets.len()).filter(|&d| is_similar(d)).count();
    if similar != SIMILAR.len() || similar == datasets.len() {
        return None;
    }
    let is_first = |row: &&Vec<f64>| {
        let of = |wanted: bool| {
            let row = row.iter().enumerate();
            row.filter(move |(d, _)| is_similar(*d) == wanted)
                .map(|(_, v)| *v)
        };
        of(true).fold(f64::INFINITY, f64::min) > of(false).fold(f64::NEG_INFINITY, f64::max)
    };
    Some(rows.iter().filter(is_first).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_tasks_come_first_only_if_both_are_above_all_others() {
        let names = ["succeed-digits", "length-words", "succeed-words"].map(str::to_owned);
        let rows = [
            vec![3.0, 1.0, 2.0],
            vec![3.0, 2.5, 2.0],
            vec![1.0, 1.0, 1.0],
        ];
        assert_eq!(similar_first(&rows, &names), Some(1));
        assert_eq!(similar_first(&rows, &names[..2]), None);
    }
}
