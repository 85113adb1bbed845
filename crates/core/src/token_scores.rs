//! What an attribution method gives by target token: one number per token of a training example
//! and test example (or token of one).

use crate::artifact::{Artifact, ArtifactError, Tensor};
use crate::scores::{METHOD_SIGN, Scores, ScoresError, unit_name};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of the file.
const FORMAT_VERSION: u32 = 1;

/// Scores by target token, `[rows × columns]`: a row is one target token of a training example, a
/// column a test example or one of its target tokens.
///
/// `E(i, k, j)` is what training on the loss of token `k` of example `i` alone, times the token's
/// share of the example's loss, lowers the loss of `j` by: the rows of an example sum to
/// [`Scores`] of the example, the columns of a test example to those of the test example. Sign
/// and unit are those of [`Scores`].
///
/// ```
/// use simfluence_core::{TargetToken, TokenScores};
/// let token = |example, position| TargetToken { example, position, id: None, text: None };
/// let scores = TokenScores {
///     method: "graddot".into(),
///     train_keys: vec!["a".into(), "b".into()],
///     test_keys: vec!["x".into()],
///     reference_learning_rate: 0.1,
///     has_natural_unit: true,
///     rows: vec![token(0, 0), token(0, 1), token(1, 0)],
///     columns: None,
///     values: vec![0.5, 0.25, 1.0],
///     provenance: Default::default(),
/// };
/// assert_eq!(scores.totals()?.values, [0.75, 1.0]);
/// # Ok::<(), simfluence_core::TokenScoresError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScores {
    /// Name of the method.
    pub method: String,
    /// Keys of the training examples.
    pub train_keys: Vec<String>,
    /// Keys of the test examples.
    pub test_keys: Vec<String>,
    /// `η_ref`, at which the scores hold.
    pub reference_learning_rate: f64,
    /// Whether the scores are in nats.
    pub has_natural_unit: bool,
    /// The target tokens of the training examples, example by example, axis 0.
    pub rows: Vec<TargetToken>,
    /// The target tokens of the test examples, axis 1; `None`: whole test examples.
    pub columns: Option<Vec<TargetToken>>,
    /// Scores, row-major `[rows × columns]`.
    pub values: Vec<f32>,
    /// Settings and provenance of the computation.
    pub provenance: BTreeMap<String, Value>,
}

/// One target token of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetToken {
    /// Id of the example: its place among the keys.
    pub example: u32,
    /// Position among the example's target tokens, from 0.
    pub position: u32,
    /// Number of the token in the vocabulary, where known; of all tokens of an axis or of none.
    pub id: Option<u32>,
    /// The token as text, where known; of all tokens of an axis or of none.
    pub text: Option<String>,
}

impl TokenScores {
    /// Number of columns.
    pub fn width(&self) -> usize {
        self.columns.as_ref().map_or(self.test_keys.len(), Vec::len)
    }

    /// Checks the parts against each other.
    ///
    /// # Errors
    /// Another number of values than the axes say; a token whose example or position is out of
    /// order; a score that is NaN or infinite, with its place; a reference learning rate that is
    /// not positive.
    pub fn check(&self) -> Result<(), TokenScoresError> {
        check_tokens("training", &self.rows, self.train_keys.len())?;
        if let Some(columns) = &self.columns {
            check_tokens("test", columns, self.test_keys.len())?;
        }
        let width = self.width();
        if self.values.len() != self.rows.len() * width {
            return Err(TokenScoresError::Shape {
                rows: self.rows.len(),
                columns: width,
                got: self.values.len(),
            });
        }
        let rate = self.reference_learning_rate;
        if !(rate.is_finite() && rate > 0.0) {
            return Err(ScoresError::LearningRate { got: rate }.into());
        }
        let Some(place) = self.values.iter().position(|v| !v.is_finite()) else {
            return Ok(());
        };
        let token = &self.rows[place / width];
        let column = place % width;
        let test = (self.columns.as_ref()).map_or(column, |c| c[column].example as usize);
        Err(TokenScoresError::NotFinite {
            train_key: self.train_keys[token.example as usize].clone(),
            position: token.position,
            test_key: self.test_keys[test].clone(),
            got: self.values[place],
        })
    }

    /// The sums over target tokens: the scores of whole examples.
    ///
    /// # Errors
    /// What [`TokenScores::check`] refuses.
    pub fn totals(&self) -> Result<Scores, TokenScoresError> {
        self.check()?;
        let (width, tests) = (self.width(), self.test_keys.len());
        let mut sums = vec![0.0_f64; self.train_keys.len() * tests];
        for (row, token) in self.values.chunks_exact(width.max(1)).zip(&self.rows) {
            let sums = &mut sums[token.example as usize * tests..][..tests];
            for (k, &value) in row.iter().enumerate() {
                let test = (self.columns.as_ref()).map_or(k, |c| c[k].example as usize);
                sums[test] += f64::from(value);
            }
        }
        Ok(Scores {
            method: self.method.clone(),
            train_keys: self.train_keys.clone(),
            test_keys: self.test_keys.clone(),
            reference_learning_rate: self.reference_learning_rate,
            has_natural_unit: self.has_natural_unit,
            values: sums.into_iter().map(|v| v as f32).collect(),
            layers: Vec::new(),
            provenance: self.provenance.clone(),
        })
    }

