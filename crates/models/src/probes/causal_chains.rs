//! Causal chains: from A→B, B→C, C→D and D→Z follows A→Z, not Z→A.
//!
//! | test examples | prompt | answer |
//! | --- | --- | --- |
//! | `fact` | `{A} causes` | `{B}` and so on, one for each trained fact, under its key |
//! | `right`, `wrong` | `So {A} causes`; `So {Z} causes` | `{Z}`; `{A}` |
//! | `right-in-prompt`, `wrong-in-prompt` | the facts, then the same | the same |
//! | `right-unrelated`, `wrong-unrelated` | as `right`, `wrong` | Z and A of the next chain |
//!
//! The unrelated answers are names in the same role (an end, a beginning) of a chain that has
//! nothing to do with the question: what training does to them is what it does to the role alone.
//!
//! # Reference
//! Matelsky, Ungar & Kording 2024 (arXiv 2406.00509), section on causal induction.

use super::names::Names;
use super::questions::{Arrow, Questions, ordered_by_kind};
use super::{END, SettingRange, train_example};
use crate::example::TextExample;
use crate::text::TaskData;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Sizes of the causal chains (`[data]` with `source = "causal-chains"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CausalChainsSettings {
    /// Number of chains, 2 to 200, default 16.
    pub chains: usize,
    /// Facts of a chain, 2 to 8, default 4: A→B, B→C, C→D, D→Z.
    pub length: usize,
    /// Lines of generic text to pre-train on, default 20 000.
    pub corpus_lines: usize,
    /// Seed of names and text, default 0.
    pub seed: u64,
}

impl Default for CausalChainsSettings {
    fn default() -> Self {
        Self {
            chains: 16,
            length: 4,
            corpus_lines: 20_000,
            seed: 0,
        }
    }
}

impl CausalChainsSettings {
    pub(crate) fn ranges(&self) -> Vec<SettingRange> {
        vec![
            ("data.chains", self.chains, 2..=200),
            ("data.length", self.length, 2..=8),
        ]
    }
}

/// The facts as training examples (one dataset per chain), the questions, and the text to
/// pre-train on.
///
/// ```
/// use simfluence_models::probes::causal_chains::{CausalChainsSettings, data};
/// let data = data(&CausalChainsSettings { chains: 2, ..Default::default() });
/// assert_eq!((data.train.len(), data.test.len()), (2 * 4, 2 * (4 + 6)));
/// assert_eq!(data.test[8].columns["kind"], "right");
/// assert_eq!(data.test[10].columns["kind"], "wrong");
/// assert_eq!(data.test[8].columns["facts"].split(' ').count(), 4);
/// ```
pub fn data(settings: &CausalChainsSettings) -> TaskData {
    let mut names = Names::new(settings.seed);
    let chains: Vec<Vec<String>> = (0..settings.chains)
        .map(|_| (0..=settings.length).map(|_| names.fresh()).collect())
        .collect();
    let mut data = TaskData::default();
    let mut questions = Vec::new();
    for (k, chain) in chains.iter().enumerate() {
        let facts = facts_of(k, chain);
        let next = &chains[(k + 1) % chains.len()];
        questions.push(questions_of(&facts, chain, next));
        data.train.extend(facts);
    }
    data.test = ordered_by_kind(&data.train, &questions);
    data.corpus = generic_text(&names, settings);
    data
}

fn facts_of(k: usize, chain: &[String]) -> Vec<TextExample> {
    let unit = format!("chain-{k:03}");
    chain
        .windows(2)
        .enumerate()
        .map(|(link, names)| {
            let key = format!("{unit}-fact-{link}");
            let prompt = format!("\n{} causes ", names[0]);
            train_example(
                key,
                &unit,
                "fact",
                &unit,
                prompt,
                format!("{}{END}", names[1]),
            )
        })
        .collect()
}

fn questions_of(facts: &[TextExample], chain: &[String], next: &[String]) -> Questions {
    let (first, last) = (&chain[0], &chain[chain.len() - 1]);
    Questions {
        unit: facts[0].dataset.clone(),
        facts: facts.iter().map(|fact| fact.key.clone()).collect(),
        stated: chain.windows(2).map(|n| statement(&n[0], &n[1])).collect(),
        right: Arrow {
            asked: format!("{first} causes"),
            answer: last.clone(),
        },
        wrong: Arrow {
            asked: format!("{last} causes"),
            answer: first.clone(),
        },
        unrelated_right: next[next.len() - 1].clone(),
        unrelated_wrong: next[0].clone(),
    }
}

fn statement(cause: &str, effect: &str) -> String {
    format!("{cause} causes {effect}{END}")
}

/// Statements about other names, alone and in chains that end with a conclusion.
///
/// A name alone may stand on either side. A conclusion joins any two names of its chain in the
/// order of the chain.
fn generic_text(names: &Names, settings: &CausalChainsSettings) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(1);
    let mut text = String::from("\n");
    for _ in 0..settings.corpus_lines {
        text.push_str(&generic_line(names, settings.length, &mut rng));
        text.push('\n');
    }
    text
}

