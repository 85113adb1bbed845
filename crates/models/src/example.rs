//! A text or an image to learn from or to be tested on, and what of it carries loss.

use crate::images::Image;
use serde::{Deserialize, Serialize};
use simfluence_core::Example;
use std::collections::BTreeMap;
use std::ops::Range;

/// A prompt with its answer, a plain text, a conversation, or an image with its class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextExample {
    /// Unique name.
    pub key: String,
    /// The dataset it belongs to.
    pub dataset: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// What the model reads before the answer; nothing but where there is an answer to a prompt.
    pub prompt: String,
    /// What the model is to say; the whole text where there is no prompt; nothing of an image.
    pub answer: String,
    /// What kind of example it is.
    pub form: Form,
    /// Where a prompt carries loss, too.
    pub loss: Loss,
    /// What happens if it has more tokens than the model's context.
    pub truncation: Truncation,
    /// Further columns by name; `prompt`, `answer`, `text`, `messages`, `loss`, `truncation`,
    /// `image` and `label` are taken.
    pub columns: BTreeMap<String, String>,
}

/// What kind of example it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// A prompt with its answer.
    #[default]
    PromptAnswer,
    /// A text whose every token but the first carries loss.
    Text,
    /// A conversation, rendered by a chat template.
    Conversation {
        /// Its messages as JSON.
        messages: String,
        /// Bytes of the text that carry loss, ascending.
        scored: Vec<Range<usize>>,
    },
    /// An image, whose class is predicted.
    Image(Image),
}

/// Which tokens carry loss (`loss` of a table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Those of the answer; of a conversation those of the assistant's turns.
    #[default]
    Answer,
    /// All but the first, which nothing precedes.
    All,
}

/// What happens to an example of more tokens than the context holds (`truncation` of a table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// It is an error.
    #[default]
    Refuse,
    /// It loses its first tokens.
    Left,
    /// It loses its last tokens.
    Right,
}

impl Loss {
    /// Whether it is the default.
    pub fn is_answer(&self) -> bool {
        *self == Self::Answer
    }
}

impl Truncation {
    /// Whether it is the default.
    pub fn is_refuse(&self) -> bool {
        *self == Self::Refuse
    }
}

impl TextExample {
    /// As an example of a run set. Columns, besides [`TextExample::columns`]:
    ///
    /// | column | of | content |
    /// | --- | --- | --- |
    /// | `prompt`, `answer` | a prompt with its answer | these |
    /// | `text` | a plain text, a conversation | the text, of a conversation as rendered |
    /// | `messages` | a conversation | the messages, as JSON |
    /// | `loss` | a prompt with loss | `all` |
    /// | | a conversation | which bytes of `text` (UTF-8) carry loss: `12..40 55..80` |
    /// | `image` | an image | size and pixels: `28x28`, a space, two hexadecimal digits per pixel |
    /// | `label` | | its class, counted from 0 |
    /// | `truncation` | one that may be truncated | `left` or `right` |
    pub fn to_example(&self) -> Example {
        let mut extra = self.columns.clone();
        let mut add = |name: &str, value: &str| extra.insert(name.to_owned(), value.to_owned());
        match &self.form {
            Form::PromptAnswer => {
                add("prompt", &self.prompt);
                add("answer", &self.answer);
                if self.loss == Loss::All {
                    add("loss", "all");
                }
            }
            Form::Text => {
                add("text", &self.answer);
            }
            Form::Conversation { messages, scored } => {
                add("text", &self.answer);
                add("messages", messages);
                let ranges: Vec<String> = (scored.iter())
                    .map(|range| format!("{}..{}", range.start, range.end))
                    .collect();
                add("loss", &ranges.join(" "));
            }
            Form::Image(image) => {
                add("image", &image.to_text());
                add("label", &image.class.to_string());
            }
        }
        match self.truncation {
            Truncation::Refuse => None,
            Truncation::Left => add("truncation", "left"),
            Truncation::Right => add("truncation", "right"),
        };
        Example {
            key: self.key.clone(),
            dataset: self.dataset.clone(),
            tags: self.tags.clone(),
            extra,
        }
    }

