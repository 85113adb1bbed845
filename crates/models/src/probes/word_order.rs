//! Word order: does a training sequence matter to a query when its two key phrases are flipped?
//!
//! A pair of key phrases is a role (`the king of Lumo`) and who has it (`Zora Pifa`). Training
//! examples are whole sequences: the model reads a line break, the loss is on all the rest.
//!
//! | training examples | sequence |
//! | --- | --- |
//! | `ordered` | the king of Lumo is Zora Pifa. |
//! | `flipped` | Zora Pifa is the king of Lumo. |
//! | `prompt-only` | people talk about the king of Lumo. |
//! | `completion-only` | people talk about Zora Pifa. |
//! | `unrelated` | the same form as `ordered`, names that occur nowhere else |
//!
//! | test examples | prompt | answer |
//! | --- | --- | --- |
//! | `query` | the king of Lumo is | Zora Pifa. |
//! | `query-flipped` | Zora Pifa is | the king of Lumo. |
//!
//! For `query-flipped` the roles change: `flipped` has its phrases in order.
//!
//! # Reference
//! Grosse et al. 2023 (arXiv 2308.03296), section on word ordering: influences decay to near-zero
//! when the order of the key phrases is flipped.

use super::names::{Names, capitalized};
use super::{END, Place, SettingRange, by_kind, test_example, train_example};
use crate::example::TextExample;
use crate::text::TaskData;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The kinds of training sequences, in the order of the training examples.
pub const TRAIN_KINDS: [&str; 5] = [
    "ordered",
    "flipped",
    "prompt-only",
    "completion-only",
    "unrelated",
];

const ROLES: [&str; 12] = [
    "king", "queen", "poet", "judge", "baker", "pilot", "guard", "chief", "priest", "doctor",
    "painter", "singer",
];

const FRAMES: [&str; 4] = [
    "people talk about ",
    "a letter came from ",
    "nobody asked for ",
    "the old song tells of ",
];

/// Sizes of the word-order probe (`[data]` with `source = "word-order"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WordOrderSettings {
    /// Number of pairs of key phrases, 2 to 400, default 24.
    pub pairs: usize,
    /// Lines of generic text to pre-train on, default 20 000.
    pub corpus_lines: usize,
    /// Seed of names and text, default 0.
    pub seed: u64,
}

impl Default for WordOrderSettings {
    fn default() -> Self {
        Self {
            pairs: 24,
            corpus_lines: 20_000,
            seed: 0,
        }
    }
}

impl WordOrderSettings {
    pub(crate) fn ranges(&self) -> Vec<SettingRange> {
        vec![("data.pairs", self.pairs, 2..=400)]
    }
}

/// Two phrases that belong together.
struct Phrases {
    role: String,
    person: String,
}

impl Phrases {
    fn ordered(&self) -> String {
        format!("{} is {}{END}", self.role, self.person)
    }

    fn flipped(&self) -> String {
        format!("{} is {}{END}", self.person, self.role)
    }
}

/// The sequences as training examples (one dataset per kind), the queries, and the text to
/// pre-train on.
///
/// ```
/// use simfluence_models::probes::word_order::{WordOrderSettings, data};
/// let data = data(&WordOrderSettings { pairs: 3, ..Default::default() });
/// assert_eq!((data.train.len(), data.test.len()), (3 * 5, 3 * 2));
/// assert_eq!(data.train[3].dataset, "flipped");
/// ```
pub fn data(settings: &WordOrderSettings) -> TaskData {
    let mut names = Names::new(settings.seed);
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(2);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for k in 0..settings.pairs {
        let unit = format!("pair-{k:03}");
        let pair = phrases(|| names.fresh(), &mut rng);
        let unrelated = phrases(|| names.fresh(), &mut rng);
        let sequences = sequences(&unit, &pair, &unrelated, &mut rng);
        test.push(queries(&unit, &pair, &sequences));
        train.push(sequences);
    }
    TaskData {
        train: by_kind(&train),
        test: by_kind(&test),
        corpus: generic_text(&names, settings),
        ..TaskData::default()
    }
}

