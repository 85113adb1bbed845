//! Edits of a curriculum: what if this had been left out, repeated, reordered?

use crate::{Curriculum, CurriculumError, Step};
use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// One edit. Examples are given by id.
#[derive(Debug, Clone, PartialEq)]
pub enum CurriculumEdit {
    /// Train without these examples.
    Drop(Vec<u32>),
    /// Train on these examples only.
    Keep(Vec<u32>),
    /// Train on these examples `times` as often (relative to the others).
    Repeat {
        /// The examples.
        examples: Vec<u32>,
        /// How often, relative to now; more than 0.
        times: f64,
    },
    /// Put `with[k mod len]` wherever the `k`-th of `examples` stood.
    Replace {
        /// What goes.
        examples: Vec<u32>,
        /// What comes.
        with: Vec<u32>,
    },
    /// The same examples in another order; batch sizes and learning rates stay where they are.
    Reorder(Order),
    /// Every learning rate times this factor, more than 0.
    LearningRate(f64),
}

/// An order of the examples of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// By the rank of each training example (`[n]`); equal ranks keep their order.
    Ranked(Vec<u32>),
    /// Shuffled with the seed of the edit.
    Random,
    /// Last to first.
    Reversed,
}

/// What happens to a batch that loses or gains members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fill {
    /// Step count and batch sizes stay: a dropped member's place is taken by a random other
    /// member of the run; a repeated example takes the places of random others.
    #[default]
    Resample,
    /// Batches become smaller (dropped) or larger (repeated); a step left without members goes.
    Shrink,
    /// Batch sizes stay and the run becomes shorter (dropped) or longer (repeated, at the last
    /// learning rate).
    Shorten,
}

/// Applies one edit. The same seed gives the same curriculum.
///
/// Weights travel with the examples and are normalised again per batch.
///
/// # Errors
/// Nothing left to train on, a factor that is not positive, an order or id that does not fit,
/// a learning-rate edit of a curriculum without learning rates.
pub fn apply(
    curriculum: &Curriculum,
    edit: &CurriculumEdit,
    fill: Fill,
    seed: u64,
) -> Result<Curriculum, EditError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let layout = Layout::of(curriculum);
    let batches = layout.slots(curriculum);
    let edited = match edit {
        CurriculumEdit::Drop(examples) => {
            let marked = Marked::new(examples, curriculum)?;
            filter(&layout, batches, |s| !marked.has(s), fill, &mut rng)?
        }
        CurriculumEdit::Keep(examples) => {
            let marked = Marked::new(examples, curriculum)?;
            filter(&layout, batches, |s| marked.has(s), fill, &mut rng)?
        }
        CurriculumEdit::Repeat { examples, times } => {
            positive("times", *times)?;
            let marked = Marked::new(examples, curriculum)?;
            repeat(&layout, batches, &marked, *times, fill, &mut rng)?
        }
        CurriculumEdit::Replace { examples, with } => {
            Marked::new(examples, curriculum)?;
            layout.keep_steps(replace(batches, examples, with)?)
        }
        CurriculumEdit::Reorder(order) => {
            let slots = reorder(batches.concat(), order, &mut rng)?;
            layout.repack(slots)
        }
        CurriculumEdit::LearningRate(factor) => {
            positive("the learning-rate factor", *factor)?;
            return scale_rates(curriculum, *factor);
        }
    };
    layout.finish(edited)
}

/// One place in a batch: the example and its weight relative to an equal share.
#[derive(Debug, Clone, Copy)]
struct Slot {
    example: u32,
    weight: f64,
}

/// A set of examples as a mask, checked to occur in the curriculum.
struct Marked {
    mask: Vec<bool>,
}

impl Marked {
    fn new(examples: &[u32], curriculum: &Curriculum) -> Result<Self, EditError> {
        if examples.is_empty() {
            return Err(EditError::NothingSelected);
        }
        let largest = examples.iter().copied().max().max(curriculum.max_id());
        let mut mask = vec![false; largest.map_or(0, |l| l as usize + 1)];
        for &example in examples {
            mask[example as usize] = true;
        }
        let seen = curriculum.steps().iter().flat_map(|s| &s.batch);
        if !seen.into_iter().any(|&id| mask[id as usize]) {
            return Err(EditError::NeverTrained {
                count: examples.len(),
            });
        }
        Ok(Self { mask })
    }

    fn has(&self, slot: &Slot) -> bool {
        self.mask[slot.example as usize]
    }
}

/// Batch sizes, learning rates and whether there are weights: what edits leave in place.
struct Layout {
    sizes: Vec<usize>,
    rates: Vec<Option<f32>>,
    weighted: bool,
}

