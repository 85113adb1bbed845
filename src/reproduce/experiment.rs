//! What is trained: the settings of the experiment, and the curricula of their runs.

use anyhow::{Context, Result, bail};
use simfluence_core::design::PlannedRun;
use simfluence_core::edit::{CurriculumEdit, Fill, Order, apply};
use simfluence_core::{Curriculum, Examples, RunDesign, ScheduleKind, Split, Step};
use simfluence_models::TrainingSettings;

/// The number tasks.
pub const FOUR_TASK: &str = include_str!("../../data/tasks/untrac_finetuning.toml");
/// The number tasks and four classes of news.
pub const EIGHT_TASK: &str = include_str!("../../data/tasks/untrac_eight.toml");

/// Most seeds. Runs of all of them are planned, so that more can be asked for later.
pub const MOST_SEEDS: u32 = 16;

/// Training datasets of the test's task, in other words.
pub const SIMILAR: [&str; 2] = ["succeed-digits", "succeed-words"];

/// Runs of one kind: which examples they train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Name, and beginning of the ids of its runs.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Examples of each dataset; `None`: all there are.
    pub sizes: Option<&'static [(&'static str, usize)]>,
    /// Whether the learning rate decays linearly; else it follows the task's schedule.
    pub decays: bool,
    /// Whether optimisers and learning rates of unlearning are swept.
    pub is_swept: bool,
}

/// Four datasets of the same size. The paper does not say how the learning rate went.
pub const FOUR: [Setting; 2] = [
    Setting {
        name: "four",
        about: "four number tasks",
        sizes: None,
        decays: false,
        is_swept: true,
    },
    Setting {
        name: "four-decayed",
        about: "four number tasks, learning rate decaying linearly to 0",
        sizes: None,
        decays: true,
        is_swept: false,
    },
];

/// Eight datasets of even and of uneven sizes: 800 examples, in proportion to the paper's
/// appendix A.2. Which dataset is how large was chosen so that relevant and irrelevant ones are
/// among the large and among the small.
pub const EIGHT: [Setting; 2] = [
    Setting {
        name: "eight-even",
        about: "four number tasks and four classes of news, even sizes",
        decays: false,
        sizes: Some(&[
            ("succeed-digits", 100),
            ("succeed-words", 100),
            ("length-digits", 100),
            ("length-words", 100),
            ("World", 100),
            ("Sports", 100),
            ("Business", 100),
            ("Sci-Tech", 100),
        ]),
        is_swept: false,
    },
    Setting {
        name: "eight-uneven",
        about: "four number tasks and four classes of news, uneven sizes",
        decays: false,
        sizes: Some(&[
            ("World", 240),
            ("succeed-words", 160),
            ("length-digits", 120),
            ("Sports", 80),
            ("length-words", 80),
            ("succeed-digits", 40),
            ("Business", 40),
            ("Sci-Tech", 40),
        ]),
        is_swept: false,
    },
];

/// Id of a run.
pub fn run_id(setting: &Setting, seed: u32) -> String {
    format!("{}-{seed:03}", setting.name)
}

/// The runs of a setting, all seeds: one epoch over its examples, mixed anew by every seed.
pub fn plan(
    setting: &Setting,
    train: &Examples,
    training: &TrainingSettings,
) -> Result<Vec<PlannedRun>> {
    let members = members(setting, train)?;
    let size = training.batch_size as usize;
    if members.len() % size != 0 {
        bail!(
            "setting {}: {} training examples do not make whole batches of {size}",
            setting.name,
            members.len()
        );
    }
    let steps = (members.len() / size) as u32;
    let mut training = training.clone();
    if setting.decays {
        training.schedule.kind = ScheduleKind::Linear;
    }
    let step = |(batch, t): (&[u32], u32)| {
        Step::new(batch.to_vec(), Some(training.learning_rate_at(t, steps)))
    };
    let ordered = members.chunks(size).zip(1..).map(step).collect();
    let ordered = Curriculum::new(ordered, train.len())?;
    let run = |seed: u32| {
        let mixed = CurriculumEdit::Reorder(Order::Random);
        Ok(PlannedRun {
            id: run_id(setting, seed),
            seed: u64::from(seed),
            design: RunDesign {
                design: "ordinary".to_owned(),
                split: Some(Split::Train),
                edit: None,
            },
            curriculum: apply(&ordered, &mixed, Fill::Resample, u64::from(seed))?,
        })
    };
    (0..MOST_SEEDS).map(run).collect()
}

/// The training examples of a setting.
fn members(setting: &Setting, train: &Examples) -> Result<Vec<u32>> {
    let (datasets, dataset_of) = train.groups("dataset");
    let of = |d: usize| {
        (0..)
            .zip(&dataset_of)
            .filter_map(move |(id, &of)| (of == d).then_some(id))
    };
    let Some(sizes) = setting.sizes else {
        return Ok((0..train.len() as u32).collect());
    };
    let mut members = Vec::new();
    for &(name, size) in sizes {
        let dataset = datasets.iter().position(|d| d == name);
        let dataset = dataset.with_context(|| format!("there is no training dataset {name:?}"))?;
        let chosen: Vec<u32> = of(dataset).take(size).collect();
        if chosen.len() < size {
            bail!("dataset {name} has {} examples, not {size}", chosen.len());
        }
        members.extend(chosen);
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_models::Task;
    use std::collections::BTreeMap;

    #[test]
    fn a_run_is_one_epoch_in_an_order_of_its_own() {
        let task = Task::parse(FOUR_TASK).unwrap();
        let prepared = task.prepare(None).unwrap();
        let plan = plan(&FOUR[0], &prepared.train, &task.training).unwrap();
        assert_eq!(plan.len(), MOST_SEEDS as usize);
        assert_eq!(plan[3].id, "four-003");
        for run in &plan[..2] {
            assert_eq!(run.curriculum.len(), task.training.steps as usize);
            let exposure = run.curriculum.total_exposure(1024);
            assert!(exposure.iter().all(|&x| x == 0.125));
        }
        assert_ne!(plan[0].curriculum, plan[1].curriculum);
        let rate = |setting| {
            let plan = super::plan(setting, &prepared.train, &task.training).unwrap();
            plan[0].curriculum.steps()[127].learning_rate.unwrap()
        };
        assert_eq!(rate(&FOUR[0]), 5e-5);
        assert!(rate(&FOUR[1]) < 1e-6);
    }

    #[test]
    fn both_kinds_of_sizes_make_as_many_examples_as_the_paper_s_do() {
        for setting in &EIGHT {
            let sizes: BTreeMap<_, _> = setting.sizes.unwrap().iter().copied().collect();
            assert_eq!(sizes.len(), 8);
            assert_eq!(sizes.values().sum::<usize>(), 800);
        }
        let task = Task::parse(EIGHT_TASK).unwrap();
        assert_eq!(task.training.steps * task.training.batch_size, 800);
    }
}
