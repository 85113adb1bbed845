//! Fit and simulation at the sizes that the project compares with its peers (`benches/peers`), from
//! recorded runs to a simulator and from a curriculum to a trajectory.

use criterion::{Criterion, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence_core::{
    Curriculum, Fit, NoProgress, Run, RunInfo, RunStatus, Simulator, Step, Trajectory,
};
use simfluence_simulators::linearised::{FitLinearised, TangentKernel};
use simfluence_simulators::optimizer_dynamics::OptimizerDynamicsParams;
use simfluence_simulators::simfluence::{
    Lambda, Penalty, PenaltySearch, SimfluenceParams, SimfluenceSimulator,
};
use std::hint::black_box;

/// `runs` runs of `steps` steps: losses that fall towards a floor, at the pace of the batch.
fn runs(n: usize, m: usize, runs: usize, steps: usize, batch: usize) -> Vec<Run> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pace: Vec<f32> = (0..n * m).map(|_| rng.random_range(0.0..0.1)).collect();
    (0..runs)
        .map(|r| {
            let mut losses: Vec<f32> = (0..m).map(|_| rng.random_range(2.0..5.0)).collect();
            let mut curriculum = Vec::with_capacity(steps);
            for t in 0..steps {
                let members: Vec<u32> = (0..batch).map(|_| rng.random_range(0..n as u32)).collect();
                for j in 0..m {
                    let push: f32 = members.iter().map(|&i| pace[i as usize * m + j]).sum();
                    let last = losses[t * m + j];
                    let noise = rng.random_range(-0.03..0.03);
                    losses.push(last - push / batch as f32 * (last - 0.3) + noise);
                }
                curriculum.push(Step::new(members, Some(1e-3)));
            }
            Run {
                id: format!("run-{r:03}"),
                info: RunInfo::new(RunStatus::Complete),
                curriculum: Curriculum::new(curriculum, n).expect("ids are in range"),
                trajectory: Trajectory::new((0..=steps as u32).collect(), m, losses)
                    .expect("a loss per step and test example"),
                batch_losses: vec![None; steps],
            }
        })
        .collect()
}

fn fit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fit");
    group.sample_size(10);
    let fixed = Lambda::Fixed(Penalty { a: 1.0, b: 1.0 });
    for (n, m, count, steps, batch) in [(200, 100, 22, 96, 4), (2000, 200, 160, 100, 8)] {
        let recorded = runs(n, m, count, steps, batch);
        let recorded: Vec<&Run> = recorded.iter().collect();
        let params = SimfluenceParams::new()
            .lambda(fixed.clone())
            .check()
            .expect("valid");
        let rows = count * steps;
        group.bench_function(format!("linear_n{n}_m{m}_rows{rows}_batch{batch}"), |b| {
            b.iter(|| {
                params
                    .fit(black_box(&recorded), n, &NoProgress)
                    .expect("a fit")
            });
        });
        if n == 200 {
            let lambda = Lambda::LeaveRunOut(PenaltySearch::default());
            let params = SimfluenceParams::new()
                .lambda(lambda)
                .check()
                .expect("valid");
            group.bench_function(
                format!("leave_run_out_n{n}_m{m}_rows{rows}_batch{batch}"),
                |b| {
                    b.iter(|| {
                        params
                            .fit(black_box(&recorded), n, &NoProgress)
                            .expect("a fit")
                    });
                },
            );
        }
    }
    group.finish();
}

fn fitted(run: &Run, n: usize) -> SimfluenceSimulator {
    let params = SimfluenceParams::new()
        .lambda(Lambda::Fixed(Penalty { a: 1.0, b: 1.0 }))
        .check()
        .expect("valid");
    params.fit(&[run], n, &NoProgress).expect("a fit")
}

fn simulate(criterion: &mut Criterion) {
    let (n, m, steps, batch) = (2000, 1000, 1000, 8);
    let recorded = runs(n, m, 1, steps, batch);
    let simulator = fitted(&recorded[0], n);
    let initial = recorded[0].trajectory.initial().expect("complete");
    let name = format!("simulate/linear_n{n}_m{m}_steps{steps}_batch{batch}");
    criterion.bench_function(&name, |b| {
        b.iter(|| {
            simulator
                .simulate(black_box(&recorded[0].curriculum), initial)
                .expect("fits")
        });
    });
}

