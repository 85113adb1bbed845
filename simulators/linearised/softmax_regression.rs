//! A model that is linear in its parameters, really trained: what its linearisation has to say to
//! rounding.

use super::TangentKernel;
use simfluence_core::{Curriculum, Optimizer, Run, RunInfo, RunStatus, Step, Trajectory};

pub(crate) const TRAIN: usize = 6;
pub(crate) const TEST: usize = 4;
pub(crate) const CLASSES: usize = 3;
const FEATURES: usize = 5;

/// Softmax regression `z = W x` on made-up examples; with `others` there is one more output, whose
/// weights train as well.
pub(crate) struct Regression {
    x: Vec<[f64; FEATURES]>,
    pub(crate) answers: Vec<u32>,
    weights: Vec<[f64; FEATURES]>,
    others: bool,
}

impl Regression {
    pub(crate) fn new(others: bool) -> Self {
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

    pub(crate) fn probabilities(&self, example: usize) -> Vec<f64> {
        let powers: Vec<f64> = self.logits(example).iter().map(|z| z.exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|p| p / sum).collect()
    }

    pub(crate) fn losses(&self) -> Vec<f32> {
        let loss = |e| -self.probabilities(e)[self.answers[e] as usize].ln() as f32;
        (TRAIN..TRAIN + TEST).map(loss).collect()
    }

    pub(crate) fn kernel(&self, squares: bool) -> TangentKernel {
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
            choices: vec![CLASSES],
            others: vec![self.others],
            paths: (0..CLASSES as u32).map(|class| vec![class]).collect(),
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
    pub(crate) fn train(mut self, curriculum: &Curriculum, momentum: f64) -> Vec<f32> {
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

pub(crate) fn curriculum(seed: usize, rate: f32) -> Curriculum {
    let steps = (0..20).map(|t| {
        let batch = vec![
            ((t * 7 + seed) % TRAIN) as u32,
            ((t * t + seed) % TRAIN) as u32,
        ];
        Step::new(batch, Some(rate * (1.0 - t as f32 / 25.0)))
    });
    Curriculum::new(steps.collect(), TRAIN).unwrap()
}

pub(crate) fn run(
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

pub(crate) fn sgd(momentum: f64) -> Optimizer {
    Optimizer::Sgd {
        momentum,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    }
}
