//! Per-example gradients without a backward pass per example, and their inner products.
//!
//! In one backward pass over a batch the gradients of the *sum* of the losses with respect to
//! every layer's output are each example's own, because examples do not meet. With a layer's
//! input `a` and output gradient `d` (`[positions × features]`) the gradient of a linear layer's
//! matrix is `dᵀ a`, of its bias and of positions `Σ d`, of a norm's gain `Σ d ∘ norm(x)`, and of
//! the token embedding a scatter of `d`; a tied output adds its own `dᵀ a` to the embedding.

use super::batch::{Batch, Place, check_examples};
use super::transformer::{
    Extras, POSITION_EMBEDDING, TOKEN_EMBEDDING, Tape, Transformer, Use, to_vec,
};
use crate::device::{Device, DeviceError};
use crate::settings::{TokenizedExample, TokensError};
use crate::weights::{ParameterSpec, Weights};
use simfluence_core::Progress;
use tch::Tensor;

/// How much memory gradients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientSettings {
    /// Examples per backward pass, default 32, at least 1.
    pub batch_size: usize,
    /// Bytes for the gradients that are held at once, default 1 GiB; at least those of one batch
    /// of training and of one of test examples are held all the same.
    pub memory: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
}

impl Default for GradientSettings {
    fn default() -> Self {
        Self {
            batch_size: 32,
            memory: 1 << 30,
            threads: 1,
        }
    }
}

/// Inner products `⟨g_i, g_j⟩` of the gradients of training and test losses.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientProducts {
    /// `[train × test]`, row-major.
    pub products: Vec<f32>,
    /// `‖g_i‖` of the training examples.
    pub train_norms: Vec<f32>,
    /// `‖g_j‖` of the test examples.
    pub test_norms: Vec<f32>,
}

/// The gradient of each example's loss with respect to all parameters, `[examples × flat
/// length]`: each row is laid out as [`Transformer::flat`], with 0 in the gaps.
///
/// # Errors
/// An example that the model cannot read.
pub fn per_example_gradients(
    model: &Transformer,
    examples: &[TokenizedExample],
) -> Result<Tensor, GradientError> {
    check_examples(examples, model.architecture())
        .map_err(|(example, problem)| GradientError::Example { example, problem })?;
    let mut gradients = empty_gradients(model, examples.len());
    let members: Vec<&TokenizedExample> = examples.iter().collect();
    if !members.is_empty() {
        write_gradients(model, &members, &mut gradients);
    }
    Ok(gradients)
}

/// Inner products of every training with every test gradient at `weights`, in blocks of bounded
/// memory.
///
/// Progress is counted in gradients formed.
///
/// # Errors
/// An example that the model cannot read; a device that cannot be used.
pub fn gradient_products(
    weights: &Weights,
    train: &[TokenizedExample],
    test: &[TokenizedExample],
    settings: &GradientSettings,
    device: Device,
    progress: &dyn Progress,
) -> Result<GradientProducts, GradientError> {
    check_examples(train, weights.architecture())
        .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
    check_examples(test, weights.architecture())
        .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
    crate::native::keep_memory();
    tch::set_num_threads(settings.threads.max(1) as i32);
    let model = Transformer::new(weights, device.open()?);
    Ok(products(&model, train, test, settings, progress))
}

fn products(
    model: &Transformer,
    train: &[TokenizedExample],
    test: &[TokenizedExample],
    settings: &GradientSettings,
    progress: &dyn Progress,
) -> GradientProducts {
    let batch = settings.batch_size.max(1);
    let bytes_each = model.layout().flat_len() * model.kind().elt_size_in_bytes();
    let block = (settings.memory / bytes_each.max(1))
        .saturating_sub(batch)
        .max(batch);
    let block = block.min(test.len().max(1));
    let mut result = GradientProducts {
        products: vec![0.0; train.len() * test.len()],
        train_norms: vec![0.0; train.len()],
        test_norms: vec![0.0; test.len()],
    };
    let blocks = test.len().div_ceil(block);
    progress.begin("gradients", (test.len() + blocks * train.len()) as u64);
    let train_buffer = empty_gradients(model, batch.min(train.len()));
    let test_buffer = empty_gradients(model, block);
    for test_ids in by_length(test).chunks(block) {
        for (k, ids) in test_ids.chunks(batch).enumerate() {
            let mut rows = test_buffer.narrow(0, (k * batch) as i64, ids.len() as i64);
            write_gradients(model, &pick(test, ids), &mut rows);
            scatter(&norms(&rows), ids, &mut result.test_norms);
            progress.advance(ids.len() as u64);
        }
        let test_rows = test_buffer.narrow(0, 0, test_ids.len() as i64);
        for ids in by_length(train).chunks(batch) {
            let mut rows = train_buffer.narrow(0, 0, ids.len() as i64);
            write_gradients(model, &pick(train, ids), &mut rows);
            scatter(&norms(&rows), ids, &mut result.train_norms);
            let inner = to_vec(&rows.matmul(&test_rows.transpose(0, 1)));
            for (row, &i) in inner.chunks_exact(test_ids.len()).zip(ids) {
                scatter(
                    row,
                    test_ids,
                    &mut result.products[i * test.len()..][..test.len()],
                );
            }
            progress.advance(ids.len() as u64);
        }
    }
    progress.end();
    result
}

