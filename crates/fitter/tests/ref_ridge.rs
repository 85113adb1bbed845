//! The fits of all variants and shrinkage targets against scikit-learn's Ridge
//! (`ref_ridge.py` beside this file makes the numbers).

use serde_json::Value;
use simfluence_core::NoProgress;
use simfluence_fitter::{
    Exposures, FitSettings, Penalty, Problem, Sequence, Shrinkage, Solver, Variant, fit,
};

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().expect("a number")],
    }
}

fn count(reference: &Value, name: &str) -> usize {
    reference[name].as_u64().expect("a count") as usize
}

fn problem(reference: &Value) -> Problem {
    let (n, m) = (
        count(reference, "train_count"),
        count(reference, "test_count"),
    );
    let batches = reference["batches"].as_array().unwrap();
    let losses = reference["losses"].as_array().unwrap();
    let sequences = batches.iter().zip(losses).map(|(batches, losses)| {
        let mut exposures = Exposures::new(n);
        for batch in batches.as_array().unwrap() {
            let ids = numbers(batch);
            let share = 1.0 / ids.len() as f64;
            exposures
                .push(ids.iter().map(|&id| (id as u32, share)))
                .unwrap();
        }
        Sequence {
            steps: (0..=exposures.len() as u32).collect(),
            exposures,
            losses: numbers(losses),
            measured: None,
        }
    });
    Problem::new(n, m, sequences.collect()).unwrap()
}

#[test]
fn ref_all_variants_and_solvers_agree_with_scikit_learn() {
    let reference: Value = serde_json::from_str(include_str!("ref_ridge.json")).unwrap();
    let problem = problem(&reference);
    for case in reference["cases"].as_array().unwrap() {
        let variant: Variant = serde_json::from_value(case["variant"].clone()).unwrap();
        let mut settings = FitSettings::new(Penalty {
            a: reference["lambda_a"].as_f64().unwrap(),
            b: reference["lambda_b"].as_f64().unwrap(),
        });
        settings.variant = variant;
        if case["centre"] == 0.0 {
            settings.shrinkage = Shrinkage::Zero;
        }
        for solver in [Solver::Exact, Solver::Cg, Solver::Lbfgs] {
            settings.solver = solver;
            let fitted = fit(&problem, &problem.all_sequences(), &settings, &NoProgress).unwrap();
            let got = [fitted.parameters.a_table(), fitted.parameters.b_table()].concat();
            let expected = [numbers(&case["A"]), numbers(&case["B"])].concat();
            for (position, (g, e)) in got.iter().zip(&expected).enumerate() {
                let error = (g - e).abs();
                assert!(
                    error <= 1e-9,
                    "{variant:?} {solver:?} {position}: {g} against {e}"
                );
            }
        }
    }
}