impl Layout {
    fn of(curriculum: &Curriculum) -> Self {
        let steps = curriculum.steps();
        Self {
            sizes: steps.iter().map(|s| s.batch.len()).collect(),
            rates: steps.iter().map(|s| s.learning_rate).collect(),
            weighted: steps.iter().any(|s| s.weights.is_some()),
        }
    }

    fn slots(&self, curriculum: &Curriculum) -> Vec<Vec<Slot>> {
        curriculum
            .steps()
            .iter()
            .map(|step| {
                let size = step.batch.len() as f64;
                step.exposures()
                    .map(|(example, share)| Slot {
                        example,
                        weight: share * size,
                    })
                    .collect()
            })
            .collect()
    }

    /// Fills batches of the original sizes in order; more slots go on with the last size.
    fn repack(&self, slots: Vec<Slot>) -> Vec<(Option<f32>, Vec<Slot>)> {
        let mut batches = Vec::new();
        let mut rest = slots.as_slice();
        while !rest.is_empty() {
            let at = batches.len().min(self.sizes.len() - 1);
            let (batch, after) = rest.split_at(self.sizes[at].min(rest.len()));
            batches.push((self.rates[at], batch.to_vec()));
            rest = after;
        }
        batches
    }

    fn keep_steps(&self, batches: Vec<Vec<Slot>>) -> Vec<(Option<f32>, Vec<Slot>)> {
        self.rates.iter().copied().zip(batches).collect()
    }

    fn finish(&self, batches: Vec<(Option<f32>, Vec<Slot>)>) -> Result<Curriculum, EditError> {
        let steps = batches
            .into_iter()
            .filter(|(_, slots)| !slots.is_empty())
            .map(|(learning_rate, slots)| {
                let sum: f64 = slots.iter().map(|s| s.weight).sum();
                Step {
                    batch: slots.iter().map(|s| s.example).collect(),
                    weights: self
                        .weighted
                        .then(|| slots.iter().map(|s| (s.weight / sum) as f32).collect()),
                    learning_rate,
                }
            })
            .collect::<Vec<_>>();
        if steps.is_empty() {
            return Err(EditError::NothingLeft);
        }
        Ok(Curriculum::new(steps, usize::MAX)?)
    }
}

type Batches = Vec<(Option<f32>, Vec<Slot>)>;

fn filter(
    layout: &Layout,
    mut batches: Vec<Vec<Slot>>,
    keep: impl Fn(&Slot) -> bool,
    fill: Fill,
    rng: &mut ChaCha8Rng,
) -> Result<Batches, EditError> {
    let pool: Vec<Slot> = batches.iter().flatten().copied().filter(&keep).collect();
    if pool.is_empty() {
        return Err(EditError::NothingLeft);
    }
    match fill {
        Fill::Resample => {
            for slot in batches.iter_mut().flatten().filter(|s| !keep(s)) {
                *slot = *pool.choose(rng).expect("the pool is not empty");
            }
            Ok(layout.keep_steps(batches))
        }
        Fill::Shrink => {
            batches.iter_mut().for_each(|batch| batch.retain(&keep));
            Ok(layout.keep_steps(batches))
        }
        Fill::Shorten => Ok(layout.repack(pool)),
    }
}

fn repeat(
    layout: &Layout,
    mut batches: Vec<Vec<Slot>>,
    marked: &Marked,
    times: f64,
    fill: Fill,
    rng: &mut ChaCha8Rng,
) -> Result<Batches, EditError> {
    if fill == Fill::Resample {
        resample_to_share(&mut batches, marked, times, rng);
        return Ok(layout.keep_steps(batches));
    }
    if times.fract() != 0.0 {
        return Err(EditError::WholeTimes { times });
    }
    let copies = |slot: &Slot| if marked.has(slot) { times as usize } else { 1 };
    let repeated: Vec<Vec<Slot>> = batches
        .iter()
        .map(|batch| {
            let slots = batch.iter();
            slots
                .flat_map(|slot| std::iter::repeat_n(*slot, copies(slot)))
                .collect()
        })
        .collect();
    Ok(match fill {
        Fill::Shorten => layout.repack(repeated.concat()),
        _ => layout.keep_steps(repeated),
    })
}

/// With a share `p` of the slots, the marked examples get `times·p / (times·p + 1 − p)`: random
/// other slots are given to random marked ones (or, for `times < 1`, the other way round).
fn resample_to_share(batches: &mut [Vec<Slot>], marked: &Marked, times: f64, rng: &mut ChaCha8Rng) {
    let all: Vec<Slot> = batches.iter().flatten().copied().collect();
    let (inside, outside): (Vec<Slot>, Vec<Slot>) = all.iter().partition(|s| marked.has(s));
    if outside.is_empty() {
        return;
    }
    let weighted = times * inside.len() as f64;
    let wanted = weighted / (weighted + outside.len() as f64) * all.len() as f64;
    let wanted = wanted.round() as usize;
    let more = wanted >= inside.len();
    let (takers, count) = if more {
        (&inside, wanted - inside.len())
    } else {
        (&outside, inside.len() - wanted)
    };
    let mut places: Vec<&mut Slot> = batches
        .iter_mut()
        .flatten()
        .filter(|s| marked.has(s) != more)
        .collect();
    places.shuffle(rng);
    for place in places.into_iter().take(count) {
        *place = *takers.choose(rng).expect("both sides have members");
    }
}

