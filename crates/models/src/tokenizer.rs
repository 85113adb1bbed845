//! Text to token ids: characters or bytes.

use crate::settings::TokenizedExample;
use crate::text::TextExample;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// A Unicode character; the vocabulary is what occurs in the task's texts.
    #[default]
    Character,
    /// A byte of UTF-8; 256 tokens, nothing is unknown.
    Byte,
}

/// A tokeniser.
///
/// ```
/// use simfluence_models::tokenizer::{Tokenizer, TokenizerKind};
/// let tokenizer = Tokenizer::new(TokenizerKind::Character, ["hello"]);
/// assert_eq!(tokenizer.vocabulary_size(), 4);
/// assert_eq!(tokenizer.decode(&tokenizer.encode("hello")?), "hello");
/// # Ok::<(), simfluence_models::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizer {
    kind: TokenizerKind,
    characters: Vec<char>,
    ids: HashMap<char, u32>,
}

impl Tokenizer {
    /// A tokeniser for `texts`; a character tokeniser knows exactly their characters.
    pub fn new<'a>(kind: TokenizerKind, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let characters: Vec<char> = match kind {
            TokenizerKind::Character => texts
                .into_iter()
                .flat_map(str::chars)
                .collect::<BTreeSet<char>>()
                .into_iter()
                .collect(),
            TokenizerKind::Byte => Vec::new(),
        };
        let ids = characters.iter().zip(0..).map(|(&c, id)| (c, id)).collect();
        Self {
            kind,
            characters,
            ids,
        }
    }

    /// Number of different tokens.
    pub fn vocabulary_size(&self) -> usize {
        match self.kind {
            TokenizerKind::Character => self.characters.len(),
            TokenizerKind::Byte => 256,
        }
    }

    /// The characters of the vocabulary in id order (empty for bytes).
    pub fn characters(&self) -> String {
        self.characters.iter().collect()
    }

    /// The token ids of a text.
    ///
    /// # Errors
    /// A character that is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.kind {
            TokenizerKind::Byte => Ok(text.bytes().map(u32::from).collect()),
            TokenizerKind::Character => text
                .chars()
                .map(|c| {
                    self.ids
                        .get(&c)
                        .copied()
                        .ok_or(TokenizerError::UnknownCharacter { character: c })
                })
                .collect(),
        }
    }

    /// The text of token ids; ids that are not in the vocabulary become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match self.kind {
            TokenizerKind::Byte => {
                let bytes: Vec<u8> = tokens
                    .iter()
                    .map(|&t| u8::try_from(t).unwrap_or(b'?'))
                    .collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            TokenizerKind::Character => tokens
                .iter()
                .map(|&t| *self.characters.get(t as usize).unwrap_or(&'\u{FFFD}'))
                .collect(),
        }
    }

    /// Tokenises prompt and answer; the loss is on the answer only.
    ///
    /// # Errors
    /// An unknown character, an empty prompt or answer (nothing to predict from, nothing to
    /// predict), or more tokens than `context`; each names the example's key.
    pub fn example(
        &self,
        example: &TextExample,
        context: usize,
    ) -> Result<TokenizedExample, TokenizerError> {
        let place = |source: TokenizerError| TokenizerError::Example {
            key: example.key.clone(),
            problem: source.to_string(),
        };
        let mut tokens = self.encode(&example.prompt).map_err(place)?;
        let answer_start = tokens.len();
        tokens.extend(self.encode(&example.answer).map_err(place)?);
        if answer_start == 0 || answer_start == tokens.len() {
            return Err(TokenizerError::Empty {
                key: example.key.clone(),
            });
        }
        // The last token is only predicted, never read.
        if tokens.len() - 1 > context {
            return Err(TokenizerError::TooLong {
                key: example.key.clone(),
                got: tokens.len(),
                allowed: context + 1,
            });
        }
        Ok(TokenizedExample {
            tokens,
            answer_start,
        })
    }
}

/// Why a text cannot be tokenised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A character that is not in the vocabulary.
    #[error(
        "the character {character:?} is not in the vocabulary; use tokenizer = \"byte\" to allow any text"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
    },
    /// An example without prompt or answer.
    #[error("example {key:?} has an empty prompt or answer")]
    Empty {
        /// Key of the example.
        key: String,
    },
    /// An example that does not fit.
    #[error(
        "example {key:?} has {got} tokens, but model.context allows {allowed}; raise it, or shorten texts with data.max_column_characters"
    )]
    TooLong {
        /// Key of the example.
        key: String,
        /// Its tokens.
        got: usize,
        /// What fits.
        allowed: usize,
    },
    /// Another problem with one example.
    #[error("example {key:?}: {problem}")]
    Example {
        /// Key of the example.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: &str, answer: &str) -> TextExample {
        TextExample {
            key: "k".into(),
            prompt: prompt.into(),
            answer: answer.into(),
            ..TextExample::default()
        }
    }

    #[test]
    fn bytes_take_any_text_and_give_it_back() {
        let tokenizer = Tokenizer::new(TokenizerKind::Byte, []);
        let text = "grüße 你好";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
    }

    #[test]
    fn an_unknown_character_is_named() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abc"]);
        assert_eq!(
            tokenizer.encode("abd"),
            Err(TokenizerError::UnknownCharacter { character: 'd' })
        );
    }

    #[test]
    fn the_answer_starts_after_the_prompt() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abc"]);
        let tokenized = tokenizer.example(&example("ab", "c"), 2).unwrap();
        assert_eq!(tokenized.tokens, vec![0, 1, 2]);
        assert_eq!(tokenized.answer_start, 2);
    }

    #[test]
    fn what_does_not_fit_or_is_empty_is_refused() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abc"]);
        assert!(matches!(
            tokenizer.example(&example("abc", "ab"), 3),
            Err(TokenizerError::TooLong {
                got: 5,
                allowed: 4,
                ..
            })
        ));
        assert!(tokenizer.example(&example("abc", "a"), 3).is_ok());
        assert!(matches!(
            tokenizer.example(&example("", "a"), 3),
            Err(TokenizerError::Empty { .. })
        ));
    }
}
