//! Text to token ids: characters, bytes, or as a model's `tokenizer.json` says. Images to pixels.

use crate::hugging_face::{Piece, TokenizerFile, TokenizerFileError};
use crate::images::ImageSize;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// What a token is, of models that are pre-trained here.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredTokenizer", into = "StoredTokenizer")]
pub struct Tokenizer {
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Characters {
        characters: Vec<char>,
        ids: HashMap<char, u32>,
    },
    Bytes,
    File(TokenizerFile),
    /// The pixels of an image of this size are its tokens, and behind them its class.
    Images(ImageSize),
}

/// How a tokeniser stands in files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum StoredTokenizer {
    Kind {
        kind: TokenizerKind,
        characters: String,
    },
    File {
        tokenizer_json: String,
    },
    Images {
        images: ImageSize,
    },
}

impl From<Tokenizer> for StoredTokenizer {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer.form {
            Form::Characters { characters, .. } => Self::Kind {
                kind: TokenizerKind::Character,
                characters: characters.into_iter().collect(),
            },
            Form::Bytes => Self::Kind {
                kind: TokenizerKind::Byte,
                characters: String::new(),
            },
            Form::File(file) => Self::File {
                tokenizer_json: file.json().to_owned(),
            },
            Form::Images(images) => Self::Images { images },
        }
    }
}

impl TryFrom<StoredTokenizer> for Tokenizer {
    type Error = TokenizerFileError;

    fn try_from(stored: StoredTokenizer) -> Result<Self, TokenizerFileError> {
        Ok(match stored {
            StoredTokenizer::Kind { kind, characters } => Self::new(kind, [characters.as_str()]),
            StoredTokenizer::File { tokenizer_json } => Self {
                form: Form::File(TokenizerFile::parse(tokenizer_json)?),
            },
            StoredTokenizer::Images { images } => Self::of_images(images),
        })
    }
}

impl Tokenizer {
    /// A tokeniser for `texts`; a character tokeniser knows exactly their characters.
    pub fn new<'a>(kind: TokenizerKind, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let form = match kind {
            TokenizerKind::Byte => Form::Bytes,
            TokenizerKind::Character => {
                let known: BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
                let characters: Vec<char> = known.into_iter().collect();
                let ids = characters.iter().zip(0..).map(|(&c, id)| (c, id)).collect();
                Form::Characters { characters, ids }
            }
        };
        Self { form }
    }

    /// The tokeniser of a model folder, `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not understood by the `tokenizers` library.
    pub fn load(folder: &Path) -> Result<Self, TokenizerError> {
        Ok(Self {
            form: Form::File(TokenizerFile::load(folder)?),
        })
    }

    /// What reads images of this size instead of texts.
    pub fn of_images(size: ImageSize) -> Self {
        Self {
            form: Form::Images(size),
        }
    }

    /// The size of the images that it reads, if it reads images.
    pub fn image_size(&self) -> Option<ImageSize> {
        match self.form {
            Form::Images(size) => Some(size),
            Form::Characters { .. } | Form::Bytes | Form::File(_) => None,
        }
    }

    /// The text of its `tokenizer.json`, if it came from one.
    pub fn json(&self) -> Option<&str> {
        match &self.form {
            Form::File(file) => Some(file.json()),
            Form::Characters { .. } | Form::Bytes | Form::Images(_) => None,
        }
    }

    /// Number of different tokens: the largest id and 1; of images the values of a pixel.
    pub fn vocabulary_size(&self) -> usize {
        match &self.form {
            Form::Characters { characters, .. } => characters.len(),
            Form::Bytes | Form::Images(_) => 256,
            Form::File(file) => file.size(),
        }
    }

    /// The token ids of a text.
    ///
    /// # Errors
    /// A character that is not in the vocabulary; a text that a tokeniser from a file refuses; any
    /// text where images are read.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.form {
            Form::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Form::Characters { ids, .. } => text
                .chars()
                .map(|c| {
                    ids.get(&c)
                        .copied()
                        .ok_or(TokenizerError::UnknownCharacter { character: c })
                })
                .collect(),
            Form::File(file) => Ok(file.encode(text)?),
            Form::Images(size) => Err(TokenizerError::TextForImages { size: *size }),
        }
    }

    /// The text of token ids; ids that are not in the vocabulary become U+FFFD or nothing. Pixels
    /// and classes become their numbers.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.form {
            Form::Bytes => {
                let bytes: Vec<u8> = tokens
                    .iter()
                    .map(|&t| u8::try_from(t).unwrap_or(b'?'))
                    .collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Form::Characters { characters, .. } => tokens
                .iter()
                .map(|&t| *characters.get(t as usize).unwrap_or(&'\u{FFFD}'))
                .collect(),
            Form::File(file) => file.decode(tokens),
            Form::Images(_) => {
                let numbers: Vec<String> = tokens.iter().map(u32::to_string).collect();
                numbers.join(" ")
            }
        }
    }

    /// The tokens of a text with the bytes that each stands for.
    pub(crate) fn pieces(
        &self,
        text: &str,
        has_special: bool,
    ) -> Result<Vec<Piece>, TokenizerError> {
        let piece = |id, start, length| Piece {
            id,
            bytes: start..start + length,
            is_added: false,
        };
        match &self.form {
            Form::Bytes => Ok((text.bytes().enumerate())
                .map(|(at, byte)| piece(u32::from(byte), at, 1))
                .collect()),
            Form::Characters { .. } => {
                let ids = self.encode(text)?;
                let characters = text.char_indices().zip(ids);
                Ok(characters
                    .map(|((at, c), id)| piece(id, at, c.len_utf8()))
                    .collect())
            }
            Form::File(file) => Ok(file.pieces(text, has_special)?),
            Form::Images(size) => Err(TokenizerError::TextForImages { size: *size }),
        }
    }
}

