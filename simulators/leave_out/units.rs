//! What is left out together.

use serde::{Deserialize, Serialize};
use simfluence_core::Examples;

/// Training examples that are left out together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Name, as it stands in tables.
    pub name: String,
    /// Ids of its training examples.
    pub examples: Vec<u32>,
}

impl Unit {
    /// One unit per value of a column (`dataset` or any other), in order of first appearance.
    /// Examples without the column are in no unit.
    ///
    /// ```
    /// use simfluence_core::{Example, Examples};
    /// use simfluence_simulators::leave_out::Unit;
    /// let examples = Examples::new(vec![Example::new("a", "x"), Example::new("b", "y")])?;
    /// let units = Unit::by_column(&examples, "dataset");
    /// assert_eq!(units[1], Unit { name: "y".into(), examples: vec![1] });
    /// # Ok::<(), simfluence_core::ExampleError>(())
    /// ```
    pub fn by_column(examples: &Examples, column: &str) -> Vec<Self> {
        let (names, group_of) = examples.groups(column);
        let mut units: Vec<Self> = names
            .into_iter()
            .map(|name| Self {
                name,
                examples: Vec::new(),
            })
            .collect();
        for (id, example) in examples.as_slice().iter().enumerate() {
            if example.column(column).is_some() {
                units[group_of[id]].examples.push(id as u32);
            }
        }
        units.retain(|unit| !unit.examples.is_empty());
        units
    }

    /// One unit per example, named by its key.
    pub fn each_example(examples: &Examples) -> Vec<Self> {
        Self::by_column(examples, "key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Example;

    #[test]
    fn an_example_without_the_column_is_in_no_unit() {
        let mut english = Example::new("a", "x");
        english.extra.insert("language".into(), "en".into());
        let examples = Examples::new(vec![Example::new("b", "x"), english]).unwrap();
        let units = Unit::by_column(&examples, "language");
        assert_eq!(units.len(), 1);
        assert_eq!(
            (units[0].name.as_str(), &units[0].examples[..]),
            ("en", &[1][..])
        );
        assert_eq!(Unit::each_example(&examples).len(), 2);
    }
}
