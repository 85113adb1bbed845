//! Per-example gradients without a backward pass per example, and their inner products.

mod blocks;
mod low_rank;
mod products;
mod projection;
mod sides;
mod tape;

pub(super) use blocks::{Block, Captured, blocks};
pub(super) use products::BlockMetric;
pub use products::{InnerProducts, Metric, Wanted, inner_products, products_with_vectors};
pub(super) use sides::{by_length, pick};
pub use tape::Tape;
pub(super) use tape::Use;

use super::model::{ExampleError, Model, check_all};
use super::parameters::views;
use crate::approximation::Approximation;
use tch::Tensor;

/// How much memory gradients may take, and how they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientSettings {
    /// Examples per backward pass, default 32, at least 1; more where examples are so small that
    /// a pass of so many would cost more in calls than in arithmetic, fewer where memory is short.
    pub batch_size: usize,
    /// Bytes for what is held of gradients at once, default 1 GiB; one training and one test
    /// example are held all the same.
    pub memory: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
    /// How gradients are kept, default [`Approximation::Exact`].
    pub approximation: Approximation,
}

impl Default for GradientSettings {
    fn default() -> Self {
        Self {
            batch_size: 32,
            memory: 1 << 30,
            threads: 1,
            approximation: Approximation::Exact,
        }
    }
}

/// Examples whose gradients are formed at once.
const ROWS_AT_ONCE: usize = 32;

/// The gradient of each example's loss with respect to all parameters, `[examples × flat
/// length]`: each row is laid out as [`Model::flat`], with 0 in the gaps.
///
/// # Errors
/// An example that the model cannot read.
pub fn per_example_gradients<M: Model>(
    model: &M,
    examples: &[M::Example],
) -> Result<Tensor, GradientError> {
    check_all(model, examples)
        .map_err(|(example, problem)| GradientError::Example { example, problem })?;
    let shape = [examples.len() as i64, model.layout().flat_len() as i64];
    let gradients = Tensor::zeros(shape, (model.kind(), model.device()));
    for (k, examples) in examples.chunks(ROWS_AT_ONCE).enumerate() {
        let members: Vec<&M::Example> = examples.iter().collect();
        let captured = Captured::new(model, &model.batch(&members), |outputs| outputs.losses());
        let rows = gradients.narrow(0, (k * ROWS_AT_ONCE) as i64, captured.examples);
        for block in blocks(model.layout(), &captured) {
            let [a, b] = block.formed_shape();
            let shape = [captured.examples, a, b];
            let mut formed = Tensor::zeros(shape, (model.kind(), model.device()));
            block.form(&captured, &mut formed);
            // The shape of formed gradients is its own inverse.
            block.paste(&block.as_formed(&formed), &rows);
        }
    }
    Ok(gradients)
}

/// The gradient of `Σ_k w_k L_k` over the examples of a batch, `[flat length]`.
pub fn weighted_gradient<M: Model>(model: &M, batch: &M::Batch, weights: &Tensor) -> Tensor {
    let loss = model.outputs(batch, None).losses().dot(weights);
    let gradients = Tensor::run_backward(&[loss], model.parameters(), false, false);
    flatten(model, &gradients)
}

/// One tensor per parameter → the flat layout, with 0 in the gaps.
pub(super) fn flatten<M: Model>(model: &M, parts: &[Tensor]) -> Tensor {
    let flat = model.flat().zeros_like();
    tch::no_grad(|| {
        for (mut view, part) in views(model.layout(), &flat).into_iter().zip(parts) {
            view.copy_(part);
        }
    });
    flat
}

