//! Named groups of examples that a method treats as one.

use serde::{Deserialize, Serialize};
use simfluence_core::Examples;

/// Examples that are trained on, or unlearned, together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name: of a dataset, or the key of its only example.
    pub name: String,
    /// Ids of its examples.
    pub members: Vec<u32>,
}

impl Unit {
    /// One unit per value of a column (`dataset` or any other), in order of first appearance.
    /// Examples without the column are in no unit.
    ///
    /// ```
    /// use simfluence_core::{Example, Examples};
    /// use simfluence_simulators::units::Unit;
    /// let examples = Examples::new(vec![Example::new("a", "x"), Example::new("b", "y")])?;
    /// let units = Unit::by_column(&examples, "dataset");
    /// assert_eq!(units[1], Unit { name: "y".into(), members: vec![1] });
    /// # Ok::<(), simfluence_core::ExampleError>(())
    /// ```
    pub fn by_column(examples: &Examples, column: &str) -> Vec<Self> {
        let (names, group_of) = examples.groups(column);
        let mut units: Vec<Self> = names
            .into_iter()
            .map(|name| Self {
                name,
                members: Vec::new(),
            })
            .collect();
        for (id, example) in examples.as_slice().iter().enumerate() {
            if example.column(column).is_some() {
                units[group_of[id]].members.push(id as u32);
            }
        }
        units.retain(|unit| !unit.members.is_empty());
        units
    }

    /// One unit per example, named by its key.
    pub fn each_example(examples: &Examples) -> Vec<Self> {
        Self::by_column(examples, "key")
    }
}

/// Units without a common example. Examples that are in none are left out of the scores.
///
/// ```
/// use simfluence_core::{Example, Examples};
/// use simfluence_simulators::units::Units;
/// let examples = Examples::new(vec![
///     Example::new("a", "world"),
///     Example::new("b", "sports"),
///     Example::new("c", "world"),
/// ])?;
/// assert_eq!(Units::by(&examples, "dataset")?.as_slice()[0].members, [0, 2]);
/// assert_eq!(Units::each(&examples.keys())?.as_slice().len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Unit>", into = "Vec<Unit>")]
pub struct Units {
    units: Vec<Unit>,
}

impl Units {
    /// Takes the units in order.
    ///
    /// # Errors
    /// No unit, a unit without examples, an example that stands twice.
    pub fn new(units: Vec<Unit>) -> Result<Self, UnitsError> {
        if units.is_empty() {
            return Err(UnitsError::None);
        }
        let mut places: Vec<(u32, usize)> = Vec::new();
        for (index, unit) in units.iter().enumerate() {
            if unit.members.is_empty() {
                return Err(UnitsError::Empty {
                    unit: unit.name.clone(),
                });
            }
            places.extend(unit.members.iter().map(|&id| (id, index)));
        }
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(UnitsError::Twice {
                id: pair[0].0,
                first: units[pair[0].1].name.clone(),
                second: units[pair[1].1].name.clone(),
            }),
            None => Ok(Self { units }),
        }
    }

    /// One unit per value of a column (`dataset`, or any other), in order of first appearance;
    /// examples without the column are in none.
    ///
    /// # Errors
    /// No example has such a column.
    pub fn by(examples: &Examples, column: &str) -> Result<Self, UnitsError> {
        Self::new(Unit::by_column(examples, column))
    }

    /// Every example alone.
    ///
    /// # Errors
    /// There is no example.
    pub fn each(keys: &[String]) -> Result<Self, UnitsError> {
        Self::alone(0..keys.len() as u32, keys)
    }

    /// Some examples, each alone, of those with these keys.
    ///
    /// # Errors
    /// There is no example, one stands twice or has no key.
    pub fn alone(ids: impl IntoIterator<Item = u32>, keys: &[String]) -> Result<Self, UnitsError> {
        let unit = |id: u32| match keys.get(id as usize) {
            Some(key) => Ok(Unit {
                name: key.clone(),
                members: vec![id],
            }),
            None => Err(UnitsError::Unknown {
                unit: id.to_string(),
                id,
                count: keys.len(),
            }),
        };
        Self::new(ids.into_iter().map(unit).collect::<Result<_, _>>()?)
    }

    /// The units in order.
    pub fn as_slice(&self) -> &[Unit] {
        &self.units
    }

    /// The examples that are in a unit, in the order of their ids, each with the index of its
    /// unit.
    pub fn covered(&self) -> Vec<(u32, usize)> {
        let mut covered: Vec<(u32, usize)> = (self.units.iter().enumerate())
            .flat_map(|(index, unit)| unit.members.iter().map(move |&id| (id, index)))
            .collect();
        covered.sort_unstable();
        covered
    }

    /// Fails if an id is not among `count` examples.
    ///
    /// # Errors
    /// The first such id.
    pub fn check(&self, count: usize) -> Result<(), UnitsError> {
        for unit in &self.units {
            if let Some(&id) = unit.members.iter().find(|&&id| id as usize >= count) {
                return Err(UnitsError::Unknown {
                    unit: unit.name.clone(),
                    id,
                    count,
                });
            }
        }
        Ok(())
    }
}