    /// The scores as an artifact that says its axes, sign and unit.
    ///
    /// Arrays: `scores` `[rows × columns]`; `train_example`, `train_position` and, where known,
    /// `train_token` `[rows]`; the same with `test_` where columns are tokens. Texts are JSON in
    /// the header.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new("token-scores", FORMAT_VERSION);
        let axes = match self.columns {
            Some(_) => "train target token, test target token",
            None => "train target token, test",
        };
        for (name, text) in [
            ("method", self.method.as_str()),
            ("axes", axes),
            ("sign", METHOD_SIGN),
            ("unit", unit_name(self.has_natural_unit)),
        ] {
            artifact.metadata.insert(name.into(), text.to_owned());
        }
        artifact.set_json("train_keys", &self.train_keys);
        artifact.set_json("test_keys", &self.test_keys);
        artifact.set_json("reference_learning_rate", &self.reference_learning_rate);
        artifact.set_json("has_natural_unit", &self.has_natural_unit);
        artifact.set_json("provenance", &self.provenance);
        let scores = Tensor::F32 {
            shape: vec![self.rows.len(), self.width()],
            values: self.values.clone(),
        };
        artifact.tensors.insert("scores".into(), scores);
        write_tokens(&mut artifact, "train", &self.rows);
        if let Some(columns) = &self.columns {
            write_tokens(&mut artifact, "test", columns);
        }
        artifact
    }

    /// Reads the artifact back.
    ///
    /// # Errors
    /// Another kind of file, absent parts, or what [`TokenScores::check`] refuses.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, TokenScoresError> {
        artifact.expect("token-scores", FORMAT_VERSION)?;
        let rows = read_tokens(artifact, "train")?;
        let columns = match artifact.tensors.contains_key("test_example") {
            true => Some(read_tokens(artifact, "test")?),
            false => None,
        };
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        let width = columns.as_ref().map_or(test_keys.len(), Vec::len);
        let scores = Self {
            method: artifact.text("method")?.to_owned(),
            train_keys: artifact.json("train_keys")?,
            reference_learning_rate: artifact.json("reference_learning_rate")?,
            has_natural_unit: artifact.json("has_natural_unit")?,
            values: artifact.f32s("scores", &[rows.len(), width])?.to_vec(),
            provenance: artifact.json("provenance")?,
            test_keys,
            rows,
            columns,
        };
        scores.check()?;
        Ok(scores)
    }
}

/// Fails unless the tokens go through the examples in order, each from position 0 on.
fn check_tokens(
    axis: &'static str,
    tokens: &[TargetToken],
    examples: usize,
) -> Result<(), TokenScoresError> {
    let mut last: Option<&TargetToken> = None;
    for (index, token) in tokens.iter().enumerate() {
        let follows = match last {
            Some(l) if l.example == token.example => token.position == l.position + 1,
            Some(l) => token.example > l.example && token.position == 0,
            None => token.position == 0,
        };
        if !follows || token.example as usize >= examples {
            return Err(TokenScoresError::Token {
                axis,
                index,
                example: token.example,
                position: token.position,
            });
        }
        last = Some(token);
    }
    Ok(())
}

fn write_tokens(artifact: &mut Artifact, axis: &str, tokens: &[TargetToken]) {
    let mut insert = |name: &str, values: Vec<u32>| {
        let shape = vec![values.len()];
        let tensor = Tensor::U32 { shape, values };
        artifact.tensors.insert(format!("{axis}_{name}"), tensor);
    };
    insert("example", tokens.iter().map(|t| t.example).collect());
    insert("position", tokens.iter().map(|t| t.position).collect());
    if let Some(ids) = tokens.iter().map(|t| t.id).collect() {
        insert("token", ids);
    }
    let texts: Option<Vec<&String>> = tokens.iter().map(|t| t.text.as_ref()).collect();
    if let Some(texts) = texts {
        artifact.set_json(&format!("{axis}_token_texts"), &texts);
    }
}

