//! How people name examples: by id, key, dataset, tag or any column.

use crate::Examples;

/// A selection of examples, as it is written on the command line.
///
/// | written | means |
/// | --- | --- |
/// | `id:7`, `id:7-12` | the example with this id, or those in the range, ends included |
/// | `key:K` | the example with this key |
/// | `dataset:D` | all of a dataset |
/// | `tag:T` | all with a tag |
/// | `COLUMN:V` | all whose column has this value |
/// | `NAME` | the dataset of that name, else the example with that key, else with that id |
///
/// ```
/// use simfluence_core::{Example, Examples, Selection};
/// let examples = Examples::new(vec![Example::new("a", "x"), Example::new("b", "y")])?;
/// assert_eq!("dataset:y".parse::<Selection>()?.resolve(&examples)?, vec![1]);
/// assert_eq!("a".parse::<Selection>()?.resolve(&examples)?, vec![0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Ids from the first to the last, both included.
    Ids(u32, u32),
    /// One example by key.
    Key(String),
    /// Every example with a tag.
    Tag(String),
    /// Every example whose column (`dataset` or any other) has a value.
    Column(String, String),
    /// A bare name.
    Name(String),
}

impl std::str::FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let Some((prefix, value)) = text.split_once(':') else {
            return Ok(Self::Name(text.to_owned()));
        };
        Ok(match prefix {
            "id" => parse_ids(value)?,
            "key" => Self::Key(value.to_owned()),
            "tag" => Self::Tag(value.to_owned()),
            column => Self::Column(column.to_owned(), value.to_owned()),
        })
    }
}

fn parse_ids(text: &str) -> Result<Selection, SelectionError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Selection::Ids(first, last)),
        _ => Err(SelectionError::Ids {
            got: text.to_owned(),
        }),
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ids(first, last) if first == last => write!(f, "id:{first}"),
            Self::Ids(first, last) => write!(f, "id:{first}-{last}"),
            Self::Key(key) => write!(f, "key:{key}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
            Self::Column(column, value) => write!(f, "{column}:{value}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Selection {
    /// The ids of the selected examples, increasing.
    ///
    /// # Errors
    /// Nothing matches; the message says what there is to choose from.
    pub fn resolve(&self, examples: &Examples) -> Result<Vec<u32>, SelectionError> {
        let ids = self.matches(examples);
        if !ids.is_empty() {
            return Ok(ids);
        }
        let mut datasets = examples.datasets();
        if datasets.len() > 12 {
            datasets.truncate(12);
            datasets.push("…".to_owned());
        }
        Err(SelectionError::NoMatch {
            selection: self.to_string(),
            count: examples.len(),
            datasets: datasets.join(", "),
        })
    }

    fn matches(&self, examples: &Examples) -> Vec<u32> {
        let all = examples.as_slice();
        let having = |test: &dyn Fn(usize) -> bool| -> Vec<u32> {
            (0..all.len())
                .filter(|&i| test(i))
                .map(|i| i as u32)
                .collect()
        };
        match self {
            Self::Ids(_, last) if *last as usize >= all.len() => Vec::new(),
            Self::Ids(first, last) => (*first..=*last).collect(),
            Self::Key(key) => examples.id_of(key).into_iter().collect(),
            Self::Tag(tag) => having(&|i| all[i].tags.contains(tag)),
            Self::Column(column, value) => {
                let by_column = having(&|i| all[i].column(column) == Some(value));
                if by_column.is_empty() {
                    // A key or dataset may itself hold a colon.
                    Self::Name(format!("{column}:{value}")).matches(examples)
                } else {
                    by_column
                }
            }
            Self::Name(name) => {
                let dataset = having(&|i| all[i].dataset == *name);
                if !dataset.is_empty() {
                    return dataset;
                }
                let by_id = || {
                    let id = name.parse::<u32>().ok()?;
                    ((id as usize) < all.len()).then_some(id)
                };
                examples.id_of(name).or_else(by_id).into_iter().collect()
            }
        }
    }
}

/// Why a selection selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Not an id or a range of ids.
    #[error("{got:?} is not an id or a range of ids; write id:7 or id:7-12")]
    Ids {
        /// What was written.
        got: String,
    },
    /// Nothing matches.
    #[error(
        "{selection:?} matches none of the {count} examples; datasets are: {datasets}; write dataset:NAME, key:KEY, id:N, id:A-B, tag:TAG or COLUMN:VALUE"
    )]
    NoMatch {
        /// What was asked for.
        selection: String,
        /// Number of examples.
        count: usize,
        /// What there is.
        datasets: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Example;

    fn examples() -> Examples {
        let mut tagged = Example::new("c:1", "Sci: Tech");
        tagged.tags.push("short".into());
        tagged.extra.insert("language".into(), "en".into());
        let list = vec![
            Example::new("a", "Sports"),
            Example::new("b", "Sports"),
            tagged,
        ];
        Examples::new(list).unwrap()
    }

    fn select(text: &str) -> Result<Vec<u32>, SelectionError> {
        text.parse::<Selection>()?.resolve(&examples())
    }

    #[test]
    fn every_way_of_naming_finds_its_examples() {
        assert_eq!(select("id:1").unwrap(), vec![1]);
        assert_eq!(select("id:0-1").unwrap(), vec![0, 1]);
        assert_eq!(select("key:b").unwrap(), vec![1]);
        assert_eq!(select("dataset:Sports").unwrap(), vec![0, 1]);
        assert_eq!(select("Sports").unwrap(), vec![0, 1]);
        assert_eq!(select("tag:short").unwrap(), vec![2]);
        assert_eq!(select("language:en").unwrap(), vec![2]);
        assert_eq!(select("c:1").unwrap(), vec![2]);
        assert_eq!(select("Sci: Tech").unwrap(), vec![2]);
        assert_eq!(select("2").unwrap(), vec![2]);
    }

    #[test]
    fn a_selection_of_nothing_says_what_there_is() {
        let message = select("Sport").unwrap_err().to_string();
        assert!(
            message.contains("Sports") && message.contains("dataset:NAME"),
            "{message}"
        );
        assert!(select("id:2-9").is_err());
        assert!(matches!(select("id:x"), Err(SelectionError::Ids { .. })));
    }
}