fn replace(
    mut batches: Vec<Vec<Slot>>,
    examples: &[u32],
    with: &[u32],
) -> Result<Vec<Vec<Slot>>, EditError> {
    if with.is_empty() {
        return Err(EditError::NothingSelected);
    }
    let successor: HashMap<u32, u32> = examples
        .iter()
        .enumerate()
        .map(|(k, &example)| (example, with[k % with.len()]))
        .collect();
    for slot in batches.iter_mut().flatten() {
        if let Some(&new) = successor.get(&slot.example) {
            slot.example = new;
        }
    }
    Ok(batches)
}

fn reorder(
    mut slots: Vec<Slot>,
    order: &Order,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Slot>, EditError> {
    match order {
        Order::Ranked(ranks) => {
            let unranked = slots.iter().find(|s| s.example as usize >= ranks.len());
            if let Some(slot) = unranked {
                return Err(EditError::Unranked {
                    example: slot.example,
                });
            }
            slots.sort_by_key(|s| ranks[s.example as usize]);
        }
        Order::Random => slots.shuffle(rng),
        Order::Reversed => slots.reverse(),
    }
    Ok(slots)
}

fn scale_rates(curriculum: &Curriculum, factor: f64) -> Result<Curriculum, EditError> {
    let mut steps = curriculum.steps().to_vec();
    for (index, step) in steps.iter_mut().enumerate() {
        let rate = step.learning_rate.ok_or(EditError::NoLearningRate {
            step: index as u32 + 1,
        })?;
        step.learning_rate = Some((f64::from(rate) * factor) as f32);
    }
    Ok(Curriculum::new(steps, usize::MAX)?)
}

fn positive(what: &'static str, got: f64) -> Result<(), EditError> {
    if got.is_finite() && got > 0.0 {
        return Ok(());
    }
    Err(EditError::NotPositive { what, got })
}

/// Why an edit cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EditError {
    /// An empty selection.
    #[error("no training example is selected")]
    NothingSelected,
    /// The selection does not occur in the run.
    #[error(
        "none of the {count} selected training examples occurs in the run, so the edit would change nothing"
    )]
    NeverTrained {
        /// Number of selected examples.
        count: usize,
    },
    /// No example remains.
    #[error("the edit leaves nothing to train on")]
    NothingLeft,
    /// A factor that is not positive.
    #[error("{what} is {got}; it must be positive and finite")]
    NotPositive {
        /// Which one.
        what: &'static str,
        /// What was given.
        got: f64,
    },
    /// Fractions of an example cannot be repeated without resampling.
    #[error("times is {times}; with fill shrink or shorten it must be a whole number")]
    WholeTimes {
        /// What was given.
        times: f64,
    },
    /// An example without a rank.
    #[error("training example {example} has no place in the order")]
    Unranked {
        /// Id of the example.
        example: u32,
    },
    /// There are no learning rates to change.
    #[error("step {step} has no recorded learning rate, so it cannot be scaled")]
    NoLearningRate {
        /// Step, counted from 1.
        step: u32,
    },
    /// What came out is no valid curriculum.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> Curriculum {
        let steps = (0..6)
            .map(|t| Step::new(vec![t % 4, (t + 1) % 4], Some(0.1 * (t + 1) as f32)))
            .collect();
        Curriculum::new(steps, 4).unwrap()
    }

    fn flat(curriculum: &Curriculum) -> Vec<u32> {
        curriculum
            .steps()
            .iter()
            .flat_map(|s| s.batch.clone())
            .collect()
    }

    fn sizes(curriculum: &Curriculum) -> Vec<usize> {
        curriculum.steps().iter().map(|s| s.batch.len()).collect()
    }

    #[test]
    fn dropping_with_resampling_keeps_steps_and_untouched_places() {
        let edited = apply(&run(), &CurriculumEdit::Drop(vec![1]), Fill::Resample, 7).unwrap();
        assert_eq!(sizes(&edited), sizes(&run()));
        for (before, after) in flat(&run()).into_iter().zip(flat(&edited)) {
            assert_ne!(after, 1);
            if before != 1 {
                assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn dropping_with_shrink_makes_batches_smaller_and_weights_whole() {
        let weighted = Step {
            batch: vec![0, 1, 2],
            weights: Some(vec![0.5, 0.25, 0.25]),
            learning_rate: Some(1.0),
        };
        let curriculum = Curriculum::new(vec![weighted, Step::new(vec![1], Some(1.0))], 3).unwrap();
        let edited = apply(&curriculum, &CurriculumEdit::Drop(vec![1]), Fill::Shrink, 0).unwrap();
        assert_eq!(edited.len(), 1);
        assert_eq!(edited.steps()[0].batch, vec![0, 2]);
        let weights = edited.steps()[0].weights.clone().unwrap();
        assert!((weights[0] - 2.0 / 3.0).abs() < 1e-6 && (weights[1] - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn dropping_with_shorten_makes_the_run_shorter() {
        let edited = apply(&run(), &CurriculumEdit::Drop(vec![1]), Fill::Shorten, 0).unwrap();
        let left: Vec<u32> = flat(&run()).into_iter().filter(|&i| i != 1).collect();
        assert_eq!(flat(&edited), left);
        assert!(edited.len() < run().len());
        assert_eq!(edited.steps()[0].learning_rate, Some(0.1));
    }

    #[test]
    fn keeping_is_dropping_the_others() {
        let keep = apply(&run(), &CurriculumEdit::Keep(vec![0, 2]), Fill::Shrink, 0).unwrap();
        let drop = apply(&run(), &CurriculumEdit::Drop(vec![1, 3]), Fill::Shrink, 0).unwrap();
        assert_eq!(keep, drop);
    }

    #[test]
    fn repeating_raises_the_share_as_promised() {
        let steps = (0..50)
            .map(|_| Step::new(vec![0, 1, 2, 3], Some(1.0)))
            .collect();
        let curriculum = Curriculum::new(steps, 4).unwrap();
        let edit = CurriculumEdit::Repeat {
            examples: vec![0],
            times: 3.0,
        };
        let edited = apply(&curriculum, &edit, Fill::Resample, 1).unwrap();
        let zeros = flat(&edited).iter().filter(|&&i| i == 0).count();
        assert_eq!(zeros, 100);
        assert_eq!(edited.len(), 50);
        let longer = apply(&curriculum, &edit, Fill::Shorten, 1).unwrap();
        assert_eq!(longer.len(), 75);
        let wider = apply(&curriculum, &edit, Fill::Shrink, 1).unwrap();
        assert!(sizes(&wider).iter().all(|&s| s == 6));
    }

    #[test]
    fn replacing_puts_the_new_where_the_old_stood() {
        let edit = CurriculumEdit::Replace {
            examples: vec![1, 3],
            with: vec![0, 2],
        };
        let edited = apply(&run(), &edit, Fill::Resample, 0).unwrap();
        for (before, after) in flat(&run()).into_iter().zip(flat(&edited)) {
            let expected = match before {
                1 => 0,
                3 => 2,
                other => other,
            };
            assert_eq!(after, expected);
        }
    }

    #[test]
    fn blocks_follow_the_ranks_and_keep_rates_in_place() {
        let edit = CurriculumEdit::Reorder(Order::Ranked(vec![1, 0, 1, 0]));
        let edited = apply(&run(), &edit, Fill::Resample, 0).unwrap();
        let odd: Vec<bool> = flat(&edited).iter().map(|i| i % 2 == 1).collect();
        assert_eq!(odd, [vec![true; 6], vec![false; 6]].concat());
        assert_eq!(
            edited.steps()[3].learning_rate,
            run().steps()[3].learning_rate
        );
    }

    #[test]
    fn an_edit_that_changes_nothing_is_refused() {
        let curriculum = Curriculum::new(vec![Step::new(vec![0, 1], None)], 3).unwrap();
        assert_eq!(
            apply(
                &curriculum,
                &CurriculumEdit::Drop(vec![2]),
                Fill::Resample,
                0
            ),
            Err(EditError::NeverTrained { count: 1 })
        );
        assert_eq!(
            apply(
                &curriculum,
                &CurriculumEdit::Drop(vec![0, 1]),
                Fill::Resample,
                0
            ),
            Err(EditError::NothingLeft)
        );
        assert_eq!(
            apply(
                &curriculum,
                &CurriculumEdit::LearningRate(2.0),
                Fill::Resample,
                0
            ),
            Err(EditError::NoLearningRate { step: 1 })
        );
    }

    proptest! {
        #[test]
        fn reordering_keeps_every_example_as_often(seed in any::<u64>(), reverse in any::<bool>()) {
            let order = if reverse { Order::Reversed } else { Order::Random };
            let edited =
                apply(&run(), &CurriculumEdit::Reorder(order), Fill::Resample, seed).unwrap();
            let mut before = flat(&run());
            let mut after = flat(&edited);
            before.sort_unstable();
            after.sort_unstable();
            prop_assert_eq!(before, after);
            prop_assert_eq!(sizes(&edited), sizes(&run()));
        }
    }
}
