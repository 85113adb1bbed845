//! From the edit arguments of the command line to edits of a curriculum.

use crate::cli::{EditArgs, FillArg};
use anyhow::{Context, Result, bail};
use simfluence_core::edit::{CurriculumEdit, Fill, Order, apply};
use simfluence_core::{Curriculum, Examples, Selection};
use std::collections::HashMap;
use std::path::Path;

/// One edit with the words it was asked for in.
pub struct NamedEdit {
    /// What was asked for.
    pub label: String,
    /// What it means.
    pub edit: CurriculumEdit,
}

/// Reads the arguments, in the order drop, keep, repeat, replace, reorder, learning rate.
pub fn parse(args: &EditArgs, train: &Examples) -> Result<Vec<NamedEdit>> {
    let mut edits = Vec::new();
    if !args.drop.is_empty() {
        edits.push(NamedEdit {
            label: format!("drop {}", args.drop.join(", ")),
            edit: CurriculumEdit::Drop(select(&args.drop, train)?),
        });
    }
    if !args.keep.is_empty() {
        edits.push(NamedEdit {
            label: format!("keep {}", args.keep.join(", ")),
            edit: CurriculumEdit::Keep(select(&args.keep, train)?),
        });
    }
    for text in &args.repeat {
        let (selection, times) = text
            .rsplit_once('=')
            .with_context(|| format!("--repeat {text}: write SELECTION=TIMES"))?;
        edits.push(NamedEdit {
            label: format!("repeat {selection} x{times}"),
            edit: CurriculumEdit::Repeat {
                examples: select(&[selection.to_owned()], train)?,
                times: times
                    .parse()
                    .with_context(|| format!("--repeat {text}: {times:?} is not a number"))?,
            },
        });
    }
    for text in &args.replace {
        let (old, new) = text
            .split_once('=')
            .with_context(|| format!("--replace {text}: write OLD=NEW"))?;
        edits.push(NamedEdit {
            label: format!("replace {old} by {new}"),
            edit: CurriculumEdit::Replace {
                examples: select(&[old.to_owned()], train)?,
                with: select(&[new.to_owned()], train)?,
            },
        });
    }
    if let Some(order) = &args.reorder {
        edits.push(NamedEdit {
            label: format!("reorder {order}"),
            edit: CurriculumEdit::Reorder(parse_order(order, train)?),
        });
    }
    if let Some(factor) = args.learning_rate {
        edits.push(NamedEdit {
            label: format!("learning rate x{factor}"),
            edit: CurriculumEdit::LearningRate(factor),
        });
    }
    Ok(edits)
}

/// Applies the edits one after the other; each has its own seed.
pub fn apply_all(
    curriculum: &Curriculum,
    edits: &[NamedEdit],
    fill: FillArg,
    seed: u64,
) -> Result<Curriculum> {
    let fill = match fill {
        FillArg::Resample => Fill::Resample,
        FillArg::Shrink => Fill::Shrink,
        FillArg::Shorten => Fill::Shorten,
    };
    let mut edited = curriculum.clone();
    for (index, named) in edits.iter().enumerate() {
        let own_seed = seed.wrapping_add(index as u64);
        edited = apply(&edited, &named.edit, fill, own_seed).context(named.label.clone())?;
    }
    Ok(edited)
}

/// The ids of several selections together.
fn select(texts: &[String], examples: &Examples) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for text in texts {
        ids.extend(text.parse::<Selection>()?.resolve(examples)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn parse_order(text: &str, train: &Examples) -> Result<Order> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "random" => Ok(Order::Random),
        "reversed" => Ok(Order::Reversed),
        "dataset" => by_dataset(rest, train),
        "given" => given(Path::new(rest), train),
        _ => {
            bail!("--reorder {text}: write dataset, dataset:A,B,C, random, reversed or given:FILE")
        }
    }
}

