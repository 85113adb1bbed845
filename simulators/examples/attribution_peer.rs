//! Our side of `benches/peers/attribution`: times scores on the models and data that the peers get.
//!
//! `attribution_peer TASK FOLDER THREADS OUT` with TASK one of `graddot-decoder`, `graddot-mlp`,
//! `ekfac-decoder`; `lissa-mlp`, `arnoldi-mlp`, `arnoldi-complement-mlp`,
//! `cg-mlp`: the linear system of `reference.py`. Writes the products, `[train × test]`, as safetensors to OUT and prints one
//! line of JSON.

use serde_json::{Value, json};
use simfluence_core::{Artifact, NoProgress, Tensor};
use simfluence_models::{
    Activation, Damping, DenseExample, Device, FactorKind, GradientSettings, InnerProducts, Labels,
    Metric, Mlp, Model, Prediction, Target, TokenizedExample, Transformer, Wanted, Weights,
    fit_factors, inner_products,
};
use simfluence_simulators::attribution::{Attributed, Axes, GradientParams};
use simfluence_simulators::hif::{
    Arnoldi, ConjugateGradientSettings, Curved, DampingParam, Hif, HifParams, LissaSettings, Solver,
};
use std::path::Path;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, folder, threads, out] = &arguments[..] else {
        return Err("usage: attribution_peer TASK FOLDER THREADS OUT".into());
    };
    let folder = Path::new(folder);
    let settings = GradientSettings {
        threads: threads.parse()?,
        ..GradientSettings::default()
    };
    let (mut line, found) = match task.as_str() {
        "graddot-decoder" => {
            let (model, train, test) = decoder(folder)?;
            graddot(&model, &train, &test, &settings)?
        }
        "graddot-mlp" => {
            let (model, train, test) = mlp(folder)?;
            graddot(&model, &train, &test, &settings)?
        }
        "ekfac-decoder" => {
            let (model, train, test) = decoder(folder)?;
            ekfac(&model, &train, &test, &settings)?
        }
        "lissa-mlp" => solve(folder, &settings, tight_lissa())?,
        "cg-mlp" => solve(folder, &settings, tight_conjugate_gradients())?,
        "arnoldi-mlp" => solve(folder, &settings, krylov(17, false))?,
        "arnoldi-complement-mlp" => solve(folder, &settings, krylov(30, true))?,
        other => return Err(format!("unknown task {other}").into()),
    };
    let shape = vec![
        line["train"].as_u64().unwrap_or(0) as usize,
        line["test"].as_u64().unwrap_or(0) as usize,
    ];
    let mut artifact = Artifact::new("products", 1);
    artifact.tensors.insert(
        "products".into(),
        Tensor::F32 {
            shape,
            values: found.products,
        },
    );
    std::fs::write(out, artifact.to_bytes()?)?;
    line["task"] = json!(task);
    println!("{line}");
    Ok(())
}

/// Resident memory now and its peak, MiB; the peak is set back to what is resident.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> f64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) / 1024.0
    };
    let values = (field("VmRSS:"), field("VmHWM:"));
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    values
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, f64, f64) {
    memory();
    let (before, _) = memory();
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    (result, seconds, memory().1 - before)
}

fn graddot<M: Model>(
    model: &M,
    train: &[M::Example],
    test: &[M::Example],
    settings: &GradientSettings,
) -> Result<(Value, InnerProducts), Failure> {
    let products = || {
        inner_products(
            model,
            train,
            test,
            &Metric::Identity,
            Wanted::default(),
            settings,
            &NoProgress,
        )
    };
    let (found, seconds, peak) = measured(products);
    let (again, second, _) = measured(products);
    let (found, again) = (found?, again?);
    assert_eq!(found, again);
    let line = json!({"train": train.len(), "test": test.len(), "seconds": seconds.min(second),
        "first_seconds": seconds, "peak_mib": peak});
    Ok((line, found))
}

fn ekfac<M: Model>(
    model: &M,
    train: &[M::Example],
    test: &[M::Example],
    settings: &GradientSettings,
) -> Result<(Value, InnerProducts), Failure> {
    let weights = vec![1.0 / train.len() as f64; train.len()];
    let (factors, fit_seconds, fit_peak) = measured(|| {
        let labels = Labels::Sampled { seed: 0, draws: 1 };
        let kind = FactorKind::Ekfac;
        fit_factors(model, train, &weights, kind, labels, settings, &NoProgress)
    });
    let inverse = factors?.inverse(Damping::Relative(0.1))?;
    let (found, seconds, peak) = measured(|| {
        let wanted = Wanted::default();
        inner_products(model, train, test, &inverse, wanted, settings, &NoProgress)
    });
    let line = json!({"train": train.len(), "test": test.len(), "factor_seconds": fit_seconds,
        "score_seconds": seconds, "seconds": fit_seconds + seconds, "peak_mib": fit_peak.max(peak)});
    Ok((line, found?))
}

