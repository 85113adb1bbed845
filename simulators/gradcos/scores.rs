//! Scores of a model.

use super::GradCos;
use crate::attribution::{Attributed, AttributionError, method_name, note_cost};
use simfluence_core::{Progress, Scores};
use simfluence_models::{Metric, Model, Wanted};

impl GradCos {
    /// The scores of every training example for every test example; the cosine is that of the
    /// metric ([`Metric::Identity`], or the optimiser's own preconditioner).
    ///
    /// # Errors
    /// Another number of examples than keys, an example that the model cannot read, gradients
    /// that are not finite.
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        metric: &Metric,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        let wanted = Wanted {
            layers: false,
            norms: true,
            ..Wanted::default()
        };
        let found = of.products(metric, wanted, &self.params, progress)?;
        let mut scores = self.scores_from_products(
            &found.products,
            &found.train_norms,
            &found.test_norms,
            of.axes,
        )?;
        scores.method = method_name("gradcos", metric);
        note_cost(&mut scores, found.gradient_evaluations);
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, model};
    use simfluence_core::NoProgress;

    #[test]
    fn an_example_is_most_like_itself_in_any_metric() {
        let both = examples(6, 0);
        let method = GradCos::new(GradientParams::new(1.0)).unwrap();
        let model = model(3);
        let of = Attributed {
            model: &model,
            train: &both,
            test: &both,
            axes: &axes(6, 6),
        };
        let diagonal = model.flat().square() + 0.1;
        for metric in [Metric::Identity, Metric::Diagonal(diagonal)] {
            let scores = method.scores(&of, &metric, &NoProgress).unwrap();
            for i in 0..6 {
                assert!((scores.values[i * 6 + i] - 1.0).abs() < 1e-5);
                let others = (0..6).filter(|&j| j != i).map(|j| scores.values[i * 6 + j]);
                assert!(others.clone().all(|cosine| cosine.abs() < 1.0 - 1e-4));
            }
        }
    }
}
