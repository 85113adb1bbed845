//! What the base model's outputs have to do with each other.

use super::LinearisedError;
use simfluence_core::{Artifact, Tensor};
use std::ops::Range;

/// Kind of a kernel's file.
const KIND: &str = "tangent-kernel";
/// Version of those files.
const FORMAT_VERSION: u32 = 1;
/// Most alternatives that answers choose from.
pub const ALTERNATIVES: usize = 32;

/// The outputs of the base model on all examples and the tangent kernel between them.
///
/// An answer is a path through *choices*: the first token is one of a few alternatives, and so is,
/// after each beginning of an answer, the next one. Answers of one token, or the classes of a
/// classifier, are one choice. Output `k·e + a` is alternative `a` of example `e`, training examples
/// before test examples.
#[derive(Debug, Clone, PartialEq)]
pub struct TangentKernel {
    /// Number of training examples `n`.
    pub train_count: usize,
    /// Number of test examples `m`.
    pub test_count: usize,
    /// Number of alternatives of each choice, `k` in all.
    pub choices: Vec<usize>,
    /// Whether each choice has outputs that are none of its alternatives; the probabilities of these
    /// sum to 1 where not.
    pub others: Vec<bool>,
    /// The alternatives (of all choices, counted from 0) that each different answer takes, one per
    /// token.
    pub paths: Vec<Vec<u32>>,
    /// `[n + m]`: which of these is the answer of each example.
    pub answers: Vec<u32>,
    /// `[(n + m) k]`: log-odds of each alternative against what is none of its choice, before the
    /// first step; up to a constant of example and choice where there is no such thing.
    pub log_odds: Vec<f32>,
    /// `[n k × (n + m) k]`: `∇u M⁻¹ ∇uᵀ`, in the metric of the optimiser.
    pub updates: Vec<f32>,
    /// `[n k × n k]`: `∇u M⁻² ∇uᵀ` over the number of parameters, for optimisers with a second
    /// moment; empty for others.
    pub squares: Vec<f32>,
}

/// The choice that an alternative belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    /// Its alternatives.
    pub(super) alternatives: Range<usize>,
    /// Whether it has outputs that are none of them.
    others: bool,
}

impl Choice {
    /// `ln (1 + Σ_a e^(u_a))` of an example's log-odds `[k]`; without the 1 where the alternatives
    /// are all there is.
    pub(super) fn log_sum(&self, log_odds: &[f64]) -> f64 {
        let all = || {
            let alternatives = log_odds[self.alternatives.clone()].iter().copied();
            alternatives.chain(self.others.then_some(0.0))
        };
        let highest = all().fold(f64::NEG_INFINITY, f64::max);
        highest + all().map(|u| (u - highest).exp()).sum::<f64>().ln()
    }
}

impl TangentKernel {
    /// Number of alternatives `k`.
    pub(super) fn alternatives(&self) -> usize {
        self.choices.iter().sum()
    }

    /// Number of outputs of all examples.
    pub(super) fn outputs(&self) -> usize {
        (self.train_count + self.test_count) * self.alternatives()
    }

    /// `[k]`: the choice of each alternative.
    pub(super) fn choice_of(&self) -> Vec<Choice> {
        let mut of = Vec::with_capacity(self.alternatives());
        for (&count, &others) in self.choices.iter().zip(&self.others) {
            let alternatives = of.len()..of.len() + count;
            let choice = Choice {
                alternatives,
                others,
            };
            of.extend(vec![choice; count]);
        }
        of
    }

    /// The alternatives that an example's answer takes.
    pub(super) fn path(&self, example: usize) -> &[u32] {
        &self.paths[self.answers[example] as usize]
    }

    /// The log-odds before the first step.
    pub(super) fn start(&self) -> Vec<f64> {
        self.log_odds.iter().map(|&u| f64::from(u)).collect()
    }

