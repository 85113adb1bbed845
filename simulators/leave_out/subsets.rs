//! What training on random subsets did.

use super::truth::mean_over;
use super::{LeaveOutError, Unit};
use simfluence_core::{Artifact, Scores, Tensor};

/// Kind and version of the file form.
const KIND: (&str, u32) = ("leave_out_subsets", 1);

/// The real decrease of every test loss by training on each of some random subsets.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetTruth {
    /// The subsets: the examples that were kept.
    pub subsets: Vec<Unit>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Number of training examples.
    pub train_count: usize,
    /// Number of test examples.
    pub test_count: usize,
    /// `L_0(j) − L_T(j)`, `[seed × subset × test]`, nats per target token.
    pub decreases: Vec<f64>,
    /// `Σ_t η_t x_t(i)` of what was really trained, mean over seeds, `[subset × train]`.
    pub rate_exposures: Vec<f64>,
}

impl SubsetTruth {
    /// The decreases in one seed, a row of test examples per subset.
    pub fn of_seed(&self, seed: usize) -> Vec<Vec<f64>> {
        let size = self.subsets.len() * self.test_count;
        self.decreases[seed * size..(seed + 1) * size]
            .chunks(self.test_count)
            .map(<[f64]>::to_vec)
            .collect()
    }

    /// The decreases, mean over seeds, a row of test examples per subset.
    pub fn mean(&self) -> Vec<Vec<f64>> {
        mean_over(&self.decreases, self.seeds.len(), self.subsets.len())
    }

    /// What the additive simulator of the scores says, with gain 1, mean over seeds, a row of test
    /// examples per subset:
    ///
    /// ```text
    /// Σ_t (η_t / η_ref) Σ_i x_t(i) E(i,j)
    /// ```
    ///
    /// over the steps that were really trained. It is `Σ_{i ∈ S} τ(i,j)` of the linear datamodeling
    /// score, with each example counted as often and as strongly as it was trained.
    ///
    /// - `scores`: over the training and test examples of the truth, `[train × test]`.
    pub fn predicted(&self, scores: &Scores) -> Vec<Vec<f64>> {
        let of_subset = |exposures: &[f64]| {
            let mut sum = vec![0.0; self.test_count];
            for (exposure, row) in exposures.iter().zip(scores.values.chunks(self.test_count)) {
                if *exposure > 0.0 {
                    for (sum, &score) in sum.iter_mut().zip(row) {
                        *sum += exposure / scores.reference_learning_rate * f64::from(score);
                    }
                }
            }
            sum
        };
        self.rate_exposures
            .chunks(self.train_count)
            .map(of_subset)
            .collect()
    }