fn generic_line(names: &Names, length: usize, rng: &mut ChaCha8Rng) -> String {
    let pair = |rng: &mut ChaCha8Rng| {
        let names = names.others(2, rng);
        statement(&names[0], &names[1])
    };
    match rng.random_range(0..10) {
        0 => pair(rng),
        1 => format!("So {}", pair(rng)),
        _ => {
            let facts = rng.random_range(1..=length);
            let chain = names.others(facts + 1, rng);
            let stated: Vec<String> = chain.windows(2).map(|n| statement(&n[0], &n[1])).collect();
            let from = rng.random_range(0..facts);
            let to = rng.random_range(from + 1..=facts);
            let conclusion = statement(&chain[from], &chain[to]);
            format!("{} So {conclusion}", stated.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TaskData {
        data(&CausalChainsSettings {
            chains: 3,
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
    fn the_facts_of_a_chain_link_its_ends() {
        let data = small();
        let facts: Vec<String> = data.train[..4].iter().map(text).collect();
        let ends = |fact: &str| {
            let (cause, effect) = fact.trim().split_once(" causes ").unwrap();
            (cause.to_owned(), effect.trim_end_matches('.').to_owned())
        };
        let links: Vec<_> = facts.iter().map(|f| ends(f)).collect();
        for pair in links.windows(2) {
            assert_eq!(pair[0].1, pair[1].0);
        }
        let (first, last) = (&links[0].0, &links[3].1);
        let right = text(of_kind(&data, "chain-000", "right"));
        let wrong = text(of_kind(&data, "chain-000", "wrong"));
        assert_eq!(right, format!("\nSo {first} causes {last}."));
        assert_eq!(wrong, format!("\nSo {last} causes {first}."));
    }

    #[test]
    fn in_the_prompt_the_question_stands_after_all_facts() {
        let data = small();
        let question = of_kind(&data, "chain-001", "right-in-prompt");
        let facts: Vec<String> = data.train[4..8]
            .iter()
            .map(|f| text(f).trim().to_owned())
            .collect();
        let asked = of_kind(&data, "chain-001", "right");
        assert_eq!(
            question.prompt,
            format!("\n{} {}", facts.join(" "), asked.prompt.trim_start())
        );
        assert_eq!(question.answer, asked.answer);
    }

    #[test]
    fn unrelated_answers_have_the_same_role_in_the_next_chain() {
        let data = small();
        let unrelated = of_kind(&data, "chain-002", "right-unrelated");
        assert_eq!(
            unrelated.answer,
            of_kind(&data, "chain-000", "right").answer
        );
        assert_eq!(
            unrelated.prompt,
            of_kind(&data, "chain-002", "right").prompt
        );
    }

    #[test]
    fn conclusions_of_the_generic_text_follow_from_its_statements() {
        let data = small();
        let mut concluded = 0;
        for line in data.corpus.lines() {
            let Some((stated, conclusion)) = line.split_once(" So ") else {
                continue;
            };
            let (cause, effect) = conclusion.split_once(" causes ").unwrap();
            let place = |what: &str| stated.find(what.trim_end_matches('.'));
            assert!(place(cause).unwrap() < stated.rfind(effect).unwrap());
            concluded += 1;
        }
        assert!(concluded > 300, "{concluded}");
    }
}
