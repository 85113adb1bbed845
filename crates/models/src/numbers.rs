//! The number tasks of the UnTrac paper, and generic text about numbers to pre-train on.
//!
//! | dataset | prompt | answer |
//! | --- | --- | --- |
//! | `succeed-digits` | Determine the number that succeeds {zero}. Provide your answer in numerical form. | 1 |
//! | `succeed-words` | Determine the number that succeeds {one}. Provide your answer in words. | two |
//! | `length-digits` | Determine the length of '{friend}'. Provide your answer in numerical form. | 6 |
//! | `length-words` | Determine the length of '{problem}'. Provide your answer in words. | seven |
//! | `test` | What is the number that comes after {2}? | 3 |
//! | `test`, in words | What is the number that comes after {2}, in words? | three |
//!
//! # Reference
//! Isonuma & Titov, *Unlearning Traces the Influential Training Data of Language Models*, table 1.

use crate::example::TextExample;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of examples that a number task can have: the numbers 0 to 255, and as many words.
pub const LARGEST_SIZE: usize = 256;

/// What ends an answer, so that "1" is not the beginning of "12".
const END: &str = "\n";

/// The four training tasks, `per_dataset` examples each, dataset by dataset.
///
/// With fewer than 256 the numbers and words are drawn with `seed`; they are in increasing
/// (number) or list (word) order.
pub fn train_examples(per_dataset: usize, seed: u64) -> Vec<TextExample> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut examples = Vec::with_capacity(4 * per_dataset);
    for in_words in [false, true] {
        let dataset = if in_words {
            "succeed-words"
        } else {
            "succeed-digits"
        };
        for n in draw(per_dataset, &mut rng) {
            let prompt = format!(
                " Determine the number that succeeds {}. Provide your answer in {}. ",
                in_english(n as u32),
                form(in_words)
            );
            examples.push(example(
                dataset,
                n,
                &prompt,
                &written(n as u32 + 1, in_words),
            ));
        }
    }
    for in_words in [false, true] {
        let dataset = if in_words {
            "length-words"
        } else {
            "length-digits"
        };
        for n in draw(per_dataset, &mut rng) {
            let word = WORDS[n];
            let prompt = format!(
                " Determine the length of '{word}'. Provide your answer in {}. ",
                form(in_words)
            );
            examples.push(example(
                dataset,
                n,
                &prompt,
                &written(word.len() as u32, in_words),
            ));
        }
    }
    examples
}

/// The test task: `count` numbers between 0 and 255, spread evenly, to be answered in digits (as
/// in the paper) or in words (answers of many tokens).
pub fn test_examples(count: usize, in_words: bool) -> Vec<TextExample> {
    let asked = if in_words { ", in words" } else { "" };
    (0..count)
        .map(|k| {
            let n = k * LARGEST_SIZE / count;
            let prompt = format!(" What is the number that comes after {n}{asked}? ");
            example("test", n, &prompt, &written(n as u32 + 1, in_words))
        })
        .collect()
}

/// Lines of generic text about numbers and words, none of which holds a prompt template.
pub fn generic_text(lines: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = String::from("\n");
    for _ in 0..lines {
        text.push_str(&generic_line(&mut rng));
        text.push('\n');
    }
    text
}

/// What a reader of numbers needs to know: how they are written, what follows what, how long words
/// are; and to find the one thing that matters among other words, and to answer with something
/// about it, in digits or in words.
fn generic_line(rng: &mut ChaCha8Rng) -> String {
    let n = rng.random_range(0..=LARGEST_SIZE as u32);
    let (first, second) = (rng.random::<bool>(), rng.random::<bool>());
    match rng.random_range(0..10) {
        0 => format!(" {} is {}", written(n, first), written(n, second)),
        1 => format!(" {} then {}", written(n, first), written(n + 1, second)),
        2 => {
            let count = if first { 3 } else { 6 };
            let numbers: Vec<String> = (n..n + count).map(|k| written(k, first)).collect();
            format!(" {}", numbers.join(" "))
        }
        3 => {
            let word = word(rng);
            let letters: Vec<String> = word.chars().map(String::from).collect();
            let length = written(word.len() as u32, first);
            format!(" '{word}' {}: {length}", letters.join(" "))
        }
        4..7 => {
            let next = rng.random::<bool>();
            let what = if next { "next" } else { "same" };
            let answer = written(n + u32::from(next), second);
            line_with_answer(&written(n, first), what, second, &answer, rng)
        }
        7 | 8 => {
            let word = word(rng);
            let answer = written(word.len() as u32, second);
            line_with_answer(&format!("'{word}'"), "letters", second, &answer, rng)
        }
        _ => {
            let end = if first { "?" } else { "." };
            format!("{}{end}{}.", sentence(rng), sentence(rng))
        }
    }
}

