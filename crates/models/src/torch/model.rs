//! What gradients and curvature need of a model, whichever it is.

use super::gradients::Tape;
use crate::settings::TokensError;
use crate::weights::Layout;
use tch::{Device, Kind, Tensor};

/// A model whose per-example losses can be differentiated with respect to its parameters.
///
/// An example has one or several *positions* at which something is predicted; its loss is the
/// weighted sum of the losses of its positions, with weights that sum to 1.
pub trait Model {
    /// What a training or test example is.
    type Example;
    /// Several examples as tensors.
    type Batch;

    /// Names, shapes and places of the parameters.
    fn layout(&self) -> &Layout;

    /// All parameters as one buffer (gaps included) that the parameters are views of.
    fn flat(&self) -> &Tensor;

    /// The parameters in the order of the layout; each requires gradients.
    fn parameters(&self) -> &[Tensor];

    /// Fails if the model cannot read an example.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, example: &Self::Example) -> Result<(), ExampleError>;

    /// Input positions of an example, so that those of similar length share a batch.
    fn length(&self, example: &Self::Example) -> usize;

    /// Targets of an example: positions with a loss of their own. They are the first of its rows
    /// in [`Model::outputs`].
    fn targets(&self, _: &Self::Example) -> usize {
        1
    }

    /// Checked examples as tensors.
    fn batch(&self, examples: &[&Self::Example]) -> Self::Batch;

    /// What the model predicts for a batch, in evaluation mode; with `tape` every use of a
    /// parameter is noted.
    fn outputs(&self, batch: &Self::Batch, tape: Option<&mut Tape>) -> Outputs;

    /// Type of the parameters.
    fn kind(&self) -> Kind {
        self.flat().kind()
    }

    /// Where the parameters are.
    fn device(&self) -> Device {
        self.flat().device()
    }
}

/// Checks examples one by one.
///
/// # Errors
/// The first that the model cannot read, with its index.
pub fn check_all<M: Model>(
    model: &M,
    examples: &[M::Example],
) -> Result<(), (usize, ExampleError)> {
    for (index, example) in examples.iter().enumerate() {
        model.check(example).map_err(|problem| (index, problem))?;
    }
    Ok(())
}

/// What is predicted at each position.
#[derive(Debug)]
pub enum Targets {
    /// One of several classes, `[rows]` of class indices; the loss is the negative log-likelihood
    /// under the softmax of the predictions, in nats.
    Classes(Tensor),
    /// Values, `[rows × outputs]`; the loss is `½ ‖prediction − value‖²`.
    Values(Tensor),
}

/// The predictions of a batch with what they are compared to. A row is one position of one
/// example; every example has the same number of rows, those it does not need weigh 0.
#[derive(Debug)]
pub struct Outputs {
    /// `[examples · positions × outputs]`: logits, or predicted values.
    pub predictions: Tensor,
    /// The truth.
    pub targets: Targets,
    /// `[examples × positions]`: share of each position in its example's loss.
    pub weights: Tensor,
}

impl Outputs {
    /// The loss at each position, not yet weighted, `[examples × positions]`. At a position of
    /// weight 0 it is arbitrary and finite.
    pub fn position_losses(&self) -> Tensor {
        let rows = match &self.targets {
            Targets::Classes(classes) => {
                -self
                    .predictions
                    .log_softmax(-1, None)
                    .gather(1, &classes.unsqueeze(1), false)
            }
            Targets::Values(values) => {
                (&self.predictions - values)
                    .square()
                    .sum_dim_intlist(1, false, None)
                    * 0.5
            }
        };
        rows.view_as(&self.weights)
    }

    /// Each example's loss, `[examples]`.
    pub fn losses(&self) -> Tensor {
        (self.position_losses() * &self.weights).sum_dim_intlist(1, false, None)
    }

    /// How far each example's predictions have moved from `reference` (predictions of the same
    /// rows), `[examples]`: the Bregman divergence of the loss in its predictions,
    /// `D(y, y₀) = L(y) − L(y₀) − ∇L(y₀)ᵀ (y − y₀)`. For classes it is `KL(softmax y₀ ‖ softmax y)`,
    /// for values `½ ‖y − y₀‖²`; it does not depend on the targets.
    ///
    /// # Reference
    /// Grosse et al. 2023, "Studying large language model generalization with influence functions",
    /// section 2.1.1; Bae et al. 2022.
    pub fn divergences(&self, reference: &Tensor) -> Tensor {
        let rows = match &self.targets {
            Targets::Classes(_) => {
                let before = reference.log_softmax(-1, None);
                let after = self.predictions.log_softmax(-1, None);
                (before.exp() * (before - after)).sum_dim_intlist(1, false, None)
            }
            Targets::Values(_) => {
                (&self.predictions - reference)
                    .square()
                    .sum_dim_intlist(1, false, None)
                    * 0.5
            }
        };
        (rows.view_as(&self.weights) * &self.weights).sum_dim_intlist(1, false, None)
    }

    /// Number of different targets that a position can have; `None` for values.
    pub fn classes(&self) -> Option<i64> {
        match self.targets {
            Targets::Classes(_) => Some(self.predictions.size()[1]),
            Targets::Values(_) => None,
        }
    }

