//! Whose influences are asked for.

use crate::attribution::{Attributed, Axes};
use crate::units::Units;
use simfluence_models::{GradientError, Model, PreparedExamples, check_all, per_example_gradients};
use tch::Tensor;

/// Examples per backward pass of a unit's mean gradient.
const EXAMPLES_PER_PASS: usize = 64;

/// The losses that influence is on: of every test example, or the mean of each unit of them.
pub(super) struct Queries<'a, M: Model> {
    pub of: &'a Attributed<'a, M>,
    pub units: Option<&'a Units>,
}

impl<M: Model> Queries<'_, M> {
    /// Number of losses.
    pub fn count(&self) -> usize {
        self.units
            .map_or(self.of.test.len(), |units| units.as_slice().len())
    }

    /// Their gradients, `[count × flat length]`.
    pub fn gradients(&self) -> Result<Tensor, GradientError> {
        let Attributed { model, test, .. } = *self.of;
        let Some(units) = self.units else {
            return per_example_gradients(model, test);
        };
        check_all(model, test)
            .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
        let gradients: Vec<Tensor> = (units.as_slice().iter())
            .map(|unit| {
                let members: Vec<&M::Example> =
                    unit.members.iter().map(|&j| &test[j as usize]).collect();
                PreparedExamples::new(model, &members, EXAMPLES_PER_PASS).mean_gradient(model)
            })
            .collect();
        Ok(Tensor::stack(&gradients, 0))
    }

    /// The axes of the scores: test examples that are in no unit are left out.
    pub fn axes(&self) -> Axes {
        let mut axes = self.of.axes.clone();
        if let Some(units) = self.units {
            let key = |&(id, _): &(u32, usize)| self.of.axes.test_keys[id as usize].clone();
            axes.test_keys = units.covered().iter().map(key).collect();
        }
        axes
    }

    /// `[train × test]` from `[train × count]`: every member of a unit has what its unit has.
    pub fn spread(&self, products: Vec<f32>) -> Vec<f32> {
        let Some(units) = self.units else {
            return products;
        };
        let covered = units.covered();
        let row = |row: &[f32]| -> Vec<f32> { covered.iter().map(|&(_, u)| row[u]).collect() };
        products.chunks(self.count()).flat_map(row).collect()
    }
}