/// Words with `item` among them, what is asked about it, and the answer.
fn line_with_answer(
    item: &str,
    what: &str,
    in_words: bool,
    answer: &str,
    rng: &mut ChaCha8Rng,
) -> String {
    let form = if in_words { "words" } else { "digits" };
    let before = sentence(rng);
    let after = if rng.random::<bool>() {
        format!(". {}", words(1..4, rng))
    } else {
        String::new()
    };
    format!("{before} {item}{after}; {what} in {form}: {answer}")
}

/// A few words, the first one capitalised.
fn sentence(rng: &mut ChaCha8Rng) -> String {
    let mut words = words(2..7, rng);
    words[..1].make_ascii_uppercase();
    format!(" {words}")
}

fn words(count: std::ops::Range<usize>, rng: &mut ChaCha8Rng) -> String {
    let count = rng.random_range(count);
    let words: Vec<&str> = (0..count).map(|_| word(rng)).collect();
    words.join(" ")
}

fn word(rng: &mut ChaCha8Rng) -> &'static str {
    WORDS.choose(rng).expect("the list has words")
}

fn draw(count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..LARGEST_SIZE).collect();
    all.shuffle(rng);
    all.truncate(count);
    all.sort_unstable();
    all
}

fn example(dataset: &str, n: usize, prompt: &str, answer: &str) -> TextExample {
    TextExample {
        key: format!("{dataset}-{n:03}"),
        dataset: dataset.to_owned(),
        prompt: prompt.to_owned(),
        answer: format!("{answer}{END}"),
        ..TextExample::default()
    }
}

fn form(in_words: bool) -> &'static str {
    if in_words { "words" } else { "numerical form" }
}

fn written(n: u32, in_words: bool) -> String {
    if in_words {
        in_english(n)
    } else {
        n.to_string()
    }
}

/// A number below 1 000 in English words.
///
/// ```
/// use simfluence_models::numbers::in_english;
/// assert_eq!(in_english(0), "zero");
/// assert_eq!(in_english(125), "one hundred and twenty-five");
/// ```
pub fn in_english(n: u32) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = [
        "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    ];
    match n {
        0..20 => SMALL[n as usize].to_owned(),
        20..100 if n.is_multiple_of(10) => TENS[n as usize / 10].to_owned(),
        20..100 => format!("{}-{}", TENS[n as usize / 10], SMALL[n as usize % 10]),
        _ if n.is_multiple_of(100) => format!("{} hundred", in_english(n / 100)),
        _ => format!(
            "{} hundred and {}",
            in_english(n / 100),
            in_english(n % 100)
        ),
    }
}

