//! Scores against kronfluence, captum, dattri and pyDVL, and against plain PyTorch, on one small
//! network: `data/golden/attribution`, with the script that made the numbers.
#![cfg(feature = "torch")]

use serde_json::Value;
use simfluence_core::{NoProgress, Scores};
use simfluence_models::{
    Activation, DenseExample, Metric, Mlp, Prediction, Target, per_example_gradients,
};
use simfluence_simulators::attribution::{Attributed, AttributionError, Axes, GradientParams};
use simfluence_simulators::gradcos::GradCos;
use simfluence_simulators::graddot::GradDot;
use simfluence_simulators::hif::{
    Arnoldi, ConjugateGradientSettings, Curved, DampingParam, Drawn, Factored, Hif, HifParams,
    LissaSettings, Solver,
};
use simfluence_simulators::tracin::{Checkpoint, TracinCp};

/// The reference run's length in these tests; scores are per step, golden numbers are not.
const STEPS: usize = 5;

struct Golden {
    file: Value,
    train: Vec<DenseExample>,
    test: Vec<DenseExample>,
    axes: Axes,
}

fn floats(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(parts) => parts.iter().flat_map(floats).collect(),
        number => vec![number.as_f64().expect("a number")],
    }
}

impl Golden {
    fn read() -> Self {
        let text = include_str!("../../data/golden/attribution/attribution.json");
        let file: Value = serde_json::from_str(text).unwrap();
        let examples = |side: &str| -> Vec<DenseExample> {
            let inputs = file[side]["inputs"].as_array().unwrap();
            let labels = file[side]["labels"].as_array().unwrap();
            let example = |(row, label): (&Value, &Value)| DenseExample {
                features: floats(row),
                target: Target::Class(label.as_u64().unwrap() as u32),
            };
            inputs.iter().zip(labels).map(example).collect()
        };
        let (train, test) = (examples("train"), examples("test"));
        let keys = |count: usize| (0..count).map(|k| k.to_string()).collect();
        Self {
            axes: Axes {
                train_keys: keys(train.len()),
                test_keys: keys(test.len()),
            },
            train,
            test,
            file,
        }
    }

    fn model(&self, checkpoint: usize) -> Mlp {
        let parameters = &self.file["checkpoints"][checkpoint]["parameters"];
        let values: Vec<f64> = (0..3)
            .flat_map(|k| {
                let mut layer = floats(&parameters[format!("layers.{k}.weight")]);
                layer.extend(floats(&parameters[format!("layers.{k}.bias")]));
                layer
            })
            .collect();
        let kind = tch::Kind::Double;
        Mlp::new(
            &[5, 8, 6, 4],
            Activation::Tanh,
            Prediction::Classes,
            &values,
            kind,
            tch::Device::Cpu,
        )
        .unwrap()
    }

    fn rate(&self, checkpoint: usize) -> f64 {
        self.file["checkpoints"][checkpoint]["learning_rate"]
            .as_f64()
            .unwrap()
    }

    fn damping(&self) -> f64 {
        self.file["damping"].as_f64().unwrap()
    }

    fn of<'a>(&'a self, model: &'a Mlp) -> Attributed<'a, Mlp> {
        Attributed {
            model,
            train: &self.train,
            test: &self.test,
            axes: &self.axes,
        }
    }

    fn hif(&self, solver: Solver, curvature: Curved, damping: DampingParam) -> Scores {
        let mut params = HifParams::new(GradientParams::new(0.1), solver);
        params.curvature = curvature;
        params.damping = damping;
        let exposures = vec![STEPS as f64 / self.train.len() as f64; self.train.len()];
        let model = self.model(1);
        let method = Hif::new(params).unwrap();
        method
            .scores(&self.of(&model), &exposures, STEPS, true, &NoProgress)
            .unwrap()
    }