fn read_tokens(artifact: &Artifact, axis: &str) -> Result<Vec<TargetToken>, TokenScoresError> {
    let name = |part: &str| format!("{axis}_{part}");
    let first = name("example");
    let Some(count) = artifact
        .tensors
        .get(&first)
        .map(|t| t.shape().iter().product())
    else {
        return Err(ArtifactError::MissingTensor { name: first }.into());
    };
    let examples = artifact.u32s(&first, &[count])?;
    let positions = artifact.u32s(&name("position"), &[count])?;
    let ids = match artifact.tensors.contains_key(&name("token")) {
        true => Some(artifact.u32s(&name("token"), &[count])?),
        false => None,
    };
    let texts: Option<Vec<String>> = match artifact.metadata.contains_key(&name("token_texts")) {
        true => Some(artifact.json(&name("token_texts"))?),
        false => None,
    };
    if let Some(texts) = texts.as_ref().filter(|texts| texts.len() != count) {
        return Err(TokenScoresError::Texts {
            expected: count,
            got: texts.len(),
        });
    }
    let token = |k: usize| TargetToken {
        example: examples[k],
        position: positions[k],
        id: ids.map(|ids| ids[k]),
        text: texts.as_ref().map(|texts| texts[k].clone()),
    };
    Ok((0..count).map(token).collect())
}

/// What is wrong with scores by target token.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenScoresError {
    /// Another number of values.
    #[error("{got} scores for {rows} × {columns} tokens, expected {}", rows * columns)]
    Shape {
        /// Tokens of the training examples.
        rows: usize,
        /// Test examples or their tokens.
        columns: usize,
        /// Number of values.
        got: usize,
    },
    /// A token out of order.
    #[error(
        "{axis} token {index} is token {position} of example {example}; tokens go through the examples in order, each from 0 on"
    )]
    Token {
        /// `training` or `test`.
        axis: &'static str,
        /// Place on the axis.
        index: usize,
        /// Its example.
        example: u32,
        /// Its position.
        position: u32,
    },
    /// Another number of texts than tokens.
    #[error("{got} texts for {expected} tokens")]
    Texts {
        /// Number of tokens.
        expected: usize,
        /// Number of texts.
        got: usize,
    },
    /// A score that is NaN or infinite.
    #[error(
        "the score of token {position} of training example {train_key:?} for test example {test_key:?} is {got}"
    )]
    NotFinite {
        /// Key of the training example.
        train_key: String,
        /// Position of its token.
        position: u32,
        /// Key of the test example.
        test_key: String,
        /// The score.
        got: f32,
    },
    /// The rest of it.
    #[error(transparent)]
    Scores(#[from] ScoresError),
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(example: u32, position: u32) -> TargetToken {
        TargetToken {
            example,
            position,
            id: Some(example * 10 + position),
            text: Some(format!("t{position}")),
        }
    }

    fn scores(columns: Option<Vec<TargetToken>>, values: Vec<f32>) -> TokenScores {
        TokenScores {
            method: "graddot".into(),
            train_keys: vec!["a".into(), "b".into(), "c".into()],
            test_keys: vec!["x".into(), "y".into()],
            reference_learning_rate: 1e-3,
            has_natural_unit: true,
            rows: vec![token(0, 0), token(0, 1), token(2, 0)],
            columns,
            values,
            provenance: BTreeMap::from([("seed".into(), Value::from(3))]),
        }
    }

    fn both() -> [TokenScores; 2] {
        let columns = vec![token(0, 0), token(1, 0), token(1, 1)];
        let plain = TargetToken {
            id: None,
            text: None,
            ..token(0, 0)
        };
        let mut without_texts = scores(None, vec![1.0, 2.0, 4.0, 8.0, 16.0, 1e-30]);
        without_texts.rows = vec![plain];
        without_texts.values.truncate(2);
        [
            scores(Some(columns), (0..9).map(|k| k as f32).collect()),
            without_texts,
        ]
    }

    #[test]
    fn they_come_back_bit_identical() {
        for scores in both() {
            let bytes = scores.to_artifact().to_bytes().unwrap();
            let back = TokenScores::from_artifact(&Artifact::from_bytes(&bytes).unwrap());
            assert_eq!(back.unwrap(), scores);
        }
    }

    #[test]
    fn tokens_sum_to_examples() {
        let whole = scores(None, vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
        let expected = [5.0, 10.0, 0.0, 0.0, 16.0, 32.0];
        assert_eq!(whole.totals().unwrap().values, expected);
        let expected = [3.0, 12.0, 0.0, 0.0, 6.0, 15.0];
        assert_eq!(both()[0].totals().unwrap().values, expected);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut broken = scores(None, vec![0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]);
        let message = broken.check().unwrap_err().to_string();
        assert!(
            message.contains("token 1 of training example \"a\""),
            "{message}"
        );
        assert!(message.contains("\"y\""), "{message}");
        broken.values.pop();
        assert!(
            broken
                .check()
                .unwrap_err()
                .to_string()
                .contains("5 scores for 3 × 2")
        );
        broken.rows[1].position = 2;
        let message = broken.check().unwrap_err().to_string();
        assert!(
            message.contains("training token 1 is token 2 of example 0"),
            "{message}"
        );
        broken.rows[1] = token(3, 0);
        assert!(broken.check().is_err());
    }
}
