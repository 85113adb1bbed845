//! Models, training and gradients on LibTorch.

mod batch;
mod gradients;
mod optimizers;
mod training;
mod transformer;

pub use batch::{Evaluation, EvaluationSet};
pub use gradients::{
    GradientError, GradientProducts, GradientSettings, gradient_products, per_example_gradients,
};
pub use training::{
    FineTuning, Silent, StepRecord, TrainingError, TrainingObserver, TrainingState, fine_tune,
    pretrain,
};
pub use transformer::Transformer;
