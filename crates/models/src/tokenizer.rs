//! Text to token ids: characters, bytes, or as a model's `tokenizer.json` says. Images to pixels.

use crate::example::{Form as Content, Loss, TextExample, Truncation};
use crate::hugging_face::{Piece, TokenizerFile, TokenizerFileError};
use crate::images::ImageSize;
use crate::settings::TokenizedExample;
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
    fn pieces(&self, text: &str, has_special: bool) -> Result<Vec<Piece>, TokenizerError> {
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

    /// Tokenises an example and says which of its tokens carry loss; an image becomes its pixels and
    /// its class, which alone carries loss.
    ///
    /// Prompt and answer are one text, as a model would read them anywhere; a tokeniser from a file
    /// puts around it what its model expects (a token for the beginning, say). A token belongs to
    /// the answer if it has a character of it; so does what stands behind the text. In a plain text
    /// every token but the first carries loss. A conversation has its special tokens from its
    /// template; those tokens carry loss that have a character of what is scored.
    ///
    /// An example of more than `context` tokens and one (the last token is only predicted, never
    /// read) is truncated if it says so: tokens around the text stay, as in the tokenizers library.
    ///
    /// # Errors
    /// An unknown character, an empty prompt, answer or text (nothing to predict from, nothing to
    /// predict), more tokens than fit, no token with loss left after truncation, an image of another
    /// size, an image for a model of texts or a text for one of images; each names the example's
    /// key.
    pub fn example(
        &self,
        example: &TextExample,
        context: usize,
    ) -> Result<TokenizedExample, TokenizerError> {
        let key = &example.key;
        let place = |source: TokenizerError| TokenizerError::Example {
            key: key.clone(),
            problem: source.to_string(),
        };
        if let (Form::Images(expected), Content::Image(image)) = (&self.form, &example.form) {
            let (expected, got) = (*expected, image.size);
            return match got == expected {
                true => Ok(image.tokens()),
                false => Err(place(TokenizerError::ImageSize { expected, got })),
            };
        }
        let mut tokens = self.marked(example).map_err(place)?;
        let is_any_scored = tokens.iter().skip(1).any(|token| token.is_scored);
        let is_first_scored = tokens.first().is_some_and(|token| token.is_scored);
        if !is_any_scored || is_prompt_missing(example, is_first_scored) {
            return Err(TokenizerError::Empty { key: key.clone() });
        }
        let (got, allowed) = (tokens.len(), context + 1);
        if got > allowed {
            truncate(&mut tokens, allowed, example.truncation).ok_or_else(|| {
                TokenizerError::TooLong {
                    key: key.clone(),
                    got,
                    allowed,
                }
            })?;
        }
        let scored = tokens.iter().map(|token| token.is_scored);
        TokenizedExample::scored(tokens.iter().map(|t| t.piece.id).collect(), scored).ok_or_else(
            || TokenizerError::NothingLeft {
                key: key.clone(),
                got,
                allowed,
            },
        )
    }

    /// Tokens of an example before any truncation.
    ///
    /// # Errors
    /// An unknown character.
    pub fn token_count(&self, example: &TextExample) -> Result<usize, TokenizerError> {
        Ok(self.marked(example)?.len())
    }

    /// The tokens of an example with whether each carries loss.
    fn marked(&self, example: &TextExample) -> Result<Vec<Marked>, TokenizerError> {
        let whole = match example.form {
            Content::PromptAnswer => format!("{}{}", example.prompt, example.answer),
            Content::Text | Content::Conversation { .. } => example.answer.clone(),
            Content::Image(_) => return Err(TokenizerError::ImageForTexts),
        };
        let has_special = !matches!(example.form, Content::Conversation { .. });
        let pieces = self.pieces(&whole, has_special)?;
        let is_answer = |piece: &Piece| piece.bytes.end > example.prompt.len();
        let start = match (&example.form, example.loss) {
            (Content::PromptAnswer, Loss::Answer) => pieces.iter().position(is_answer),
            _ => Some(0),
        };
        let is_scored = |at: usize, piece: &Piece| match &example.form {
            Content::Conversation { scored, .. } => {
                let bytes = &piece.bytes;
                (scored.iter()).any(|range| bytes.start < range.end && bytes.end > range.start)
            }
            Content::PromptAnswer | Content::Text | Content::Image(_) => {
                start.is_some_and(|start| at >= start)
            }
        };
        Ok((pieces.into_iter().enumerate())
            .map(|(at, piece)| Marked {
                is_scored: is_scored(at, &piece),
                piece,
            })
            .collect())
    }
}

/// A token that carries loss or does not.
struct Marked {
    piece: Piece,
    is_scored: bool,
}

/// Whether prompt or answer is missing where both were promised; the prompt is, too, if the answer
/// begins with the first token.
fn is_prompt_missing(example: &TextExample, is_first_scored: bool) -> bool {
    let is_empty = example.prompt.is_empty() || example.answer.is_empty();
    let is_without = is_first_scored && example.loss == Loss::Answer;
    example.form == Content::PromptAnswer && (is_empty || is_without)
}

