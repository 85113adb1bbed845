//! Dense networks on plain features: linear and logistic regression, multi-layer perceptrons.

use super::gradients::Tape;
use super::model::{ExampleError, Model, Outputs, Targets};
use super::parameters::Parameters;
use super::parameters::views;
use crate::weights::Layout;
use tch::{Device, Kind, Tensor};

/// What stands between two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)`.
    Relu,
    /// `tanh x`.
    Tanh,
    /// `x Φ(x)`.
    Gelu,
}

/// What the last layer predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The logits of classes; cross-entropy.
    Classes,
    /// Values; `½ ‖prediction − value‖²`.
    Values,
}

/// What an example of a dense network is to be predicted as.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A class.
    Class(u32),
    /// Values, one per output.
    Values(Vec<f64>),
}

/// An example of a dense network.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseExample {
    /// Inputs.
    pub features: Vec<f64>,
    /// Truth.
    pub target: Target,
}

/// Layers `h ← W h + b` with an activation between them. Two sizes only make linear regression
/// (values) or multinomial logistic regression (classes).
#[derive(Debug)]
pub struct Mlp {
    sizes: Vec<usize>,
    activation: Activation,
    prediction: Prediction,
    held: Parameters,
}

/// Examples of a dense network as tensors.
#[derive(Debug)]
pub struct DenseBatch {
    features: Tensor,
    targets: Tensor,
}

impl Mlp {
    /// A network with these layer sizes, inputs first; `values` are the matrices (`[output ×
    /// input]`, row-major) and biases, layer after layer.
    ///
    /// # Errors
    /// Fewer than two sizes, a size of 0, another number of values.
    pub fn new(
        sizes: &[usize],
        activation: Activation,
        prediction: Prediction,
        values: &[f64],
        kind: Kind,
        device: Device,
    ) -> Result<Self, MlpError> {
        if sizes.len() < 2 || sizes.contains(&0) {
            return Err(MlpError::Sizes {
                got: sizes.to_vec(),
            });
        }
        let layout = Self::layout_of(sizes);
        if values.len() != layout.parameter_count() {
            return Err(MlpError::Values {
                expected: layout.parameter_count(),
                got: values.len(),
            });
        }
        let flat = Tensor::zeros([layout.flat_len() as i64], (kind, device));
        let mut rest = Tensor::from_slice(values).to_device(device).to_kind(kind);
        for (spec, mut view) in layout.specs().iter().zip(views(&layout, &flat)) {
            let count = spec.len() as i64;
            view.copy_(&rest.narrow(0, 0, count).view_as(&view));
            rest = rest.narrow(0, count, rest.size()[0] - count);
        }
        let chosen = vec![true; layout.specs().len()];
        Ok(Self {
            sizes: sizes.to_vec(),
            activation,
            prediction,
            held: Parameters::new(layout, &chosen, flat),
        })
    }

    /// Parameters `layers.K.weight` and `layers.K.bias` in the order of the layers.
    pub fn layout_of(sizes: &[usize]) -> Layout {
        Layout::of(sizes.windows(2).enumerate().flat_map(|(k, pair)| {
            [
                (format!("layers.{k}.weight"), vec![pair[1], pair[0]]),
                (format!("layers.{k}.bias"), vec![pair[1]]),
            ]
        }))
    }

    fn activate(&self, rows: &Tensor) -> Tensor {
        match self.activation {
            Activation::Relu => rows.relu(),
            Activation::Tanh => rows.tanh(),
            Activation::Gelu => rows.gelu("none"),
        }
    }

    fn outputs_count(&self) -> usize {
        self.sizes[self.sizes.len() - 1]
    }
}

impl Model for Mlp {
    type Example = DenseExample;
    type Batch = DenseBatch;

    fn layout(&self) -> &Layout {
        self.held.layout()
    }

    fn flat(&self) -> &Tensor {
        self.held.flat()
    }

    fn parameters(&self) -> &[Tensor] {
        self.held.trained()
    }

    fn check(&self, example: &DenseExample) -> Result<(), ExampleError> {
        let (expected, got) = (self.sizes[0], example.features.len());
        if expected != got {
            return Err(ExampleError::Features { expected, got });
        }
        finite("feature", &example.features)?;
        let outputs = self.outputs_count();
        let wrong = |expected: String, got: String| Err(ExampleError::Target { expected, got });
        match (self.prediction, &example.target) {
            (Prediction::Classes, Target::Class(class)) if (*class as usize) < outputs => Ok(()),
            (Prediction::Values, Target::Values(values)) if values.len() == outputs => {
                finite("target value", values)
            }
            (Prediction::Classes, target) => wrong(
                format!("one of {outputs} classes (0..{outputs})"),
                format!("{target:?}"),
            ),
            (Prediction::Values, target) => {
                wrong(format!("{outputs} values"), format!("{target:?}"))
            }
        }
    }

    fn length(&self, _: &DenseExample) -> usize {
        1
    }

    fn batch(&self, examples: &[&DenseExample]) -> DenseBatch {
        let rows = examples.len() as i64;
        let floats = |values: Vec<f64>| {
            Tensor::from_slice(&values)
                .to_device(self.device())
                .to_kind(self.kind())
                .view([rows, -1])
        };
        let features = examples.iter().flat_map(|e| e.features.clone()).collect();
        let targets = match self.prediction {
            Prediction::Classes => {
                let class = |e: &&DenseExample| match e.target {
                    Target::Class(class) => i64::from(class),
                    Target::Values(_) => unreachable!("checked examples have classes"),
                };
                let classes: Vec<i64> = examples.iter().map(class).collect();
                Tensor::from_slice(&classes).to_device(self.device())
            }
            Prediction::Values => {
                let values = |e: &&DenseExample| match &e.target {
                    Target::Values(values) => values.clone(),
                    Target::Class(_) => unreachable!("checked examples have values"),
                };
                floats(examples.iter().flat_map(values).collect())
            }
        };
        DenseBatch {
            features: floats(features),
            targets,
        }
    }

    fn outputs(&self, batch: &DenseBatch, mut tape: Option<&mut Tape>) -> Outputs {
        let layers = 0..self.sizes.len() - 1;
        let features = batch.features.shallow_clone();
        let activate = |rows: &Tensor| self.activate(rows);
        let rows = self.held.dense(layers, features, activate, &mut tape);
        let targets = batch.targets.shallow_clone();
        Outputs {
            weights: Tensor::ones([rows.size()[0], 1], (self.kind(), self.device())),
            predictions: rows,
            targets: match self.prediction {
                Prediction::Classes => Targets::Classes(targets),
                Prediction::Values => Targets::Values(targets),
            },
        }
    }
}

fn finite(what: &'static str, values: &[f64]) -> Result<(), ExampleError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(ExampleError::NotFinite {
            what,
            index,
            got: values[index],
        }),
        None => Ok(()),
    }
}

/// Why a dense network cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MlpError {
    /// Sizes that make no network.
    #[error("layer sizes {got:?}; there must be at least two, none of them 0")]
    Sizes {
        /// The sizes.
        got: Vec<usize>,
    },
    /// Another number of values.
    #[error("{got} values for {expected} parameters")]
    Values {
        /// Parameters of the network.
        expected: usize,
        /// Values given.
        got: usize,
    },
}