fn krylov(iterations: usize, complement: bool) -> Solver {
    Solver::Arnoldi(Arnoldi {
        iterations,
        rank: iterations,
        complement,
    })
}

fn tight_lissa() -> Solver {
    Solver::Lissa(LissaSettings {
        depth: 200,
        repeats: 1,
        batch_size: None,
        scale: None,
        deflation: true,
        tolerance: 3e-6,
    })
}

fn tight_conjugate_gradients() -> Solver {
    Solver::ConjugateGradients(ConjugateGradientSettings {
        tolerance: 1e-6,
        iterations: 100,
    })
}

/// `(H + I) x = g_j` for the first 100 test examples, `H` the Hessian of the mean loss of the
/// first 500 training examples.
fn solve(
    folder: &Path,
    settings: &GradientSettings,
    solver: Solver,
) -> Result<(Value, InnerProducts), Failure> {
    let (model, train, test) = mlp(folder)?;
    let (train, test) = (&train[..500], &test[..100]);
    let keys = |count: usize| (0..count).map(|k| k.to_string()).collect();
    let axes = Axes {
        train_keys: keys(train.len()),
        test_keys: keys(test.len()),
    };
    let of = Attributed {
        model: &model,
        train,
        test,
        axes: &axes,
    };
    let gradients = GradientParams::new(1.0)
        .threads(settings.threads)
        .batch_size(500);
    let mut params = HifParams::new(gradients, solver);
    params.curvature = Curved::Hessian;
    params.damping = DampingParam::Absolute(1.0);
    let method = Hif::new(params)?;
    let exposures = vec![1.0 / train.len() as f64; train.len()];
    let (scores, seconds, peak) =
        measured(|| method.scores(&of, &exposures, 1, false, &NoProgress));
    let scores = scores?;
    let line = json!({"train": train.len(), "test": test.len(), "seconds": seconds,
        "peak_mib": peak, "solver": scores.provenance["solver"]});
    let found = InnerProducts {
        products: scores.values,
        ..InnerProducts::default()
    };
    Ok((line, found))
}

type Decoder = (Transformer, Vec<TokenizedExample>, Vec<TokenizedExample>);

fn decoder(folder: &Path) -> Result<Decoder, Failure> {
    let bytes = std::fs::read(folder.join("decoder.safetensors"))?;
    let weights = Weights::from_artifact(&Artifact::from_bytes(&bytes)?)?;
    let read = |name: &str| -> Result<Vec<TokenizedExample>, Failure> {
        let text = std::fs::read_to_string(folder.join(format!("decoder_{name}.json")))?;
        let rows: Vec<Value> = serde_json::from_str(&text)?;
        rows.into_iter()
            .map(|row| {
                Ok(TokenizedExample {
                    tokens: serde_json::from_value(row["tokens"].clone())?,
                    answer_start: serde_json::from_value(row["answer_start"].clone())?,
                })
            })
            .collect()
    };
    let model = Transformer::open(&weights, Device::Cpu)?;
    Ok((model, read("train")?, read("test")?))
}

fn mlp(folder: &Path) -> Result<(Mlp, Vec<DenseExample>, Vec<DenseExample>), Failure> {
    let read = |name: &str| -> Result<Artifact, Failure> {
        Ok(Artifact::from_bytes(&std::fs::read(folder.join(name))?)?)
    };
    let weights = read("mlp.safetensors")?;
    let (mut sizes, mut values) = (Vec::new(), Vec::new());
    let mut layer = 0;
    while let Some(Tensor::F32 { shape, values: w }) =
        weights.tensors.get(&format!("layers.{layer}.weight"))
    {
        if sizes.is_empty() {
            sizes.push(shape[1]);
        }
        sizes.push(shape[0]);
        values.extend(w.iter().map(|&v| f64::from(v)));
        let bias = weights.f32s(&format!("layers.{layer}.bias"), &[shape[0]])?;
        values.extend(bias.iter().map(|&v| f64::from(v)));
        layer += 1;
    }
    let kind = tch::Kind::Float;
    let model = Mlp::new(
        &sizes,
        Activation::Relu,
        Prediction::Classes,
        &values,
        kind,
        tch::Device::Cpu,
    )?;
    let examples = |name: &str| -> Result<Vec<DenseExample>, Failure> {
        let data = read(&format!("mlp_{name}.safetensors"))?;
        let (Some(Tensor::F32 { shape, values }), Some(Tensor::U32 { values: labels, .. })) =
            (data.tensors.get("inputs"), data.tensors.get("labels"))
        else {
            return Err("inputs f32 and labels u32 are expected".into());
        };
        let rows = values.chunks_exact(shape[1]).zip(labels);
        let example = |(row, &label): (&[f32], &u32)| DenseExample {
            features: row.iter().map(|&v| f64::from(v)).collect(),
            target: Target::Class(label),
        };
        Ok(rows.map(example).collect())
    };
    Ok((model, examples("train")?, examples("test")?))
}
