//! The tangent kernel of a model.

use super::LinearisedError;
use super::kernel::{CLASSES, TangentKernel};
use crate::memory::SecondMoment;
use simfluence_core::Progress;
use simfluence_models::{
    DenseExample, GradientError, GradientSettings, Metric, Model, Target, TokenizedExample, Wanted,
    inner_products, per_example_gradients,
};
use tch::{Kind, Tensor};

/// What is left for outputs that are no class, in the mean over the examples, below which it
/// counts as nothing.
const OTHERS: f64 = 0.01;
/// The least that may be left of one example.
const LEAST: f64 = 1e-3;
/// Share of the mean over the parameters that is added to their mean square gradients.
const FLOOR: f64 = 1e-3;
/// Examples whose gradients or losses are formed at once.
const ROWS_AT_ONCE: usize = 32;

/// An example with one target, which can be made one of another class.
pub trait Classified: Clone {
    /// Its class; `None` where it has other targets than one class.
    fn class(&self) -> Option<u32>;
    /// The same with another class.
    #[must_use]
    fn with_class(&self, class: u32) -> Self;
}

impl Classified for TokenizedExample {
    fn class(&self) -> Option<u32> {
        let is_one = self.answer_start + 1 == self.tokens.len() && self.unscored.is_empty();
        is_one.then(|| self.tokens.last().copied()).flatten()
    }

    fn with_class(&self, class: u32) -> Self {
        let mut other = self.clone();
        if let Some(last) = other.tokens.last_mut() {
            *last = class;
        }
        other
    }
}

impl Classified for DenseExample {
    fn class(&self) -> Option<u32> {
        match self.target {
            Target::Class(class) => Some(class),
            Target::Values(_) => None,
        }
    }

    fn with_class(&self, class: u32) -> Self {
        Self {
            target: Target::Class(class),
            ..self.clone()
        }
    }
}

/// The classes in order, and that of each example.
fn classes<E: Classified>(
    train: &[E],
    test: &[E],
) -> Result<(Vec<u32>, Vec<u32>), LinearisedError> {
    let of_example: Vec<u32> = (train.iter().chain(test).enumerate())
        .map(|(place, e)| {
            let (side, id) = match place.checked_sub(train.len()) {
                None => ("training", place),
                Some(id) => ("test", id),
            };
            e.class()
                .ok_or(LinearisedError::SeveralTargets { side, id })
        })
        .collect::<Result<_, _>>()?;
    let mut classes = of_example.clone();
    classes.sort_unstable();
    classes.dedup();
    if !(2..=CLASSES).contains(&classes.len()) {
        return Err(LinearisedError::Classes { got: classes.len() });
    }
    Ok((classes, of_example))
}

impl TangentKernel {
    /// Number of classes among the answers of examples.
    ///
    /// # Errors
    /// Examples of several targets, of one class only or of more than [`CLASSES`].
    pub fn count_classes<E: Classified>(train: &[E], test: &[E]) -> Result<usize, LinearisedError> {
        Ok(classes(train, test)?.0.len())
    }

    /// The kernel of a model at its present parameters, in the metric of an optimiser that
    /// normalises by such a second moment.
    ///
    /// The log-odds `u_c = ln p_c − ln (1 − Σ_a p_a)` have the gradients
    /// `∇u_c = −∇ℓ_c − Σ_a p_a ∇ℓ_a / (1 − Σ_a p_a)`, with `ℓ_c = −ln p_c` the loss that the
    /// example has with class `c` for a target; so that everything comes from inner products of
    /// gradients of losses, of `n k` examples with `(n + m) k`.
    ///
    /// # Errors
    /// Examples of several targets, of one class only or of more than [`CLASSES`]; an example that
    /// the model cannot read.
    pub fn of_model<M: Model>(
        model: &M,
        train: &[M::Example],
        test: &[M::Example],
        second: SecondMoment,
        settings: &GradientSettings,
        progress: &dyn Progress,
    ) -> Result<Self, LinearisedError>
    where
        M::Example: Classified,
    {
        let (classes, of_example) = classes(train, test)?;
        let k = classes.len();
        let place = |class: &u32| classes.binary_search(class).expect("it is among them") as u32;
        let candidates: Vec<M::Example> = (train.iter().chain(test))
            .flat_map(|e| classes.iter().map(|&class| e.with_class(class)))
            .collect();
        simfluence_models::check_all(model, &candidates)
            .map_err(|(example, problem)| GradientError::Example { example, problem })?;
        let losses = losses(model, &candidates);
        let left: Vec<f64> = (losses.chunks_exact(k))
            .map(|of| 1.0 - of.iter().map(|l| (-l).exp()).sum::<f64>())
            .collect();
        let others = left.iter().sum::<f64>() / left.len() as f64 > OTHERS;
        let outputs = Outputs {
            losses: &losses,
            left: others.then_some(&left),
            classes: k,
        };
        let rows = train.len() * k;
        let mut kernel = Self {
            train_count: train.len(),
            test_count: test.len(),
            classes: k,
            others,
            answers: of_example.iter().map(place).collect(),
            log_odds: outputs.log_odds(),
            updates: Vec::new(),
            squares: Vec::new(),
        };
        let products = |metric: &Metric, columns: &[M::Example]| {
            let found = inner_products(
                model,
                &candidates[..rows],
                columns,
                metric,
                Wanted::default(),
                settings,
                progress,
            )?;
            let mut products = found.products;
            outputs.change_products(&mut products, columns.len());
            Ok::<_, LinearisedError>(products)
        };
        if second == SecondMoment::None {
            kernel.updates = products(&Metric::Identity, &candidates)?;
        } else {
            let size: usize = model.parameters().iter().map(Tensor::numel).sum();
            let squares = mean_squares(model, train)?;
            let floor = FLOOR * squares.sum(Kind::Double).double_value(&[]) / size as f64;
            let squares = squares + floor;
            kernel.updates = products(&Metric::Diagonal(squares.rsqrt()), &candidates)?;
            kernel.squares =
                products(&Metric::Diagonal(squares.reciprocal()), &candidates[..rows])?;
            for square in &mut kernel.squares {
                *square /= size as f32;
            }
        }
        kernel.check()?;
        Ok(kernel)
    }
}