    /// Largest difference to a golden entry over its largest value, when scores are multiplied by
    /// `factor`.
    fn difference(&self, entry: &str, scores: &Scores, factor: f64) -> f64 {
        let expected = floats(&self.file["scores"][entry]["values"]);
        assert_eq!(expected.len(), scores.values.len(), "{entry}");
        let largest = expected.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
        let differences = expected.iter().zip(&scores.values);
        differences.fold(0.0_f64, |worst, (e, s)| {
            worst.max((f64::from(*s) * factor - e).abs())
        }) / largest
    }

    fn assert_entries(&self, entries: &[&str], scores: &Scores, factor: f64, tolerance: f64) {
        for entry in entries {
            let difference = self.difference(entry, scores, factor);
            assert!(difference < tolerance, "{entry}: {difference:.2e}");
        }
    }
}

#[test]
fn ref_graddot_is_that_of_kronfluence_captum_and_dattri() {
    let golden = Golden::read();
    let model = golden.model(1);
    let method = GradDot::new(GradientParams::new(0.1)).unwrap();
    let scores = method
        .scores(&golden.of(&model), &Metric::Identity, false, &NoProgress)
        .unwrap();
    let entries = [
        "graddot.own",
        "graddot.kronfluence_identity",
        "graddot.captum",
        "graddot.dattri",
    ];
    golden.assert_entries(&entries, &scores, 10.0, 1e-6);
}

#[test]
fn ref_gradcos_is_graddot_over_the_norms() {
    let golden = Golden::read();
    let model = golden.model(1);
    let scores = GradCos::new(GradientParams::new(0.1))
        .unwrap()
        .scores(&golden.of(&model), &Metric::Identity, &NoProgress)
        .unwrap();
    let norms = |examples: &[DenseExample]| {
        let rows = per_example_gradients(&model, examples).unwrap();
        Vec::<f64>::try_from(rows.norm_scalaropt_dim(2.0, 1, false)).unwrap()
    };
    let (train, test) = (norms(&golden.train), norms(&golden.test));
    let products = floats(&golden.file["scores"]["graddot.own"]["values"]);
    for (k, score) in scores.values.iter().enumerate() {
        let expected = products[k] / (train[k / 10] * test[k % 10]);
        assert!((f64::from(*score) - expected).abs() < 1e-6);
    }
}

#[test]
fn ref_tracin_is_that_of_captum_and_dattri() {
    let golden = Golden::read();
    let checkpoints = [0, 1].map(|k| {
        Ok::<_, AttributionError>(Checkpoint {
            model: golden.model(k),
            learning_rate: golden.rate(k),
            metric: Metric::Identity,
        })
    });
    let method = TracinCp::new(GradientParams::new(1.0)).unwrap();
    let scores = method
        .scores(
            checkpoints,
            &golden.train,
            &golden.test,
            &golden.axes,
            true,
            &NoProgress,
        )
        .unwrap();
    // Ours are divided by the sum of the rates.
    let factor = golden.rate(0) + golden.rate(1);
    let entries = ["tracin.own", "tracin.captum", "tracin.dattri"];
    golden.assert_entries(&entries, &scores, factor, 1e-6);
}

fn lissa(deflation: bool) -> Solver {
    Solver::Lissa(LissaSettings {
        depth: 20_000,
        repeats: 1,
        batch_size: None,
        scale: None,
        deflation,
        tolerance: 1e-8,
    })
}

fn tight() -> Vec<Solver> {
    vec![
        Solver::Exact,
        Solver::ConjugateGradients(ConjugateGradientSettings {
            tolerance: 1e-10,
            iterations: 500,
        }),
        Solver::Arnoldi(Arnoldi {
            iterations: 200,
            rank: 200,
            complement: false,
        }),
        lissa(true),
        lissa(false),
    ]
}

