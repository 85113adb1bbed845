//! A tangent kernel that a run set keeps is used without the model and without LibTorch.

mod common;

use common::{simfluence, succeed};
use serde_json::Value;
use simfluence::core::{Example, Examples, Optimizer, RunInfo, RunStatus, Step};
use simfluence::recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord, write_artifact};
use simfluence::simulators::linearised::TangentKernel;
use std::path::Path;

/// Features of four training examples of two datasets and of two test examples.
const X: [[f64; 2]; 6] = [
    [1.0, 0.2],
    [0.8, 0.5],
    [-0.3, 1.0],
    [0.1, 0.9],
    [0.9, 0.1],
    [0.2, 1.1],
];
/// Their classes.
const Y: [u32; 6] = [0, 0, 1, 1, 0, 1];
const TRAIN: usize = 4;
const STEPS: usize = 15;

fn dot(a: &[f64; 2], b: &[f64; 2]) -> f64 {
    a[0] * b[0] + a[1] * b[1]
}

/// Logistic regression with a weight vector per class.
#[derive(Clone)]
struct Model([[f64; 2]; 2]);

impl Model {
    fn new() -> Self {
        Self([[-0.8, 0.4], [0.6, -0.7]])
    }

    fn probability(&self, example: usize, class: usize) -> f64 {
        let powers = [0, 1].map(|c: usize| dot(&self.0[c], &X[example]).exp());
        powers[class] / (powers[0] + powers[1])
    }

    fn losses(&self) -> Vec<f32> {
        let loss = |e| -self.probability(e, Y[e] as usize).ln() as f32;
        (TRAIN..X.len()).map(loss).collect()
    }

    fn train(&mut self, example: usize, rate: f64) {
        let residuals = [0, 1].map(|class| {
            let target = f64::from(u8::from(Y[example] as usize == class));
            self.probability(example, class) - target
        });
        for (weights, residual) in self.0.iter_mut().zip(residuals) {
            for (weight, x) in weights.iter_mut().zip(X[example]) {
                *weight -= rate * residual * x;
            }
        }
    }
}

/// Six runs of plain SGD, each with its own order of examples and rate.
fn record(folder: &Path, base_model: &str) {
    let examples = |side: &str, range: std::ops::Range<usize>| {
        let of = range.map(|e| Example::new(format!("{side}-{e}"), format!("class-{}", Y[e])));
        Examples::new(of.collect()).unwrap()
    };
    let (train, test) = (
        examples("train", 0..TRAIN),
        examples("test", TRAIN..X.len()),
    );
    let set = RunSet::create(folder, &train, &test).unwrap();
    for number in 0..6 {
        let mut info = RunInfo::new(RunStatus::Recording);
        info.base_model = Some(base_model.to_owned());
        info.optimizer = Some(Optimizer::Sgd {
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        });
        let id = format!("train-{number:03}");
        let mut recorder = Recorder::create(&set, &id, info, RecorderOptions::default()).unwrap();
        let mut model = Model::new();
        recorder.log_initial(&model.losses()).unwrap();
        let rate = 0.3 + 0.05 * number as f32;
        for t in 0..STEPS {
            let example = (t * t * (number + 2) + t / 4 * number) % TRAIN;
            model.train(example, f64::from(rate));
            let step = Step::new(vec![example as u32], Some(rate));
            let record = StepRecord {
                losses: Some(Losses::All(model.losses())),
                ..StepRecord::new(step)
            };
            recorder.log_step(&record).unwrap();
        }
        recorder.finish().unwrap();
    }
}

