//! How models take examples in: as one text, prompt and answer each for itself, as an image.

use crate::example::{Form as Content, Loss, TextExample, Truncation};
use crate::hugging_face::Piece;
use crate::images::ImageSize;
use crate::settings::TokenizedExample;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// How a model takes an example in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Prompt and answer as one text, of which every token is predicted from those before it.
    Text {
        /// Most tokens that are read. The last one of an example is only predicted.
        context: usize,
    },
    /// Prompt and answer as a text each: an encoder reads the one, a decoder says the other.
    PromptAndAnswer {
        /// Most tokens of each.
        context: usize,
    },
    /// An image of this size, of which the class is predicted.
    Image(ImageSize),
}

impl Reading {
    /// Most tokens of an example.
    pub fn most_tokens(&self) -> usize {
        match self {
            Self::Text { context } => context + 1,
            Self::PromptAndAnswer { context } => 2 * context,
            Self::Image(size) => size.pixels() + 1,
        }
    }
}

impl Tokenizer {
    /// Tokenises an example as a model reads it, and says which of its tokens carry loss.
    ///
    /// **One text** ([`Reading::Text`]): prompt and answer are one text, as a model would read them
    /// anywhere; a tokeniser from a file puts around it what its model expects (a token for the
    /// beginning, say). A token belongs to the answer if it has a character of it; so does what
    /// stands behind the text. In a plain text every token but the first carries loss. A
    /// conversation has its special tokens from its template; those tokens carry loss that have a
    /// character of what is scored.
    ///
    /// **Prompt and answer** ([`Reading::PromptAndAnswer`]): each is a text of its own, with what the
    /// tokeniser puts around it; all tokens of the answer carry loss.
    ///
    /// **An image** ([`Reading::Image`]): its pixels and then its class, which alone carries loss.
    ///
    /// What has more tokens than fit is truncated if the example says so, prompt and answer each for
    /// itself where they are texts of their own: tokens around a text stay, as in the tokenizers
    /// library.
    ///
    /// # Errors
    /// An unknown character, an empty prompt, answer or text (nothing to predict from, nothing to
    /// predict), more tokens than fit, no token with loss left after truncation, an example that the
    /// model has no use for; each names the example's key.
    pub fn example(
        &self,
        example: &TextExample,
        reading: &Reading,
    ) -> Result<TokenizedExample, TokenizerError> {
        self.tokenized(example, reading).map(|(tokens, _)| tokens)
    }

    /// The same, and whether it was truncated.
    pub(crate) fn tokenized(
        &self,
        example: &TextExample,
        reading: &Reading,
    ) -> Result<(TokenizedExample, bool), TokenizerError> {
        match reading {
            Reading::Text { context } => self.one_text(example, *context),
            Reading::PromptAndAnswer { context } => self.two_texts(example, *context),
            Reading::Image(size) => {
                let tokens = image(example, *size).map_err(|e| e.of_example(&example.key))?;
                Ok((tokens, false))
            }
        }
    }

    fn one_text(
        &self,
        example: &TextExample,
        context: usize,
    ) -> Result<(TokenizedExample, bool), TokenizerError> {
        let key = &example.key;
        let mut tokens = self.marked(example).map_err(|e| e.of_example(key))?;
        let is_any_scored = tokens.iter().skip(1).any(|token| token.is_scored);
        let is_first_scored = tokens.first().is_some_and(|token| token.is_scored);
        if !is_any_scored || is_prompt_missing(example, is_first_scored) {
            return Err(TokenizerError::Empty { key: key.clone() });
        }
        let (got, allowed) = (tokens.len(), context + 1);
        let is_truncated = fit(&mut tokens, allowed, example, "")?;
        let scored = tokens.iter().map(|token| token.is_scored);
        let ids = tokens.iter().map(|token| token.piece.id).collect();
        let nothing_left = || TokenizerError::NothingLeft {
            key: key.clone(),
            got,
            allowed,
        };
        let tokenized = TokenizedExample::scored(ids, scored).ok_or_else(nothing_left)?;
        Ok((tokenized, is_truncated))
    }

