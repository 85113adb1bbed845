//! Networks on images: convolutions and dense layers.

use super::gradients::Tape;
use super::model::{ExampleError, Model, Outputs, Targets};
use super::parameters::Parameters;
use crate::images::ImageArchitecture;
use crate::settings::TokenizedExample;
use crate::weight_decay::WeightDecayGroups;
use crate::weights::{Architecture, Layout, Weights, WeightsError};
use tch::{Kind, Tensor};

/// A network on images with its parameters on a device: what its
/// [`ImageArchitecture`](crate::ImageArchitecture) says.
///
/// A convolution is a linear layer on the patches around each pixel. The gradient of its kernel is
/// then a sum of outer products over pixels, and what holds for linear layers over the positions of
/// a text holds for it: inner products of per-example gradients without forming them, and Kronecker
/// factors, which are those of KFC. Where no use is noted, LibTorch's own convolution computes the
/// same.
///
/// [`Model::parameters`] are those that are trained.
///
/// # Reference
/// Grosse & Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers"
/// (arXiv 1602.01407).
#[derive(Debug)]
pub struct ImageNetwork {
    architecture: Architecture,
    images: ImageArchitecture,
    held: Parameters,
}

/// Images as tensors.
#[derive(Debug)]
pub struct ImageBatch {
    /// `[images × 1 × rows × columns]`, as the network reads them.
    pixels: Tensor,
    /// `[images]`.
    classes: Tensor,
}

impl ImageNetwork {
    /// A network with the values of `weights`, computing in `kind`; `images` is what their
    /// architecture says.
    pub(super) fn new(
        weights: &Weights,
        images: ImageArchitecture,
        device: tch::Device,
        kind: Kind,
    ) -> Self {
        let architecture = weights.architecture().clone();
        let all = Tensor::from_slice(weights.flat())
            .to_device(device)
            .to_kind(kind);
        Self {
            held: Parameters::new(weights.layout().clone(), &architecture.chosen(), all),
            architecture,
            images,
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Whether weight decay applies to each trained parameter.
    pub(super) fn decayed(&self, groups: WeightDecayGroups) -> Vec<bool> {
        let is_matrix = |k: usize| k.is_multiple_of(2);
        let decayed = (0..2 * self.images.layers())
            .map(|k| groups == WeightDecayGroups::All || is_matrix(k))
            .collect();
        self.held.of_trained(decayed)
    }

    /// A copy of all parameters in ordinary memory, as 32-bit floats.
    pub(super) fn weights(&self) -> Result<Weights, WeightsError> {
        Weights::from_flat(&self.architecture, self.held.all())
    }

    /// Takes over the parameters of the same architecture.
    pub(super) fn set(&mut self, weights: &Weights) {
        self.held.set(weights.flat());
    }

    /// One convolution with ReLU and pooling, `[images × channels × rows × columns]`.
    fn convolution(&self, layer: usize, maps: &Tensor, tape: &mut Option<&mut Tape>) -> Tensor {
        let output = match tape {
            Some(_) => self.on_patches(layer, maps, tape),
            None => self.direct(layer, maps),
        };
        output
            .relu()
            .max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
    }

    /// A convolution as a linear layer on patches, for the tape.
    fn on_patches(&self, layer: usize, maps: &Tensor, tape: &mut Option<&mut Tape>) -> Tensor {
        let size = maps.size();
        let kernel = i64::from(self.images.settings().kernel);
        let same = kernel / 2;
        let patches = maps
            .im2col([kernel, kernel], [1, 1], [same, same], [1, 1])
            .transpose(1, 2);
        let output = self.held.linear(layer, &patches, size[0], tape);
        let channels = *output.size().last().expect("patches have channels");
        output
            .transpose(1, 2)
            .reshape([size[0], channels, size[2], size[3]])
    }

    /// The same without the patches, several times as fast.
    fn direct(&self, layer: usize, maps: &Tensor) -> Tensor {
        let [weight, bias] = self.held.layer(layer);
        let kernel = i64::from(self.images.settings().kernel);
        let same = kernel / 2;
        let shape = [weight.size()[0], -1, kernel, kernel];
        maps.conv2d(
            &weight.view(shape),
            Some(bias),
            [1, 1],
            [same, same],
            [1, 1],
            1,
        )
    }
}

impl Model for ImageNetwork {
    type Example = TokenizedExample;
    type Batch = ImageBatch;

    fn layout(&self) -> &Layout {
        self.held.layout()
    }

    fn flat(&self) -> &Tensor {
        self.held.flat()
    }

    fn parameters(&self) -> &[Tensor] {
        self.held.trained()
    }

    fn check(&self, example: &TokenizedExample) -> Result<(), ExampleError> {
        Ok(self.images.check(example)?)
    }

    fn length(&self, _: &TokenizedExample) -> usize {
        1
    }

    fn batch(&self, examples: &[&TokenizedExample]) -> ImageBatch {
        let count = self.images.size().pixels();
        let pixels: Vec<u8> = (examples.iter())
            .flat_map(|example| example.tokens[..count].iter().map(|&pixel| pixel as u8))
            .collect();
        let classes: Vec<i64> = (examples.iter())
            .map(|example| i64::from(example.tokens[count]))
            .collect();
        let (settings, size) = (self.images.settings(), self.images.size());
        let shape = [
            examples.len() as i64,
            1,
            i64::from(size.rows),
            i64::from(size.columns),
        ];
        let pixels = Tensor::from_slice(&pixels).to_device(self.device());
        let pixels = pixels.to_kind(self.kind()).view(shape) / 255.0;
        ImageBatch {
            pixels: (pixels - settings.mean) / settings.standard_deviation,
            classes: Tensor::from_slice(&classes).to_device(self.device()),
        }
    }

    fn outputs(&self, batch: &ImageBatch, mut tape: Option<&mut Tape>) -> Outputs {
        let mut maps = batch.pixels.shallow_clone();
        let convolutions = self.images.settings().channels.len();
        for layer in 0..convolutions {
            maps = self.convolution(layer, &maps, &mut tape);
        }
        let layers = convolutions..self.images.layers();
        let rows = maps.flatten(1, -1);
        let predictions = self.held.dense(layers, rows, Tensor::relu, &mut tape);
        Outputs {
            weights: Tensor::ones([predictions.size()[0], 1], (self.kind(), self.device())),
            predictions,
            targets: Targets::Classes(batch.classes.shallow_clone()),
        }
    }
}