    /// The same predictions with targets drawn from the model's own predictive distribution:
    /// classes from the softmax, values from a normal distribution of variance 1. `uniform` gives
    /// numbers in `[0, 1)` for classes, standard normal ones for values.
    pub fn sampled(&self, draw: &mut dyn FnMut(Draw) -> f64) -> Self {
        let predictions = self.predictions.detach();
        let options = (predictions.kind(), predictions.device());
        let numbers = |count: usize, kind: Draw, draw: &mut dyn FnMut(Draw) -> f64| {
            let drawn: Vec<f64> = (0..count).map(|_| draw(kind)).collect();
            Tensor::from_slice(&drawn)
                .to_device(options.1)
                .to_kind(options.0)
        };
        let targets = match &self.targets {
            Targets::Classes(_) => {
                let cumulative = predictions.softmax(-1, None).cumsum(1, None);
                let uniform = numbers(predictions.size()[0] as usize, Draw::Uniform, draw);
                let below = cumulative.le_tensor(&uniform.unsqueeze(1));
                let class = below.sum_dim_intlist(1, false, Kind::Int64);
                Targets::Classes(class.clamp_max(predictions.size()[1] - 1))
            }
            Targets::Values(_) => {
                let noise = numbers(predictions.numel(), Draw::Normal, draw);
                Targets::Values(&predictions + noise.view_as(&predictions))
            }
        };
        self.with_targets(targets)
    }

    /// The same predictions with other targets.
    pub fn with_targets(&self, targets: Targets) -> Self {
        Self {
            predictions: self.predictions.shallow_clone(),
            targets,
            weights: self.weights.shallow_clone(),
        }
    }

    /// `H_L t`: the Hessian of each example's loss with respect to its predictions times a
    /// tangent of them, both `[rows × outputs]`. For classes the Hessian of a row of weight `w`
    /// is `w (diag(p) − p pᵀ)`, for values `w I`.
    pub fn loss_hessian_times(&self, tangent: &Tensor) -> Tensor {
        let weights = self.weights.view([-1, 1]);
        match self.targets {
            Targets::Classes(_) => {
                let p = self.predictions.detach().softmax(-1, None);
                let weighted = &p * tangent;
                let mean = weighted.sum_dim_intlist(1, true, None);
                (weighted - p * mean) * weights
            }
            Targets::Values(_) => tangent * weights,
        }
    }
}

/// Which kind of random number is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Uniform in `[0, 1)`.
    Uniform,
    /// Standard normal.
    Normal,
}

/// Why a model cannot read an example.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExampleError {
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// Another number of features.
    #[error("it has {got} features, the model reads {expected}")]
    Features {
        /// Inputs of the model.
        expected: usize,
        /// Features given.
        got: usize,
    },
    /// A target that the model does not predict.
    #[error("its target is {got}, the model predicts {expected}")]
    Target {
        /// What the model predicts.
        expected: String,
        /// What the example has.
        got: String,
    },
    /// A feature or a target that is NaN or infinite.
    #[error("its {what} {index} is {got}; it must be finite")]
    NotFinite {
        /// `feature` or `target value`.
        what: &'static str,
        /// Its position.
        index: usize,
        /// The value.
        got: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(k: i64, scale: f64) -> Tensor {
        (Tensor::arange(k, (Kind::Double, Device::Cpu)) * scale).sin()
    }

    /// Two examples of two positions and three outputs.
    fn outputs(is_classes: bool, predictions: Tensor) -> Outputs {
        let targets = if is_classes {
            Targets::Classes(Tensor::from_slice(&[0_i64, 2, 1, 1]))
        } else {
            Targets::Values(number(12, 2.3).view([4, 3]))
        };
        Outputs {
            predictions,
            targets,
            weights: Tensor::from_slice(&[0.25, 0.75, 1.0, 0.0]).view([2, 2]),
        }
    }

    #[test]
    fn ref_divergences_are_what_the_tangent_of_the_loss_misses() {
        for is_classes in [true, false] {
            let start = number(12, 0.9).view([4, 3]).set_requires_grad(true);
            let moved = &start.detach() + number(12, 1.7).view([4, 3]);
            let (at, to) = (
                outputs(is_classes, start.shallow_clone()),
                outputs(is_classes, moved.shallow_clone()),
            );
            let losses = at.losses();
            let total = losses.sum(Kind::Double);
            let slope = Tensor::run_backward(&[total], &[&start], false, false).remove(0);
            let along = (slope * (&moved - start.detach()))
                .sum_dim_intlist(1, false, None)
                .view([2, 2])
                .sum_dim_intlist(1, false, None);
            let expected = to.losses() - losses.detach() - along;
            let got = to.divergences(&start.detach());
            assert!((got - &expected).abs().max().double_value(&[]) < 1e-14);
            assert!(expected.min().double_value(&[]) > 0.01);
        }
    }

    #[test]
    fn ref_the_curvature_of_divergences_is_the_hessian_of_the_loss() {
        for is_classes in [true, false] {
            let start = number(12, 0.9).view([4, 3]);
            let tangent = number(12, 0.4).view([4, 3]);
            // The gradient of the divergence is 0 at the reference; its slope is the Hessian.
            let gradient = |amount: f64| {
                let moved = (&start + &tangent * amount).set_requires_grad(true);
                let total = outputs(is_classes, moved.shallow_clone())
                    .divergences(&start)
                    .sum(Kind::Double);
                Tensor::run_backward(&[total], &[&moved], false, false).remove(0)
            };
            assert!(gradient(0.0).abs().max().double_value(&[]) < 1e-15);
            let slope = (gradient(1e-5) - gradient(-1e-5)) / 2e-5;
            let expected = outputs(is_classes, start.shallow_clone()).loss_hessian_times(&tangent);
            assert!((slope - expected).abs().max().double_value(&[]) < 1e-9);
        }
    }
}