    /// The tokens of a text with whether each carries loss.
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

    fn two_texts(
        &self,
        example: &TextExample,
        context: usize,
    ) -> Result<(TokenizedExample, bool), TokenizerError> {
        let key = &example.key;
        if example.form != Content::PromptAnswer || example.loss == Loss::All {
            return Err(TokenizerError::NoPromptAndAnswer { key: key.clone() });
        }
        let mut tokens = Vec::new();
        let mut is_truncated = false;
        let mut answer_start = 0;
        for (text, part) in [
            (&example.prompt, " in its prompt"),
            (&example.answer, " in its answer"),
        ] {
            answer_start = tokens.len();
            let pieces = self.pieces(text, true).map_err(|e| e.of_example(key))?;
            let mut marked: Vec<Marked> = (pieces.into_iter())
                .map(|piece| Marked {
                    is_scored: true,
                    piece,
                })
                .collect();
            let is_text = |marked: &[Marked]| marked.iter().any(|token| !token.piece.is_added);
            if !is_text(&marked) {
                return Err(TokenizerError::Empty { key: key.clone() });
            }
            let got = marked.len();
            is_truncated |= fit(&mut marked, context, example, part)?;
            if !is_text(&marked) {
                return Err(TokenizerError::NothingLeft {
                    key: key.clone(),
                    got,
                    allowed: context,
                });
            }
            tokens.extend(marked.iter().map(|token| token.piece.id));
        }
        let tokenized = TokenizedExample {
            tokens,
            answer_start,
            unscored: Vec::new(),
        };
        Ok((tokenized, is_truncated))
    }
}

