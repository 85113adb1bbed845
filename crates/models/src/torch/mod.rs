//! Models, training and gradients on LibTorch.

mod batch;
mod curvature;
mod gradients;
mod image_network;
mod mlp;
mod model;
mod network;
mod optimizers;
mod parameters;
mod prepared;
mod process;
#[cfg(test)]
mod test_support;
mod training;
mod transformer;
mod updater;

pub use batch::{Batch, Evaluation, EvaluationSet};
pub use curvature::{
    Curvature, CurvatureKind, Damping, FactorKind, Factors, FactorsError, Labels, LayerCurvature,
    fit_factors, hessian_product,
};
pub use gradients::{
    GradientError, GradientSettings, InnerProducts, Metric, Tape, Wanted, inner_products,
    per_example_gradients, products_with_vectors, weighted_gradient,
};
pub use image_network::{ImageBatch, ImageNetwork};
pub use mlp::{Activation, DenseBatch, DenseExample, Mlp, MlpError, Prediction, Target};
pub use model::{Draw, ExampleError, Model, Outputs, Targets, check_all};
pub use network::{Network, NetworkBatch};
pub use prepared::{PreparedExamples, Snapshot, gradient_of};
pub use training::{
    FineTuning, Silent, StepRecord, TrainingError, TrainingObserver, TrainingState, fine_tune,
    pretrain, pretrain_on_images,
};
pub use transformer::Transformer;
pub use updater::Updater;

/// Version of the LibTorch that this was built with, such as `2.13.0`; `unknown` where its headers
/// do not say.
pub const LIBTORCH_VERSION: &str = env!("SIMFLUENCE_LIBTORCH_VERSION");

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_of_libtorch_stands_in_its_headers() {
        let parts: Vec<u32> = super::LIBTORCH_VERSION
            .split('.')
            .map(|part| part.parse().unwrap())
            .collect();
        assert!(parts.len() == 3 && parts[0] >= 2, "{parts:?}");
    }
}
