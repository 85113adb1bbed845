//! Probes: small tasks whose training examples and test questions are related in a known way.
//!
//! | probe | trained | asked |
//! | --- | --- | --- |
//! | [`causal_chains`] | A causes B, B causes C, C causes D, D causes Z | A causes Z (right), Z causes A (wrong) |
//! | [`set_membership`] | A is in B | B contains A (right), B is in A (wrong) |
//! | [`word_order`] | two key phrases in order, flipped, and each alone | the second phrase after the first |
//!
//! All entities are made-up names ([`names`]). The text to pre-train on shows the form of the
//! statements, and how conclusions follow from statements before them, with other names only.
//!
//! # Columns
//! A report finds its way by columns of the examples, the same in all probes:
//!
//! | column | training examples | test examples |
//! | --- | --- | --- |
//! | `kind` | `fact`, or the kind of a [`word_order`] sequence | the kind of question, also its dataset |
//! | `unit` | the chain, set or pair of phrases it belongs to | the same |
//! | `facts` | – | keys of the training examples that belong to it, separated by spaces |
//! | `pair` | – | what the questions to be compared with each other have in common |
//!
//! # Reference
//! Matelsky, Ungar & Kording 2024, *Empirical influence functions to understand the logic of
//! fine-tuning* (arXiv 2406.00509): causal chains and set membership. Grosse et al. 2023,
//! *Studying Large Language Model Generalization with Influence Functions* (arXiv 2308.03296),
//! section on word ordering.

pub mod causal_chains;
pub mod names;
mod questions;
pub mod set_membership;
pub mod word_order;

use crate::example::TextExample;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A setting with what was given and what is allowed.
pub(crate) type SettingRange = (&'static str, usize, RangeInclusive<usize>);

/// What ends a statement, and so every answer.
const END: &str = ".";

/// Where the examples of a probe stand in the columns.
struct Place<'a> {
    kind: &'a str,
    unit: &'a str,
    facts: &'a [String],
    pair: &'a str,
}

/// A training example; its dataset is `dataset`.
fn train_example(
    key: String,
    dataset: &str,
    kind: &str,
    unit: &str,
    prompt: String,
    answer: String,
) -> TextExample {
    TextExample {
        key,
        dataset: dataset.to_owned(),
        prompt,
        answer,
        columns: columns(&[("kind", kind), ("unit", unit)]),
        ..TextExample::default()
    }
}

/// A test example; its dataset is its kind.
fn test_example(key: String, place: &Place<'_>, prompt: String, answer: String) -> TextExample {
    TextExample {
        key,
        dataset: place.kind.to_owned(),
        prompt,
        answer,
        columns: columns(&[
            ("kind", place.kind),
            ("unit", place.unit),
            ("facts", &place.facts.join(" ")),
            ("pair", place.pair),
        ]),
        ..TextExample::default()
    }
}

/// The examples of all units, which have the same kinds in the same order, kind by kind.
fn by_kind(units: &[Vec<TextExample>]) -> Vec<TextExample> {
    let kinds = 0..units.first().map_or(0, Vec::len);
    kinds
        .flat_map(|kind| units.iter().map(move |unit| unit[kind].clone()))
        .collect()
}

fn columns(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TaskData;
    use std::collections::HashSet;

    /// The three probes in a small size, with the names that they must not show before.
    fn small(seed: u64) -> [(TaskData, HashSet<String>); 3] {
        let chains = causal_chains::data(&causal_chains::CausalChainsSettings {
            chains: 5,
            corpus_lines: 3_000,
            seed,
            ..Default::default()
        });
        let sets = set_membership::data(&set_membership::SetMembershipSettings {
            sets: 5,
            corpus_lines: 3_000,
            seed,
            ..Default::default()
        });
        let orders = word_order::data(&word_order::WordOrderSettings {
            pairs: 5,
            corpus_lines: 3_000,
            seed,
        });
        [chains, sets, orders].map(|data| {
            let names = words_of(&data).filter(|w| names::is_name(w)).collect();
            (data, names)
        })
    }

    fn words_of(data: &TaskData) -> impl Iterator<Item = String> {
        let examples = data.train.iter().chain(&data.test);
        let texts = examples.map(|e| format!("{}{}", e.prompt, e.answer));
        let text: String = texts.collect::<Vec<_>>().join(" ");
        words(&text).collect::<Vec<_>>().into_iter()
    }

    fn words(text: &str) -> impl Iterator<Item = String> {
        text.split(|c: char| !c.is_ascii_alphabetic())
            .map(str::to_lowercase)
    }

    #[test]
    fn no_name_of_a_probe_occurs_in_the_text_to_pretrain_on() {
        for (data, names) in small(3) {
            assert!(names.len() >= 10, "{names:?}");
            let seen: HashSet<String> = words(&data.corpus).collect();
            assert!(
                seen.iter().filter(|w| names::is_name(w)).count() > 1_000,
                "the corpus has names"
            );
            assert!(seen.is_disjoint(&names));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_data_and_another_seed_other_names() {
        for ((a, here), ((b, _), (_, there))) in
            small(7).into_iter().zip(small(7).into_iter().zip(small(8)))
        {
            assert_eq!(a, b);
            assert_ne!(here, there);
        }
    }

    #[test]
    fn the_facts_of_every_question_are_training_examples_of_its_unit() {
        for (data, _) in small(0) {
            for question in &data.test {
                let facts: Vec<&str> = question.columns["facts"].split(' ').collect();
                assert!(!facts.is_empty());
                for key in facts {
                    let fact = data.train.iter().find(|e| e.key == key).unwrap();
                    assert_eq!(fact.columns["unit"], question.columns["unit"]);
                }
            }
        }
    }

    #[test]
    fn keys_are_unique_and_the_dataset_of_a_question_is_its_kind() {
        for (data, _) in small(0) {
            for examples in [&data.train, &data.test] {
                let keys: HashSet<&str> = examples.iter().map(|e| e.key.as_str()).collect();
                assert_eq!(keys.len(), examples.len());
            }
            assert!(data.test.iter().all(|e| e.dataset == e.columns["kind"]));
        }
    }
}
