//! Why a report cannot be made.

/// What is wrong with the scores or examples of a report.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReportError {
    /// Another number of values than the axes ask for.
    #[error("{what}: {got} values, expected {expected}")]
    Shape {
        /// What does not fit.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A value that is NaN or infinite.
    #[error("{what} {place} is {got}; a report needs finite numbers")]
    NotFinite {
        /// What it is a value of.
        what: &'static str,
        /// Where.
        place: String,
        /// The value.
        got: f64,
    },
    /// Too little to say anything.
    #[error("{got} {what}, at least {needed} are needed")]
    TooFew {
        /// What there is too little of.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many are needed.
        needed: usize,
    },
    /// An example without a column that the report reads.
    #[error("example {key:?} has no column {column:?}; the probes' tasks have it")]
    NoColumn {
        /// Key of the example.
        key: String,
        /// The column.
        column: &'static str,
    },
    /// A question refers to a training example that the scores do not have.
    #[error(
        "test example {test_key:?} names the training example {train_key:?} in its column \"facts\", but there are no scores of it"
    )]
    UnknownFact {
        /// Key of the question.
        test_key: String,
        /// Key of the fact.
        train_key: String,
    },
    /// No example of a kind.
    #[error("no example is of kind {kind:?}; there are: {kinds}")]
    UnknownKind {
        /// The kind asked for.
        kind: String,
        /// Those there are.
        kinds: String,
    },
    /// The scores are of other examples.
    #[error(
        "the scores' {which} example {position} is {got:?}, but the examples have {expected:?} there; scores and examples must be of the same run set"
    )]
    OtherExamples {
        /// `training` or `test`.
        which: &'static str,
        /// Position of the first difference.
        position: usize,
        /// Key in the examples, empty if there is none.
        expected: String,
        /// Key in the scores, empty if there is none.
        got: String,
    },
    /// A setting out of its range.
    #[error("{setting} is {got}; it must be {wanted}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What was given.
        got: f64,
        /// What is allowed.
        wanted: &'static str,
    },
}
