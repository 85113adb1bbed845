//! Examples made into tensors once for many passes: their losses, the gradient of their mean.

use super::gradients::{flatten, weighted_gradient};
use super::model::Model;
use tch::{Kind, Tensor};

/// Examples of one model as batches, those of similar length together to limit padding.
///
/// The model's parameters may change between passes: only the examples are kept.
///
/// ```
/// use simfluence_models::{
///     Activation, DenseExample, Mlp, Prediction, PreparedExamples, Target,
/// };
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
/// let model = Mlp::new(&[1, 1], Activation::Tanh, Prediction::Values, &[2.0, 0.5], kind, device)?;
/// let example = |x: f64| DenseExample { features: vec![x], target: Target::Values(vec![0.5]) };
/// let prepared = PreparedExamples::new(&model, &[&example(0.0), &example(1.0)], 64);
/// assert_eq!(prepared.losses(&model), [0.0, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PreparedExamples<M: Model> {
    batches: Vec<(M::Batch, Vec<usize>)>,
    count: usize,
}

impl<M: Model> PreparedExamples<M> {
    /// Prepares checked examples in batches of at most `batch_size` (0 counts as 1).
    pub fn new(model: &M, examples: &[&M::Example], batch_size: usize) -> Self {
        let mut order: Vec<usize> = (0..examples.len()).collect();
        order.sort_by_key(|&k| (model.length(examples[k]), k));
        let prepare = |places: &[usize]| {
            let members: Vec<&M::Example> = places.iter().map(|&k| examples[k]).collect();
            (model.batch(&members), places.to_vec())
        };
        Self {
            batches: order.chunks(batch_size.max(1)).map(prepare).collect(),
            count: examples.len(),
        }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batches, each with the places of its members in the list of examples.
    pub fn batches(&self) -> impl Iterator<Item = (&M::Batch, &[usize])> {
        self.batches
            .iter()
            .map(|(b, places)| (b, places.as_slice()))
    }

    /// The loss of each example at the model's present parameters, in order, in evaluation mode
    /// and without gradients. A loss that is NaN or infinite comes back as such.
    pub fn losses(&self, model: &M) -> Vec<f64> {
        let mut losses = vec![0.0; self.count];
        tch::no_grad(|| {
            for (batch, places) in self.batches() {
                let of_batch = model.outputs(batch, None).losses();
                for (&place, loss) in places.iter().zip(doubles(&of_batch)) {
                    losses[place] = loss;
                }
            }
        });
        losses
    }

    /// The gradient of the mean loss of the examples at the model's present parameters,
    /// `[flat length]`; 0 where there is no example.
    pub fn mean_gradient(&self, model: &M) -> Tensor {
        let mut sum = model.flat().zeros_like();
        let options = (model.kind(), model.device());
        for (batch, places) in self.batches() {
            let weights = Tensor::full([places.len() as i64], 1.0 / self.count as f64, options);
            sum += weighted_gradient(model, batch, &weights);
        }
        sum
    }
}

/// The gradient of any scalar made of a model's outputs, `[flat length]`, with 0 in the gaps.
pub fn gradient_of<M: Model>(model: &M, value: &Tensor) -> Tensor {
    let gradients = Tensor::run_backward(&[value], model.parameters(), false, false);
    flatten(model, &gradients)
}

/// All values as 64-bit floats in ordinary memory.
fn doubles(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor
        .detach()
        .to_device(tch::Device::Cpu)
        .to_kind(Kind::Double)
        .contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}

/// A copy of a model's parameters that puts them back when it is dropped, so that work which
/// moves them leaves the model as it found it, however it ends.
#[derive(Debug)]
pub struct Snapshot {
    flat: Tensor,
    kept: Tensor,
}

impl Snapshot {
    /// Copies the present parameters.
    pub fn of<M: Model>(model: &M) -> Self {
        Self {
            flat: model.flat().shallow_clone(),
            kept: model.flat().copy(),
        }
    }

    /// The parameters as they were, `[flat length]`.
    pub fn kept(&self) -> &Tensor {
        &self.kept
    }

    /// Puts the parameters back now.
    pub fn restore(&self) {
        self.set(&self.kept);
    }

    /// Moves the parameters to `kept + shift`.
    pub fn shift(&self, shift: &Tensor) {
        self.set(&tch::no_grad(|| &self.kept + shift));
    }

    fn set(&self, values: &Tensor) {
        tch::no_grad(|| self.flat.shallow_clone().copy_(values));
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ModelSettings, TokenizedExample};
    use crate::torch::gradients::per_example_gradients;
    use crate::torch::{EvaluationSet, Network};
    use crate::weights::{Architecture, Weights};

    fn model() -> Network {
        let settings = ModelSettings {
            layers: 2,
            heads: 2,
            width: 8,
            context: 12,
            ..ModelSettings::default()
        };
        let weights = Weights::random(&Architecture::new(settings, 9).unwrap(), 5);
        Network::with_kind(&weights, tch::Device::Cpu, Kind::Double)
    }

    fn examples() -> Vec<TokenizedExample> {
        let example = |i: usize| {
            let length = 4 + (i * 5) % 8;
            TokenizedExample {
                tokens: (0..length).map(|p| ((i * 7 + p * p) % 9) as u32).collect(),
                answer_start: length - 1 - i % 3,
                ..TokenizedExample::default()
            }
        };
        (0..11).map(example).collect()
    }

    #[test]
    fn losses_are_those_of_the_evaluation_in_the_order_of_the_examples() {
        let (model, examples) = (model(), examples());
        let members: Vec<&TokenizedExample> = examples.iter().collect();
        let expected = EvaluationSet::new(examples.clone(), 64).evaluate(&model);
        for batch_size in [1, 3, 64] {
            let losses = PreparedExamples::new(&model, &members, batch_size).losses(&model);
            for (got, want) in losses.iter().zip(&expected.as_ref().unwrap().losses) {
                assert!((got - f64::from(*want)).abs() < 1e-6, "{got} {want}");
            }
        }
    }

    #[test]
    fn the_gradient_of_the_mean_is_the_mean_of_the_gradients() {
        let (model, examples) = (model(), examples());
        let members: Vec<&TokenizedExample> = examples.iter().collect();
        let rows = per_example_gradients(&model, &examples).unwrap();
        let expected = rows.mean_dim(0, false, None);
        for batch_size in [1, 3, 64] {
            let prepared = PreparedExamples::new(&model, &members, batch_size);
            let distance = (prepared.mean_gradient(&model) - &expected).abs().max();
            assert!(distance.double_value(&[]) < 1e-14);
        }
    }

    #[test]
    fn a_snapshot_puts_the_parameters_back_bit_for_bit() {
        let model = model();
        let before = doubles(model.flat());
        {
            let snapshot = Snapshot::of(&model);
            snapshot.shift(&(model.flat() * 0.1 + 1e-9));
            assert_ne!(doubles(model.flat()), before);
            snapshot.restore();
            assert_eq!(doubles(model.flat()), before);
            snapshot.shift(&(model.flat() * 0.1 + 1e-9));
        }
        assert_eq!(doubles(model.flat()), before);
    }
}
