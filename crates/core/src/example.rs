//! The training and test examples of a run set, in id order.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// One training or test example.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Example {
    /// Unique name that stays the same when run sets are merged.
    pub key: String,
    /// The named group that the example belongs to.
    pub dataset: String,
    /// Free labels.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Anything else the user gives, by column name (for text tasks `prompt` and `answer`).
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
}

impl Example {
    /// An example with a key and a dataset, nothing else.
    pub fn new(key: impl Into<String>, dataset: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            dataset: dataset.into(),
            ..Self::default()
        }
    }

    /// The value of a column: `key`, `dataset` or one of [`Example::extra`].
    pub fn column(&self, name: &str) -> Option<&str> {
        match name {
            "key" => Some(&self.key),
            "dataset" => Some(&self.dataset),
            other => self.extra.get(other).map(String::as_str),
        }
    }
}

/// Examples with unique keys; the position is the id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Examples {
    examples: Vec<Example>,
    by_key: HashMap<String, u32>,
}

impl Examples {
    /// Takes the examples in id order.
    ///
    /// # Errors
    /// Two examples with the same key, or a key that is empty.
    pub fn new(examples: Vec<Example>) -> Result<Self, ExampleError> {
        let mut by_key = HashMap::with_capacity(examples.len());
        for (id, example) in examples.iter().enumerate() {
            if example.key.is_empty() {
                return Err(ExampleError::EmptyKey { id: id as u32 });
            }
            if let Some(first) = by_key.insert(example.key.clone(), id as u32) {
                return Err(ExampleError::DuplicateKey {
                    key: example.key.clone(),
                    first,
                    second: id as u32,
                });
            }
        }
        Ok(Self { examples, by_key })
    }

    /// The examples in id order.
    pub fn as_slice(&self) -> &[Example] {
        &self.examples
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// The id of the example with this key.
    pub fn id_of(&self, key: &str) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The example with this id.
    pub fn get(&self, id: u32) -> Option<&Example> {
        self.examples.get(id as usize)
    }

    /// The keys in id order.
    pub fn keys(&self) -> Vec<String> {
        self.examples.iter().map(|e| e.key.clone()).collect()
    }

    /// The names of the datasets, in order of first appearance.
    pub fn datasets(&self) -> Vec<String> {
        self.groups("dataset").0
    }

    /// Groups the examples by a column: the group names in order of first appearance and the
    /// group of each example. An example without the column is in the group `(none)`.
    pub fn groups(&self, column: &str) -> (Vec<String>, Vec<usize>) {
        let mut names: Vec<String> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        let group_of = self
            .examples
            .iter()
            .map(|example| {
                let name = example.column(column).unwrap_or("(none)");
                *index.entry(name).or_insert_with(|| {
                    names.push(name.to_owned());
                    names.len() - 1
                })
            })
            .collect();
        (names, group_of)
    }
}

/// What is wrong with a list of examples.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExampleError {
    /// Two examples share a key.
    #[error("examples {first} and {second} have the same key {key:?}; keys must be unique")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Id of the first.
        first: u32,
        /// Id of the second.
        second: u32,
    },
    /// An example without a key.
    #[error("example {id} has an empty key")]
    EmptyKey {
        /// Id of the example.
        id: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_named() {
        let examples = vec![Example::new("a", "x"), Example::new("a", "y")];
        assert_eq!(
            Examples::new(examples),
            Err(ExampleError::DuplicateKey {
                key: "a".into(),
                first: 0,
                second: 1
            })
        );
    }

    #[test]
    fn groups_keep_the_order_of_first_appearance() {
        let examples = Examples::new(vec![
            Example::new("a", "sports"),
            Example::new("b", "world"),
            Example::new("c", "sports"),
        ])
        .unwrap();
        let (names, of) = examples.groups("dataset");
        assert_eq!(names, vec!["sports", "world"]);
        assert_eq!(of, vec![0, 1, 0]);
    }
}