/// Ids in the order of the examples' lengths, so that batches hold little padding.
fn by_length(examples: &[TokenizedExample]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..examples.len()).collect();
    ids.sort_by_key(|&i| (examples[i].tokens.len(), i));
    ids
}

fn pick<'a>(examples: &'a [TokenizedExample], ids: &[usize]) -> Vec<&'a TokenizedExample> {
    ids.iter().map(|&i| &examples[i]).collect()
}

fn scatter(values: &[f32], ids: &[usize], into: &mut [f32]) {
    for (&value, &id) in values.iter().zip(ids) {
        into[id] = value;
    }
}

fn norms(rows: &Tensor) -> Vec<f32> {
    to_vec(&rows.norm_scalaropt_dim(2.0, 1, false))
}

fn empty_gradients(model: &Transformer, examples: usize) -> Tensor {
    let shape = [examples as i64, model.layout().flat_len() as i64];
    Tensor::zeros(shape, (model.kind(), model.device()))
}

/// Writes the gradients of some examples into the rows of `gradients`, whose gaps are 0.
///
/// The rows are memory that is used again and again: fresh memory for each batch costs more in
/// page faults than the products themselves.
fn write_gradients(model: &Transformer, examples: &[&TokenizedExample], gradients: &mut Tensor) {
    let batch = Batch::new(examples, 0, Place::of(model));
    let mut tape = Tape::default();
    let extras = Extras {
        tape: Some(&mut tape),
        ..Extras::default()
    };
    let loss = model.losses(&batch, extras).sum(model.kind());
    let outputs = Tensor::run_backward(&[loss], &tape.outputs, false, false);
    tch::no_grad(|| {
        for (used, gradient) in tape.uses.iter().zip(&outputs) {
            let features = *gradient.size().last().expect("outputs have features");
            let output = gradient.view([batch.size, -1, features]);
            write_use(model, &batch, used, &output, gradients);
        }
    });
}

/// Writes what one use of a parameter contributes; `output` is the gradient of what came out,
/// `[examples × positions × features]`.
fn write_use(
    model: &Transformer,
    batch: &Batch,
    used: &Use,
    output: &Tensor,
    gradients: &mut Tensor,
) {
    let specs = model.layout().specs();
    match used {
        Use::Embedding => write_embedding(specs, batch, output, gradients),
        Use::Norm { weight, input } => {
            let gain = (output * input).sum_dim_intlist(1, false, None);
            rows_of(gradients, &specs[*weight]).copy_(&gain);
            let bias = output.sum_dim_intlist(1, false, None);
            rows_of(gradients, &specs[weight + 1]).copy_(&bias);
        }
        Use::Linear {
            weight,
            bias,
            first_row,
            input,
        } => {
            let (rows, columns) = (output.size()[2], input.size()[2]);
            let part = rows_of(gradients, &specs[*weight])
                .narrow(1, first_row * columns, rows * columns)
                .view([batch.size, rows, columns]);
            if *weight == TOKEN_EMBEDDING {
                // Tied: the embedding's own gradient is there already.
                let mut part = part;
                part += output.transpose(1, 2).bmm(input);
            } else {
                let _ = output.transpose(1, 2).bmm_out(&part, input);
            }
            if let Some(bias) = bias {
                let sum = output.sum_dim_intlist(1, false, None);
                rows_of(gradients, &specs[*bias])
                    .narrow(1, *first_row, rows)
                    .copy_(&sum);
            }
        }
    }
}

fn write_embedding(specs: &[ParameterSpec], batch: &Batch, output: &Tensor, gradients: &Tensor) {
    let (size, width) = (batch.size, output.size()[2]);
    let vocabulary = specs[TOKEN_EMBEDDING].shape[0] as i64;
    let mut tokens = rows_of(gradients, &specs[TOKEN_EMBEDDING]).view([size, vocabulary, width]);
    let index = (batch.tokens.view([size, batch.length, 1])).expand_as(output);
    let _ = tokens.zero_();
    let _ = tokens.scatter_add_(1, &index, output);
    let mut positions = rows_of(gradients, &specs[POSITION_EMBEDDING]);
    let _ = positions.zero_();
    positions
        .narrow(1, 0, batch.length * width)
        .view([size, batch.length, width])
        .copy_(output);
}

