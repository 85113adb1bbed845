//! Whatever a run can fine-tune: a transformer, or a network on images.

use super::batch::Batch;
use super::gradients::Tape;
use super::image_network::{ImageBatch, ImageNetwork};
use super::model::{ExampleError, Model, Outputs};
use super::transformer::{Dropout, Extras, Prefix, Transformer};
use crate::device::DeviceError;
use crate::precision::Precision;
use crate::settings::TokenizedExample;
use crate::weight_decay::WeightDecayGroups;
use crate::weights::{Architecture, Layout, Weights, WeightsError};
use tch::{Kind, Tensor};

/// The model of some weights, with its parameters on a device.
///
/// [`Model::parameters`] are those that are trained
/// ([`Architecture::trainable`](crate::Architecture::trainable)): gradients, optimisers and
/// attribution see no others.
#[derive(Debug)]
pub enum Network {
    /// A model of texts.
    Transformer(Box<Transformer>),
    /// A network on images.
    Images(Box<ImageNetwork>),
}

/// Several examples as tensors, as the model reads them.
#[derive(Debug)]
pub enum NetworkBatch {
    /// Of a model of texts.
    Texts(Box<Batch>),
    /// Of a network on images.
    Images(ImageBatch),
}

impl Network {
    /// A model with the values of `weights`.
    pub fn new(weights: &Weights, device: tch::Device) -> Self {
        Self::with_kind(weights, device, Kind::Float)
    }

    /// As [`Network::new`] on a device that is tried first; LibTorch is also told to keep the memory
    /// that it frees.
    ///
    /// # Errors
    /// A device that cannot be used.
    pub fn open(weights: &Weights, device: crate::Device) -> Result<Self, DeviceError> {
        super::process::prepare();
        Ok(Self::new(weights, device.open()?))
    }

    /// As [`Network::open`], computing in 64 bits: for what 32 do not resolve.
    ///
    /// # Errors
    /// A device that cannot be used.
    pub fn open_double(weights: &Weights, device: crate::Device) -> Result<Self, DeviceError> {
        super::process::prepare();
        Ok(Self::with_kind(weights, device.open()?, Kind::Double))
    }

