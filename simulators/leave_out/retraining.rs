//! One training, what it gives, and where its result is kept.

use sha2::{Digest, Sha256};
use simfluence_core::{BoxError, Curriculum};

/// Version of what a [key](Retraining::key) covers; another one makes every kept result stale.
const KEY_VERSION: u32 = 1;

/// One training that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Retraining {
    /// What it is trained on, for people ("everything", "without Sports").
    pub what: String,
    /// Seed of the training.
    pub seed: u64,
    /// What is trained, after reordering and leaving out.
    pub curriculum: Curriculum,
}

impl Retraining {
    /// A name for the result: the SHA-256, in hexadecimal digits, of everything that decides it.
    ///
    /// The curriculum goes in as it is trained, step by step, so that the unit, the seed's order
    /// and the way edits are made are all covered. `context` is whatever else decides the result:
    /// base model, examples, training settings, device, version of the library that trains.
    pub fn key(&self, context: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("leave-out retraining {KEY_VERSION}\n"));
        hash.update((context.len() as u64).to_le_bytes());
        hash.update(context);
        hash.update(self.seed.to_le_bytes());
        hash_curriculum(&mut hash, &self.curriculum);
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn hash_curriculum(hash: &mut Sha256, curriculum: &Curriculum) {
    hash.update((curriculum.len() as u64).to_le_bytes());
    for step in curriculum.steps() {
        hash.update((step.batch.len() as u64).to_le_bytes());
        for id in &step.batch {
            hash.update(id.to_le_bytes());
        }
        hash.update([u8::from(step.weights.is_some())]);
        for weight in step.weights.iter().flatten() {
            hash.update(weight.to_le_bytes());
        }
        hash.update([u8::from(step.learning_rate.is_some())]);
        hash.update(step.learning_rate.unwrap_or_default().to_le_bytes());
    }
}

/// The test losses at both ends of a training, `[test]` each, nats per target token.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalLosses {
    /// `L_0`, before the first step.
    pub initial: Vec<f32>,
    /// `L_T`, after the last step.
    pub last: Vec<f32>,
}

/// Keeps finished trainings. Called from several threads.
pub trait Cache: Sync {
    /// The result of a training that was kept, if there is one.
    ///
    /// # Errors
    /// Something is kept under its key that cannot be read.
    fn load(&self, retraining: &Retraining) -> Result<Option<FinalLosses>, BoxError>;

    /// Keeps the result of a training that has just finished.
    ///
    /// # Errors
    /// It cannot be written.
    fn store(&self, retraining: &Retraining, result: &FinalLosses) -> Result<(), BoxError>;
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl Cache for NoCache {
    fn load(&self, _: &Retraining) -> Result<Option<FinalLosses>, BoxError> {
        Ok(None)
    }

    fn store(&self, _: &Retraining, _: &FinalLosses) -> Result<(), BoxError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Step;
    use std::collections::BTreeSet;

    #[test]
    fn everything_that_decides_a_result_changes_its_key() {
        let step = |batch: Vec<u32>, rate| Step::new(batch, rate);
        let retraining = |seed, steps| Retraining {
            what: "everything".into(),
            seed,
            curriculum: Curriculum::new(steps, 4).unwrap(),
        };
        let plain = vec![step(vec![0, 1], Some(0.5)), step(vec![2], Some(0.5))];
        let mut weighted = plain.clone();
        weighted[0].weights = Some(vec![0.5, 0.5]);
        let keys: BTreeSet<String> = [
            retraining(0, plain.clone()).key("a"),
            retraining(0, plain.clone()).key("b"),
            retraining(1, plain).key("a"),
            retraining(0, weighted).key("a"),
            retraining(
                0,
                vec![step(vec![1, 0], Some(0.5)), step(vec![2], Some(0.5))],
            )
            .key("a"),
            retraining(
                0,
                vec![step(vec![0, 1], Some(0.4)), step(vec![2], Some(0.5))],
            )
            .key("a"),
            retraining(0, vec![step(vec![0, 1], None), step(vec![2], Some(0.5))]).key("a"),
            retraining(
                0,
                vec![step(vec![0], Some(0.5)), step(vec![1, 2], Some(0.5))],
            )
            .key("a"),
        ]
        .into();
        assert_eq!(keys.len(), 8);
    }

    #[test]
    fn a_name_for_people_does_not_change_the_key() {
        let curriculum = Curriculum::new(vec![Step::new(vec![0], None)], 1).unwrap();
        let named = |what: &str| Retraining {
            what: what.into(),
            seed: 3,
            curriculum: curriculum.clone(),
        };
        assert_eq!(named("without x").key("c"), named("without y").key("c"));
    }
}