fn phrases(mut name: impl FnMut() -> String, rng: &mut ChaCha8Rng) -> Phrases {
    let role = ROLES.choose(rng).expect("the list has roles");
    let mut name = || capitalized(name());
    Phrases {
        role: format!("the {role} of {}", name()),
        person: format!("{} {}", name(), name()),
    }
}

fn framed(phrase: &str, rng: &mut ChaCha8Rng) -> String {
    let frame = FRAMES.choose(rng).expect("the list has frames");
    format!("{frame}{phrase}{END}")
}

fn sequences(
    unit: &str,
    pair: &Phrases,
    unrelated: &Phrases,
    rng: &mut ChaCha8Rng,
) -> Vec<TextExample> {
    let texts = [
        pair.ordered(),
        pair.flipped(),
        framed(&pair.role, rng),
        framed(&pair.person, rng),
        unrelated.ordered(),
    ];
    TRAIN_KINDS
        .iter()
        .zip(texts)
        .map(|(kind, text)| {
            train_example(
                format!("{unit}-{kind}"),
                kind,
                kind,
                unit,
                "\n".into(),
                text,
            )
        })
        .collect()
}

fn queries(unit: &str, pair: &Phrases, train: &[TextExample]) -> Vec<TextExample> {
    let facts: Vec<String> = train.iter().map(|e| e.key.clone()).collect();
    [
        ("query", &pair.role, &pair.person),
        ("query-flipped", &pair.person, &pair.role),
    ]
    .into_iter()
    .map(|(kind, asked, answer)| {
        let place = Place {
            kind,
            unit,
            facts: &facts,
            pair: unit,
        };
        test_example(
            format!("{unit}-{kind}"),
            &place,
            format!("\n{asked} is "),
            format!("{answer}{END}"),
        )
    })
    .collect()
}

/// Sequences of all forms with other names, in both orders equally often.
fn generic_text(names: &Names, settings: &WordOrderSettings) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(1);
    let mut for_names = ChaCha8Rng::seed_from_u64(settings.seed);
    for_names.set_stream(3);
    let mut text = String::from("\n");
    for _ in 0..settings.corpus_lines {
        let pair = phrases(|| names.other(&mut for_names), &mut rng);
        let line = match rng.random_range(0..6) {
            0 | 1 => pair.ordered(),
            2 | 3 => pair.flipped(),
            4 => framed(&pair.role, &mut rng),
            _ => framed(&pair.person, &mut rng),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TaskData {
        data(&WordOrderSettings {
            pairs: 4,
            corpus_lines: 600,
            ..Default::default()
        })
    }

    #[test]
    fn ordered_and_flipped_hold_the_same_phrases_and_controls_one_of_them() {
        let data = small();
        let query = &data.test[1];
        let role = query.prompt.trim().trim_end_matches(" is");
        let person = query.answer.trim_end_matches('.');
        let own = data
            .train
            .iter()
            .filter(|e| e.columns["unit"] == "pair-001");
        let texts: Vec<&str> = own.map(|e| &*e.answer).collect();
        assert_eq!(texts[0], format!("{role} is {person}."));
        assert_eq!(texts[1], format!("{person} is {role}."));
        assert!(texts[2].ends_with(&format!(" {role}.")) && !texts[2].contains(person));
        assert!(texts[3].ends_with(&format!(" {person}.")) && !texts[3].contains(role));
        let place = role.rsplit(' ').next().unwrap();
        assert!(!texts[4].contains(place) && !texts[4].contains(person));
    }

    #[test]
    fn the_flipped_query_asks_for_the_other_phrase() {
        let data = small();
        let (query, flipped) = (&data.test[0], &data.test[4]);
        assert_eq!(
            query.prompt.trim().trim_end_matches(" is"),
            flipped.answer.trim_end_matches('.')
        );
        assert_eq!(query.columns["pair"], flipped.columns["pair"]);
    }

    #[test]
    fn the_generic_text_has_both_orders_equally_often() {
        let corpus = small().corpus;
        let count = |starts: bool| {
            let of = |line: &&str| line.starts_with("the ") == starts && line.contains(" is ");
            corpus.lines().filter(of).count() as f64
        };
        let ratio = count(true) / count(false);
        assert!((0.7..1.4).contains(&ratio), "{ratio}");
    }
}
