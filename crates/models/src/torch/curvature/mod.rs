//! Curvature of the training loss: products with vectors, and factors that can be inverted.

mod factors;

pub use factors::{
    Damping, FactorKind, Factors, FactorsError, Labels, LayerCurvature, fit_factors,
};

use super::gradients::{GradientError, GradientSettings, by_length, flatten, pick};
use super::model::{Model, check_all};
use super::parameters::views;
use std::cell::Cell;
use tch::{Kind, Tensor};

/// Which matrix stands for the curvature of the training loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CurvatureKind {
    /// The Hessian `Σ_k w_k ∇² L_k`; it may be indefinite.
    Hessian,
    /// The generalised Gauss-Newton matrix `Σ_k w_k J_kᵀ (∇²_z ℓ_k) J_k`, with `J` the Jacobian of
    /// the predictions `z`; for cross-entropy it is the Fisher matrix. Never negative.
    GaussNewton,
}

/// The curvature of a weighted training loss `Σ_k w_k L_k`, as a product with vectors.
///
/// # Reference
/// Pearlmutter 1994 (Hessian); Schraudolph 2002 (Gauss-Newton).
#[derive(Debug)]
pub struct Curvature<'a, M: Model> {
    model: &'a M,
    kind: CurvatureKind,
    batches: Vec<(M::Batch, Tensor)>,
    examples: u64,
    evaluations: Cell<u64>,
}

impl<'a, M: Model> Curvature<'a, M> {
    /// The curvature of the loss of `examples` weighted with `weights`; examples of weight 0 are
    /// left out.
    ///
    /// # Errors
    /// An example that the model cannot read; weights of another number, negative, not finite or
    /// all 0.
    pub fn new(
        model: &'a M,
        examples: &[M::Example],
        weights: &[f64],
        kind: CurvatureKind,
        settings: &GradientSettings,
    ) -> Result<Self, GradientError> {
        check_all(model, examples)
            .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
        check_weights(weights, examples.len())?;
        tch::set_num_threads(settings.threads.max(1) as i32);
        let mut order = by_length(model, examples);
        order.retain(|&i| weights[i] > 0.0);
        let batches = order.chunks(settings.batch_size.max(1)).map(|ids| {
            let shares: Vec<f64> = ids.iter().map(|&i| weights[i]).collect();
            let shares = Tensor::from_slice(&shares)
                .to_device(model.device())
                .to_kind(model.kind());
            (model.batch(&pick(examples, ids)), shares)
        });
        Ok(Self {
            model,
            kind,
            batches: batches.collect(),
            examples: order.len() as u64,
            evaluations: Cell::new(0),
        })
    }

    /// Length of the vectors: that of the flat buffer.
    pub fn len(&self) -> usize {
        self.model.layout().flat_len()
    }

    /// Whether the model has no parameter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ones at the parameters, zeros in the gaps between them, `[flat length]`.
    pub fn support(&self) -> Tensor {
        let ones: Vec<Tensor> = (self.model.parameters().iter())
            .map(Tensor::ones_like)
            .collect();
        flatten(self.model, &ones)
    }

    /// Type of the vectors.
    pub fn kind(&self) -> Kind {
        self.model.kind()
    }

    /// Gradient evaluations so far; a product with one vector counts as one per example.
    pub fn gradient_evaluations(&self) -> u64 {
        self.evaluations.get()
    }

    /// `C v` of every row `v` of `vectors`, `[vectors × flat length]`; what is shared between the
    /// vectors is computed once. Gaps between parameters give 0.
    pub fn times(&self, vectors: &Tensor) -> Tensor {
        let count = vectors.size()[0];
        let sums = Tensor::zeros_like(vectors);
        for (batch, weights) in &self.batches {
            let products = match self.kind {
                CurvatureKind::Hessian => self.hessian_times(batch, weights, vectors),
                CurvatureKind::GaussNewton => self.gauss_newton_times(batch, weights, vectors),
            };
            for (k, product) in products.iter().enumerate() {
                let _ = sums.get(k as i64).g_add_(product);
            }
        }
        let work = self.examples * count as u64;
        self.evaluations.set(self.evaluations.get() + work);
        sums
    }