/// Datasets in the order named; those not named come after them, in id order.
fn by_dataset(names: &str, train: &Examples) -> Result<Order> {
    let (datasets, dataset_of) = train.groups("dataset");
    let mut rank: Vec<u32> = vec![u32::MAX; datasets.len()];
    let named = names.split(',').map(str::trim).filter(|n| !n.is_empty());
    for (position, name) in named.enumerate() {
        let index = datasets.iter().position(|d| d == name).with_context(|| {
            let known = datasets.join(", ");
            format!("--reorder: there is no dataset {name:?}; the datasets are: {known}")
        })?;
        rank[index] = position as u32;
    }
    let unnamed = rank.iter_mut().filter(|entry| **entry == u32::MAX);
    for (entry, next) in unnamed.zip(datasets.len() as u32..) {
        *entry = next;
    }
    Ok(Order::Ranked(dataset_of.iter().map(|&d| rank[d]).collect()))
}

/// The order of a file with one id or key per line; every training example must stand in it.
fn given(path: &Path, train: &Examples) -> Result<Order> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--reorder given: cannot read {}", path.display()))?;
    let mut rank: HashMap<u32, u32> = HashMap::new();
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    for (position, line) in lines.enumerate() {
        let by_number = || line.parse().ok().filter(|&id| train.get(id).is_some());
        let id = train.id_of(line).or_else(by_number).with_context(|| {
            format!(
                "{}, line {}: {line:?} is no key and no id of a training example",
                path.display(),
                position + 1
            )
        })?;
        if rank.insert(id, position as u32).is_some() {
            bail!(
                "{}, line {}: {line:?} stands there twice",
                path.display(),
                position + 1
            );
        }
    }
    let ranks = (0..train.len() as u32)
        .map(|id| {
            rank.get(&id).copied().with_context(|| {
                let key = &train.as_slice()[id as usize].key;
                format!("{}: training example {key:?} is missing", path.display())
            })
        })
        .collect::<Result<_>>()?;
    Ok(Order::Ranked(ranks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::{Example, Step};

    fn train() -> Examples {
        let list = ["a", "b", "c", "d"]
            .iter()
            .enumerate()
            .map(|(i, key)| Example::new(*key, if i < 2 { "x" } else { "y" }))
            .collect();
        Examples::new(list).unwrap()
    }

    fn none() -> EditArgs {
        EditArgs {
            drop: vec![],
            keep: vec![],
            repeat: vec![],
            replace: vec![],
            reorder: None,
            learning_rate: None,
        }
    }

    #[test]
    fn every_argument_becomes_its_edit() {
        let args = EditArgs {
            drop: vec!["key:a".into(), "id:1".into()],
            repeat: vec!["dataset:y=2.5".into()],
            replace: vec!["c=d".into()],
            reorder: Some("dataset:y".into()),
            learning_rate: Some(0.5),
            ..none()
        };
        let edits: Vec<CurriculumEdit> = parse(&args, &train())
            .unwrap()
            .into_iter()
            .map(|n| n.edit)
            .collect();
        assert_eq!(
            edits,
            vec![
                CurriculumEdit::Drop(vec![0, 1]),
                CurriculumEdit::Repeat {
                    examples: vec![2, 3],
                    times: 2.5
                },
                CurriculumEdit::Replace {
                    examples: vec![2],
                    with: vec![3]
                },
                CurriculumEdit::Reorder(Order::Ranked(vec![2, 2, 0, 0])),
                CurriculumEdit::LearningRate(0.5),
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_says_how_to_write_it() {
        let wrong = EditArgs {
            repeat: vec!["a".into()],
            ..none()
        };
        let message = parse(&wrong, &train()).err().unwrap().to_string();
        assert!(message.contains("SELECTION=TIMES"), "{message}");
        let wrong = EditArgs {
            reorder: Some("dataset:z".into()),
            ..none()
        };
        let message = parse(&wrong, &train()).err().unwrap().to_string();
        assert!(message.contains("x, y"), "{message}");
    }

    #[test]
    fn edits_are_applied_one_after_the_other() {
        let curriculum = Curriculum::new(vec![Step::new(vec![0, 2], Some(1.0)); 4], 4).unwrap();
        let args = EditArgs {
            drop: vec!["x".into()],
            learning_rate: Some(0.5),
            ..none()
        };
        let edits = parse(&args, &train()).unwrap();
        let edited = apply_all(&curriculum, &edits, FillArg::Shrink, 0).unwrap();
        assert!(
            edited
                .steps()
                .iter()
                .all(|s| s.batch == vec![2] && s.learning_rate == Some(0.5))
        );
    }
}
