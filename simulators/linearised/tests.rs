//! Linear models train as their linearisation says, to rounding; the two numbers come back.

use super::*;
use simfluence_core::{
    Curriculum, Fit, NoProgress, Optimizer, Run, RunInfo, RunStatus, Simulator, Step, Trajectory,
};

const TRAIN: usize = 6;
const TEST: usize = 4;
const CLASSES: usize = 3;
const FEATURES: usize = 5;

/// Softmax regression `z = W x` on made-up examples; with `others` there is one more output, whose
/// weights train as well.
struct Regression {
    x: Vec<[f64; FEATURES]>,
    answers: Vec<u32>,
    weights: Vec<[f64; FEATURES]>,
    others: bool,
}

impl Regression {
    fn new(others: bool) -> Self {
        let outputs = CLASSES + usize::from(others);
        let wave = |k: usize| ((k * 37 % 101) as f64 * 0.7).sin();
        let row = |k: usize| std::array::from_fn(|f| wave(k * FEATURES + f));
        Self {
            x: (0..TRAIN + TEST).map(row).collect(),
            answers: (0..TRAIN + TEST)
                .map(|e| (e * 5 % CLASSES) as u32)
                .collect(),
            weights: (40..40 + outputs).map(row).collect(),
            others,
        }
    }

    fn logits(&self, example: usize) -> Vec<f64> {
        let dot = |w: &[f64; FEATURES]| w.iter().zip(&self.x[example]).map(|(w, x)| w * x).sum();
        self.weights.iter().map(dot).collect()
    }

    fn probabilities(&self, example: usize) -> Vec<f64> {
        let powers: Vec<f64> = self.logits(example).iter().map(|z| z.exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|p| p / sum).collect()
    }

    fn losses(&self) -> Vec<f32> {
        let loss = |e| -self.probabilities(e)[self.answers[e] as usize].ln() as f32;
        (TRAIN..TRAIN + TEST).map(loss).collect()
    }

    fn kernel(&self, squares: bool) -> TangentKernel {
        let examples = TRAIN + TEST;
        let log_odds = (0..examples).flat_map(|e| {
            let z = self.logits(e);
            let least = if self.others { z[CLASSES] } else { 0.0 };
            (0..CLASSES).map(move |c| (z[c] - least) as f32)
        });
        let entry = |a: usize, b: usize| {
            let (x, y) = (&self.x[a / CLASSES], &self.x[b / CLASSES]);
            let same = f64::from(u8::from(a % CLASSES == b % CLASSES));
            let through_others = f64::from(u8::from(self.others));
            let dot: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            ((same + through_others) * dot) as f32
        };
        let table = |columns: usize| -> Vec<f32> {
            (0..TRAIN * CLASSES)
                .flat_map(|a| (0..columns).map(move |b| entry(a, b)))
                .collect()
        };
        TangentKernel {
            train_count: TRAIN,
            test_count: TEST,
            classes: CLASSES,
            others: self.others,
            answers: self.answers.clone(),
            log_odds: log_odds.collect(),
            updates: table(examples * CLASSES),
            squares: if squares {
                table(TRAIN * CLASSES)
            } else {
                Vec::new()
            },
        }
    }

    /// Trains by SGD with momentum; the losses after every step.
    fn train(mut self, curriculum: &Curriculum, momentum: f64) -> Vec<f32> {
        let mut losses = self.losses();
        let mut velocity = vec![[0.0; FEATURES]; self.weights.len()];
        for step in curriculum.steps() {
            let mut gradient = vec![[0.0; FEATURES]; self.weights.len()];
            for (example, share) in step.exposures() {
                let example = example as usize;
                for (c, p) in self.probabilities(example).iter().enumerate() {
                    let target = f64::from(u8::from(self.answers[example] as usize == c));
                    for (g, x) in gradient[c].iter_mut().zip(&self.x[example]) {
                        *g += share * (p - target) * x;
                    }
                }
            }
            let rate = f64::from(step.learning_rate.unwrap());
            let rows = self.weights.iter_mut().zip(&mut velocity).zip(&gradient);
            for ((weights, velocity), gradient) in rows {
                for f in 0..FEATURES {
                    velocity[f] = momentum * velocity[f] + gradient[f];
                    weights[f] -= rate * velocity[f];
                }
            }
            losses.extend(self.losses());
        }
        losses
    }
}