    /// As [`Network::new`], computing in `kind` (64-bit floats for tests of gradients).
    pub fn with_kind(weights: &Weights, device: tch::Device, kind: Kind) -> Self {
        match weights.architecture().images() {
            None => Self::Transformer(Box::new(Transformer::with_kind(weights, device, kind))),
            Some(images) => {
                let network = ImageNetwork::new(weights, images.clone(), device, kind);
                Self::Images(Box::new(network))
            }
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        match self {
            Self::Transformer(model) => model.architecture(),
            Self::Images(model) => model.architecture(),
        }
    }

    /// A copy of all parameters in ordinary memory, as 32-bit floats.
    ///
    /// # Errors
    /// None for a model made by this type.
    pub fn weights(&self) -> Result<Weights, WeightsError> {
        match self {
            Self::Transformer(model) => model.weights(),
            Self::Images(model) => model.weights(),
        }
    }

    /// Whether weight decay applies to each trained parameter.
    pub(super) fn decayed(&self, groups: WeightDecayGroups) -> Vec<bool> {
        match self {
            Self::Transformer(model) => model.decayed(groups),
            Self::Images(model) => model.decayed(groups),
        }
    }

    /// Takes over the parameters of the same architecture.
    pub(super) fn set(&mut self, weights: &Weights) {
        match self {
            Self::Transformer(model) => model.set(weights),
            Self::Images(model) => model.set(weights),
        }
    }

    /// What is left out in a training step; `None` where nothing is.
    pub(super) fn dropout_of_step(&self, seed: u64, step: u32) -> Option<Dropout> {
        match self {
            Self::Transformer(model) => {
                let rates = model.architecture().decoder().dropout;
                Dropout::of_step(rates, seed, step)
            }
            Self::Images(_) => None,
        }
    }

    /// The same model, with matrix products of another precision.
    pub(super) fn with_precision(mut self, precision: Precision) -> Self {
        match &mut self {
            Self::Transformer(model) => model.set_precision(precision),
            Self::Images(_) => assert_eq!(precision, Precision::F32, "it was checked"),
        }
        self
    }

    /// Each example's loss in training mode, `[examples]`, and of their sum times `shares` the
    /// gradient, added to what the parameters have accumulated. Only what enters each block is kept
    /// on the way forward.
    pub(super) fn accumulate(
        &self,
        batch: &NetworkBatch,
        shares: &Tensor,
        dropout: Option<&mut Dropout>,
    ) -> Tensor {
        match (self, batch) {
            (Self::Transformer(model), NetworkBatch::Texts(batch)) => {
                model.accumulate(batch, shares, dropout)
            }
            _ => unreachable!("it was checked that this is a transformer"),
        }
    }

    /// Each example's loss in training mode, `[examples]`.
    pub(super) fn training_losses(
        &self,
        batch: &NetworkBatch,
        dropout: Option<&mut Dropout>,
    ) -> Tensor {
        let extras = Extras {
            dropout,
            ..Extras::default()
        };
        self.outputs_with(batch, extras).losses()
    }

    /// The loss at each position, `[examples × positions]`, and the share of each in its example's
    /// loss, behind a beginning that all examples of the batch share; without gradient.
    pub(super) fn evaluate(
        &self,
        batch: &NetworkBatch,
        prefix: Option<&Prefix>,
    ) -> (Tensor, Tensor) {
        if let (Self::Transformer(model), NetworkBatch::Texts(batch)) = (self, batch) {
            return model.position_losses(batch, prefix);
        }
        let outputs = self.outputs_with(batch, Extras::default());
        (outputs.position_losses(), outputs.weights)
    }

    fn outputs_with(&self, batch: &NetworkBatch, extras: Extras<'_>) -> Outputs {
        match (self, batch) {
            (Self::Transformer(model), NetworkBatch::Texts(batch)) => {
                model.outputs_with(batch, extras)
            }
            (Self::Images(model), NetworkBatch::Images(batch)) => model.outputs(batch, extras.tape),
            _ => unreachable!("a batch is of the model that made it"),
        }
    }
}

impl Model for Network {
    type Example = TokenizedExample;
    type Batch = NetworkBatch;

    fn layout(&self) -> &Layout {
        match self {
            Self::Transformer(model) => model.layout(),
            Self::Images(model) => model.layout(),
        }
    }

    fn flat(&self) -> &Tensor {
        match self {
            Self::Transformer(model) => model.flat(),
            Self::Images(model) => model.flat(),
        }
    }

    fn parameters(&self) -> &[Tensor] {
        match self {
            Self::Transformer(model) => model.parameters(),
            Self::Images(model) => model.parameters(),
        }
    }

    fn check(&self, example: &TokenizedExample) -> Result<(), ExampleError> {
        match self {
            Self::Transformer(model) => model.check(example),
            Self::Images(model) => model.check(example),
        }
    }

    fn length(&self, example: &TokenizedExample) -> usize {
        match self {
            Self::Transformer(model) => model.length(example),
            Self::Images(model) => model.length(example),
        }
    }

    fn targets(&self, example: &TokenizedExample) -> usize {
        match self {
            Self::Transformer(model) => model.targets(example),
            Self::Images(model) => model.targets(example),
        }
    }

    fn batch(&self, examples: &[&TokenizedExample]) -> NetworkBatch {
        match self {
            Self::Transformer(model) => NetworkBatch::Texts(Box::new(model.batch(examples))),
            Self::Images(model) => NetworkBatch::Images(model.batch(examples)),
        }
    }

    fn outputs(&self, batch: &NetworkBatch, tape: Option<&mut Tape>) -> Outputs {
        let extras = Extras {
            tape,
            ..Extras::default()
        };
        self.outputs_with(batch, extras)
    }
}