/// Why a text cannot be tokenised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A text where images are read.
    #[error("it is a text, and the model reads images of {size} pixels")]
    TextForImages {
        /// Size of the images.
        size: ImageSize,
    },
    /// An image where texts are read.
    #[error("it is an image, and the model reads texts")]
    ImageForTexts,
    /// An image of another size.
    #[error("it has {got} pixels, and the model reads images of {expected}")]
    ImageSize {
        /// What the model reads.
        expected: ImageSize,
        /// Size of the image.
        got: ImageSize,
    },
    /// A character that is not in the vocabulary.
    #[error(
        "the character {character:?} is not in the vocabulary; use tokenizer = \"byte\" to allow any text"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
    },
    /// An example without prompt or answer.
    #[error(
        "example {key:?} has an empty prompt or answer, or is a text of fewer than two tokens: there is nothing to predict, or nothing to predict it from"
    )]
    Empty {
        /// Key of the example.
        key: String,
    },
    /// An example that does not fit.
    #[error(
        "example {key:?} has {got} tokens{part}, but the model's context (model.context) allows {allowed}; raise it where the model is trained here, shorten texts with data.max_column_characters, or cut tokens off with data.truncation = \"left\" or \"right\""
    )]
    TooLong {
        /// Key of the example.
        key: String,
        /// Which part of it; empty for all of it.
        part: &'static str,
        /// Its tokens.
        got: usize,
        /// What fits.
        allowed: usize,
    },
    /// An example without prompt and answer for a model that needs both.
    #[error(
        "example {key:?}: the encoder of this model reads a prompt and its decoder says the answer; give data.prompt and data.answer, without loss = \"all\""
    )]
    NoPromptAndAnswer {
        /// Key of the example.
        key: String,
    },
    /// An example whose tokens with loss were all cut off.
    #[error(
        "example {key:?} has {got} tokens; after data.truncation to the {allowed} that the model's context allows, none of those that carry loss is left: truncate on the other side, or leave the example out"
    )]
    NothingLeft {
        /// Key of the example.
        key: String,
        /// Its tokens.
        got: usize,
        /// What fits.
        allowed: usize,
    },
    /// A `tokenizer.json` that cannot be read or used.
    #[error(transparent)]
    File(#[from] TokenizerFileError),
    /// Another problem with one example.
    #[error("example {key:?}: {problem}")]
    Example {
        /// Key of the example.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

impl TokenizerError {
    /// The same with the key of the example.
    pub(crate) fn of_example(&self, key: &str) -> Self {
        Self::Example {
            key: key.to_owned(),
            problem: self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
