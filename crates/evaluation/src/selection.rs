//! Naming runs on a command line: ids, globs, ranges.

use globset::GlobBuilder;

/// Runs named by ids, globs and ranges.
///
/// | pattern | runs |
/// | --- | --- |
/// | `run-007` | the run with this id |
/// | `base-*` | those whose id matches (`*`, `?`, `[ab]`, `{a,b}`) |
/// | `run-003..run-010` | from the one to the other, **both included**, in the order of the run set |
/// | `3..10` | the same by position, counted from 0, both included |
///
/// Patterns are separated by commas; an id that contains `..` is found as an id first.
///
/// ```
/// use simfluence_evaluation::RunSelection;
/// let ids = ["base-0", "base-1", "run-0", "run-1", "run-2"];
/// let selection = RunSelection::parse("run-1..run-2, base-*")?;
/// assert_eq!(selection.select(&ids)?, vec![0, 1, 3, 4]);
/// # Ok::<(), simfluence_evaluation::SelectionError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSelection {
    patterns: Vec<String>,
}

impl RunSelection {
    /// Reads patterns separated by commas.
    ///
    /// # Errors
    /// There is no pattern, or one is empty.
    pub fn parse(text: &str) -> Result<Self, SelectionError> {
        let mut patterns = Vec::new();
        for part in split_outside_braces(text) {
            if part.trim().is_empty() {
                return Err(SelectionError::Empty {
                    text: text.to_owned(),
                });
            }
            patterns.push(part.trim().to_owned());
        }
        Ok(Self { patterns })
    }

    /// Positions among `ids` of the runs that any pattern names, increasing, each once.
    ///
    /// # Errors
    /// A pattern that names no run, a range whose ends are unknown or the wrong way round, a
    /// malformed glob.
    pub fn select(&self, ids: &[impl AsRef<str>]) -> Result<Vec<usize>, SelectionError> {
        let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
        let mut chosen = vec![false; ids.len()];
        for pattern in &self.patterns {
            for position in select_one(pattern, &ids)? {
                chosen[position] = true;
            }
        }
        Ok((0..ids.len()).filter(|&k| chosen[k]).collect())
    }
}

/// Commas inside `{a,b}` belong to the glob.
fn split_outside_braces(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    text.split(move |c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn select_one(pattern: &str, ids: &[&str]) -> Result<Vec<usize>, SelectionError> {
    if let Some(position) = ids.iter().position(|&id| id == pattern) {
        return Ok(vec![position]);
    }
    if let Some((first, last)) = pattern.split_once("..") {
        return select_range(pattern, first.trim(), last.trim(), ids);
    }
    let glob = GlobBuilder::new(pattern)
        .build()
        .map_err(|source| SelectionError::Glob {
            pattern: pattern.to_owned(),
            problem: source.kind().to_string(),
        })?
        .compile_matcher();
    let found: Vec<usize> = (0..ids.len()).filter(|&k| glob.is_match(ids[k])).collect();
    if found.is_empty() {
        return Err(SelectionError::NoMatch {
            pattern: pattern.to_owned(),
            known: some_of(ids),
        });
    }
    Ok(found)
}

fn select_range(
    pattern: &str,
    first: &str,
    last: &str,
    ids: &[&str],
) -> Result<Vec<usize>, SelectionError> {
    let position = |end: &str| {
        ids.iter()
            .position(|&id| id == end)
            .or_else(|| end.parse().ok().filter(|&k: &usize| k < ids.len()))
            .ok_or_else(|| SelectionError::RangeEnd {
                pattern: pattern.to_owned(),
                end: end.to_owned(),
                known: some_of(ids),
            })
    };
    let (from, to) = (position(first)?, position(last)?);
    if from > to {
        return Err(SelectionError::RangeOrder {
            pattern: pattern.to_owned(),
        });
    }
    Ok((from..=to).collect())
}

/// The first few ids and how many there are, for messages.
fn some_of(ids: &[&str]) -> String {
    let shown = ids.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    match ids.len() {
        0 => "none".to_owned(),
        count if count > 5 => format!("{shown}, … ({count} runs)"),
        _ => shown,
    }
}

/// Why runs cannot be selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Nothing between two commas, or nothing at all.
    #[error("{text:?} has an empty pattern; give run ids, globs or ranges separated by commas")]
    Empty {
        /// What was given.
        text: String,
    },
    /// A pattern that names no run.
    #[error("no run matches {pattern:?}; the runs are {known}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Some of the run ids.
        known: String,
    },
    /// An end of a range that is neither an id nor a position.
    #[error("range {pattern:?}: {end:?} is neither a run id nor a position; the runs are {known}")]
    RangeEnd {
        /// The pattern.
        pattern: String,
        /// The end.
        end: String,
        /// Some of the run ids.
        known: String,
    },
    /// A range that ends before it starts.
    #[error("range {pattern:?} ends before it starts (runs count in the order of the run set)")]
    RangeOrder {
        /// The pattern.
        pattern: String,
    },
    /// A glob that cannot be read.
    #[error("{pattern:?} is not a valid glob: {problem}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 6] = ["base-a", "base-b", "run-0", "run-1", "run-2", "x..y"];

    fn select(text: &str) -> Result<Vec<usize>, SelectionError> {
        RunSelection::parse(text)?.select(&IDS)
    }

    #[test]
    fn ranges_include_both_ends_by_id_and_by_position() {
        assert_eq!(select("run-0..run-2"), Ok(vec![2, 3, 4]));
        assert_eq!(select("2..4"), Ok(vec![2, 3, 4]));
    }

    #[test]
    fn patterns_overlap_without_doubling_and_braces_keep_their_comma() {
        assert_eq!(select("run-*,run-1"), Ok(vec![2, 3, 4]));
        assert_eq!(select("base-{a,b}, run-?"), Ok(vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn an_id_with_dots_is_an_id() {
        assert_eq!(select("x..y"), Ok(vec![5]));
    }

    #[test]
    fn what_matches_nothing_is_an_error_that_lists_runs() {
        let message = select("rin-*").unwrap_err().to_string();
        assert!(
            message.contains("rin-*") && message.contains("base-a") && message.contains("6 runs")
        );
        assert!(matches!(
            select("0..6"),
            Err(SelectionError::RangeEnd { .. })
        ));
        assert!(matches!(
            select("run-2..run-0"),
            Err(SelectionError::RangeOrder { .. })
        ));
        assert!(matches!(
            select("run-0,,run-1"),
            Err(SelectionError::Empty { .. })
        ));
        assert!(matches!(select("run-["), Err(SelectionError::Glob { .. })));
    }
}