/// The columns of one parameter.
fn rows_of(gradients: &Tensor, spec: &ParameterSpec) -> Tensor {
    gradients.narrow(1, spec.offset as i64, spec.len() as i64)
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
        problem: TokensError,
    },
    /// A training example that the model cannot read.
    #[error("training example {example}: {problem}")]
    TrainExample {
        /// Id of the training example.
        example: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// A test example that the model cannot read.
    #[error("test example {example}: {problem}")]
    TestExample {
        /// Id of the test example.
        example: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ModelSettings;
    use crate::weights::Architecture;
    use simfluence_core::NoProgress;
    use tch::Kind;

    fn weights(tied_output: bool) -> Weights {
        let model = ModelSettings {
            layers: 2,
            heads: 2,
            width: 8,
            context: 12,
            tied_output,
            dropout: 0.0,
        };
        Weights::random(&Architecture::new(model, 9).unwrap(), 5)
    }

    fn examples(count: usize, seed: usize) -> Vec<TokenizedExample> {
        let example = |i: usize| {
            let length = 4 + (i * 5 + seed) % 8;
            let tokens = (0..length).map(|p| ((i * 7 + p * p * 3 + seed) % 9) as u32);
            TokenizedExample {
                tokens: tokens.collect(),
                answer_start: length - 1 - (i + seed) % 3,
            }
        };
        (0..count).map(example).collect()
    }

    /// One backward pass per example.
    fn autograd(model: &Transformer, example: &TokenizedExample) -> Vec<Tensor> {
        let batch = Batch::new(&[example], 0, Place::of(model));
        let loss = model.losses(&batch, Extras::default()).sum(model.kind());
        Tensor::run_backward(&[loss], model.parameters(), false, false)
    }

    fn largest_difference(kind: Kind, tied_output: bool) -> f64 {
        let model = Transformer::with_kind(&weights(tied_output), tch::Device::Cpu, kind);
        let examples = examples(7, 1);
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
        for tied_output in [true, false] {
            assert!(largest_difference(Kind::Float, tied_output) < 1e-5);
            assert!(largest_difference(Kind::Double, tied_output) < 1e-10);
        }
    }

    #[test]
    fn ref_gradients_are_those_of_finite_differences() {
        for tied_output in [true, false] {
            let model =
                Transformer::with_kind(&weights(tied_output), tch::Device::Cpu, Kind::Double);
            let example = &examples(3, 2)[2];
            let batch = Batch::new(&[example], 0, Place::of(&model));
            let loss = || model.losses(&batch, Extras::default()).sum(Kind::Double);
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

    #[test]
    fn ref_products_are_those_of_the_gradients_in_any_block_size() {
        let weights = weights(true);
        let (train, test) = (examples(9, 0), examples(5, 4));
        let model = Transformer::with_kind(&weights, tch::Device::Cpu, Kind::Double);
        let train_rows = per_example_gradients(&model, &train).unwrap();
        let test_rows = per_example_gradients(&model, &test).unwrap();
        let expected = to_vec(&train_rows.matmul(&test_rows.transpose(0, 1)));
        let expected_norms = norms(&test_rows);
        for (batch_size, memory) in [(32, 1 << 30), (2, 0), (3, 1 << 16)] {
            let settings = GradientSettings {
                batch_size,
                memory,
                threads: 1,
            };
            let got =
                gradient_products(&weights, &train, &test, &settings, Device::Cpu, &NoProgress)
                    .unwrap();
            for (a, b) in got.products.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
            }
            for (a, b) in got.test_norms.iter().zip(&expected_norms) {
                assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
            }
            assert_eq!(got.train_norms.len(), 9);
        }
    }

    #[test]
    fn second_derivatives_exist_and_are_those_of_finite_differences() {
        let model = Transformer::with_kind(&weights(true), tch::Device::Cpu, Kind::Double);
        let example = &examples(3, 2)[2];
        let batch = Batch::new(&[example], 0, Place::of(&model));
        let gradient = |create_graph| {
            let loss = model.losses(&batch, Extras::default()).sum(Kind::Double);
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
        let error = gradient_products(
            &weights(true),
            &train,
            &examples(2, 0),
            &GradientSettings::default(),
            Device::Cpu,
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