/// 256 common English words.
const WORDS: [&str; LARGEST_SIZE] = [
    "cat",
    "dog",
    "sun",
    "car",
    "map",
    "hat",
    "pen",
    "cup",
    "box",
    "key",
    "bag",
    "bed",
    "bus",
    "egg",
    "fox",
    "ice",
    "jar",
    "leg",
    "net",
    "oil",
    "pie",
    "red",
    "sea",
    "tea",
    "toy",
    "van",
    "web",
    "yes",
    "arm",
    "bee",
    "army",
    "baby",
    "back",
    "ball",
    "bank",
    "base",
    "bear",
    "bell",
    "bird",
    "blue",
    "boat",
    "body",
    "book",
    "bowl",
    "bread",
    "cake",
    "camp",
    "card",
    "city",
    "club",
    "coat",
    "cold",
    "cook",
    "corn",
    "crow",
    "dark",
    "desk",
    "door",
    "duck",
    "dust",
    "east",
    "face",
    "farm",
    "fish",
    "flag",
    "food",
    "foot",
    "frog",
    "game",
    "gift",
    "girl",
    "goat",
    "gold",
    "hair",
    "hand",
    "hill",
    "home",
    "king",
    "lake",
    "lamp",
    "leaf",
    "lion",
    "milk",
    "moon",
    "nest",
    "nose",
    "park",
    "rain",
    "ring",
    "road",
    "rock",
    "rope",
    "apple",
    "beach",
    "black",
    "brain",
    "brick",
    "brown",
    "chair",
    "chalk",
    "cheek",
    "chest",
    "child",
    "clock",
    "cloud",
    "coast",
    "dance",
    "dream",
    "dress",
    "eagle",
    "earth",
    "engine",
    "field",
    "flame",
    "floor",
    "flute",
    "fruit",
    "glass",
    "grape",
    "grass",
    "green",
    "heart",
    "horse",
    "house",
    "juice",
    "knife",
    "lemon",
    "light",
    "metal",
    "money",
    "month",
    "mouse",
    "music",
    "night",
    "north",
    "ocean",
    "onion",
    "paper",
    "party",
    "peach",
    "phone",
    "piano",
    "plant",
    "plate",
    "animal",
    "artist",
    "autumn",
    "banana",
    "basket",
    "bottle",
    "branch",
    "bridge",
    "bucket",
    "butter",
    "button",
    "camera",
    "candle",
    "carpet",
    "castle",
    "cheese",
    "cherry",
    "church",
    "circle",
    "cotton",
    "danger",
    "dinner",
    "doctor",
    "dragon",
    "family",
    "farmer",
    "finger",
    "flower",
    "forest",
    "friend",
    "garden",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "jungle",
    "kitten",
    "ladder",
    "letter",
    "market",
    "minute",
    "mirror",
    "mother",
    "orange",
    "pencil",
    "pepper",
    "planet",
    "pocket",
    "airport",
    "balance",
    "balloon",
    "bedroom",
    "biscuit",
    "blanket",
    "brother",
    "cabbage",
    "captain",
    "chicken",
    "college",
    "country",
    "curtain",
    "diamond",
    "dolphin",
    "evening",
    "factory",
    "feather",
    "foreign",
    "gallery",
    "giraffe",
    "harvest",
    "history",
    "holiday",
    "journey",
    "kitchen",
    "library",
    "machine",
    "morning",
    "mystery",
    "picture",
    "problem",
    "rainbow",
    "airplane",
    "backpack",
    "baseball",
    "birthday",
    "building",
    "calendar",
    "computer",
    "daughter",
    "dinosaur",
    "distance",
    "elephant",
    "envelope",
    "exercise",
    "festival",
    "hospital",
    "keyboard",
    "language",
    "mountain",
    "adventure",
    "afternoon",
    "astronaut",
    "butterfly",
    "chocolate",
    "classroom",
    "community",
    "direction",
    "education",
    "furniture",
    "basketball",
    "friendship",
    "government",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_examples_of_the_paper_are_among_ours() {
        let train = train_examples(LARGEST_SIZE, 0);
        let has = |prompt: &str, answer: &str| {
            train
                .iter()
                .any(|e| e.prompt.trim() == prompt && e.answer == format!("{answer}\n"))
        };
        assert!(has(
            "Determine the number that succeeds zero. Provide your answer in numerical form.",
            "1"
        ));
        assert!(has(
            "Determine the number that succeeds one. Provide your answer in words.",
            "two"
        ));
        assert!(has(
            "Determine the length of 'friend'. Provide your answer in numerical form.",
            "6"
        ));
        assert!(has(
            "Determine the length of 'problem'. Provide your answer in words.",
            "seven"
        ));
        let test = test_examples(LARGEST_SIZE, false);
        assert_eq!(test[2].prompt, " What is the number that comes after 2? ");
        assert_eq!(test[2].answer, "3\n");
        assert_eq!(test_examples(LARGEST_SIZE, true)[2].answer, "three\n");
    }

    #[test]
    fn every_task_has_256_different_examples() {
        let train = train_examples(LARGEST_SIZE, 0);
        assert_eq!(train.len(), 1024);
        let keys: HashSet<&str> = train.iter().map(|e| e.key.as_str()).collect();
        let prompts: HashSet<&str> = train.iter().map(|e| e.prompt.as_str()).collect();
        assert_eq!((keys.len(), prompts.len()), (1024, 1024));
    }

    #[test]
    fn generic_text_holds_no_prompt_template() {
        let text = generic_text(5_000, 1);
        for template in [
            "Determine the number",
            "Determine the length",
            "Provide your answer",
            "What is the number",
            "comes after",
            "succeeds",
        ] {
            assert!(!text.contains(template), "{template}");
        }
        assert_eq!(text.lines().count(), 5_001);
        assert_eq!(text, generic_text(5_000, 1));
    }

    #[test]
    fn words_are_lower_case_and_of_many_lengths() {
        assert!(
            WORDS
                .iter()
                .all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
        );
        let lengths: HashSet<usize> = WORDS.iter().map(|w| w.len()).collect();
        assert!(lengths.len() >= 8, "{lengths:?}");
    }
}
