//! One optimiser update of any model.

use super::model::Model;
use super::optimizers::OptimizerState;
use super::parameters::views;
use simfluence_core::{Artifact, ArtifactError, Optimizer};
use tch::Tensor;

/// An optimiser with its state, and the gradient that it works on.
#[derive(Debug)]
pub struct Updater {
    optimizer: OptimizerState,
    /// The gradient, laid out as the parameters, and its views per parameter.
    gradient: Tensor,
    gradient_views: Vec<Tensor>,
}

impl Updater {
    /// The state before the first update of `model`; weight decay applies to all parameters.
    pub fn new<M: Model>(model: &M, optimizer: Optimizer) -> Self {
        Self::with_decay(model, optimizer, vec![true; model.parameters().len()])
    }

    /// As [`Updater::new`], with weight decay on the parameters that are `decayed`.
    pub fn with_decay<M: Model>(model: &M, optimizer: Optimizer, decayed: Vec<bool>) -> Self {
        super::process::prepare();
        let gradient = model.flat().zeros_like();
        let (layout, kind, device) = (model.layout(), model.kind(), model.device());
        Self {
            optimizer: OptimizerState::new(optimizer, layout, decayed, kind, device),
            gradient_views: views(model.layout(), &gradient),
            gradient,
        }
    }

    /// Differentiates `loss` (its negative climbs), clips the gradient to the global norm `clip`
    /// if there is one, and updates the model's parameters at learning rate `rate`. Returns the
    /// norm of the gradient before clipping.
    pub fn update<M: Model>(
        &mut self,
        model: &M,
        loss: &Tensor,
        clip: Option<f64>,
        rate: f64,
    ) -> f64 {
        self.update_sum(model, std::iter::once(loss.shallow_clone()), clip, rate)
    }

    /// As [`Updater::update`] on the sum of at least one loss, each differentiated before the next
    /// is asked for: no more than one graph is kept at a time.
    pub fn update_sum<M: Model>(
        &mut self,
        model: &M,
        losses: impl Iterator<Item = Tensor>,
        clip: Option<f64>,
        rate: f64,
    ) -> f64 {
        for (part, loss) in losses.enumerate() {
            let gradients = Tensor::run_backward(&[loss], model.parameters(), false, false);
            tch::no_grad(|| {
                for (view, gradient) in self.gradient_views.iter_mut().zip(&gradients) {
                    match part {
                        0 => view.copy_(gradient),
                        _ => *view += gradient,
                    }
                }
            });
        }
        self.apply(model, clip, rate)
    }

    /// As [`Updater::update`] with the gradients that the parameters have accumulated, which are
    /// taken from them.
    pub(super) fn update_accumulated<M: Model>(
        &mut self,
        model: &M,
        clip: Option<f64>,
        rate: f64,
    ) -> f64 {
        tch::no_grad(|| {
            for (view, parameter) in self.gradient_views.iter_mut().zip(model.parameters()) {
                let mut accumulated = parameter.grad();
                if accumulated.defined() {
                    view.copy_(&accumulated);
                    let _ = accumulated.zero_();
                } else {
                    let _ = view.zero_();
                }
            }
        });
        self.apply(model, clip, rate)
    }

    /// As [`Updater::update`] with a gradient that is already there, laid out as the parameters:
    /// for batches that go through the model in several passes.
    pub fn update_with<M: Model>(
        &mut self,
        model: &M,
        gradient: &Tensor,
        clip: Option<f64>,
        rate: f64,
    ) -> f64 {
        tch::no_grad(|| self.gradient.copy_(gradient));
        self.apply(model, clip, rate)
    }

    fn apply<M: Model>(&mut self, model: &M, clip: Option<f64>, rate: f64) -> f64 {
        let norm = self.gradient.norm().double_value(&[]);
        if let Some(limit) = clip {
            // As torch.nn.utils.clip_grad_norm_.
            let factor = (limit / (norm + 1e-6)).min(1.0);
            let _ = self.gradient.g_mul_scalar_(factor);
        }
        let mut flat = model.flat().shallow_clone();
        self.optimizer.update(&mut flat, &mut self.gradient, rate);
        norm
    }

    /// What the optimiser multiplies the gradient's moving average by at its present state: the
    /// diagonal `1 / (√v̂ + ε)` of Adam, AdamW and RMSProp, laid out as the parameters. `None` for
    /// optimisers without a diagonal preconditioner.
    pub fn preconditioner(&self) -> Option<Tensor> {
        self.optimizer.preconditioner()
    }

    /// Adds the optimiser's state to an artifact.
    pub(super) fn write(&self, artifact: &mut Artifact) {
        self.optimizer.write(artifact);
    }

    /// Takes over the state that [`Updater::write`] wrote for the same optimiser.
    pub(super) fn read(&mut self, artifact: &Artifact) -> Result<(), ArtifactError> {
        self.optimizer.read(artifact)
    }
}
