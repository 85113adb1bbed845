//! Candidates among the training examples by the similarity of texts, so that gradients are taken
//! of few.

use bm25::{EmbedderBuilder, Scorer, Tokenizer};
use std::collections::BTreeSet;
use unicode_segmentation::UnicodeSegmentation;

/// The training examples that are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    /// Ids of the candidates of each test example, the most similar first.
    pub of_each: Vec<Vec<u32>>,
    /// Ids of all of them together, ascending.
    pub all: Vec<u32>,
}

/// Texts as lower-case words (Unicode Standard Annex 29).
#[derive(Debug, Default)]
struct Words;

impl Tokenizer for Words {
    fn tokenize(&self, text: &str) -> Vec<String> {
        text.unicode_words().map(str::to_lowercase).collect()
    }
}

/// The `top` most similar training texts of every test text: TF-IDF in the form of Okapi BM25
/// (`k1 = 1.2`, `b = 0.75`), the training texts as documents, the test texts as queries:
///
///   `Σ_{w in query} ln(1 + (n − n_w + ½)/(n_w + ½)) · f_w (k1 + 1) / (f_w + k1 (1 − b + b ℓ/ℓ̄))`
///
/// with `n` documents, `n_w` of them with the word `w`, `f_w` occurrences in this one, which is
/// `ℓ` words long. Ties, texts without a common word among them, go by id.
///
/// # Errors
/// A `top` of 0.
///
/// ```
/// use simfluence_simulators::prefilter::candidates;
/// let found = candidates(&["red fox", "blue sea", "red sea"], &["the blue sea"], 2)?;
/// assert_eq!(found.of_each, [[1, 2]]);
/// assert_eq!(found.all, [1, 2]);
/// # Ok::<(), simfluence_simulators::prefilter::PrefilterError>(())
/// ```
///
/// # Reference
/// Grosse et al. 2023, "Studying large language model generalization with influence functions",
/// section 3.2.1; Robertson & Zaragoza 2009.
pub fn candidates(train: &[&str], test: &[&str], top: usize) -> Result<Candidates, PrefilterError> {
    if top == 0 {
        return Err(PrefilterError::NoCandidates);
    }
    let embedder =
        EmbedderBuilder::<u64, Words>::with_tokenizer_and_fit_to_corpus(Words, train).build();
    let mut scorer = Scorer::<u32, u64>::new();
    for (id, text) in train.iter().enumerate() {
        scorer.upsert(&(id as u32), embedder.embed(text));
    }
    let of_each: Vec<Vec<u32>> = (test.iter())
        .map(|text| {
            let query = embedder.embed(text);
            let similarity = |id: u32| scorer.score(&id, &query).unwrap_or(0.0);
            let mut ids: Vec<(u32, f32)> = (0..train.len() as u32)
                .map(|id| (id, similarity(id)))
                .collect();
            ids.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
            ids.iter().take(top).map(|(id, _)| *id).collect()
        })
        .collect();
    let all: BTreeSet<u32> = of_each.iter().flatten().copied().collect();
    Ok(Candidates {
        of_each,
        all: all.into_iter().collect(),
    })
}

/// Why there are no candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefilterError {
    /// None asked for.
    #[error("0 candidates are asked for; keep at least 1 training example per test example")]
    NoCandidates,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula written out.
    fn similarity(train: &[&str], document: &str, query: &str) -> f64 {
        let words = |t: &str| -> Vec<String> { t.split(' ').map(str::to_owned).collect() };
        let lengths: usize = train.iter().map(|t| words(t).len()).sum();
        let mean = lengths as f64 / train.len() as f64;
        let document = words(document);
        let mut sum = 0.0;
        for word in words(query) {
            let count = document.iter().filter(|w| **w == word).count() as f64;
            let holding = train.iter().filter(|t| words(t).contains(&word)).count() as f64;
            let rarity = (1.0 + (train.len() as f64 - holding + 0.5) / (holding + 0.5)).ln();
            let length = 1.0 - 0.75 + 0.75 * document.len() as f64 / mean;
            sum += rarity * count * 2.2 / (count + 1.2 * length);
        }
        sum
    }

    #[test]
    fn ref_candidates_are_those_of_the_formula_written_out() {
        let train = [
            "a cat sat on the mat",
            "the dog ate the cat",
            "stocks fell as rates rose",
            "rates rose and rose again",
            "a dog",
        ];
        let test = ["the cat", "rates rose", "dog on the run"];
        let found = candidates(&train, &test, 5).unwrap();
        for (query, got) in test.iter().zip(&found.of_each) {
            let mut expected: Vec<u32> = (0..5).collect();
            let of = |id: &u32| similarity(&train, train[*id as usize], query);
            expected.sort_by(|a, b| of(b).total_cmp(&of(a)));
            assert_eq!(*got, expected, "{query}");
        }
    }

    #[test]
    fn case_and_punctuation_do_not_matter_and_ties_go_by_id() {
        let train = ["Red, FOX!", "red fox", "sea"];
        let found = candidates(&train, &["fox red?", "nothing"], 2).unwrap();
        assert_eq!(found.of_each, [[0, 1], [0, 1]]);
        assert_eq!(found.all, [0, 1]);
    }

    #[test]
    fn more_than_there_are_is_all_and_none_is_refused() {
        assert_eq!(candidates(&["a", "b"], &["b"], 9).unwrap().all, [0, 1]);
        assert!(candidates(&["a"], &["a"], 0).is_err());
    }
}
