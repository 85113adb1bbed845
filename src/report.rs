//! `simfluence report`: what is in a file of scores.

use crate::cli::{Format, ReportArgs};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use simfluence_core::{Examples, Scores};
use simfluence_evaluation::BootstrapSettings;
use simfluence_evaluation::plots::{HeatMapPlot, TailPlot, heat_map, tail_curves, tail_plot};
use simfluence_evaluation::reports::{
    Contrast, DistributionSettings, InfluenceByKind, LayerShares, PairwiseMatrix,
    ScoreDistribution, Symmetry, contrast, contrasts_text, influence_by_kind, layer_shares,
    own_influence, score_distribution,
};
use simfluence_recorder::{RunSet, read_artifact, write_atomically};
use std::path::Path;

/// Questions of the probes that are held against each other.
const CONTRASTS: [(&str, &str); 4] = [
    ("right", "wrong"),
    ("right", "right-unrelated"),
    ("wrong", "wrong-unrelated"),
    ("right-in-prompt", "wrong-in-prompt"),
];

/// Test images whose training images are there at several levels of noise.
const IMAGE: &str = "image";

/// Kinds of queries whose influences are told apart by the kind of the training sequence, each
/// with the sequences that hold the phrases in the query's order.
const QUERIES: [(&str, &str); 2] = [("query", "ordered"), ("query-flipped", "flipped")];

/// Training examples shown at each end, and in layer shares.
const SHOWN: usize = 5;

/// Everything that is told.
struct Report {
    distribution: ScoreDistribution,
    layers: Option<LayerShares>,
    symmetry: Option<Symmetry>,
    contrasts: Vec<Contrast>,
    kinds: Vec<InfluenceByKind>,
    extremes: Vec<Extremes>,
}

/// The training examples that lower and raise the losses of a group of test examples most.
struct Extremes {
    group: String,
    /// Key and mean score over the group's test examples.
    lowering: Vec<(String, f64)>,
    raising: Vec<(String, f64)>,
}

/// Runs the subcommand.
pub fn run(args: &ReportArgs) -> Result<()> {
    let set = RunSet::open(&args.run_set)?;
    let scores = Scores::from_artifact(&read_artifact(&args.scores)?)
        .with_context(|| format!("{}", args.scores.display()))?;
    let report = report(&scores, &set, args)?;
    match args.format {
        Format::Table => print(&scores, &report),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&to_json(&scores, &report))?
        ),
        Format::Csv => anyhow::bail!("a report has several tables; use --format table or json"),
    }
    if let Some(folder) = &args.plots {
        draw(folder, &scores, &set, args)?;
    }
    Ok(())
}

fn report(scores: &Scores, set: &RunSet, args: &ReportArgs) -> Result<Report> {
    let settings = BootstrapSettings {
        seed: args.seed,
        ..BootstrapSettings::default()
    };
    let (train, test) = (set.train_examples(), set.test_examples());
    let has = |kind: &str| {
        test.as_slice()
            .iter()
            .any(|e| e.column("kind") == Some(kind))
    };
    let mut contrasts = Vec::new();
    if CONTRASTS.iter().any(|(a, b)| has(a) && has(b)) {
        let own = own_influence(scores, test)?;
        for (first, second) in CONTRASTS.into_iter().filter(|(a, b)| has(a) && has(b)) {
            contrasts.push(contrast(test, &own, first, second, &settings)?);
        }
    }
    let mut kinds = Vec::new();
    for (query, reference) in QUERIES.into_iter().filter(|(query, _)| has(query)) {
        let found = influence_by_kind(scores, train, test, query, reference, &settings)?;
        kinds.push(found);
    }
    if has(IMAGE) {
        // Levels of noise, against the first.
        let (levels, _) = train.groups("kind");
        let first = levels.first().context("there is no training example")?;
        let found = influence_by_kind(scores, train, test, IMAGE, first, &settings)?;
        kinds.push(found);
    }
    Ok(Report {
        distribution: score_distribution(scores, &DistributionSettings::default())?,
        layers: layers(scores)?,
        // Only where test examples are training examples, too.
        symmetry: (PairwiseMatrix::of(scores).ok())
            .map(|matrix| matrix.symmetry())
            .transpose()?,
        contrasts,
        kinds,
        extremes: extremes(scores, test, &args.group_by),
    })
}

fn layers(scores: &Scores) -> Result<Option<LayerShares>> {
    if scores.layers.is_empty() {
        return Ok(None);
    }
    let names: Vec<String> = scores.layers.iter().map(|(name, _)| name.clone()).collect();
    let values: Vec<f32> = scores.layers.iter().flat_map(|(_, v)| v.clone()).collect();
    let (train, test) = (scores.train_keys.len(), scores.test_keys.len());
    Ok(Some(layer_shares(
        &names,
        &values,
        train,
        test,
        SHOWN.min(train),
    )?))
}