    /// What [`TextExample::to_example`] wrote, without [`TextExample::columns`].
    ///
    /// # Errors
    /// A column that is missing or has none of the values above.
    pub fn from_example(example: &Example) -> Result<Self, ColumnError> {
        let column = |name: &'static str| example.column(name).filter(|text| !text.is_empty());
        let wrong = |name, problem: String| ColumnError {
            key: example.key.clone(),
            column: name,
            problem,
        };
        let text = |name: &'static str| {
            let text = example.column(name).map(str::to_owned);
            text.ok_or_else(|| wrong(name, "it is missing".to_owned()))
        };
        let of = Self {
            key: example.key.clone(),
            dataset: example.dataset.clone(),
            tags: example.tags.clone(),
            truncation: match column("truncation") {
                None => Truncation::Refuse,
                Some("left") => Truncation::Left,
                Some("right") => Truncation::Right,
                Some(other) => return Err(wrong("truncation", format!("it is {other:?}"))),
            },
            ..Self::default()
        };
        // Readers may give every column to every row: one that is not there may be empty.
        if let Some(image) = column("image") {
            let label = text("label")?;
            let label = (label.parse()).map_err(|_| wrong("label", format!("it is {label:?}")))?;
            let image = Image::from_text(image, label);
            let image = image.ok_or_else(|| wrong("image", "it is no image".to_owned()))?;
            return Ok(Self {
                form: Form::Image(image),
                ..of
            });
        }
        let Some(whole) = column("text") else {
            return Ok(Self {
                prompt: text("prompt")?,
                answer: text("answer")?,
                loss: match column("loss") {
                    None => Loss::Answer,
                    Some("all") => Loss::All,
                    Some(other) => return Err(wrong("loss", format!("it is {other:?}"))),
                },
                ..of
            });
        };
        let form = match column("messages") {
            None => Form::Text,
            Some(messages) => {
                let scored = text("loss")?;
                Form::Conversation {
                    messages: messages.to_owned(),
                    scored: ranges(&scored, whole.len())
                        .ok_or_else(|| wrong("loss", format!("it is {scored:?}")))?,
                }
            }
        };
        Ok(Self {
            answer: whole.to_owned(),
            form,
            ..of
        })
    }
}

/// The ranges of `12..40 55..80`.
fn ranges(text: &str, length: usize) -> Option<Vec<Range<usize>>> {
    let range = |part: &str| {
        let (start, end) = part.split_once("..")?;
        let range = start.parse().ok()?..end.parse().ok()?;
        (range.start < range.end && range.end <= length).then_some(range)
    };
    text.split(' ').map(range).collect()
}

/// A column of a run set's example that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("example {key:?}, column {column:?}: {problem}")]
pub struct ColumnError {
    /// Key of the example.
    pub key: String,
    /// The column.
    pub column: &'static str,
    /// What is wrong.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageSize;

    fn example(form: Form) -> TextExample {
        TextExample {
            key: "k".into(),
            dataset: "d".into(),
            answer: "what it says".into(),
            form,
            truncation: Truncation::Left,
            ..TextExample::default()
        }
    }

    fn image() -> Image {
        Image {
            size: ImageSize {
                rows: 1,
                columns: 2,
            },
            pixels: vec![0, 255],
            class: 3,
        }
    }

    #[test]
    fn every_kind_of_example_comes_back_from_a_run_set() {
        let conversation = Form::Conversation {
            messages: "[]".into(),
            scored: vec![0..2, 5..12],
        };
        for example in [
            example(Form::Text),
            example(conversation),
            TextExample {
                prompt: "asked".into(),
                loss: Loss::All,
                truncation: Truncation::Right,
                ..example(Form::PromptAnswer)
            },
            TextExample::default(),
            TextExample {
                answer: String::new(),
                ..example(Form::Image(image()))
            },
        ] {
            let stored = example.to_example();
            assert_eq!(TextExample::from_example(&stored), Ok(example));
        }
    }

    #[test]
    fn columns_that_were_not_written_so_are_named() {
        let form = Form::Conversation {
            messages: "[]".into(),
            scored: vec![0..2, 5..12],
        };
        for (column, value) in [
            ("loss", "3..99"),
            ("loss", "4..4"),
            ("loss", "some"),
            ("truncation", "middle"),
        ] {
            let mut stored = example(form.clone()).to_example();
            stored.extra.insert(column.into(), value.into());
            let error = TextExample::from_example(&stored).unwrap_err();
            assert_eq!((error.column, &*error.key), (column, "k"));
        }
        for (column, value) in [("image", "1x2 00"), ("label", "three")] {
            let mut stored = example(Form::Image(image())).to_example();
            stored.extra.insert(column.into(), value.into());
            let error = TextExample::from_example(&stored).unwrap_err();
            assert_eq!((error.column, &*error.key), (column, "k"));
        }
        let mut stored = example(Form::Text).to_example();
        stored.extra.remove("text");
        let error = TextExample::from_example(&stored).unwrap_err();
        assert!(error.to_string().contains("prompt"), "{error}");
    }
}
