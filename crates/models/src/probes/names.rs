//! Made-up names: two syllables of a consonant and a vowel.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

const CONSONANTS: &[u8] = b"bdfghklmnprstvz";
const VOWELS: &[u8] = b"aeiou";

/// Number of different names: (15 · 5)².
pub const NAME_COUNT: usize = (CONSONANTS.len() * VOWELS.len()).pow(2);

/// Gives names, those of a probe and those for everything else, so that the two never meet.
///
/// ```
/// use simfluence_models::probes::names::{Names, is_name};
/// let mut names = Names::new(4);
/// let name = names.fresh();
/// assert!(is_name(&name));
/// assert_eq!(name, Names::new(4).fresh());
/// assert_ne!(name, names.fresh());
/// ```
#[derive(Debug, Clone)]
pub struct Names {
    rng: ChaCha8Rng,
    taken: HashSet<String>,
}

impl Names {
    /// Names drawn with a seed; none is taken yet.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            taken: HashSet::new(),
        }
    }

    /// A name that nobody has; it belongs to the probe from now on.
    ///
    /// # Panics
    /// All [`NAME_COUNT`] names are taken: the probes' settings allow at most half of them.
    pub fn fresh(&mut self) -> String {
        assert!(self.taken.len() < NAME_COUNT, "every name is taken");
        loop {
            let name = any_name(&mut self.rng);
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Any name that does not belong to the probe; the same one may come again.
    pub fn other(&self, rng: &mut impl Rng) -> String {
        loop {
            let name = any_name(rng);
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }

    /// `count` different names that do not belong to the probe.
    pub fn others(&self, count: usize, rng: &mut impl Rng) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(count);
        while names.len() < count {
            let name = self.other(rng);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// Whether a word could be a name.
pub fn is_name(word: &str) -> bool {
    word.len() == 4
        && word.bytes().enumerate().all(|(k, letter)| {
            let letters = if k % 2 == 0 { CONSONANTS } else { VOWELS };
            letters.contains(&letter)
        })
}

/// A name with its first letter capitalised.
pub(super) fn capitalized(mut name: String) -> String {
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    name
}

fn any_name(rng: &mut impl Rng) -> String {
    (0..4)
        .map(|k| {
            let letters = if k % 2 == 0 { CONSONANTS } else { VOWELS };
            char::from(letters[rng.random_range(0..letters.len())])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_taken_once() {
        let mut names = Names::new(0);
        let all: HashSet<String> = (0..NAME_COUNT).map(|_| names.fresh()).collect();
        assert_eq!(all.len(), NAME_COUNT);
        assert!(all.iter().all(|name| is_name(name)));
    }

    #[test]
    fn other_names_are_not_those_of_the_probe() {
        let mut names = Names::new(1);
        let own: HashSet<String> = (0..NAME_COUNT / 2).map(|_| names.fresh()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..200 {
            let others = names.others(4, &mut rng);
            assert!(others.iter().all(|name| !own.contains(name)));
            assert_eq!(others.iter().collect::<HashSet<_>>().len(), 4);
        }
    }

    #[test]
    fn words_of_the_statements_are_no_names() {
        for word in ["causes", "is", "in", "contains", "So", "king", "Bako"] {
            assert!(!is_name(word), "{word}");
        }
        assert_eq!(capitalized("bako".into()), "Bako");
    }
}