fn curriculum(seed: usize, rate: f32) -> Curriculum {
    let steps = (0..20).map(|t| {
        let batch = vec![
            ((t * 7 + seed) % TRAIN) as u32,
            ((t * t + seed) % TRAIN) as u32,
        ];
        Step::new(batch, Some(rate * (1.0 - t as f32 / 25.0)))
    });
    Curriculum::new(steps.collect(), TRAIN).unwrap()
}

fn run(
    seed: usize,
    rate: f32,
    optimizer: Optimizer,
    losses: impl Fn(&Curriculum) -> Vec<f32>,
) -> Run {
    let curriculum = curriculum(seed, rate);
    let steps = (0..=curriculum.len() as u32).collect();
    let mut info = RunInfo::new(RunStatus::Complete);
    info.optimizer = Some(optimizer);
    Run {
        id: format!("run-{seed}"),
        info,
        trajectory: Trajectory::new(steps, TEST, losses(&curriculum)).unwrap(),
        batch_losses: vec![None; curriculum.len()],
        curriculum,
    }
}

fn sgd(momentum: f64) -> Optimizer {
    Optimizer::Sgd {
        momentum,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    }
}

fn fitted(kernel: TangentKernel, runs: &[Run]) -> Result<LinearisedSimulator, LinearisedError> {
    FitLinearised { kernel }.fit(&runs.iter().collect::<Vec<_>>(), TRAIN, &NoProgress)
}

#[test]
fn a_linear_model_is_trained_exactly() {
    for (others, momentum) in [(false, 0.0), (false, 0.9), (true, 0.9)] {
        let train = |c: &Curriculum| Regression::new(others).train(c, momentum);
        let runs: Vec<Run> = [0.1, 0.2, 0.4]
            .iter()
            .enumerate()
            .map(|(seed, &rate)| run(seed, rate, sgd(momentum), train))
            .collect();
        let simulator = fitted(Regression::new(others).kernel(false), &runs).unwrap();
        let report = simulator.report();
        assert_eq!((report.gain, report.rate_exponent), (1.0, 1.0));
        assert!(report.mse < 1e-10, "{}", report.mse);
        let unseen = run(11, 0.3, sgd(momentum), train);
        let initial = unseen.trajectory.at_step(0).unwrap();
        let simulated = simulator.simulate(&unseen.curriculum, initial).unwrap();
        let moved = (unseen
            .trajectory
            .values()
            .iter()
            .zip(initial.iter().cycle()))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
        assert!(moved > 0.3, "{moved}");
        for (real, simulated) in unseen.trajectory.values().iter().zip(simulated.values()) {
            assert!((real - simulated).abs() < 2e-5, "{real} {simulated}");
        }
    }
}

#[test]
fn the_first_step_of_an_optimiser_that_normalises_is_as_long_as_its_rate() {
    let rmsprop = Optimizer::Rmsprop {
        alpha: 0.99,
        eps: 1e-8,
        momentum: 0.5,
        weight_decay: 0.0,
    };
    // RMSProp's average begins with a hundredth of the first square and is not corrected.
    for (optimizer, expected) in [(Optimizer::default(), 1.0), (rmsprop, 10.0)] {
        let model = Regression::new(true);
        let (kernel, start) = (model.kernel(true), model.losses());
        let flat = |c: &Curriculum| start.repeat(c.len() + 1);
        let simulator = fitted(kernel.clone(), &[run(1, 0.02, optimizer, flat)]).unwrap();
        let (report, rate) = (simulator.report(), 0.01_f32);
        let step = Step::new(vec![2], Some(rate));
        let once = Curriculum::new(vec![step], TRAIN).unwrap();
        let simulated = simulator.simulate(&once, &start).unwrap();
        let residuals: Vec<f64> = (0..CLASSES)
            .map(|c| {
                let target = f64::from(u8::from(model.answers[2] as usize == c));
                model.probabilities(2)[c] - target
            })
            .collect();
        let columns = (TRAIN + TEST) * CLASSES;
        let entry = |c: usize, b: usize| f64::from(kernel.updates[(2 * CLASSES + c) * columns + b]);
        let along = |b: usize| {
            (0..CLASSES)
                .map(|c| residuals[c] * entry(c, b))
                .sum::<f64>()
        };
        let square: f64 = (0..CLASSES)
            .map(|c| residuals[c] * along(2 * CLASSES + c))
            .sum();
        let relative = f64::from(rate) / report.reference_rate;
        let pace = report.gain * report.reference_rate * relative.powf(report.rate_exponent);
        for (test, loss) in simulated.at_step(1).unwrap().iter().enumerate() {
            let of = |c: usize| {
                let place = (TRAIN + test) * CLASSES + c;
                let moved = pace * expected * along(place) / square.sqrt();
                f64::from(kernel.log_odds[place]) - moved
            };
            let sum: f64 = 1.0 + (0..CLASSES).map(|c| of(c).exp()).sum::<f64>();
            let by_hand = sum.ln() - of(model.answers[TRAIN + test] as usize);
            assert!(
                (by_hand - f64::from(*loss)).abs() < 1e-5,
                "{by_hand} {loss}"
            );
        }
    }
}

