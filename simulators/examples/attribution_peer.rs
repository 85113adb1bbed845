//! Our side of `benches/peers/attribution`: times scores on the models and data that the peers get.
//!
//! `attribution_peer TASK FOLDER THREADS OUT [MEMORY_MIB [TIMES [rank:R | project:K]]]` with TASK one
//! of `graddot-decoder`, `graddot-mlp`, `ekfac-decoder`; `lissa-mlp`, `arnoldi-mlp`,
//! `arnoldi-complement-mlp`, `cg-mlp`: the linear system of `reference.py`. MEMORY_MIB is the memory
//! limit (default 1024), TIMES repeats the training examples (default 1). Writes the products,
//! `[train × test]`, as safetensors to OUT and prints one line of JSON.

use serde_json::{Value, json};
use simfluence_core::{Artifact, NoProgress, Tensor};
use simfluence_models::{
    Activation, Approximation, Damping, DenseExample, Device, FactorKind, GradientSettings,
    InnerProducts, Labels, Metric, Mlp, Model, Network, Prediction, Target, TokenizedExample,
    Wanted, Weights, fit_factors, inner_products, per_example_gradients,
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
    let [task, folder, threads, out, more @ ..] = &arguments[..] else {
        return Err(
            "usage: attribution_peer TASK FOLDER THREADS OUT [MEMORY_MIB [TIMES [rank:R | project:K]]]"
                .into(),
        );
    };
    let folder = Path::new(folder);
    let number = |k: usize, default: usize| more.get(k).map_or(Ok(default), |n| n.parse());
    let settings = GradientSettings {
        threads: threads.parse()?,
        memory: number(0, 1024)? << 20,
        approximation: approximation(more.get(2))?,
        ..GradientSettings::default()
    };
    let times = number(1, 1)?;
    let (mut line, found) = match task.as_str() {
        "graddot-decoder" => {
            let (model, train, test) = decoder(folder)?;
            let train = [&train[..]].repeat(times).concat();
            graddot(&model, &train, &test, &settings)?
        }
        "graddot-mlp" => {
            let (model, train, test) = mlp(folder)?;
            let train = [&train[..]].repeat(times).concat();
            graddot(&model, &train, &test, &settings)?
        }
        "ekfac-decoder" => {
            let (model, train, test) = decoder(folder)?;
            let train = [&train[..]].repeat(times).concat();
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

fn approximation(text: Option<&String>) -> Result<Approximation, Failure> {
    let Some(text) = text else {
        return Ok(Approximation::Exact);
    };
    match text.split_once(':') {
        Some(("rank", rank)) => Ok(Approximation::LowRank {
            rank: rank.parse()?,
            seed: 0,
        }),
        Some(("project", dimensions)) => Ok(Approximation::Projection {
            dimensions: dimensions.parse()?,
            seed: 0,
        }),
        _ => Err(format!("expected rank:R or project:K, got {text}").into()),
    }
}

/// Processor time of all threads so far, seconds.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time in hundredths of a second; the name in parentheses may have spaces.
    let fields = text.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = (fields.split_whitespace().skip(11).take(2))
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
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

/// Wall-clock and processor seconds, and peak memory above the start in MiB.
struct Cost {
    seconds: f64,
    processor: f64,
    peak: f64,
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    memory();
    let (before, _) = memory();
    let (start, processor) = (Instant::now(), processor_seconds());
    let result = work();
    let cost = Cost {
        seconds: start.elapsed().as_secs_f64(),
        processor: processor_seconds() - processor,
        peak: memory().1 - before,
    };
    (result, cost)
}

/// Lets LibTorch start its threads and libraries.
fn warm_up<M: Model>(model: &M, examples: &[M::Example]) -> Result<(), Failure> {
    let _ = per_example_gradients(model, &examples[..4])?;
    Ok(())
}

fn graddot<M: Model>(
    model: &M,
    train: &[M::Example],
    test: &[M::Example],
    settings: &GradientSettings,
) -> Result<(Value, InnerProducts), Failure> {
    warm_up(model, train)?;
    let (metric, wanted) = (Metric::Identity, Wanted::default());
    let (found, cost) =
        measured(|| inner_products(model, train, test, &metric, wanted, settings, &NoProgress));
    let line = json!({"train": train.len(), "test": test.len(), "seconds": cost.seconds,
        "processor_seconds": cost.processor, "peak_mib": cost.peak});
    Ok((line, found?))
}

fn ekfac<M: Model>(
    model: &M,
    train: &[M::Example],
    test: &[M::Example],
    settings: &GradientSettings,
) -> Result<(Value, InnerProducts), Failure> {
    warm_up(model, train)?;
    let weights = vec![1.0 / train.len() as f64; train.len()];
    let (factors, fit) = measured(|| {
        let labels = Labels::Sampled { seed: 0, draws: 1 };
        let kind = FactorKind::Ekfac;
        fit_factors(model, train, &weights, kind, labels, settings, &NoProgress)
    });
    let inverse = factors?.inverse(Damping::Relative(0.1))?;
    let (found, score) = measured(|| {
        let wanted = Wanted::default();
        inner_products(model, train, test, &inverse, wanted, settings, &NoProgress)
    });
    let line = json!({"train": train.len(), "test": test.len(), "factor_seconds": fit.seconds,
        "score_seconds": score.seconds, "seconds": fit.seconds + score.seconds,
        "processor_seconds": fit.processor + score.processor,
        "factor_peak_mib": fit.peak, "peak_mib": fit.peak.max(score.peak)});
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
    warm_up(&model, train)?;
    let (scores, cost) = measured(|| method.scores(&of, &exposures, 1, false, &NoProgress));
    let scores = scores?;
    let line = json!({"train": train.len(), "test": test.len(), "seconds": cost.seconds,
        "processor_seconds": cost.processor, "peak_mib": cost.peak,
        "solver": scores.provenance["solver"]});
    let found = InnerProducts {
        products: scores.values,
        ..InnerProducts::default()
    };
    Ok((line, found))
}

type Decoder = (Network, Vec<TokenizedExample>, Vec<TokenizedExample>);

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
                    ..TokenizedExample::default()
                })
            })
            .collect()
    };
    let model = Network::open(&weights, Device::Cpu)?;
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
