//! The tangent kernel of a model.

use super::LinearisedError;
use super::kernel::{ALTERNATIVES, TangentKernel};
use crate::memory::SecondMoment;
use simfluence_core::Progress;
use simfluence_models::{
    DenseExample, GradientError, GradientSettings, Metric, Model, Target, TokenizedExample, Wanted,
    inner_products, per_example_gradients,
};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// What is left for outputs that are no alternative, in the mean over the examples, below which it
/// counts as nothing.
const OTHERS: f64 = 0.01;
/// The least that may be left of one example.
const LEAST: f64 = 1e-3;
/// Share of the mean over the parameters that is added to their mean square gradients.
const FLOOR: f64 = 1e-3;
/// Examples whose gradients or losses are formed at once.
const ROWS_AT_ONCE: usize = 32;

/// An example whose answer can be made another one.
pub trait Answered: Clone {
    /// Its answer, as tokens; one for a class. `None` where other places have loss as well.
    fn answer(&self) -> Option<Vec<u32>>;
    /// The same text with loss on `token` only, after this beginning of an answer.
    #[must_use]
    fn choosing(&self, beginning: &[u32], token: u32) -> Self;
}

impl Answered for TokenizedExample {
    fn answer(&self) -> Option<Vec<u32>> {
        let answer = self.tokens.get(self.answer_start..)?;
        (self.unscored.is_empty() && !answer.is_empty()).then(|| answer.to_vec())
    }

    fn choosing(&self, beginning: &[u32], token: u32) -> Self {
        let start = self.answer_start;
        Self {
            tokens: [&self.tokens[..start], beginning, &[token]].concat(),
            answer_start: start,
            unscored: (start..start + beginning.len()).collect(),
        }
    }
}

impl Answered for DenseExample {
    fn answer(&self) -> Option<Vec<u32>> {
        match self.target {
            Target::Class(class) => Some(vec![class]),
            Target::Values(_) => None,
        }
    }

    fn choosing(&self, _: &[u32], token: u32) -> Self {
        Self {
            target: Target::Class(token),
            ..self.clone()
        }
    }
}

/// The answers of a task as paths through choices between tokens.
struct Tree {
    /// Each beginning of an answer that goes on, the empty one first, with the tokens that may come
    /// next, ascending.
    choices: Vec<(Vec<u32>, Vec<u32>)>,
    /// The alternatives that each different answer takes.
    paths: Vec<Vec<u32>>,
    /// The answer of each example.
    answers: Vec<u32>,
}

impl Tree {
    fn new<E: Answered>(train: &[E], test: &[E]) -> Result<Self, LinearisedError> {
        let of_example: Vec<Vec<u32>> = (train.iter().chain(test).enumerate())
            .map(|(place, e)| {
                let (side, id) = match place.checked_sub(train.len()) {
                    None => ("training", place),
                    Some(id) => ("test", id),
                };
                e.answer().ok_or(LinearisedError::NoAnswer { side, id })
            })
            .collect::<Result<_, _>>()?;
        let different: Vec<&[u32]> = (of_example.iter().map(Vec::as_slice))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut next: BTreeMap<(usize, &[u32]), BTreeSet<u32>> = BTreeMap::new();
        for answer in &different {
            for (place, &token) in answer.iter().enumerate() {
                let tokens = next.entry((place, &answer[..place])).or_default();
                tokens.insert(token);
            }
        }
        let got = next.values().map(BTreeSet::len).sum();
        if different.len() < 2 || got > ALTERNATIVES {
            return Err(LinearisedError::Alternatives { got });
        }
        let mut number: BTreeMap<(&[u32], u32), u32> = BTreeMap::new();
        for ((_, beginning), tokens) in &next {
            for &token in tokens {
                number.insert((beginning, token), number.len() as u32);
            }
        }
        let path = |answer: &&[u32]| {
            let tokens = answer.iter().enumerate();
            tokens
                .map(|(place, &token)| number[&(&answer[..place], token)])
                .collect()
        };
        let place = |answer: &Vec<u32>| {
            let found = different.binary_search(&answer.as_slice());
            found.expect("it is among them") as u32
        };
        Ok(Self {
            paths: different.iter().map(path).collect(),
            answers: of_example.iter().map(place).collect(),
            choices: (next.into_iter())
                .map(|((_, beginning), tokens)| (beginning.to_vec(), tokens.into_iter().collect()))
                .collect(),
        })
    }