/// Why gradients cannot be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GradientError {
    /// An example that the model cannot read.
    #[error("example {example}: {problem}")]
    Example {
        /// Its index.
        example: usize,
        /// What is wrong.
        problem: ExampleError,
    },
    /// A training example that the model cannot read.
    #[error("training example {example}: {problem}")]
    TrainExample {
        /// Id of the training example.
        example: usize,
        /// What is wrong.
        problem: ExampleError,
    },
    /// A test example that the model cannot read.
    #[error("test example {example}: {problem}")]
    TestExample {
        /// Id of the test example.
        example: usize,
        /// What is wrong.
        problem: ExampleError,
    },
    /// An approximation that cannot be.
    #[error("{problem}")]
    Approximation {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Weights of the examples that are not one finite number each.
    #[error("{what}: expected {expected}, got {got}")]
    Weights {
        /// What they weigh.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was given.
        got: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TokenizedExample;
    use crate::torch::Network;
    use crate::torch::mlp::Prediction;
    use crate::torch::parameters::to_vec;
    use crate::torch::test_support::{all_weights, dense, examples, examples_of, weights};
    use crate::weights::{ParameterSpec, Weights};
    use simfluence_core::NoProgress;
    use tch::Kind;

    fn rows_of(gradients: &Tensor, spec: &ParameterSpec) -> Tensor {
        gradients.narrow(1, spec.offset as i64, spec.len() as i64)
    }

    /// One backward pass per example.
    fn autograd(model: &Network, example: &TokenizedExample) -> Vec<Tensor> {
        let batch = model.batch(&[example]);
        let loss = model.outputs(&batch, None).losses().sum(model.kind());
        Tensor::run_backward(&[loss], model.parameters(), false, false)
    }

    fn largest_difference(kind: Kind, weights: &Weights) -> f64 {
        let model = Network::with_kind(weights, tch::Device::Cpu, kind);
        let examples = examples_of(weights, 7, 1);
        let batched = per_example_gradients(&model, &examples).unwrap();
        let mut worst = 0.0_f64;
        for (i, example) in examples.iter().enumerate() {
            let own = batched.narrow(0, i as i64, 1);
            for (spec, gradient) in model.layout().specs().iter().zip(autograd(&model, example)) {
                let difference = rows_of(&own, spec).view_as(&gradient) - gradient;
                worst = worst.max(difference.abs().max().double_value(&[]));
            }
        }
        worst
    }

    #[test]
    fn ref_batched_gradients_are_those_of_one_backward_pass_per_example() {
        for weights in all_weights() {
            assert!(largest_difference(Kind::Float, &weights) < 1e-5);
            assert!(largest_difference(Kind::Double, &weights) < 1e-10);
        }
    }

    #[test]
    fn ref_gradients_are_those_of_finite_differences() {
        for weights in all_weights() {
            let model = Network::with_kind(&weights, tch::Device::Cpu, Kind::Double);
            let example = &examples_of(&weights, 3, 2)[2];
            let batch = model.batch(&[example]);
            let loss = || model.outputs(&batch, None).losses().sum(Kind::Double);
            let gradients = autograd(&model, example);
            let mut flat = model.flat().shallow_clone();
            for (spec, gradient) in model.layout().specs().iter().zip(gradients) {
                for k in [0, spec.len() / 3, spec.len() - 1] {
                    let shifted = |step: f64, flat: &mut Tensor| {
                        tch::no_grad(|| {
                            let mut value = flat.get((spec.offset + k) as i64);
                            value += step;
                            loss().double_value(&[])
                        })
                    };
                    let h = 1e-6;
                    let up = shifted(h, &mut flat);
                    let down = shifted(-2.0 * h, &mut flat);
                    shifted(h, &mut flat);
                    let expected = (up - down) / (2.0 * h);
                    let got = gradient.view(-1).double_value(&[k as i64]);
                    assert!(
                        (got - expected).abs() < 1e-8,
                        "{} {k}: {got} {expected}",
                        spec.name
                    );
                }
            }
        }
    }

    fn assert_close(got: &[f32], expected: &Tensor) {
        let expected = to_vec(expected);
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(&expected) {
            assert!((a - b).abs() < 2e-6 * (1.0 + b.abs()), "{a} {b}");
        }
    }

    /// All that the engine gives, against the formed gradients of the model.
    fn check_products<M: Model>(model: &M, train: &[M::Example], test: &[M::Example]) {
        let train_rows = per_example_gradients(model, train).unwrap();
        let test_rows = per_example_gradients(model, test).unwrap();
        let expected = train_rows.matmul(&test_rows.transpose(0, 1));
        let diagonal =
            (Tensor::arange(train_rows.size()[1], (Kind::Double, tch::Device::Cpu)) * 0.37).cos()
                + 1.5;
        let weighed = (&train_rows * &diagonal).matmul(&test_rows.transpose(0, 1));
        let wanted = Wanted {
            layers: true,
            norms: true,
            ..Wanted::default()
        };
        for (batch_size, memory) in [(32, 1 << 30), (2, 0), (3, 1 << 16)] {
            let settings = GradientSettings {
                batch_size,
                memory,
                ..GradientSettings::default()
            };
            let products = |metric: &Metric| {
                inner_products(model, train, test, metric, wanted, &settings, &NoProgress).unwrap()
            };
            let got = products(&Metric::Identity);
            assert_close(&got.products, &expected);
            let norms = |rows: &Tensor| rows.norm_scalaropt_dim(2.0, 1, false);
            assert_close(&got.train_norms, &norms(&train_rows));
            assert_close(&got.test_norms, &norms(&test_rows));
            let mut sum = vec![0.0; got.products.len()];
            for (_, layer) in &got.layers {
                sum.iter_mut().zip(layer).for_each(|(sum, v)| *sum += v);
            }
            assert_close(&sum, &expected);
            let names: Vec<&str> = got.layers.iter().map(|(name, _)| name.as_str()).collect();
            assert!(
                names
                    .iter()
                    .any(|name| name.contains(".1.") || name.ends_with(".1"))
            );
            assert_close(
                &products(&Metric::Diagonal(diagonal.shallow_clone())).products,
                &weighed,
            );
            for vectors in [test_rows.shallow_clone(), test_rows.narrow(0, 2, 1)] {
                let got =
                    products_with_vectors(model, train, &vectors, wanted, &settings, &NoProgress);
                let expected = train_rows.matmul(&vectors.transpose(0, 1));
                assert_close(&got.unwrap().products, &expected);
            }
        }
    }

    #[test]
    fn ref_products_are_those_of_the_gradients_in_any_chunks() {
        for weights in all_weights() {
            let model = Network::with_kind(&weights, tch::Device::Cpu, Kind::Double);
            let examples = |count, seed| examples_of(&weights, count, seed);
            check_products(&model, &examples(9, 0), &examples(5, 4));
        }
        for prediction in [Prediction::Classes, Prediction::Values] {
            let (model, train, test) = dense(prediction);
            check_products(&model, &train, &test);
        }
    }

    /// Products of one block that are formed and that are not.
    fn check_both_ways<M: Model>(model: &M, train: &[M::Example], test: &[M::Example]) {
        let capture = |examples: &[M::Example]| {
            let members: Vec<&M::Example> = examples.iter().collect();
            Captured::new(model, &model.batch(&members), |outputs| outputs.losses())
        };
        let (a, b) = (capture(train), capture(test));
        let mut matrices = 0;
        for block in blocks(model.layout(), &a) {
            if !block.is_matrix {
                continue;
            }
            matrices += 1;
            let form = |captured: &Captured| {
                let [rows, columns] = block.formed_shape();
                let shape = [captured.examples, rows, columns];
                let mut formed = Tensor::ones(shape, (Kind::Double, tch::Device::Cpu));
                block.form(captured, &mut formed);
                formed.view([captured.examples, -1])
            };
            let expected = form(&a).matmul(&form(&b).transpose(0, 1));
            assert_close(&to_vec(&block.direct_products(&a, &block, &b)), &expected);
        }
        // Factors are columns or rows.
        let is_matrix = |s: &ParameterSpec| s.shape.len() == 2 && !s.shape.contains(&1);
        let has_matrices = model.layout().specs().iter().any(is_matrix);
        assert_eq!(matrices > 0, has_matrices);
    }

    #[test]
    fn ref_products_without_forming_gradients_are_those_of_formed_ones() {
        for weights in all_weights() {
            let model = Network::with_kind(&weights, tch::Device::Cpu, Kind::Double);
            let examples = |count, seed| examples_of(&weights, count, seed);
            check_both_ways(&model, &examples(9, 0), &examples(5, 4));
        }
        let (model, train, test) = dense(Prediction::Classes);
        check_both_ways(&model, &train, &test);
    }

    #[test]
    fn ref_gradients_of_a_dense_network_are_those_of_finite_differences() {
        for prediction in [Prediction::Classes, Prediction::Values] {
            let (model, train, _) = dense(prediction);
            let batch = model.batch(&train.iter().collect::<Vec<_>>());
            let losses = || tch::no_grad(|| model.outputs(&batch, None).losses());
            let gradients = per_example_gradients(&model, &train).unwrap();
            let mut flat = model.flat().shallow_clone();
            for spec in model.layout().specs() {
                for k in spec.offset..spec.offset + spec.len() {
                    let h = 1e-6;
                    let mut value = flat.narrow(0, k as i64, 1);
                    value += h;
                    let up = losses();
                    value -= 2.0 * h;
                    let down = losses();
                    value += h;
                    let expected = (up - down) / (2.0 * h);
                    let got = gradients.select(1, k as i64);
                    let worst = (got - expected).abs().max().double_value(&[]);
                    assert!(worst < 1e-8, "{} {worst}", spec.name);
                }
            }
            let _ = flat.zero_();
        }
    }

    #[test]
    fn second_derivatives_exist_and_are_those_of_finite_differences() {
        let model = Network::with_kind(&weights(true), tch::Device::Cpu, Kind::Double);
        let example = &examples(3, 2)[2];
        let batch = model.batch(&[example]);
        let gradient = |create_graph| {
            let loss = model.outputs(&batch, None).losses().sum(Kind::Double);
            Tensor::run_backward(&[loss], model.parameters(), create_graph, create_graph)
        };
        // Hessian times the gradient itself, against a difference of gradients along it.
        let first = gradient(true);
        let dots: Vec<Tensor> = first
            .iter()
            .map(|g| (g * g.detach()).sum(Kind::Double))
            .collect();
        let product = Tensor::run_backward(
            &[Tensor::stack(&dots, 0).sum(Kind::Double)],
            model.parameters(),
            false,
            false,
        );
        let direction: Vec<Tensor> = first.iter().map(Tensor::detach).collect();
        let shift = |amount: f64| {
            tch::no_grad(|| {
                for (parameter, d) in model.parameters().iter().zip(&direction) {
                    let _ = parameter.shallow_clone().g_add_(&(d * amount));
                }
            });
        };
        let h = 1e-7;
        shift(h);
        let up = gradient(false);
        shift(-2.0 * h);
        let down = gradient(false);
        for ((expected, up), down) in product.iter().zip(&up).zip(&down) {
            let difference = ((up - down) / (2.0 * h) - expected).abs().max();
            let scale = 1.0 + expected.abs().max().double_value(&[]);
            assert!(difference.double_value(&[]) < 1e-6 * scale);
        }
    }

    #[test]
    fn an_example_that_the_model_cannot_read_is_named() {
        let mut train = examples(3, 0);
        train[1].tokens[0] = 99;
        let model = Network::new(&weights(true), tch::Device::Cpu);
        let error = inner_products(
            &model,
            &train,
            &examples(2, 0),
            &Metric::Identity,
            Wanted::default(),
            &GradientSettings::default(),
            &NoProgress,
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("training example 1: token 99"),
            "{error}"
        );
    }
}