    /// The losses of the test examples, in nats per token.
    pub(super) fn losses<'a>(
        &'a self,
        choice_of: &'a [Choice],
        log_odds: &'a [f64],
    ) -> impl Iterator<Item = f64> + 'a {
        let tests = self.train_count..self.train_count + self.test_count;
        tests.map(move |example| {
            let own = &log_odds[example * choice_of.len()..][..choice_of.len()];
            let path = self.path(example);
            let of_token = |&taken: &u32| {
                let taken = taken as usize;
                let loss = choice_of[taken].log_sum(own) - own[taken];
                // Rounding; what is not a number stays so.
                if loss < 0.0 { 0.0 } else { loss }
            };
            path.iter().map(of_token).sum::<f64>() / path.len() as f64
        })
    }

    /// # Errors
    /// Sizes that do not fit each other, an answer or alternative that there is not, values that are
    /// not finite.
    pub(super) fn check(&self) -> Result<(), LinearisedError> {
        let (rows, columns) = (self.train_count * self.alternatives(), self.outputs());
        let sizes = [
            ("others", self.others.len(), self.choices.len()),
            (
                "answers",
                self.answers.len(),
                self.train_count + self.test_count,
            ),
            ("log_odds", self.log_odds.len(), columns),
            ("updates", self.updates.len(), rows * columns),
        ];
        for (name, got, expected) in sizes {
            if got != expected {
                return Err(LinearisedError::Size {
                    name,
                    got,
                    expected,
                });
            }
        }
        if !self.squares.is_empty() && self.squares.len() != rows * rows {
            return Err(LinearisedError::Size {
                name: "squares",
                got: self.squares.len(),
                expected: rows * rows,
            });
        }
        let highest = |of: &[u32]| of.iter().max().map_or(0, |&most| most as usize + 1);
        let taken = self.paths.iter().map(|path| highest(path)).max();
        let is_empty = self.paths.iter().any(Vec::is_empty);
        if is_empty
            || taken.unwrap_or(0) > self.alternatives()
            || highest(&self.answers) > self.paths.len()
        {
            return Err(LinearisedError::Path);
        }
        let values = [&self.log_odds, &self.updates, &self.squares];
        if values.iter().any(|v| v.iter().any(|x| !x.is_finite())) {
            return Err(LinearisedError::NotFinite);
        }
        Ok(())
    }

    /// The file form, with the keys of its axes.
    ///
    /// # Errors
    /// Parts that do not fit each other, a number of keys other than the kernel's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, LinearisedError> {
        self.check()?;
        let (got, expected) = (
            (train_keys.len(), test_keys.len()),
            (self.train_count, self.test_count),
        );
        if got != expected {
            return Err(LinearisedError::Examples { got, expected });
        }
        let mut artifact = Artifact::new(KIND, FORMAT_VERSION);
        artifact.set_json("train_keys", &train_keys);
        artifact.set_json("test_keys", &test_keys);
        self.store(&mut artifact, "");
        Ok(artifact)
    }

    /// Reads the file form back, bit for bit.
    ///
    /// # Errors
    /// Another kind of file, an absent or damaged part.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, LinearisedError> {
        artifact.expect(KIND, FORMAT_VERSION)?;
        let train_keys: Vec<String> = artifact.json("train_keys")?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        Self::read(artifact, "", train_keys.len(), test_keys.len())
    }

    pub(super) fn store(&self, artifact: &mut Artifact, prefix: &str) {
        let name = |name: &str| format!("{prefix}{name}");
        artifact.set_json(&name("choices"), &self.choices);
        artifact.set_json(&name("others"), &self.others);
        artifact.set_json(&name("paths"), &self.paths);
        let (rows, columns) = (self.train_count * self.alternatives(), self.outputs());
        let mut table = |name: String, shape: Vec<usize>, values: &[f32]| {
            let values = values.to_vec();
            artifact.tensors.insert(name, Tensor::F32 { shape, values });
        };
        table(name("log_odds"), vec![columns], &self.log_odds);
        table(name("updates"), vec![rows, columns], &self.updates);
        if !self.squares.is_empty() {
            table(name("squares"), vec![rows, rows], &self.squares);
        }
        let answers = Tensor::U32 {
            shape: vec![self.answers.len()],
            values: self.answers.clone(),
        };
        artifact.tensors.insert(name("answers"), answers);
    }

    pub(super) fn read(
        artifact: &Artifact,
        prefix: &str,
        train_count: usize,
        test_count: usize,
    ) -> Result<Self, LinearisedError> {
        let name = |name: &str| format!("{prefix}{name}");
        let choices: Vec<usize> = artifact.json(&name("choices"))?;
        let alternatives: usize = choices.iter().sum();
        let (rows, examples) = (train_count * alternatives, train_count + test_count);
        let columns = examples * alternatives;
        let f32s = |of: &str, shape: &[usize]| artifact.f32s(&name(of), shape).map(<[f32]>::to_vec);
        let kernel = Self {
            train_count,
            test_count,
            choices,
            paths: artifact.json(&name("paths"))?,
            others: artifact.json(&name("others"))?,
            answers: artifact.u32s(&name("answers"), &[examples])?.to_vec(),
            log_odds: f32s("log_odds", &[columns])?,
            updates: f32s("updates", &[rows, columns])?,
            squares: match artifact.tensors.contains_key(&name("squares")) {
                true => f32s("squares", &[rows, rows])?,
                false => Vec::new(),
            },
        };
        kernel.check()?;
        Ok(kernel)
    }
}