/// The losses of examples, in nats.
fn losses<M: Model>(model: &M, examples: &[M::Example]) -> Vec<f64> {
    let of = |examples: &[M::Example]| {
        let members: Vec<&M::Example> = examples.iter().collect();
        let losses = tch::no_grad(|| model.outputs(&model.batch(&members), None).losses());
        let losses = losses.to_kind(Kind::Double).to_device(tch::Device::Cpu);
        Vec::<f64>::try_from(losses).expect("one loss per example")
    };
    examples.chunks(ROWS_AT_ONCE).flat_map(of).collect()
}

/// The mean over the examples of their squared gradients, laid out as the model's flat buffer.
fn mean_squares<M: Model>(model: &M, examples: &[M::Example]) -> Result<Tensor, LinearisedError>
where
    M::Example: Clone,
{
    let mut sum = model.flat().detach().zeros_like();
    for examples in examples.chunks(ROWS_AT_ONCE) {
        let gradients = per_example_gradients(model, examples)?;
        sum += gradients
            .square()
            .sum_dim_intlist([0].as_slice(), false, None);
    }
    Ok(sum / examples.len() as f64)
}

/// The outputs of all examples.
struct Outputs<'a> {
    /// `[examples × classes]`.
    losses: &'a [f64],
    /// The probability that is left for what is no class, of every example; `None`: nothing is.
    left: Option<&'a Vec<f64>>,
    classes: usize,
}