fn extremes(scores: &Scores, test: &Examples, column: &str) -> Vec<Extremes> {
    let (names, group_of) = test.groups(column);
    let tests = scores.test_keys.len();
    let of_group = |(group, name): (usize, String)| {
        let members: Vec<usize> = (0..tests)
            .filter(|&j| group_of.get(j) == Some(&group))
            .collect();
        let mean = |row: &[f32]| {
            let sum: f64 = members.iter().map(|&j| f64::from(row[j])).sum();
            sum / members.len().max(1) as f64
        };
        let mut ranked: Vec<(String, f64)> = (scores.train_keys.iter())
            .zip(scores.values.chunks_exact(tests.max(1)))
            .map(|(key, row)| (key.clone(), mean(row)))
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shown = SHOWN.min(ranked.len());
        Extremes {
            group: name,
            raising: ranked[ranked.len() - shown..]
                .iter()
                .rev()
                .cloned()
                .collect(),
            lowering: ranked[..shown].to_vec(),
        }
    };
    names.into_iter().enumerate().map(of_group).collect()
}

fn print(scores: &Scores, report: &Report) {
    println!(
        "{}: {} training × {} test examples{}; larger = training on it lowers the loss more",
        scores.method,
        scores.train_keys.len(),
        scores.test_keys.len(),
        match scores
            .provenance
            .get("reference_run")
            .and_then(Value::as_str)
        {
            Some(run) => format!(", from run {run}"),
            None => String::new(),
        }
    );
    for entry in [
        "options",
        "settings",
        "solver",
        "gradient_evaluations",
        "cost",
    ] {
        if let Some(value) = scores.provenance.get(entry) {
            println!("  {entry}: {}", shortened(value));
        }
    }
    println!("\nDistribution over the training examples, per test example");
    print!("{}", report.distribution.text());
    if let Some(layers) = &report.layers {
        println!("\nShare of each layer");
        print!("{}", layers.text());
    }
    if let Some(symmetry) = &report.symmetry {
        println!("\nExamples that were trained on and measured");
        print!("{}", symmetry.text());
    }
    if !report.contrasts.is_empty() {
        println!("\nMean score of a question's own facts");
        print!("{}", contrasts_text(&report.contrasts));
    }
    for kinds in &report.kinds {
        println!("\nInfluence on {} by kind of training example", kinds.query);
        print!("{}", kinds.text());
    }
    for extremes in &report.extremes {
        println!(
            "\n{}: mean score of single training examples",
            extremes.group
        );
        for (title, rows) in [
            ("largest", &extremes.lowering),
            ("smallest", &extremes.raising),
        ] {
            let rows: Vec<String> = rows.iter().map(|(k, v)| format!("{k} {v:.3e}")).collect();
            println!("  {title:9} {}", rows.join(", "));
        }
    }
}

/// A value without its long lists.
fn shortened(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let parts: Vec<String> = (entries.iter())
                .filter(|(_, v)| !v.is_array())
                .map(|(name, v)| format!("{name} {}", shortened(v)))
                .collect();
            parts.join(", ")
        }
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}

fn to_json(scores: &Scores, report: &Report) -> Value {
    let extremes: Vec<Value> = (report.extremes.iter())
        .map(|e| json!({"group": e.group, "lowering": e.lowering, "raising": e.raising}))
        .collect();
    json!({
        "method": scores.method,
        "provenance": scores.provenance,
        "distribution": report.distribution,
        "layers": report.layers,
        "symmetry": report.symmetry,
        "contrasts": report.contrasts,
        "influence_by_kind": report.kinds,
        "extremes": extremes,
    })
}

fn draw(folder: &Path, scores: &Scores, set: &RunSet, args: &ReportArgs) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let tail_share = DistributionSettings::default().tail_share;
    let curves = tail_curves(scores, set.test_examples(), &args.group_by, tail_share)?;
    let labels = |examples: &Examples| -> Vec<String> {
        let (names, group_of) = examples.groups(&args.group_by);
        group_of.iter().map(|&g| names[g].clone()).collect()
    };
    let title = format!("{}: scores", scores.method);
    let pictures = [
        (
            "tail.svg",
            tail_plot(&TailPlot {
                title: &format!("{}: how many scores are at least s", scores.method),
                curves: &curves,
            })?,
        ),
        (
            "scores.svg",
            heat_map(&HeatMapPlot {
                title: &title,
                row_axis: "trained on",
                column_axis: "test examples",
                row_labels: &labels(set.train_examples()),
                column_labels: &labels(set.test_examples()),
                values: &scores.values,
            })?,
        ),
    ];
    for (name, picture) in pictures {
        let path = folder.join(name);
        write_atomically(&path, picture.as_bytes())?;
        eprintln!("picture: {}", path.display());
    }
    Ok(())
}