    fn hessian_times(&self, batch: &M::Batch, weights: &Tensor, vectors: &Tensor) -> Vec<Tensor> {
        let parameters = self.model.parameters();
        let loss = self.model.outputs(batch, None).losses().dot(weights);
        let gradient = Tensor::run_backward(&[loss], parameters, true, true);
        let count = vectors.size()[0];
        (0..count)
            .map(|k| {
                let dot = dot_along(self.model, &gradient, &vectors.get(k));
                let product = Tensor::run_backward(&[dot], parameters, k + 1 < count, false);
                flatten(self.model, &product)
            })
            .collect()
    }

    fn gauss_newton_times(
        &self,
        batch: &M::Batch,
        weights: &Tensor,
        vectors: &Tensor,
    ) -> Vec<Tensor> {
        let parameters = self.model.parameters();
        let outputs = self.model.outputs(batch, None);
        let predictions = &outputs.predictions;
        let positions = outputs.weights.size()[1];
        let share = weights
            .view([-1, 1])
            .expand([-1, positions], false)
            .reshape([-1, 1]);
        // The gradient of `uᵀ z` is `Jᵀ u`, linear in `u`; its derivative along `v` is `J v`.
        let dual = predictions.zeros_like().set_requires_grad(true);
        let pulled = (predictions * &dual).sum(predictions.kind());
        let pulled = Tensor::run_backward(&[pulled], parameters, true, true);
        let count = vectors.size()[0];
        (0..count)
            .map(|k| {
                let dot = dot_along(self.model, &pulled, &vectors.get(k));
                let tangent = Tensor::run_backward(&[dot], &[&dual], true, false).remove(0);
                let curved = outputs.loss_hessian_times(&tangent) * &share;
                let loss = (predictions * curved).sum(predictions.kind());
                let product = Tensor::run_backward(&[loss], parameters, k + 1 < count, false);
                flatten(self.model, &product)
            })
            .collect()
    }
}

/// The Hessian of any scalar made of a model's outputs times a vector, `[flat length]`, with 0 in
/// the gaps.
///
/// # Reference
/// Pearlmutter 1994, "Fast exact multiplication by the Hessian".
pub fn hessian_product<M: Model>(model: &M, value: &Tensor, vector: &Tensor) -> Tensor {
    let gradient = Tensor::run_backward(&[value], model.parameters(), true, true);
    let dot = dot_along(model, &gradient, vector);
    let product = Tensor::run_backward(&[dot], model.parameters(), false, false);
    flatten(model, &product)
}

/// The inner product of a gradient, one tensor per parameter, with a vector.
fn dot_along<M: Model>(model: &M, gradient: &[Tensor], vector: &Tensor) -> Tensor {
    let terms: Vec<Tensor> = (gradient.iter())
        .zip(views(model.layout(), vector))
        .filter(|(g, _)| g.defined() && g.requires_grad())
        .map(|(g, v)| (g * v).sum(g.kind()))
        .collect();
    Tensor::stack(&terms, 0).sum(vector.kind())
}