    fn sizes(&self) -> Vec<usize> {
        self.choices
            .iter()
            .map(|(_, tokens)| tokens.len())
            .collect()
    }
}

impl TangentKernel {
    /// How many alternatives each of the choices has that answers are made of; their sum is the
    /// number of rows per training example.
    ///
    /// # Errors
    /// Examples with loss elsewhere than on an answer, one answer only, or more than
    /// [`ALTERNATIVES`] alternatives.
    pub fn choices<E: Answered>(train: &[E], test: &[E]) -> Result<Vec<usize>, LinearisedError> {
        Ok(Tree::new(train, test)?.sizes())
    }

    /// The kernel of a model at its present parameters, in the metric of an optimiser that
    /// normalises by such a second moment.
    ///
    /// The log-odds `u_a = ln p_a − ln (1 − Σ_b p_b)` of a choice have the gradients
    /// `∇u_a = −∇ℓ_a − Σ_b p_b ∇ℓ_b / (1 − Σ_b p_b)`, with `ℓ_a = −ln p_a` the loss that the
    /// example has with alternative `a` for its only target; so that everything comes from inner
    /// products of gradients of losses, of `n k` examples with `(n + m) k`.
    ///
    /// # Errors
    /// Those of [`Self::choices`]; an example that the model cannot read.
    pub fn of_model<M: Model>(
        model: &M,
        train: &[M::Example],
        test: &[M::Example],
        second: SecondMoment,
        settings: &GradientSettings,
        progress: &dyn Progress,
    ) -> Result<Self, LinearisedError>
    where
        M::Example: Answered,
    {
        let tree = Tree::new(train, test)?;
        let k: usize = tree.sizes().iter().sum();
        let candidates: Vec<M::Example> = (train.iter().chain(test))
            .flat_map(|e| {
                let choices = tree.choices.iter();
                choices.flat_map(move |(beginning, tokens)| {
                    tokens
                        .iter()
                        .map(move |&token| e.choosing(beginning, token))
                })
            })
            .collect();
        simfluence_models::check_all(model, &candidates).map_err(|(candidate, problem)| {
            GradientError::Example {
                example: candidate / k,
                problem,
            }
        })?;
        let losses = losses(model, &candidates);
        let outputs = Outputs::new(&losses, tree.sizes());
        let rows = train.len() * k;
        let mut kernel = Self {
            train_count: train.len(),
            test_count: test.len(),
            choices: tree.sizes(),
            others: outputs.others.clone(),
            log_odds: outputs.log_odds(),
            paths: tree.paths,
            answers: tree.answers,
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
    /// `[examples × alternatives]`.
    losses: &'a [f64],
    /// Number of alternatives of each choice.
    choices: Vec<usize>,
    /// `[examples × choices]`: the probability that is left for what is none of them.
    left: Vec<f64>,
    /// Whether anything is, for each choice.
    others: Vec<bool>,
}

impl<'a> Outputs<'a> {
    fn new(losses: &'a [f64], choices: Vec<usize>) -> Self {
        let alternatives: usize = choices.iter().sum();
        let mut left = Vec::new();
        for mut of_example in losses.chunks_exact(alternatives) {
            for &count in &choices {
                let (of_choice, rest) = of_example.split_at(count);
                let taken: f64 = of_choice.iter().map(|loss| (-loss).exp()).sum();
                left.push((1.0 - taken).max(LEAST));
                of_example = rest;
            }
        }
        let examples = losses.len() / alternatives;
        let mean = |choice: usize| {
            let of_choice = left.iter().skip(choice).step_by(choices.len());
            of_choice.sum::<f64>() / examples as f64
        };
        Self {
            others: (0..choices.len())
                .map(|choice| mean(choice) > OTHERS)
                .collect(),
            losses,
            choices,
            left,
        }
    }

    /// The alternatives of an example, choice by choice: where they begin, how many, and the
    /// probability that is left where that is not nothing.
    fn of(&self, example: usize) -> impl Iterator<Item = (usize, usize, Option<f64>)> + '_ {
        let left = &self.left[example * self.choices.len()..][..self.choices.len()];
        let mut begin = 0;
        (self.choices.iter().zip(&self.others).zip(left)).map(move |((&count, &others), &left)| {
            begin += count;
            (begin - count, count, others.then_some(left))
        })
    }

    fn log_odds(&self) -> Vec<f32> {
        let alternatives: usize = self.choices.iter().sum();
        let mut log_odds = Vec::with_capacity(self.losses.len());
        for (example, losses) in self.losses.chunks_exact(alternatives).enumerate() {
            for (begin, count, left) in self.of(example) {
                let against = left.map_or(0.0, f64::ln);
                let of_choice = losses[begin..begin + count].iter();
                log_odds.extend(of_choice.map(|loss| (-loss - against) as f32));
            }
        }
        log_odds
    }

    /// Products of gradients of losses `[rows × columns]` → of log-odds; rows and columns are the
    /// first outputs.
    fn change_products(&self, products: &mut [f32], columns: usize) {
        let alternatives: usize = self.choices.iter().sum();
        let mut line = vec![0.0; alternatives];
        for row in products.chunks_exact_mut(columns) {
            for (example, of) in row.chunks_exact_mut(alternatives).enumerate() {
                for (l, p) in line.iter_mut().zip(&*of) {
                    *l = f64::from(*p);
                }
                self.change(example, &mut line);
                for (p, l) in of.iter_mut().zip(&line) {
                    *p = *l as f32;
                }
            }
        }
        for (example, rows) in (products.chunks_exact_mut(columns * alternatives)).enumerate() {
            for column in 0..columns {
                for (a, l) in line.iter_mut().enumerate() {
                    *l = f64::from(rows[a * columns + column]);
                }
                self.change(example, &mut line);
                for (a, l) in line.iter().enumerate() {
                    rows[a * columns + column] = *l as f32;
                }
            }
        }
    }

    /// Something linear in `∇ℓ_a` → in `∇u_a`, for all alternatives of an example.
    fn change(&self, example: usize, values: &mut [f64]) {
        let losses = &self.losses[example * values.len()..][..values.len()];
        for (begin, count, left) in self.of(example) {
            let (losses, of) = (&losses[begin..][..count], &mut values[begin..][..count]);
            let mean: f64 = losses.iter().zip(&*of).map(|(l, x)| (-l).exp() * x).sum();
            let shift = left.map_or(0.0, |left| mean / left);
            of.iter_mut().for_each(|x| *x = -*x - shift);
        }
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
    use simfluence_models::{
        Activation, Architecture, Mlp, ModelSettings, Network, Prediction, Weights,
    };

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

    /// Trains a step of SGD at a rate on the second and third training example, and checks that the change of
    /// the test losses is what the linearised model says of it, to first order: that what is missed
    /// falls like the square of the rate. `make` gives the model whose flat
    /// buffer has some values, or its own.
    fn check_short_step<M: Model>(
        make: impl Fn(Option<&Tensor>) -> M,
        rate: f64,
        train: &[M::Example],
        test: &[M::Example],
    ) -> TangentKernel
    where
        M::Example: Answered,
    {
        let model = make(None);
        let (settings, none) = (GradientSettings::default(), SecondMoment::None);
        let kernel = TangentKernel::of_model(&model, train, test, none, &settings, &NoProgress);
        let kernel = kernel.unwrap();
        let before = losses(&model, test);
        let missed = |rate: f64| {
            let gradients = per_example_gradients(&model, &train[1..3]).unwrap();
            let gradient = gradients.mean_dim([0].as_slice(), false, None);
            let stepped = model.flat().detach() - rate * gradient;
            let after = losses(&make(Some(&stepped)), test);
            let f32s = |of: &[f64]| of.iter().map(|&l| l as f32).collect::<Vec<_>>();
            let step = Step::new(vec![1, 2], Some(rate as f32));
            let curriculum = Curriculum::new(vec![step], train.len()).unwrap();
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
                trajectory: Trajectory::new(vec![0, 1], test.len(), recorded).unwrap(),
                batch_losses: vec![None],
                curriculum,
            };
            let fit = FitLinearised {
                kernel: kernel.clone(),
            };
            let simulator = fit.fit(&[&run], train.len(), &NoProgress).unwrap();
            assert_eq!(simulator.report().gain, 1.0);
            let simulated = simulator.simulate(&run.curriculum, &f32s(&before)).unwrap();
            let simulated = simulated.at_step(1).unwrap();
            let moved = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
            let missed = simulated.iter().zip(&after);
            let missed = missed.map(|(a, b)| (f64::from(*a) - b).abs());
            (moved.fold(0.0, f64::max), missed.fold(0.0, f64::max))
        };
        let (moved, error) = missed(rate);
        assert!(moved > 0.01 && error < 0.1 * moved, "{moved} {error}");
        let (_, half) = missed(rate / 2.0);
        assert!(half < 0.3 * error, "{half} {error}");
        kernel
    }

    /// Writes values into a model's flat buffer.
    fn with_values<M: Model>(model: M, values: Option<&Tensor>) -> M {
        if let Some(values) = values {
            tch::no_grad(|| model.flat().shallow_clone().copy_(values));
        }
        model
    }

    #[test]
    fn a_short_step_of_a_classifier_is_what_the_kernel_says() {
        let values: Vec<f64> = (0..3 * 6 + 6 + 6 * 4 + 4)
            .map(|k| (k as f64 * 0.9).sin())
            .collect();
        for classes in [3, 4] {
            let (train, test) = (examples(0, 6, classes), examples(20, 5, classes));
            let make = |flat: Option<&Tensor>| with_values(mlp(&values), flat);
            let kernel = check_short_step(make, 0.1, &train, &test);
            // Of four outputs.
            let expected = (vec![classes], vec![classes == 3]);
            assert_eq!((kernel.choices, kernel.others), expected);
        }
    }

    #[test]
    fn a_short_step_of_a_transformer_whose_answers_have_up_to_three_tokens_is_as_well() {
        let settings = ModelSettings {
            layers: 2,
            heads: 2,
            width: 16,
            context: 16,
            ..ModelSettings::default()
        };
        let architecture = Architecture::new(settings, 11).unwrap();
        let random = Weights::random(&architecture, 3);
        let make = |flat: Option<&Tensor>| {
            let model = Network::with_kind(&random, tch::Device::Cpu, Kind::Double);
            with_values(model, flat)
        };
        let answers: [&[u32]; 4] = [&[7], &[8, 5], &[8, 6, 9], &[3, 5]];
        let example = |k: u32| {
            let prompt: Vec<u32> = (0..4 + k % 3).map(|p| (k * 7 + p * p * 3) % 11).collect();
            TokenizedExample {
                answer_start: prompt.len(),
                tokens: [&prompt, answers[k as usize % 4]].concat(),
                unscored: Vec::new(),
            }
        };
        let examples = |range: std::ops::Range<u32>| range.map(example).collect::<Vec<_>>();
        let kernel = check_short_step(make, 0.002, &examples(0..6), &examples(20..25));
        // First tokens 3, 7, 8; after 3 and after 8, 6 one each; after 8 two.
        assert_eq!(kernel.choices, [3, 1, 2, 1]);
        assert_eq!(kernel.others, [true; 4]);
    }

    #[test]
    fn answers_are_paths_through_choices() {
        let example = |answer: &[u32]| TokenizedExample {
            tokens: [&[1, 2], answer].concat(),
            answer_start: 2,
            unscored: Vec::new(),
        };
        let (train, test) = ([example(&[7, 5]), example(&[8])], [example(&[7, 6, 9])]);
        let tree = Tree::new(&train, &test).unwrap();
        let choices = vec![
            (vec![], vec![7, 8]),
            (vec![7], vec![5, 6]),
            (vec![7, 6], vec![9]),
        ];
        assert_eq!(tree.choices, choices);
        assert_eq!(tree.paths, [vec![0, 2], vec![0, 3, 4], vec![1]]);
        assert_eq!(tree.answers, [0, 2, 1]);
        let chosen = train[1].choosing(&[7, 6], 9);
        assert_eq!(
            (chosen.tokens, chosen.answer_start),
            (vec![1, 2, 7, 6, 9], 2)
        );
        assert_eq!(chosen.unscored, [2, 3]);
    }

    #[test]
    fn what_is_no_answer_or_the_only_one_is_refused() {
        let conversation = TokenizedExample {
            tokens: vec![1, 2, 3, 4],
            answer_start: 1,
            unscored: vec![2],
        };
        assert_eq!(conversation.answer(), None);
        let refused = TangentKernel::choices(&[conversation], &[]);
        assert!(matches!(
            refused,
            Err(LinearisedError::NoAnswer {
                side: "training",
                id: 0
            })
        ));
        let train = examples(0, 3, 1);
        let refused = TangentKernel::choices(&train, &train);
        assert!(matches!(
            refused,
            Err(LinearisedError::Alternatives { got: 1 })
        ));
    }
}
