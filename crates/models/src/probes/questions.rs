//! The questions that causal chains and set membership have in common.

use super::{END, Place, by_kind, test_example};
use crate::example::TextExample;

/// One direction of a relation: what stands before the answer, and the answer.
pub(super) struct Arrow {
    /// `A causes`.
    pub(super) asked: String,
    /// `Z`.
    pub(super) answer: String,
}

/// What is asked about one chain or set.
pub(super) struct Questions {
    /// Name of the chain or set.
    pub(super) unit: String,
    /// Keys of its facts.
    pub(super) facts: Vec<String>,
    /// The statements that the prompt holds where the facts are given there.
    pub(super) stated: Vec<String>,
    /// What follows from the facts.
    pub(super) right: Arrow,
    /// What does not.
    pub(super) wrong: Arrow,
    /// An answer to the right arrow's prompt that belongs to another chain or set, in the same
    /// role there.
    pub(super) unrelated_right: String,
    /// The same for the wrong arrow's prompt.
    pub(super) unrelated_wrong: String,
}

impl Questions {
    /// Six test examples: `right` and `wrong`, each also with the facts in the prompt, and each
    /// with the answer of another unit.
    fn examples(&self) -> Vec<TextExample> {
        let stated = self.stated.join(" ") + " ";
        let (right, wrong) = (&self.right, &self.wrong);
        [
            ("right", "", right, &right.answer, "trained"),
            ("wrong", "", wrong, &wrong.answer, "trained"),
            ("right-in-prompt", &stated, right, &right.answer, "prompt"),
            ("wrong-in-prompt", &stated, wrong, &wrong.answer, "prompt"),
            (
                "right-unrelated",
                "",
                right,
                &self.unrelated_right,
                "unrelated",
            ),
            (
                "wrong-unrelated",
                "",
                wrong,
                &self.unrelated_wrong,
                "unrelated",
            ),
        ]
        .map(|(kind, before, arrow, answer, condition)| {
            let pair = format!("{}-{condition}", self.unit);
            let place = Place {
                kind,
                unit: &self.unit,
                facts: &self.facts,
                pair: &pair,
            };
            test_example(
                format!("{}-{kind}", self.unit),
                &place,
                format!("\n{before}So {} ", arrow.asked),
                format!("{answer}{END}"),
            )
        })
        .into()
    }
}

/// The trained facts as questions, then the questions about them, kind by kind.
pub(super) fn ordered_by_kind(facts: &[TextExample], questions: &[Questions]) -> Vec<TextExample> {
    let units: Vec<Vec<TextExample>> = questions.iter().map(Questions::examples).collect();
    let facts = facts.iter().map(fact_question);
    facts.chain(by_kind(&units)).collect()
}

/// A trained fact, asked as it was trained, under its own key.
fn fact_question(fact: &TextExample) -> TextExample {
    let place = Place {
        kind: "fact",
        unit: &fact.columns["unit"],
        facts: std::slice::from_ref(&fact.key),
        pair: &fact.key,
    };
    let (prompt, answer) = (fact.prompt.clone(), fact.answer.clone());
    test_example(fact.key.clone(), &place, prompt, answer)
}