/// Fails unless there is one finite weight per example, none negative, one positive.
fn check_weights(weights: &[f64], examples: usize) -> Result<(), GradientError> {
    let wrong = |expected: String, got: String| {
        Err(GradientError::Weights {
            what: "weights of the training examples",
            expected,
            got,
        })
    };
    if weights.len() != examples {
        return wrong(format!("{examples} of them"), weights.len().to_string());
    }
    if let Some(k) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return wrong(
            "finite numbers of at least 0".into(),
            format!("{} for example {k}", weights[k]),
        );
    }
    if weights.iter().all(|&w| w == 0.0) {
        return wrong("one above 0".into(), "none".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Network;
    use crate::torch::gradients::per_example_gradients;
    use crate::torch::mlp::{Activation, DenseExample, Mlp, Prediction, Target};
    use crate::torch::test_support::{all_weights, dense, examples, examples_of, weights};
    use tch::Device;

    const WEIGHTS: [f64; 7] = [0.1, 0.3, 0.0, 0.2, 0.05, 0.25, 0.1];

    fn settings() -> GradientSettings {
        GradientSettings {
            batch_size: 3,
            ..GradientSettings::default()
        }
    }

    /// Some vectors with zeros in the gaps of the layout.
    fn vectors<M: Model>(model: &M, count: i64) -> Tensor {
        let length = model.layout().flat_len() as i64;
        let all = (Tensor::arange(count * length, (Kind::Double, Device::Cpu)) * 0.71)
            .sin()
            .view([count, length]);
        let mask = Tensor::zeros([length], (Kind::Double, Device::Cpu));
        for mut view in views(model.layout(), &mask) {
            let _ = view.fill_(1.0);
        }
        all * mask
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    fn weighted_gradient<M: Model>(model: &M, examples: &[M::Example]) -> Tensor {
        let weights = Tensor::from_slice(&WEIGHTS).unsqueeze(0);
        let rows = per_example_gradients(model, examples).unwrap();
        weights.matmul(&rows).squeeze_dim(0)
    }

    fn check_hessian<M: Model>(model: &M, examples: &[M::Example]) {
        let kind = CurvatureKind::Hessian;
        let curvature = Curvature::new(model, examples, &WEIGHTS, kind, &settings()).unwrap();
        let vectors = vectors(model, 2);
        let vectors = &vectors / vectors.norm();
        let products = curvature.times(&vectors);
        let mut flat = model.flat().shallow_clone();
        for k in 0..2 {
            let h = 1e-5;
            let vector = vectors.get(k);
            let _ = tch::no_grad(|| flat.g_add_(&(&vector * h)));
            let up = weighted_gradient(model, examples);
            let _ = tch::no_grad(|| flat.g_sub_(&(&vector * (2.0 * h))));
            let down = weighted_gradient(model, examples);
            let _ = tch::no_grad(|| flat.g_add_(&(&vector * h)));
            let expected = (up - down) / (2.0 * h);
            let worst = largest_difference(&products.get(k), &expected);
            let scale = 1.0 + expected.abs().max().double_value(&[]);
            assert!(worst < 1e-7 * scale, "{worst} {scale}");
        }
        assert_eq!(curvature.gradient_evaluations(), 2 * 6);
    }

    #[test]
    fn ref_hessian_products_are_those_of_finite_differences() {
        for prediction in [Prediction::Classes, Prediction::Values] {
            let (model, train, _) = dense(prediction);
            check_hessian(&model, &train[..7]);
        }
        for weights in all_weights() {
            let model = Network::with_kind(&weights, Device::Cpu, Kind::Double);
            check_hessian(&model, &examples_of(&weights, 7, 1));
        }
    }

    #[test]
    fn a_product_with_the_hessian_of_a_scalar_is_that_of_the_loss_it_is() {
        let model = Network::with_kind(&weights(true), Device::Cpu, Kind::Double);
        let examples = examples(7, 1);
        let kind = CurvatureKind::Hessian;
        let curvature = Curvature::new(&model, &examples, &WEIGHTS, kind, &settings()).unwrap();
        let vector = vectors(&model, 1);
        let batch = model.batch(&examples.iter().collect::<Vec<_>>());
        let loss = model.outputs(&batch, None).losses();
        let loss = loss.dot(&Tensor::from_slice(&WEIGHTS));
        let product = super::hessian_product(&model, &loss, &vector.get(0));
        let expected = curvature.times(&vector).get(0);
        assert!(largest_difference(&product, &expected) < 1e-11);
    }

    /// `Σ_k w_k J_kᵀ H_k J_k v` with the Jacobian row by row and the Hessian of the loss written
    /// out.
    fn brute_force<M: Model>(model: &M, examples: &[M::Example], vector: &Tensor) -> Tensor {
        let mut sum = Tensor::zeros_like(vector);
        for (example, weight) in examples.iter().zip(WEIGHTS) {
            let outputs = model.outputs(&model.batch(&[example]), None);
            let (rows, columns) = outputs.predictions.size2().unwrap();
            for row in 0..rows {
                let gradient = |column: i64| {
                    let value = outputs.predictions.get(row).get(column);
                    let parts = Tensor::run_backward(&[value], model.parameters(), true, false);
                    flatten(model, &parts)
                };
                let jacobian: Vec<Tensor> = (0..columns).map(gradient).collect();
                let jacobian = Tensor::stack(&jacobian, 0);
                let p = outputs.predictions.get(row).detach().softmax(-1, None);
                let hessian = match outputs.classes() {
                    Some(_) => p.diag(0) - p.outer(&p),
                    None => Tensor::eye(columns, (Kind::Double, Device::Cpu)),
                };
                let share = weight * outputs.weights.view([-1]).double_value(&[row]);
                let pushed = hessian.matmul(&jacobian.mv(vector));
                sum += jacobian.transpose(0, 1).mv(&pushed) * share;
            }
        }
        sum
    }

    fn check_gauss_newton<M: Model>(model: &M, examples: &[M::Example]) {
        let kind = CurvatureKind::GaussNewton;
        let curvature = Curvature::new(model, examples, &WEIGHTS, kind, &settings()).unwrap();
        let vectors = vectors(model, 2);
        let products = curvature.times(&vectors);
        for k in 0..2 {
            let expected = brute_force(model, examples, &vectors.get(k));
            let worst = largest_difference(&products.get(k), &expected);
            assert!(worst < 1e-10, "{worst}");
        }
    }

    #[test]
    fn ref_gauss_newton_products_are_those_of_the_jacobian_written_out() {
        for prediction in [Prediction::Classes, Prediction::Values] {
            let (model, train, _) = dense(prediction);
            check_gauss_newton(&model, &train[..7]);
        }
        for weights in all_weights() {
            let model = Network::with_kind(&weights, Device::Cpu, Kind::Double);
            check_gauss_newton(&model, &examples_of(&weights, 7, 1));
        }
    }

    /// Logistic and linear regression, whose Hessian is `Σ_k w_k (diag(p) − p pᵀ) ⊗ x xᵀ`
    /// respectively `Σ_k w_k I ⊗ x xᵀ`, with a 1 behind `x`.
    #[test]
    fn ref_curvature_of_regressions_is_the_closed_form() {
        for prediction in [Prediction::Classes, Prediction::Values] {
            let (_, train, _) = dense(prediction);
            let train = &train[..7];
            let values: Vec<f64> = (0..15).map(|k| f64::from(k).cos()).collect();
            let sizes = [4, 3];
            let activation = Activation::Relu;
            let model = Mlp::new(
                &sizes,
                activation,
                prediction,
                &values,
                Kind::Double,
                Device::Cpu,
            );
            let model = model.unwrap();
            let vector = vectors(&model, 1);
            let direction = {
                let weight = vector.get(0).narrow(0, 0, 12).view([3, 4]);
                let offset = model.layout().specs()[1].offset as i64;
                let bias = vector.get(0).narrow(0, offset, 3).unsqueeze(1);
                Tensor::cat(&[weight, bias], 1)
            };
            let mut expected = Tensor::zeros([3, 5], (Kind::Double, Device::Cpu));
            for (example, weight) in train.iter().zip(WEIGHTS) {
                let mut x = example.features.clone();
                x.push(1.0);
                let x = Tensor::from_slice(&x);
                let outputs = model.outputs(&model.batch(&[example]), None);
                let p = outputs.predictions.get(0).detach().softmax(-1, None);
                let pushed = direction.mv(&x);
                let curved = match prediction {
                    Prediction::Classes => &p * &pushed - &p * p.dot(&pushed),
                    Prediction::Values => pushed,
                };
                expected += curved.outer(&x) * weight;
            }
            for kind in [CurvatureKind::Hessian, CurvatureKind::GaussNewton] {
                let curvature = Curvature::new(&model, train, &WEIGHTS, kind, &settings()).unwrap();
                let product = curvature.times(&vector).get(0);
                let got = {
                    let weight = product.narrow(0, 0, 12).view([3, 4]);
                    let offset = model.layout().specs()[1].offset as i64;
                    let bias = product.narrow(0, offset, 3).unsqueeze(1);
                    Tensor::cat(&[weight, bias], 1)
                };
                let worst = largest_difference(&got, &expected);
                assert!(worst < 1e-13, "{worst}");
            }
        }
    }

    #[test]
    fn weights_that_cannot_be_are_refused() {
        let (model, train, _) = dense(Prediction::Classes);
        let refused = |weights: &[f64]| {
            let kind = CurvatureKind::Hessian;
            let error = Curvature::new(&model, &train[..2], weights, kind, &settings());
            error.unwrap_err().to_string()
        };
        assert!(refused(&[1.0]).contains("expected 2 of them, got 1"));
        assert!(refused(&[0.5, -0.5]).contains("-0.5 for example 1"));
        assert!(refused(&[0.5, f64::NAN]).contains("NaN for example 1"));
        assert!(refused(&[0.0, 0.0]).contains("got none"));
        let example = DenseExample {
            features: vec![1.0],
            target: Target::Class(0),
        };
        let kind = CurvatureKind::Hessian;
        let error = Curvature::new(&model, &[example], &[1.0], kind, &settings()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("training example 0: it has 1 features")
        );
    }
}
