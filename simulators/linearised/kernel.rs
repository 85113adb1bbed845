//! What the base model's outputs have to do with each other.

use super::LinearisedError;
use simfluence_core::{Artifact, Tensor};

/// Kind of a kernel's file.
const KIND: &str = "tangent-kernel";
/// Version of those files.
const FORMAT_VERSION: u32 = 1;
/// Most classes of a task.
pub const CLASSES: usize = 32;

/// The outputs of the base model on all examples and the tangent kernel between them. Output
/// `k·e + c` is class `c` of example `e`, training examples before test examples.
#[derive(Debug, Clone, PartialEq)]
pub struct TangentKernel {
    /// Number of training examples `n`.
    pub train_count: usize,
    /// Number of test examples `m`.
    pub test_count: usize,
    /// Number of classes `k`.
    pub classes: usize,
    /// Whether there are outputs that are no class; the probabilities of the classes sum to 1
    /// where not.
    pub others: bool,
    /// `[n + m]`: the class of each example.
    pub answers: Vec<u32>,
    /// `[(n + m) k]`: log-odds of each class against what is no class, before the first step; up
    /// to a constant of the example where there is no such thing.
    pub log_odds: Vec<f32>,
    /// `[n k × (n + m) k]`: `∇u M⁻¹ ∇uᵀ`, in the metric of the optimiser.
    pub updates: Vec<f32>,
    /// `[n k × n k]`: `∇u M⁻² ∇uᵀ` over the number of parameters, for optimisers with a second
    /// moment; empty for others.
    pub squares: Vec<f32>,
}

impl TangentKernel {
    /// Number of outputs of all examples.
    pub(super) fn outputs(&self) -> usize {
        (self.train_count + self.test_count) * self.classes
    }

    /// The log-odds before the first step.
    pub(super) fn start(&self) -> Vec<f64> {
        self.log_odds.iter().map(|&u| f64::from(u)).collect()
    }

    /// `ln (1 + Σ_a e^(u_a))` of an example; without the 1 where the classes are all there is.
    pub(super) fn log_sum(&self, log_odds: &[f64], example: usize) -> f64 {
        let of = &log_odds[example * self.classes..][..self.classes];
        let others = self.others.then_some(0.0);
        let all = || of.iter().copied().chain(others);
        let highest = all().fold(f64::NEG_INFINITY, f64::max);
        highest + all().map(|u| (u - highest).exp()).sum::<f64>().ln()
    }

    /// The losses of the test examples, in nats.
    pub(super) fn losses<'a>(&'a self, log_odds: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        let tests = self.train_count..self.train_count + self.test_count;
        tests.map(move |example| {
            let own = log_odds[example * self.classes + self.answers[example] as usize];
            (self.log_sum(log_odds, example) - own).max(0.0)
        })
    }

    /// # Errors
    /// Sizes that do not fit each other, a class that there is not, values that are not finite.
    pub(super) fn check(&self) -> Result<(), LinearisedError> {
        let (rows, columns) = (self.train_count * self.classes, self.outputs());
        let sizes = [
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
        if let Some(&got) = self.answers.iter().find(|&&c| c as usize >= self.classes) {
            return Err(LinearisedError::Class {
                got,
                classes: self.classes,
            });
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
        artifact.set_json(&name("classes"), &self.classes);
        artifact.set_json(&name("others"), &self.others);
        let (rows, columns) = (self.train_count * self.classes, self.outputs());
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
        let classes: usize = artifact.json(&name("classes"))?;
        let (rows, examples) = (train_count * classes, train_count + test_count);
        let columns = examples * classes;
        let f32s = |of: &str, shape: &[usize]| artifact.f32s(&name(of), shape).map(<[f32]>::to_vec);
        let kernel = Self {
            train_count,
            test_count,
            classes,
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