    /// The file form; what it was made from is for the caller to add to the metadata.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new(KIND.0, KIND.1);
        artifact.set_json("subsets", &self.subsets);
        artifact.set_json("seeds", &self.seeds);
        artifact.set_json("train_count", &self.train_count);
        artifact.set_json("test_count", &self.test_count);
        let mut tensor = |name: &str, shape, values: &[f64]| {
            let values = values.to_vec();
            artifact
                .tensors
                .insert(name.into(), Tensor::F64 { shape, values });
        };
        let shape = vec![self.seeds.len(), self.subsets.len(), self.test_count];
        tensor("decreases", shape, &self.decreases);
        let shape = vec![self.subsets.len(), self.train_count];
        tensor("rate_exposures", shape, &self.rate_exposures);
        artifact
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent part.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, LeaveOutError> {
        artifact.expect(KIND.0, KIND.1)?;
        let subsets: Vec<Unit> = artifact.json("subsets")?;
        let seeds: Vec<u64> = artifact.json("seeds")?;
        let (train_count, test_count) =
            (artifact.json("train_count")?, artifact.json("test_count")?);
        let shape = [seeds.len(), subsets.len(), test_count];
        Ok(Self {
            decreases: artifact.f64s("decreases", &shape)?.to_vec(),
            rate_exposures: artifact
                .f64s("rate_exposures", &[subsets.len(), train_count])?
                .to_vec(),
            subsets,
            seeds,
            train_count,
            test_count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{AdditiveWorld, MemoryCache, in_turn, noise, scores};
    use super::super::{LeaveOut, LeaveOutParams, SubsetParams, Work};
    use super::*;
    use simfluence_core::{Curriculum, NoProgress};
    use simfluence_evaluation::lds_per_column;

    fn method() -> LeaveOut {
        LeaveOutParams::new().seeds(2).check().unwrap()
    }

    fn subsets(
        world: &AdditiveWorld,
        curriculum: &Curriculum,
        params: &SubsetParams,
    ) -> Result<SubsetTruth, LeaveOutError> {
        let cache = MemoryCache::default();
        let work = Work {
            model: world,
            curriculum,
            train_count: world.0.train_keys.len(),
            cache: &cache,
            progress: &NoProgress,
        };
        method().subsets(&work, params)
    }

    #[test]
    fn an_additive_world_without_noise_has_a_score_of_one() {
        let world = AdditiveWorld(scores(20, 6, |i, j| noise(50 * i + j)));
        let truth = subsets(&world, &in_turn(40, 4, 20), &SubsetParams::default()).unwrap();
        assert_eq!(truth.subsets.len(), 16);
        let (real, predicted) = (truth.mean(), truth.predicted(&world.0));
        for (real, predicted) in real.iter().flatten().zip(predicted.iter().flatten()) {
            // Losses near 8 nats are rounded to f32.
            assert!((real - predicted).abs() < 1e-6, "{real} {predicted}");
        }
        assert_eq!(lds_per_column(&real, &predicted), [Some(1.0); 6]);
        // Scores of the opposite sign have the worst score.
        let opposite = scores(20, 6, |i, j| -noise(50 * i + j));
        let worst = lds_per_column(&real, &truth.predicted(&opposite));
        assert_eq!(worst, [Some(-1.0); 6]);
    }

    #[test]
    fn a_subset_keeps_its_share_of_what_the_run_trained_on() {
        let world = AdditiveWorld(scores(20, 2, |i, j| noise(50 * i + j)));
        // The run sees 12 of the 20 examples.
        let truth = subsets(&world, &in_turn(3, 4, 20), &SubsetParams::default()).unwrap();
        for (subset, exposures) in truth.subsets.iter().zip(truth.rate_exposures.chunks(20)) {
            assert_eq!(subset.members.len(), 6);
            assert!(subset.members.iter().all(|&i| i < 12));
            let trained = (0..20).filter(|&i| exposures[i as usize] > 0.0);
            assert!(
                trained
                    .into_iter()
                    .all(|i: u32| subset.members.contains(&i))
            );
        }
        assert!(
            truth
                .subsets
                .windows(2)
                .all(|p| p[0].members != p[1].members)
        );
    }

    #[test]
    fn a_share_that_keeps_everything_or_nothing_is_refused() {
        let world = AdditiveWorld(scores(20, 2, |i, j| noise(50 * i + j)));
        for fraction in [0.01, 0.99] {
            let params = SubsetParams {
                fraction,
                ..SubsetParams::default()
            };
            let error = subsets(&world, &in_turn(3, 4, 20), &params).unwrap_err();
            assert!(matches!(error, LeaveOutError::SubsetSize { .. }), "{error}");
        }
    }

    #[test]
    fn the_file_form_comes_back() {
        let world = AdditiveWorld(scores(20, 2, |i, j| noise(50 * i + j)));
        let truth = subsets(&world, &in_turn(3, 4, 20), &SubsetParams::default()).unwrap();
        let bytes = truth.to_artifact().to_bytes().unwrap();
        let artifact = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(SubsetTruth::from_artifact(&artifact).unwrap(), truth);
    }
}
