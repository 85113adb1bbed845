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

    /// What scores say of every subset, `Σ_{i ∈ S} τ(i,j)`, a row of test examples per subset. The
    /// attribution `τ(i,j) = x̄_i E(i,j)` is the score times how much an example that is kept is
    /// trained, `Σ_t (η_t/η_ref) x_t(i)`, mean over the subsets that keep it.
    ///
    /// How often each was drawn in a subset's own trainings does not enter: no method could know
    /// it in advance, and the ceiling does not.
    ///
    /// - `scores`: over the training and test examples of the truth, `[train × test]`.
    pub fn predicted(&self, scores: &Scores) -> Vec<Vec<f64>> {
        let mut sums = vec![(0.0, 0_u32); self.train_count];
        for (subset, exposures) in self.each() {
            for &i in &subset.members {
                let (sum, count) = &mut sums[i as usize];
                *sum += exposures[i as usize];
                *count += 1;
            }
        }
        let mean: Vec<f64> = (sums.into_iter())
            .map(|(sum, count)| sum / f64::from(count.max(1)))
            .collect();
        let of_subset = |(subset, _): (&Unit, &[f64])| {
            let mut kept = vec![0.0; self.train_count];
            for &i in &subset.members {
                kept[i as usize] = mean[i as usize];
            }
            self.weighed(scores, &kept)
        };
        self.each().map(of_subset).collect()
    }

    fn each(&self) -> impl Iterator<Item = (&Unit, &[f64])> {
        (self.subsets.iter()).zip(self.rate_exposures.chunks(self.train_count))
    }

    /// `Σ_i r_i E(i,j) / η_ref` with the rate-weighted exposures `r`.
    fn weighed(&self, scores: &Scores, exposures: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.test_count];
        for (exposure, row) in exposures.iter().zip(scores.values.chunks(self.test_count)) {
            if *exposure > 0.0 {
                for (sum, &score) in sum.iter_mut().zip(row) {
                    *sum += exposure / scores.reference_learning_rate * f64::from(score);
                }
            }
        }
        sum
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
    use simfluence_core::{Curriculum, NoProgress, Step};
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
    fn an_additive_world_moves_by_the_scores_of_what_was_trained() {
        let world = AdditiveWorld(scores(20, 6, |i, j| noise(50 * i + j)));
        let truth = subsets(&world, &in_turn(40, 4, 20), &SubsetParams::default()).unwrap();
        assert_eq!(truth.subsets.len(), 16);
        for ((_, exposures), real) in truth.each().zip(truth.mean()) {
            let predicted = truth.weighed(&world.0, exposures);
            for (real, predicted) in real.iter().zip(predicted) {
                // Losses near 8 nats are rounded to f32.
                assert!((real - predicted).abs() < 1e-6, "{real} {predicted}");
            }
        }
    }

    #[test]
    fn the_score_of_a_perfect_method_misses_only_how_often_each_example_was_drawn() {
        let world = AdditiveWorld(scores(20, 6, |i, j| noise(50 * i + j)));
        // Steps of one rate, many of them: every kept example is drawn about as often.
        let steps = (0..400).map(|t| Step::new(vec![t % 20, (t + 7) % 20], Some(0.1)));
        let curriculum = Curriculum::new(steps.collect(), 20).unwrap();
        let truth = subsets(&world, &curriculum, &SubsetParams::default()).unwrap();
        let mean = |scores: &Scores| -> f64 {
            let lds = lds_per_column(&truth.mean(), &truth.predicted(scores));
            lds.into_iter().map(|r| r.unwrap()).sum::<f64>() / 6.0
        };
        assert!(mean(&world.0) > 0.8, "{}", mean(&world.0));
        let opposite = scores(20, 6, |i, j| -noise(50 * i + j));
        assert!((mean(&opposite) + mean(&world.0)).abs() < 1e-12);
        // Not a word about the runs: the sum over the members, up to one factor for all.
        let predicted = truth.predicted(&scores(20, 6, |_, _| 1.0));
        let (least, most) = (predicted.iter().flatten())
            .fold((f64::MAX, 0.0_f64), |(a, b), &v| (a.min(v), b.max(v)));
        assert!(most / least < 1.1, "{least} {most}");
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