#[test]
fn gain_and_power_of_the_rate_come_back() {
    let mut kernel = Regression::new(false).kernel(false);
    let train = |c: &Curriculum| Regression::new(false).train(c, 0.9);
    let runs: Vec<Run> = (0..4)
        .map(|seed| run(seed, 0.1 * (1 + seed) as f32, sgd(0.9), train))
        .collect();
    kernel.updates.iter_mut().for_each(|k| *k *= 2.0);
    let simulator = fitted(kernel, &runs).unwrap();
    assert_eq!(simulator.report().gain, 0.5);
    assert_eq!(simulator.report().rate_exponent, 1.0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = || Regression::new(true).kernel(false);
    let train = |c: &Curriculum| Regression::new(true).train(c, 0.0);
    let runs = [run(1, 0.1, sgd(0.0), train)];
    let refused = |kernel: TangentKernel, runs: &[Run]| fitted(kernel, runs).unwrap_err();
    let mut other = kernel();
    other.log_odds.iter_mut().for_each(|u| *u *= 2.0);
    assert!(matches!(
        refused(other, &runs),
        LinearisedError::OtherModel { .. }
    ));
    let mut damaged = kernel();
    damaged.updates[3] = f32::NAN;
    assert_eq!(refused(damaged, &runs), LinearisedError::NotFinite);
    let mut short = kernel();
    short.answers.pop();
    assert!(matches!(
        refused(short, &runs),
        LinearisedError::Size {
            name: "answers",
            got: 9,
            expected: 10
        }
    ));
    let adam = [run(1, 0.1, Optimizer::default(), train)];
    assert_eq!(refused(kernel(), &adam), LinearisedError::NoSquares);
    let mixed = [runs[0].clone(), run(2, 0.1, sgd(0.9), train)];
    assert!(matches!(
        refused(kernel(), &mixed),
        LinearisedError::Optimizers { .. }
    ));
    assert_eq!(
        refused(kernel(), &[]),
        LinearisedError::NoUsableRun { given: 0 }
    );
    let simulator = fitted(kernel(), &runs).unwrap();
    let elsewhere = simulator.simulate(&runs[0].curriculum, &[9.0; TEST]);
    let message = elsewhere.unwrap_err().to_string();
    assert!(message.contains("base model"), "{message}");
}

#[test]
fn the_file_gives_the_same_simulator() {
    let train = |c: &Curriculum| Regression::new(true).train(c, 0.5);
    let runs = [run(1, 0.1, sgd(0.5), train)];
    let simulator = fitted(Regression::new(true).kernel(true), &runs).unwrap();
    let keys = |n: usize| (0..n).map(|i| format!("key-{i}")).collect::<Vec<_>>();
    let artifact = simulator.to_artifact(&keys(TRAIN), &keys(TEST)).unwrap();
    let bytes = artifact.to_bytes().unwrap();
    let read = simfluence_core::Artifact::from_bytes(&bytes).unwrap();
    assert_eq!(
        LinearisedSimulator::from_artifact(&read).unwrap(),
        simulator
    );
    assert_eq!(crate::load(&read).unwrap().name(), "linearised");
    assert!(simulator.to_artifact(&keys(TRAIN), &keys(TRAIN)).is_err());
}
