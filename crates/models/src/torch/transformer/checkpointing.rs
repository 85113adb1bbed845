//! Training that keeps what enters each block on the way forward, and computes the rest again on the
//! way back.
//!
//! # Reference
//! Chen et al. 2016, "Training deep nets with sublinear memory cost".

use super::stack::Stack;
use super::{Dropout, Extras, Transformer};
use crate::torch::batch::Batch;
use tch::Tensor;

impl Transformer {
    /// Each example's loss, `[examples]`, and of their sum times `shares` the gradient, added to what
    /// the parameters have accumulated. For models without an encoder in front.
    ///
    /// Dropout draws the same masks when a block is computed again.
    pub(in crate::torch) fn accumulate(
        &self,
        batch: &Batch,
        shares: &Tensor,
        dropout: Option<&mut Dropout>,
    ) -> Tensor {
        let mut extras = Extras {
            dropout,
            ..Extras::default()
        };
        let stack = Stack::decoder(self, batch, None, &mut extras);
        let at_first = extras.dropout.as_deref().cloned();
        let mut hidden = tch::no_grad(|| self.embed(&batch.inputs, batch.size, &mut extras));
        let mut entering = Vec::new();
        for layer in 0..stack.layers() {
            entering.push((hidden.shallow_clone(), extras.dropout.as_deref().cloned()));
            hidden = tch::no_grad(|| self.block(&stack, layer, hidden, &mut extras));
        }

        let left = leaf(&hidden);
        let hidden = self.behind_blocks(&stack, left.shallow_clone(), &mut extras);
        let hidden = self.projected(hidden, batch.size, &mut extras);
        let losses = self.outputs_of(&hidden, batch, &mut extras).losses();
        losses.dot(shares).backward();
        let mut gradient = left.grad();
        for (layer, (hidden, dropout)) in entering.iter_mut().enumerate().rev() {
            let entered = leaf(hidden);
            let mut extras = Extras {
                dropout: dropout.as_mut(),
                ..Extras::default()
            };
            let left = self.block(&stack, layer, entered.shallow_clone(), &mut extras);
            backward(&left, &gradient);
            gradient = entered.grad();
        }
        let mut dropout = at_first;
        let mut extras = Extras {
            dropout: dropout.as_mut(),
            ..Extras::default()
        };
        let embedded = self.embed(&batch.inputs, batch.size, &mut extras);
        // Adapters leave nothing to train in front of the blocks.
        if embedded.requires_grad() {
            backward(&embedded, &gradient);
        }
        losses.detach()
    }
}

/// The same values, where a gradient ends.
fn leaf(values: &Tensor) -> Tensor {
    values.detach().set_requires_grad(true)
}

/// Runs back from `output`, whose gradient is given.
fn backward(output: &Tensor, gradient: &Tensor) {
    (output * gradient).sum(output.kind()).backward();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::model::Model;
    use crate::torch::test_support::{checkpoint, examples_of};
    use crate::trainable::{LoraSettings, Trainable};
    use crate::{Architecture, ModelSettings, Weights};
    use tch::{Device, Kind};

    /// Gradients of all parameters one behind the other.
    fn joined(gradients: impl Iterator<Item = Tensor>) -> Tensor {
        let flat: Vec<Tensor> = gradients.map(|gradient| gradient.reshape(-1)).collect();
        Tensor::cat(&flat, 0)
    }

    #[test]
    fn gradients_are_those_with_all_activations_kept() {
        let own = ModelSettings {
            layers: 3,
            heads: 2,
            width: 8,
            context: 16,
            dropout: 0.2,
            ..ModelSettings::default()
        };
        let own = Weights::random(&Architecture::new(own, 19).unwrap(), 1);
        let lora = Trainable::Lora(LoraSettings {
            dropout: 0.3,
            ..LoraSettings::default()
        });
        let mut models = vec![own.with_trainable(lora).unwrap(), own];
        let folders = [
            "gpt2",
            "opt_post_norm",
            "gpt_neox",
            "llama",
            "mistral",
            "bert",
        ];
        models.extend(folders.map(checkpoint));
        for weights in models {
            let model = Transformer::with_kind(&weights, Device::Cpu, Kind::Double);
            let examples = examples_of(&weights, 4, 2);
            let batch = model.batch(&examples.iter().collect::<Vec<_>>());
            let shares = Tensor::from_slice(&[0.4, 0.3, 0.2, 0.1]);
            let rates = model.architecture().decoder().dropout;
            let dropout = || Dropout::of_step(rates, 3, 5);
            let (mut one, mut other) = (dropout(), dropout());
            let extras = Extras {
                dropout: one.as_mut(),
                ..Extras::default()
            };
            let losses = model.outputs_with(&batch, extras).losses();
            let parameters = model.parameters();
            let expected = Tensor::run_backward(&[losses.dot(&shares)], parameters, false, false);
            let again = model.accumulate(&batch, &shares, other.as_mut());
            assert!(again.equal(&losses.detach()));
            let expected = joined(expected.into_iter());
            let got = joined(parameters.iter().map(Tensor::grad));
            let apart = (got - &expected).abs().max().double_value(&[]);
            let largest = expected.abs().max().double_value(&[]);
            assert!(
                largest > 1e-3 && apart < 1e-13 * largest,
                "{apart} of {largest}"
            );
        }
    }
}