/// The Hessian of this network is indefinite; the damping makes up for it.
#[test]
fn ref_influence_of_every_solver_is_that_of_dattri_and_pydvl() {
    let golden = Golden::read();
    let smallest = floats(&golden.file["smallest_and_largest_eigenvalue"]["hessian"])[0];
    assert!(smallest < 0.0);
    let damping = DampingParam::Absolute(golden.damping());
    for solver in tight() {
        let scores = golden.hif(solver, Curved::Hessian, damping);
        let entries = [
            "influence.own",
            "influence.dattri_explicit",
            "influence.dattri_cg",
            "influence.pydvl_direct",
            "influence.pydvl_cg",
        ];
        golden.assert_entries(&entries, &scores, STEPS as f64, 1e-6);
        let scores = golden.hif(solver, Curved::GaussNewton, damping);
        golden.assert_entries(&["gauss_newton.own"], &scores, STEPS as f64, 1e-6);
        for k in 0..scores.values.len() {
            let sum: f32 = scores.layers.iter().map(|(_, values)| values[k]).sum();
            assert!(
                (sum - scores.values[k]).abs() < 1e-5,
                "layers sum to the score"
            );
        }
    }
    // dattri's and pyDVL's own recursions stop a little earlier.
    let scores = golden.hif(Solver::Exact, Curved::Hessian, damping);
    golden.assert_entries(
        &["lissa.dattri", "lissa.pydvl"],
        &scores,
        STEPS as f64,
        1e-4,
    );
}

/// What a Krylov space of low rank misses, with and without what lies outside of it.
#[test]
fn ref_a_small_krylov_space_is_closer_when_what_lies_outside_counts_as_flat() {
    let golden = Golden::read();
    let damping = DampingParam::Absolute(golden.damping());
    let error = |rank: usize, complement: bool| {
        let solver = Solver::Arnoldi(Arnoldi {
            iterations: rank.max(60),
            rank,
            complement,
        });
        let scores = golden.hif(solver, Curved::GaussNewton, damping);
        golden.difference("gauss_newton.own", &scores, STEPS as f64)
    };
    let (alone, with) = (error(20, false), error(20, true));
    assert!(with < 0.2 * alone && with < 0.05, "{alone} {with}");
    assert!(error(200, true) < 1e-6);
}

#[test]
fn an_indefinite_hessian_is_an_error_that_says_what_to_change() {
    let golden = Golden::read();
    let model = golden.model(1);
    let exposures = vec![1.0 / 24.0; 24];
    for solver in tight() {
        let mut params = HifParams::new(GradientParams::new(0.1), solver);
        params.curvature = Curved::Hessian;
        params.damping = DampingParam::Absolute(1e-3);
        let error = Hif::new(params)
            .unwrap()
            .scores(&golden.of(&model), &exposures, 1, false, &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("indefinite") && error.contains("raise the damping"),
            "{error}"
        );
    }
}

#[test]
fn ref_factored_curvature_is_that_of_kronfluence() {
    let golden = Golden::read();
    type Make = fn(Drawn) -> Factored;
    let kinds: [(&str, Make); 3] = [
        ("ekfac", Factored::Ekfac),
        ("kfac", Factored::Kfac),
        ("diagonal", Factored::Diagonal),
    ];
    for (name, kind) in kinds {
        for (setting, damping) in [
            ("damped", DampingParam::Absolute(1e-3)),
            ("heuristic", DampingParam::Relative(0.1)),
        ] {
            let score = |drawn| {
                let solver = Solver::Factored(kind(drawn));
                golden.hif(solver, Curved::GaussNewton, damping)
            };
            let given = score(Drawn::Given);
            let entry = |who: &str| format!("{name}.{setting}.{who}");
            let entries = [entry("own"), entry("kronfluence")];
            let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
            golden.assert_entries(&entries, &given, STEPS as f64, 1e-5);
            let expected = score(Drawn::Expected);
            let own = entry("own_exact_labels");
            golden.assert_entries(&[&own], &expected, STEPS as f64, 1e-5);
        }
    }
}