/// Takes tokens of the text away until so many are left; `None` if that may not or cannot be.
fn truncate(tokens: &mut Vec<Marked>, allowed: usize, truncation: Truncation) -> Option<()> {
    let is_added = |token: &&Marked| token.piece.is_added;
    let before = tokens.iter().take_while(is_added).count();
    let behind = tokens[before..].iter().rev().take_while(is_added).count();
    let surplus = tokens.len() - allowed;
    let end = tokens.len() - behind;
    if before + surplus > end {
        return None;
    }
    match truncation {
        Truncation::Refuse => return None,
        Truncation::Left => tokens.drain(before..before + surplus),
        Truncation::Right => tokens.drain(end - surplus..end),
    };
    Some(())
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
        "example {key:?} has {got} tokens, but the model's context (model.context) allows {allowed}; raise it where the model is trained here, shorten texts with data.max_column_characters, or cut tokens off with data.truncation = \"left\" or \"right\""
    )]
    TooLong {
        /// Key of the example.
        key: String,
        /// Its tokens.
        got: usize,
        /// What fits.
        allowed: usize,
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

    /// `abc|de` by characters, of which a conversation's answers are `bc` and `e`.
    fn conversation() -> TextExample {
        TextExample {
            key: "k".into(),
            answer: "abcde".into(),
            form: Content::Conversation {
                messages: "[]".into(),
                scored: vec![1..3, 4..5],
            },
            ..TextExample::default()
        }
    }

    /// Tokens and those of them that carry loss, as text.
    fn read(example: &TextExample, context: usize) -> (String, String) {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abcdefgh"]);
        let example = tokenizer.example(example, context).unwrap();
        let scored: Vec<u32> = example.targets().map(|at| example.tokens[at]).collect();
        assert_eq!(scored.len(), example.target_count());
        (tokenizer.decode(&example.tokens), tokenizer.decode(&scored))
    }

    fn both(tokens: &str, scored: &str) -> (String, String) {
        (tokens.to_owned(), scored.to_owned())
    }

    #[test]
    fn loss_is_where_the_settings_put_it() {
        let answer = example("abc", "de");
        assert_eq!(read(&answer, 9), both("abcde", "de"));
        let all = TextExample {
            loss: Loss::All,
            ..answer
        };
        assert_eq!(read(&all, 9), both("abcde", "bcde"));
        let text = TextExample {
            form: Content::Text,
            ..example("", "abcde")
        };
        assert_eq!(read(&text, 9), both("abcde", "bcde"));
        assert_eq!(read(&conversation(), 9), both("abcde", "bce"));
    }

    #[test]
    fn truncation_takes_tokens_from_the_side_that_is_asked_for() {
        let cut = |example: &TextExample, truncation, context| {
            let example = TextExample {
                truncation,
                ..example.clone()
            };
            read(&example, context)
        };
        let answer = example("abc", "de");
        assert_eq!(cut(&answer, Truncation::Left, 2), both("cde", "de"));
        assert_eq!(cut(&answer, Truncation::Right, 3), both("abcd", "d"));
        assert_eq!(cut(&answer, Truncation::Right, 4), both("abcde", "de"));
        // What begins the text then is predicted from nothing, and carries no loss.
        assert_eq!(cut(&conversation(), Truncation::Left, 2), both("cde", "e"));
        assert_eq!(
            cut(&conversation(), Truncation::Right, 3),
            both("abcd", "bc")
        );
    }

    #[test]
    fn truncation_that_leaves_no_loss_and_a_text_of_one_token_are_refused() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abcde"]);
        let cut = TextExample {
            truncation: Truncation::Right,
            ..example("abc", "de")
        };
        assert!(matches!(
            tokenizer.example(&cut, 2),
            Err(TokenizerError::NothingLeft {
                got: 5,
                allowed: 3,
                ..
            })
        ));
        let one = TextExample {
            form: Content::Text,
            ..example("", "a")
        };
        assert!(matches!(
            tokenizer.example(&one, 2),
            Err(TokenizerError::Empty { .. })
        ));
    }

    #[test]
    fn truncation_keeps_the_tokens_around_the_text() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/metaspace.json");
        let json = std::fs::read_to_string(data).unwrap();
        let tokenizer = Tokenizer::try_from(StoredTokenizer::File {
            tokenizer_json: json,
        })
        .unwrap();
        let text = |truncation| TextExample {
            form: Content::Text,
            truncation,
            ..example("", "what follows three and what follows six")
        };
        let whole = tokenizer
            .example(&text(Truncation::Refuse), 100)
            .unwrap()
            .tokens;
        let n = whole.len();
        for (truncation, kept) in [
            (Truncation::Left, &whole[n - 4..n - 1]),
            (Truncation::Right, &whole[1..4]),
        ] {
            let got = tokenizer.example(&text(truncation), 4).unwrap().tokens;
            assert_eq!(got, [&whole[..1], kept, &whole[n - 1..]].concat());
        }
    }
}
