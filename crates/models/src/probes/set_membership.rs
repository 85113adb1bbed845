//! Set membership: from "A is in B" follows "B contains A", not "B is in A".
//!
//! | test examples | prompt | answer |
//! | --- | --- | --- |
//! | `fact` | `{A} is in` | `{B}`, under the key of the fact |
//! | `right`, `wrong` | `So {B} contains`; `So {B} is in` | `{A}` in both |
//! | `right-in-prompt`, `wrong-in-prompt` | the fact among those of other sets, then the same | `{A}` |
//! | `right-unrelated`, `wrong-unrelated` | as `right`, `wrong` | A of the next set |
//!
//! # Reference
//! Matelsky, Ungar & Kording 2024 (arXiv 2406.00509), section on ontological reasoning.

use super::names::Names;
use super::questions::{Arrow, Questions, ordered_by_kind};
use super::{END, SettingRange, train_example};
use crate::example::TextExample;
use crate::text::TaskData;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Sizes of the set memberships (`[data]` with `source = "set-membership"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetMembershipSettings {
    /// Number of sets, each with one member, 2 to 1 000, default 32.
    pub sets: usize,
    /// Facts in a prompt that holds facts, the asked one among them, 1 to 8 and at most `sets`,
    /// default 2.
    pub prompt_facts: usize,
    /// Lines of generic text to pre-train on, default 20 000.
    pub corpus_lines: usize,
    /// Seed of names, order of facts and text, default 0.
    pub seed: u64,
}

impl Default for SetMembershipSettings {
    fn default() -> Self {
        Self {
            sets: 32,
            prompt_facts: 2,
            corpus_lines: 20_000,
            seed: 0,
        }
    }
}

impl SetMembershipSettings {
    pub(crate) fn ranges(&self) -> Vec<SettingRange> {
        vec![
            ("data.sets", self.sets, 2..=1000),
            (
                "data.prompt_facts",
                self.prompt_facts,
                1..=self.sets.clamp(1, 8),
            ),
        ]
    }
}

/// A member and its set.
struct Membership {
    member: String,
    set: String,
}

impl Membership {
    fn is_in(&self) -> String {
        format!("{} is in {}{END}", self.member, self.set)
    }

    fn contains(&self) -> String {
        format!("{} contains {}{END}", self.set, self.member)
    }

    /// From the member's side or from the set's.
    fn said(&self, of_member: bool) -> String {
        if of_member {
            self.is_in()
        } else {
            self.contains()
        }
    }
}

/// The facts as training examples (one dataset per set), the questions, and the text to pre-train
/// on.
///
/// ```
/// use simfluence_models::probes::set_membership::{SetMembershipSettings, data};
/// let data = data(&SetMembershipSettings { sets: 4, ..Default::default() });
/// assert_eq!((data.train.len(), data.test.len()), (4, 4 * (1 + 6)));
/// ```
pub fn data(settings: &SetMembershipSettings) -> TaskData {
    let mut names = Names::new(settings.seed);
    let all: Vec<Membership> = (0..settings.sets)
        .map(|_| Membership {
            member: names.fresh(),
            set: names.fresh(),
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(2);
    let mut data = TaskData {
        train: all.iter().enumerate().map(fact).collect(),
        ..TaskData::default()
    };
    let questions: Vec<Questions> = (0..all.len())
        .map(|k| {
            let stated = stated(&all, k, settings.prompt_facts, &mut rng);
            questions_of(&all, k, &data.train[k], stated)
        })
        .collect();
    data.test = ordered_by_kind(&data.train, &questions);
    data.corpus = generic_text(&names, settings);
    data
}

fn fact((k, membership): (usize, &Membership)) -> TextExample {
    let unit = format!("set-{k:03}");
    let prompt = format!("\n{} is in ", membership.member);
    let answer = format!("{}{END}", membership.set);
    train_example(format!("{unit}-fact"), &unit, "fact", &unit, prompt, answer)
}

/// The fact of set `k` and those of the sets after it, in random order.
fn stated(all: &[Membership], k: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut stated: Vec<String> = (0..count)
        .map(|other| all[(k + other) % all.len()].is_in())
        .collect();
    stated.shuffle(rng);
    stated
}

fn questions_of(
    all: &[Membership],
    k: usize,
    fact: &TextExample,
    stated: Vec<String>,
) -> Questions {
    let Membership { member, set } = &all[k];
    let next = &all[(k + 1) % all.len()].member;
    Questions {
        unit: fact.dataset.clone(),
        facts: vec![fact.key.clone()],
        stated,
        right: Arrow {
            asked: format!("{set} contains"),
            answer: member.clone(),
        },
        wrong: Arrow {
            asked: format!("{set} is in"),
            answer: member.clone(),
        },
        unrelated_right: next.clone(),
        unrelated_wrong: next.clone(),
    }
}

/// Statements about other names, each turned round: "x is in y" and "y contains x" follow from each
/// other.
///
/// Half of the lines turn every statement round at once, without "So": the simplest form of using
/// what was read, from which a small model learns the other one, several statements and then
/// their conclusions in any order.
fn generic_text(names: &Names, settings: &SetMembershipSettings) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(1);
    let mut text = String::from("\n");
    for _ in 0..settings.corpus_lines {
        text.push_str(&generic_line(names, settings.prompt_facts, &mut rng));
        text.push('\n');
    }
    text
}

fn generic_line(names: &Names, most_facts: usize, rng: &mut ChaCha8Rng) -> String {
    let kind = rng.random_range(0..10);
    let count = match kind {
        0 | 1 => 1,
        _ => rng.random_range(1..=most_facts),
    };
    let drawn = names.others(2 * count, rng);
    let mut stated: Vec<(Membership, bool)> = drawn
        .chunks(2)
        .map(|pair| {
            let (member, set) = (pair[0].clone(), pair[1].clone());
            (Membership { member, set }, rng.random())
        })
        .collect();
    let said = |(membership, first): &(Membership, bool)| membership.said(*first);
    let turned = |(membership, first): &(Membership, bool)| membership.said(!*first);
    match kind {
        0 => said(&stated[0]),
        1 => format!("So {}", said(&stated[0])),
        2..6 => {
            let pairs = stated.iter().map(|s| format!("{} {}", said(s), turned(s)));
            pairs.collect::<Vec<_>>().join(" ")
        }
        _ => {
            let mut line: Vec<String> = stated.iter().map(said).collect();
            stated.shuffle(rng);
            line.extend(stated.iter().map(|s| format!("So {}", turned(s))));
            line.join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TaskData {
        data(&SetMembershipSettings {
            sets: 5,
            corpus_lines: 500,
            ..Default::default()
        })
    }

    fn text(example: &TextExample) -> String {
        format!("{}{}", example.prompt, example.answer)
    }

    fn of_kind<'a>(data: &'a TaskData, unit: &str, kind: &str) -> &'a TextExample {
        let is = |e: &&TextExample| e.columns["unit"] == unit && e.columns["kind"] == kind;
        data.test.iter().find(is).unwrap()
    }

    #[test]
    fn the_right_question_turns_the_fact_round_and_the_wrong_one_only_its_names() {
        let data = small();
        let fact = text(&data.train[2]);
        let (member, set) = fact
            .trim()
            .trim_end_matches('.')
            .split_once(" is in ")
            .unwrap();
        let right = text(of_kind(&data, "set-002", "right"));
        let wrong = text(of_kind(&data, "set-002", "wrong"));
        assert_eq!(right, format!("\nSo {set} contains {member}."));
        assert_eq!(wrong, format!("\nSo {set} is in {member}."));
    }

    #[test]
    fn the_prompt_holds_the_fact_among_others() {
        let data = small();
        let question = of_kind(&data, "set-004", "right-in-prompt");
        assert!(question.prompt.contains(text(&data.train[4]).trim()));
        assert_eq!(question.prompt.matches(" is in ").count(), 2);
    }

    #[test]
    fn conclusions_of_the_generic_text_follow_from_its_statements() {
        let mut concluded = 0;
        for line in small().corpus.lines() {
            let Some((stated, conclusions)) = line.split_once(" So ") else {
                continue;
            };
            for conclusion in conclusions.split(" So ") {
                let bare = conclusion.trim_end_matches('.');
                let turned = match bare.split_once(" is in ") {
                    Some((member, set)) => format!("{set} contains {member}."),
                    None => {
                        let (set, member) = bare.split_once(" contains ").unwrap();
                        format!("{member} is in {set}.")
                    }
                };
                assert!(stated.contains(&turned), "{line}");
                concluded += 1;
            }
        }
        assert!(concluded > 200, "{concluded}");
    }
}