impl TryFrom<Vec<Unit>> for Units {
    type Error = UnitsError;

    fn try_from(units: Vec<Unit>) -> Result<Self, UnitsError> {
        Self::new(units)
    }
}

impl From<Units> for Vec<Unit> {
    fn from(units: Units) -> Self {
        units.units
    }
}

/// What is wrong with units.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitsError {
    /// No unit.
    #[error("there is no unit; give at least one example")]
    None,
    /// A unit without examples.
    #[error("unit {unit:?} has no examples")]
    Empty {
        /// Its name.
        unit: String,
    },
    /// An example that stands twice.
    #[error(
        "example {id} is in unit {first:?} and again in unit {second:?}; units must not overlap"
    )]
    Twice {
        /// Its id.
        id: u32,
        /// Name of the first unit.
        first: String,
        /// Name of the second.
        second: String,
    },
    /// An example that does not exist.
    #[error("unit {unit:?} has example {id}, but there are {count} (0..{count})")]
    Unknown {
        /// Name of the unit.
        unit: String,
        /// The id.
        id: u32,
        /// Number of examples.
        count: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Example;

    fn unit(name: &str, members: &[u32]) -> Unit {
        Unit {
            name: name.to_owned(),
            members: members.to_vec(),
        }
    }

    #[test]
    fn what_cannot_be_a_unit_is_named() {
        assert_eq!(Units::new(Vec::new()), Err(UnitsError::None));
        let message = |units| Units::new(units).unwrap_err().to_string();
        assert!(message(vec![unit("a", &[1]), unit("b", &[])]).contains("\"b\" has no"));
        let twice = message(vec![unit("a", &[1, 4]), unit("b", &[3, 4])]);
        assert!(twice.starts_with("example 4 is in unit \"a\" and again in unit \"b\""));
        let units = Units::new(vec![unit("a", &[1, 4])]).unwrap();
        assert!(units.check(5).is_ok());
        let unknown = units.check(4).unwrap_err().to_string();
        assert_eq!(unknown, "unit \"a\" has example 4, but there are 4 (0..4)");
    }

    #[test]
    fn covered_examples_come_in_the_order_of_their_ids() {
        let units = Units::new(vec![unit("a", &[4, 1]), unit("b", &[2])]).unwrap();
        assert_eq!(units.covered(), [(1, 0), (2, 1), (4, 0)]);
    }

    #[test]
    fn an_example_without_the_column_is_in_no_unit() {
        let mut english = Example::new("a", "x");
        english.extra.insert("language".into(), "en".into());
        let examples = Examples::new(vec![Example::new("b", "x"), english]).unwrap();
        let units = Unit::by_column(&examples, "language");
        assert_eq!(units.len(), 1);
        assert_eq!(
            (units[0].name.as_str(), &units[0].members[..]),
            ("en", &[1][..])
        );
        assert_eq!(Unit::each_example(&examples).len(), 2);
    }
}