/// Writes the kernel of a model whose log-odds are `scale` times those of [`Model::new`].
fn keep_kernel(folder: &Path, scale: f32) {
    let model = Model::new();
    let outputs = |count: usize| (0..count).flat_map(|e| [(e, 0), (e, 1)]);
    let log_odds = outputs(X.len()).map(|(e, c)| scale * dot(&model.0[c], &X[e]) as f32);
    let updates = outputs(TRAIN).flat_map(|(a, c)| {
        outputs(X.len()).map(move |(b, d)| {
            if c == d {
                dot(&X[a], &X[b]) as f32
            } else {
                0.0
            }
        })
    });
    let kernel = TangentKernel {
        train_count: TRAIN,
        test_count: X.len() - TRAIN,
        choices: vec![2],
        others: vec![false],
        paths: vec![vec![0], vec![1]],
        answers: Y.to_vec(),
        log_odds: log_odds.collect(),
        updates: updates.collect(),
        squares: Vec::new(),
    };
    let set = RunSet::open(folder).unwrap();
    let keys = (set.train_examples().keys(), set.test_examples().keys());
    std::fs::create_dir_all(folder.join("kernels")).unwrap();
    let mut artifact = kernel.to_artifact(&keys.0, &keys.1).unwrap();
    assert_eq!(TangentKernel::from_artifact(&artifact).unwrap(), kernel);
    let (train, test) = set.fingerprints();
    for (name, of) in [("train_examples", train), ("test_examples", test)] {
        artifact.metadata.insert(name.into(), of.into());
    }
    artifact
        .metadata
        .insert("base_model".into(), "model".into());
    write_artifact(&folder.join("kernels/plain.safetensors"), &artifact).unwrap();
}

#[test]
fn a_kept_kernel_serves_the_linearised_model_and_optimizer_dynamics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    record(&path.join("runs"), "model");
    record(&path.join("others"), "another model");
    let fit = |method: &str, more: &[&str]| -> Value {
        let common = ["fit", "runs", "--out", "x.safetensors", "--format", "json"];
        let args = [&common[..], &["--method", method], more].concat();
        serde_json::from_str(&succeed(path, &args)).unwrap()
    };
    assert!(fit("optimizer-dynamics", &[])["linearised"].is_null());
    let args = ["fit", "runs", "--method", "linearised", "--out", "y"];
    let message = common::fail(path, &args);
    let reason = match cfg!(feature = "torch") {
        true => "has no base model",
        false => "--features torch",
    };
    assert!(message.contains(reason), "{message}");

    keep_kernel(&path.join("runs"), 1.0);
    let alone = fit("linearised", &[]);
    assert_eq!(
        (&alone["gain"], &alone["rate_exponent"]),
        (&1.0.into(), &1.0.into())
    );
    assert!(alone["mse"].as_f64().unwrap() < 1e-9, "{alone}");
    assert!(fit("optimizer-dynamics", &["--no-linearised"])["linearised"].is_null());
    let member = &fit("optimizer-dynamics", &[])["linearised"];
    assert!(member["weight"].as_f64().unwrap() > 0.99, "{member}");
    let whatif = [
        "whatif",
        "runs",
        "--run",
        "train-002",
        "--drop",
        "dataset:class-1",
    ];
    let given = ["--simulator", "x.safetensors"];
    let fitted_now = succeed(path, &whatif);
    let from_file = succeed(path, &[&whatif[..], &given].concat());
    assert_eq!(fitted_now, from_file);

    // Of another model: said, and left out.
    keep_kernel(&path.join("runs"), 2.0);
    let args = [
        "fit",
        "runs",
        "--method",
        "optimizer-dynamics",
        "--out",
        "y",
        "--format",
        "json",
    ];
    let output = simfluence(path, &args);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["linearised"].is_null(), "{report}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("goes without the linearised model"), "{told}");
    // Of other runs: not used.
    std::fs::create_dir(path.join("others/kernels")).unwrap();
    let kernel = "kernels/plain.safetensors";
    std::fs::copy(
        path.join("runs").join(kernel),
        path.join("others").join(kernel),
    )
    .unwrap();
    let args = ["fit", "others", "--method", "linearised", "--out", "y"];
    let message = common::fail(path, &args);
    assert!(
        message.contains("another base model and is not used"),
        "{message}"
    );
    let args = [
        "fit",
        "runs",
        "--method",
        "optimizer-dynamics",
        "--out",
        "y",
    ];
    let message = common::fail(path, &[&args[..], &["--device", "abacus"]].concat());
    assert!(message.contains("abacus"), "{message}");
    let args = ["fit", "runs", "--no-linearised", "--out", "y"];
    let message = common::fail(path, &args);
    assert!(message.contains("--no-linearised"), "{message}");
}