impl Outputs<'_> {
    fn log_odds(&self) -> Vec<f32> {
        let against = |example: usize| self.left.map_or(0.0, |left| left[example].max(LEAST).ln());
        (self.losses.iter().enumerate())
            .map(|(place, loss)| (-loss - against(place / self.classes)) as f32)
            .collect()
    }

    /// Products of gradients of losses `[rows × columns]` → of log-odds; rows and columns are the
    /// first outputs.
    fn change_products(&self, products: &mut [f32], columns: usize) {
        let mut line = vec![0.0; self.classes];
        for row in products.chunks_exact_mut(columns) {
            for (example, of) in row.chunks_exact_mut(self.classes).enumerate() {
                for (l, p) in line.iter_mut().zip(&*of) {
                    *l = f64::from(*p);
                }
                self.change(example, &mut line);
                for (p, l) in of.iter_mut().zip(&line) {
                    *p = *l as f32;
                }
            }
        }
        for (example, rows) in (products.chunks_exact_mut(columns * self.classes)).enumerate() {
            for column in 0..columns {
                for (c, l) in line.iter_mut().enumerate() {
                    *l = f64::from(rows[c * columns + column]);
                }
                self.change(example, &mut line);
                for (c, l) in line.iter().enumerate() {
                    rows[c * columns + column] = *l as f32;
                }
            }
        }
    }

    /// Something linear in `∇ℓ_c` → in `∇u_c`, for all classes of an example.
    fn change(&self, example: usize, of: &mut [f64]) {
        let losses = &self.losses[example * self.classes..][..self.classes];
        let mean: f64 = losses.iter().zip(&*of).map(|(l, x)| (-l).exp() * x).sum();
        let shift = (self.left).map_or(0.0, |left| mean / left[example].max(LEAST));
        of.iter_mut().for_each(|x| *x = -*x - shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linearised::FitLinearised;
    use simfluence_core::{
        Curriculum, Fit, NoProgress, Optimizer, Run, RunInfo, RunStatus, Simulator, Step,
        Trajectory,
    };
    use simfluence_models::{Activation, Mlp, Prediction};

    fn mlp(values: &[f64]) -> Mlp {
        let sizes = [3, 6, 4];
        let device = tch::Device::Cpu;
        let (activation, prediction) = (Activation::Tanh, Prediction::Classes);
        Mlp::new(&sizes, activation, prediction, values, Kind::Double, device).unwrap()
    }

    fn examples(from: usize, count: usize, classes: usize) -> Vec<DenseExample> {
        let example = |k: usize| DenseExample {
            features: (0..3).map(|f| ((k * 3 + f) as f64 * 1.7).sin()).collect(),
            target: Target::Class((k % classes) as u32),
        };
        (from..from + count).map(example).collect()
    }

    /// A step that is short enough is what the linearised model says of it, to first order: the
    /// change that is missed falls like the square of the rate.
    #[test]
    fn a_short_step_of_real_training_is_what_the_kernel_says() {
        let values: Vec<f64> = (0..3 * 6 + 6 + 6 * 4 + 4)
            .map(|k| (k as f64 * 0.9).sin())
            .collect();
        for classes in [3, 4] {
            let (train, test) = (examples(0, 6, classes), examples(20, 5, classes));
            let model = mlp(&values);
            let (settings, none) = (GradientSettings::default(), SecondMoment::None);
            let kernel =
                TangentKernel::of_model(&model, &train, &test, none, &settings, &NoProgress);
            let kernel = kernel.unwrap();
            assert_eq!((kernel.others, kernel.classes), (classes == 3, classes));
            let before = losses(&model, &test);
            let missed = |rate: f64| {
                let gradients = per_example_gradients(&model, &train[1..3]).unwrap();
                let gradient = gradients.mean_dim([0].as_slice(), false, None);
                let stepped = model.flat().detach() - rate * gradient;
                let stepped = Vec::<f64>::try_from(stepped).unwrap();
                let after = losses(&mlp(&unpadded(&model, &stepped)), &test);
                let f32s = |of: &[f64]| of.iter().map(|&l| l as f32).collect::<Vec<_>>();
                let curriculum =
                    Curriculum::new(vec![Step::new(vec![1, 2], Some(rate as f32))], 6).unwrap();
                let mut info = RunInfo::new(RunStatus::Complete);
                info.optimizer = Some(Optimizer::Sgd {
                    momentum: 0.0,
                    dampening: 0.0,
                    nesterov: false,
                    weight_decay: 0.0,
                });
                let recorded = [f32s(&before), f32s(&after)].concat();
                let run = Run {
                    id: "run".into(),
                    info,
                    trajectory: Trajectory::new(vec![0, 1], 5, recorded).unwrap(),
                    batch_losses: vec![None],
                    curriculum,
                };
                let fit = FitLinearised {
                    kernel: kernel.clone(),
                };
                let simulator = fit.fit(&[&run], 6, &NoProgress).unwrap();
                assert_eq!(simulator.report().gain, 1.0);
                let simulated = simulator.simulate(&run.curriculum, &f32s(&before)).unwrap();
                let simulated = simulated.at_step(1).unwrap();
                let moved = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
                let missed = simulated.iter().zip(&after);
                let missed = missed.map(|(a, b)| (f64::from(*a) - b).abs());
                (moved.fold(0.0, f64::max), missed.fold(0.0, f64::max))
            };
            let (moved, error) = missed(0.1);
            assert!(moved > 0.01 && error < 0.1 * moved, "{moved} {error}");
            let (_, half) = missed(0.05);
            assert!(half < 0.3 * error, "{half} {error}");
        }
    }

    /// The flat buffer without its gaps.
    fn unpadded(model: &Mlp, flat: &[f64]) -> Vec<f64> {
        let start = Vec::<f64>::try_from(model.flat().detach()).unwrap();
        assert_eq!(start.len(), flat.len());
        let parameters = model.parameters().iter();
        let base = model.flat().data_ptr() as usize;
        parameters
            .flat_map(|p| {
                let from = (p.data_ptr() as usize - base) / std::mem::size_of::<f64>();
                flat[from..from + p.numel()].to_vec()
            })
            .collect()
    }

    #[test]
    fn answers_that_are_no_class_are_refused() {
        let token = |tokens: Vec<u32>, answer_start| TokenizedExample {
            tokens,
            answer_start,
            unscored: Vec::new(),
        };
        assert_eq!(token(vec![1, 2, 7], 2).class(), Some(7));
        assert_eq!(token(vec![1, 2, 7], 1).class(), None);
        assert_eq!(token(vec![1, 7], 1).with_class(3).tokens, [1, 3]);
        let model = mlp(&[0.1; 52]);
        let (settings, none) = (GradientSettings::default(), SecondMoment::None);
        let train = examples(0, 3, 1);
        let kernel = TangentKernel::of_model(&model, &train, &train, none, &settings, &NoProgress);
        assert!(matches!(kernel, Err(LinearisedError::Classes { got: 1 })));
    }
}