/// Pixels and class of an image of the size that a model reads.
fn image(example: &TextExample, expected: ImageSize) -> Result<TokenizedExample, TokenizerError> {
    match &example.form {
        Content::Image(image) if image.size == expected => Ok(image.tokens()),
        Content::Image(image) => Err(TokenizerError::ImageSize {
            expected,
            got: image.size,
        }),
        _ => Err(TokenizerError::TextForImages { size: expected }),
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

/// Truncates tokens to so many as the example asks for; gives whether there were more.
fn fit(
    tokens: &mut Vec<Marked>,
    allowed: usize,
    example: &TextExample,
    part: &'static str,
) -> Result<bool, TokenizerError> {
    let got = tokens.len();
    if got <= allowed {
        return Ok(false);
    }
    let too_long = || TokenizerError::TooLong {
        key: example.key.clone(),
        part,
        got,
        allowed,
    };
    truncate(tokens, allowed, example.truncation).ok_or_else(too_long)?;
    Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenizerKind;

    fn example(prompt: &str, answer: &str) -> TextExample {
        TextExample {
            key: "k".into(),
            prompt: prompt.into(),
            answer: answer.into(),
            ..TextExample::default()
        }
    }

    fn text(context: usize) -> Reading {
        Reading::Text { context }
    }

    /// Puts a token in front of every text and one behind.
    fn metaspace() -> Tokenizer {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let json = std::fs::read_to_string(data.join("metaspace.json")).unwrap();
        let stored = serde_json::json!({ "tokenizer_json": json });
        serde_json::from_value(stored).unwrap()
    }

    #[test]
    fn the_answer_starts_after_the_prompt() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abc"]);
        let tokenized = tokenizer.example(&example("ab", "c"), &text(2)).unwrap();
        assert_eq!(tokenized.tokens, vec![0, 1, 2]);
        assert_eq!(tokenized.answer_start, 2);
    }

    #[test]
    fn what_does_not_fit_or_is_empty_is_refused() {
        let tokenizer = Tokenizer::new(TokenizerKind::Character, ["abc"]);
        assert!(matches!(
            tokenizer.example(&example("abc", "ab"), &text(3)),
            Err(TokenizerError::TooLong {
                got: 5,
                allowed: 4,
                ..
            })
        ));
        assert!(tokenizer.example(&example("abc", "a"), &text(3)).is_ok());
        assert!(matches!(
            tokenizer.example(&example("", "a"), &text(3)),
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
        let example = tokenizer.example(example, &text(context)).unwrap();
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
            tokenizer.example(&cut, &text(2)),
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
            tokenizer.example(&one, &text(2)),
            Err(TokenizerError::Empty { .. })
        ));
    }

    #[test]
    fn truncation_keeps_the_tokens_around_the_text() {
        let tokenizer = metaspace();
        let cut = |truncation| TextExample {
            form: Content::Text,
            truncation,
            ..example("", "what follows three and what follows six")
        };
        let whole = tokenizer
            .example(&cut(Truncation::Refuse), &text(100))
            .unwrap()
            .tokens;
        let n = whole.len();
        for (truncation, kept) in [
            (Truncation::Left, &whole[n - 4..n - 1]),
            (Truncation::Right, &whole[1..4]),
        ] {
            let got = tokenizer
                .example(&cut(truncation), &text(4))
                .unwrap()
                .tokens;
            assert_eq!(got, [&whole[..1], kept, &whole[n - 1..]].concat());
        }
    }

    #[derive(serde::Deserialize)]
    struct Row {
        prompt: String,
        answer: String,
        source: Vec<u32>,
        target: Vec<u32>,
    }

    /// Numbers by `tests/data/make.py` (`text_target` of transformers' T5 tokenizer).
    #[test]
    fn ref_tokens_of_prompts_and_answers_are_those_of_transformers() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let tokenizer = Tokenizer::load(&data.join("t5_text")).unwrap();
        let rows = std::fs::read_to_string(data.join("t5_encodings.json")).unwrap();
        let rows: Vec<Row> = serde_json::from_str(&rows).unwrap();
        assert_eq!(rows.len(), 2);
        for row in rows {
            let reading = Reading::PromptAndAnswer { context: 64 };
            let question = example(&row.prompt, &row.answer);
            let got = tokenizer.example(&question, &reading).unwrap();
            assert_eq!(got.answer_start, row.source.len());
            assert_eq!(got.tokens, [row.source, row.target].concat());
        }
    }

    #[test]
    fn prompt_and_answer_are_texts_of_their_own_for_an_encoder_with_a_decoder() {
        let tokenizer = metaspace();
        let reading = |context| Reading::PromptAndAnswer { context };
        let question = example("what follows three?", "four");
        let whole = tokenizer.example(&question, &reading(100)).unwrap();
        let alone = |text: &str| -> Vec<u32> {
            let pieces = tokenizer.pieces(text, true).unwrap();
            pieces.iter().map(|piece| piece.id).collect()
        };
        let (prompt, answer) = (alone("what follows three?"), alone("four"));
        assert_eq!((prompt[0], prompt[prompt.len() - 1]), (1, 2));
        assert_eq!(whole.answer_start, prompt.len());
        assert_eq!(whole.tokens, [&prompt[..], &answer].concat());
        assert_eq!(whole.target_count(), answer.len());

        // Each is truncated for itself.
        let most = prompt.len() - 2;
        assert!(answer.len() < most, "{answer:?}");
        let too_long = tokenizer.example(&question, &reading(most)).unwrap_err();
        assert!(too_long.to_string().contains("in its prompt"), "{too_long}");
        let cut = TextExample {
            truncation: Truncation::Left,
            ..question.clone()
        };
        let (got, is_truncated) = tokenizer.tokenized(&cut, &reading(most)).unwrap();
        assert!(is_truncated);
        assert_eq!(got.answer_start, most);
        let expected = [&prompt[..1], &prompt[3..], &answer].concat();
        assert_eq!(got.tokens, expected);
        let nothing = tokenizer.example(&cut, &reading(2)).unwrap_err();
        assert!(matches!(nothing, TokenizerError::NothingLeft { .. }));

        let empty = tokenizer.example(&example("", "four"), &reading(9));
        assert!(matches!(empty.unwrap_err(), TokenizerError::Empty { .. }));
        for other in [
            conversation(),
            TextExample {
                loss: Loss::All,
                ..question
            },
        ] {
            let error = tokenizer.example(&other, &reading(100)).unwrap_err();
            assert!(error.to_string().contains("data.prompt"), "{error}");
        }
    }
}