/// A hundred edits of one run, each with one step replaced, at once and one by one.
fn what_ifs(criterion: &mut Criterion) {
    let (n, m, steps, batch, count) = (2000, 200, 500, 8, 100);
    let recorded = runs(n, m, 1, steps, batch);
    let simulator = fitted(&recorded[0], n);
    let initial = recorded[0].trajectory.initial().expect("complete");
    let edits: Vec<Curriculum> = (0..count)
        .map(|edit| {
            let mut edited = recorded[0].curriculum.steps().to_vec();
            edited[edit * steps / count] = Step::new(vec![(edit * 19 % n) as u32], Some(1e-3));
            Curriculum::new(edited, n).expect("ids are in range")
        })
        .collect();
    let edits: Vec<&Curriculum> = edits.iter().collect();
    let mut group = criterion.benchmark_group("what_ifs");
    group.sample_size(10);
    let size = format!("n{n}_m{m}_steps{steps}_batch{batch}_count{count}");
    group.bench_function(format!("at_once_{size}"), |b| {
        b.iter(|| simulator.simulate_many(black_box(&edits), initial));
    });
    group.bench_function(format!("one_by_one_{size}"), |b| {
        b.iter(|| {
            let each = black_box(&edits).iter();
            each.map(|edit| simulator.simulate(edit, initial))
                .collect::<Result<Vec<_>, _>>()
        });
    });
    group.finish();
}

fn optimizer_dynamics(criterion: &mut Criterion) {
    let (n, m, count, steps, batch) = (200, 100, 22, 96, 4);
    let recorded = runs(n, m, count, steps, batch);
    let recorded: Vec<&Run> = recorded.iter().collect();
    let datasets = (0..n as u32).map(|i| i % 4).collect();
    let params = OptimizerDynamicsParams::new(datasets)
        .check()
        .expect("valid");
    let mut group = criterion.benchmark_group("optimizer_dynamics");
    group.sample_size(10);
    let size = format!("n{n}_m{m}_runs{count}_steps{steps}_batch{batch}");
    group.bench_function(format!("fit_{size}"), |b| {
        b.iter(|| {
            params
                .fit(black_box(&recorded), n, &NoProgress)
                .expect("a fit")
        });
    });
    let simulator = params.fit(&recorded, n, &NoProgress).expect("a fit");
    let initial = recorded[0].trajectory.initial().expect("complete");
    group.bench_function(format!("simulate_m{m}_steps{steps}_batch{batch}"), |b| {
        b.iter(|| {
            simulator
                .simulate(black_box(&recorded[0].curriculum), initial)
                .expect("fits")
        });
    });
    group.finish();
}

/// A kernel of random features, `k` classes.
fn tangent_kernel(n: usize, m: usize, k: usize) -> TangentKernel {
    const FEATURES: usize = 20;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let outputs = (n + m) * k;
    let features: Vec<[f32; FEATURES]> = (0..outputs)
        .map(|_| std::array::from_fn(|_| rng.random_range(-1.0..1.0)))
        .collect();
    let entry = |a: usize, b: usize| -> f32 {
        let pairs = features[a].iter().zip(&features[b]);
        pairs.map(|(x, y)| x * y).sum()
    };
    let table = |columns: usize| -> Vec<f32> {
        let rows = (0..n * k).flat_map(|a| (0..columns).map(move |b| (a, b)));
        rows.map(|(a, b)| entry(a, b)).collect()
    };
    TangentKernel {
        train_count: n,
        test_count: m,
        choices: vec![k],
        others: vec![true],
        paths: (0..k as u32).map(|class| vec![class]).collect(),
        answers: (0..n + m).map(|e| (e % k) as u32).collect(),
        log_odds: vec![-4.0; outputs],
        updates: table(outputs),
        squares: table(n * k),
    }
}

/// The linearised model at the size of the what-if run sets.
fn linearised(criterion: &mut Criterion) {
    let (n, m, k, count, steps, batch) = (200, 100, 4, 40, 96, 4);
    let kernel = tangent_kernel(n, m, k);
    // Curves of anything will do, but they start where the model does.
    let start = 4.0 + (1.0 + k as f32 * (-4.0_f32).exp()).ln();
    let mut recorded = runs(n, m, count, steps, batch);
    for run in &mut recorded {
        let mut losses = run.trajectory.values().to_vec();
        losses[..m].fill(start);
        let measured = run.trajectory.steps().to_vec();
        run.trajectory = Trajectory::new(measured, m, losses).expect("as before");
    }
    let recorded: Vec<&Run> = recorded.iter().collect();
    let fit = FitLinearised { kernel };
    let mut group = criterion.benchmark_group("linearised");
    group.sample_size(10);
    let size = format!("n{n}_m{m}_classes{k}_runs{count}_steps{steps}_batch{batch}");
    group.bench_function(format!("fit_{size}"), |b| {
        b.iter(|| {
            fit.fit(black_box(&recorded), n, &NoProgress)
                .expect("a fit")
        });
    });
    let simulator = fit.fit(&recorded, n, &NoProgress).expect("a fit");
    let initial = recorded[0].trajectory.initial().expect("complete");
    group.bench_function(format!("simulate_m{m}_steps{steps}_batch{batch}"), |b| {
        b.iter(|| {
            simulator
                .simulate(black_box(&recorded[0].curriculum), initial)
                .expect("fits")
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    fit,
    simulate,
    what_ifs,
    optimizer_dynamics,
    linearised
);
criterion_main!(benches);
