//! Logs from elsewhere become run sets. Nothing is dropped without a word: what is left out or
//! doubtful is in [`ImportReport::warnings`].

mod features;
mod gptdynamics;
mod raw;
mod sheet;
mod tables;

pub use features::read_features;
pub use gptdynamics::import_gptdynamics;
pub use tables::{ColumnNames, TableImport, import_tables};

use crate::error::{Place, Problem, RecorderError};
use serde::Serialize;
use std::borrow::Cow;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Ids of the imported runs, sorted.
    pub runs: Vec<String>,
    /// Training examples `n`.
    pub train_examples: usize,
    /// Test examples `m`.
    pub test_examples: usize,
    /// What was left out or is doubtful, with its place.
    pub warnings: Vec<String>,
}

fn wrong(place: &Place, message: impl Into<String>) -> RecorderError {
    let message = message.into();
    RecorderError::invalid(place.clone(), Problem::Other { message })
}

/// Python writes NaN and infinities as bare words, which JSON does not know: they become texts.
fn standard_json(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for (index, part) in text.split('"').enumerate() {
        if index > 0 {
            out.push('"');
        }
        // Between an even number of quotes stands JSON, else a text of its.
        if index % 2 == 0 {
            let part = part
                .replace("-Infinity", "\u{1}")
                .replace("Infinity", "\"inf\"");
            out += &part.replace('\u{1}', "\"-inf\"").replace("NaN", "\"NaN\"");
        } else {
            out += part;
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_nan_and_infinity_become_texts_outside_of_texts() {
        assert_eq!(
            standard_json(r#"{"NaN": [NaN, -Infinity, Infinity, 1.0]}"#),
            r#"{"NaN": ["NaN", "-inf", "inf", 1.0]}"#
        );
    }
}
