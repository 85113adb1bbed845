//! Text examples from tables: CSV, JSON Lines, Parquet or Hugging Face `datasets`.

use crate::chat::ChatTemplate;
use crate::example::{Form, Loss, TextExample, Truncation};
use crate::images::Image;
use crate::rows::{self, Row};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where text examples come from and how a row becomes one (`[data]` with `source = "table"`).
///
/// An example is a prompt with its answer (`prompt` and `answer`), a plain text (`text`) or a
/// conversation (`messages`). `prompt`, `answer`, `text`, `dataset`, `key` and `corpus` are
/// templates: `{column}` stands for the row's value in that column, everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSettings {
    /// CSV (`.csv`, `.tsv`), JSON Lines (`.jsonl`, `.json`), Parquet (`.parquet`), or a folder as
    /// `save_to_disk` of Hugging Face's `datasets` writes it; `--data` overrides it.
    pub path: Option<PathBuf>,
    /// Which of the datasets of such a folder, where it holds several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Column names of a CSV file without a header line; default: the first line names them.
    pub columns: Option<Vec<String>>,
    /// What the model reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What the model is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// A text whose every token but the first carries loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The column with a conversation: a list of objects with `role` and `content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// File with a chat template (Jinja), default: that of the model folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// Which tokens carry loss, default those of the answer.
    #[serde(default, skip_serializing_if = "Loss::is_answer")]
    pub loss: Loss,
    /// What happens to an example longer than the model's context, default an error.
    #[serde(default, skip_serializing_if = "Truncation::is_refuse")]
    pub truncation: Truncation,
    /// Which dataset a row belongs to.
    pub dataset: String,
    /// Names to show for datasets, by what the template gives (default: that itself).
    #[serde(default)]
    pub dataset_names: BTreeMap<String, String>,
    /// Unique name of a row; default `row-` and its number, counted from 0.
    pub key: Option<String>,
    /// Text of a row for pre-training, of those rows that are neither training nor test examples.
    pub corpus: Option<String>,
    /// Longer column values are cut to this many characters.
    pub max_column_characters: Option<usize>,
    /// Training examples drawn from each dataset.
    pub train_per_dataset: usize,
    /// Test examples drawn from each dataset.
    pub test_per_dataset: usize,
    /// Seed of the draw, default 0.
    #[serde(default)]
    pub seed: u64,
}

/// Training and test examples, and what to pre-train on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskData {
    /// Training examples in id order.
    pub train: Vec<TextExample>,
    /// Test examples in id order.
    pub test: Vec<TextExample>,
    /// Text to pre-train on; none of it comes from a training or test example.
    pub corpus: String,
    /// Images to pre-train on; none of them is a training or test example.
    pub corpus_images: Vec<Image>,
}

impl TableSettings {
    /// What an example is made of.
    fn source(&self) -> Result<Source<'_>, TextError> {
        let given = (&self.prompt, &self.answer, &self.text, &self.messages);
        let source = match given {
            (Some(prompt), Some(answer), None, None) => Source::PromptAnswer { prompt, answer },
            (None, None, Some(text), None) => Source::Text(text),
            (None, None, None, Some(column)) => Source::Messages(column),
            _ => return Err(TextError::Source),
        };
        let is_chat = matches!(source, Source::Messages(_));
        if self.chat_template.is_some() && !is_chat {
            return Err(TextError::WithoutMessages);
        }
        if self.max_column_characters.is_some() && is_chat {
            return Err(TextError::CutMessages);
        }
        Ok(source)
    }

    /// Checks that the settings go together.
    ///
    /// # Errors
    /// Neither or several of prompt with answer, text and messages; settings without effect.
    pub fn check(&self) -> Result<(), TextError> {
        self.source().map(|_| ())
    }

    /// Whether a chat template is needed.
    pub fn is_chat(&self) -> bool {
        self.messages.is_some()
    }
}

/// What an example is made of.
enum Source<'a> {
    PromptAnswer { prompt: &'a str, answer: &'a str },
    Text(&'a str),
    Messages(&'a str),
}

/// Reads a table and draws training and test examples from each dataset. `chat` renders
/// conversations; it is needed where the settings name `messages`.
///
/// The same file, settings and seed give the same examples, dataset by dataset in the order of
/// their names.
///
/// # Errors
/// Settings that do not go together; an unreadable or malformed file (with line), an unknown column
/// (with those there are), a value that is missing (with its row), a conversation that cannot be
/// rendered, too few rows of a dataset.
pub fn load_table(
    settings: &TableSettings,
    path: &Path,
    chat: Option<&ChatTemplate>,
) -> Result<TaskData, TextError> {
    let table = Table {
        settings,
        path,
        chat,
        source: settings.source()?,
        rows: rows::read(settings, path)?,
    };
    if table.rows.is_empty() {
        return Err(TextError::Empty {
            path: path.to_owned(),
        });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut data = TaskData::default();
    let mut used = vec![false; table.rows.len()];
    for (dataset, mut members) in table.by_dataset()? {
        let wanted = settings.train_per_dataset + settings.test_per_dataset;
        if members.len() < wanted {
            return Err(TextError::TooFewRows {
                path: path.to_owned(),
                dataset,
                got: members.len(),
                wanted,
            });
        }
        members.shuffle(&mut rng);
        for (k, &index) in members[..wanted].iter().enumerate() {
            used[index] = true;
            let example = table.example(index, &dataset)?;
            if k < settings.train_per_dataset {
                data.train.push(example);
            } else {
                data.test.push(example);
            }
        }
    }
    if let Some(template) = &settings.corpus {
        for (index, _) in used.iter().enumerate().filter(|(_, used)| !**used) {
            data.corpus.push_str(&table.fill(template, index)?);
        }
    }
    Ok(data)
}

/// The rows of a file with how they become examples.
struct Table<'a> {
    settings: &'a TableSettings,
    path: &'a Path,
    chat: Option<&'a ChatTemplate>,
    source: Source<'a>,
    rows: Vec<Row>,
}

impl Table<'_> {
    /// The datasets with their rows, in the order of names and not of first appearance, so that a
    /// reshuffled file keeps its datasets' order.
    fn by_dataset(&self) -> Result<Vec<(String, Vec<usize>)>, TextError> {
        let mut datasets: Vec<(String, Vec<usize>)> = Vec::new();
        for index in 0..self.rows.len() {
            let name = self.fill(&self.settings.dataset, index)?;
            let name = (self.settings.dataset_names.get(&name).cloned()).unwrap_or(name);
            match datasets.iter_mut().find(|(known, _)| *known == name) {
                Some((_, members)) => members.push(index),
                None => datasets.push((name, vec![index])),
            }
        }
        datasets.sort();
        Ok(datasets)
    }

    fn example(&self, index: usize, dataset: &str) -> Result<TextExample, TextError> {
        let example = TextExample {
            key: match &self.settings.key {
                Some(template) => self.fill(template, index)?,
                None => format!("row-{index}"),
            },
            dataset: dataset.to_owned(),
            truncation: self.settings.truncation,
            ..TextExample::default()
        };
        match self.source {
            Source::PromptAnswer { prompt, answer } => Ok(TextExample {
                prompt: self.fill(prompt, index)?,
                answer: self.fill(answer, index)?,
                loss: self.settings.loss,
                ..example
            }),
            Source::Text(text) => Ok(TextExample {
                answer: self.fill(text, index)?,
                form: Form::Text,
                ..example
            }),
            Source::Messages(column) => self.conversation(example, column, index),
        }
    }

    fn conversation(
        &self,
        example: TextExample,
        column: &str,
        index: usize,
    ) -> Result<TextExample, TextError> {
        let wrong = |problem: String| TextError::Messages {
            path: self.path.to_owned(),
            row: index,
            column: column.to_owned(),
            problem,
        };
        let chat = (self.chat).ok_or_else(|| wrong("there is no chat template".to_owned()))?;
        let messages = self.value(column, index)?;
        let (text, scored) = match self.settings.loss {
            Loss::Answer => {
                let rendered = chat.conversation(messages).map_err(wrong)?;
                (rendered.text, rendered.answers)
            }
            Loss::All => {
                let text = chat.text(messages).map_err(wrong)?;
                let whole = 0..text.len();
                (text, vec![whole])
            }
        };
        Ok(TextExample {
            answer: text,
            form: Form::Conversation {
                messages: messages.to_string(),
                scored,
            },
            ..example
        })
    }

    /// A row's value in a column.
    fn value(&self, column: &str, index: usize) -> Result<&Value, TextError> {
        let row = &self.rows[index];
        match row.get(column) {
            Some(Value::Null) => Err(TextError::Missing {
                path: self.path.to_owned(),
                row: index,
                column: column.to_owned(),
            }),
            Some(value) => Ok(value),
            None => Err(TextError::UnknownColumn {
                path: self.path.to_owned(),
                row: index,
                column: column.to_owned(),
                columns: row.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The same as text, cut as the settings say.
    fn text(&self, column: &str, index: usize) -> Result<Cow<'_, str>, TextError> {
        let text = match self.value(column, index)? {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        let limit = self.settings.max_column_characters;
        let end = limit.and_then(|limit| text.char_indices().nth(limit));
        Ok(match end {
            Some((end, _)) => Cow::Owned(text[..end].to_owned()),
            None => text,
        })
    }

    /// Puts a row's values into a template.
    fn fill(&self, template: &str, index: usize) -> Result<String, TextError> {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((column, tail)) = after.split_once('}') else {
                break;
            };
            text.push_str(before);
            text.push_str(&self.text(column, index)?);
            rest = tail;
        }
        text.push_str(rest);
        Ok(text)
    }
}

/// Why a table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// A file whose name says none of the formats.
    #[error("{}: expected a file that ends in .csv, .tsv, .jsonl, .json or .parquet, or a folder that save_to_disk of `datasets` wrote", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A table without rows.
    #[error("{}: there are no rows", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// A line that cannot be parsed.
    #[error("{}, line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// A template names a column that a row lacks.
    #[error("{}, row {row} (counted from 0): there is no column {column:?}; the columns are: {columns}", path.display())]
    UnknownColumn {
        /// The file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// The column asked for.
        column: String,
        /// Those there are.
        columns: String,
    },
    /// A value that is null.
    #[error("{}, row {row} (counted from 0): there is no value in column {column:?}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// The column.
        column: String,
    },
    /// A conversation that cannot be used.
    #[error("{}, row {row} (counted from 0), column {column:?}: {problem}", path.display())]
    Messages {
        /// The file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// The column.
        column: String,
        /// What is wrong.
        problem: String,
    },
    /// Settings that do not say what an example is.
    #[error(
        "[data] needs prompt and answer, or text, or messages, and only one of these; what stands there does not say what an example is"
    )]
    Source,
    /// A chat template without conversations.
    #[error("data.chat_template only has a meaning with data.messages")]
    WithoutMessages,
    /// Conversations cannot be cut by characters.
    #[error(
        "data.max_column_characters does not cut conversations; use data.truncation, or leave one of max_column_characters and messages out"
    )]
    CutMessages,
    /// A folder that is no dataset.
    #[error("{}: the folder has no state.json and no dataset_dict.json; it is not one that save_to_disk of `datasets` wrote", path.display())]
    NoDataset {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with several datasets, of which one must be named.
    #[error("{}: {}; the folder has: {splits}", path.display(), match got {
        Some(got) => format!("there is no split {got:?}"),
        None => "name one of its datasets with data.split".to_owned(),
    })]
    Split {
        /// The folder.
        path: PathBuf,
        /// The split asked for.
        got: Option<String>,
        /// Those there are.
        splits: String,
    },
    /// A split of something that has none.
    #[error("{}: data.split is for folders with several datasets (dataset_dict.json); leave it out", path.display())]
    SplitOfFile {
        /// The file or folder.
        path: PathBuf,
    },
    /// Not enough rows to draw from.
    #[error("{}: dataset {dataset:?} has {got} rows, but train_per_dataset + test_per_dataset is {wanted}", path.display())]
    TooFewRows {
        /// The file.
        path: PathBuf,
        /// The dataset.
        dataset: String,
        /// Its rows.
        got: usize,
        /// Rows needed.
        wanted: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn settings() -> TableSettings {
        TableSettings {
            path: None,
            split: None,
            columns: Some(["class", "title"].map(str::to_owned).to_vec()),
            prompt: Some("{title} => ".into()),
            answer: Some("{class}".into()),
            text: None,
            messages: None,
            chat_template: None,
            loss: Loss::Answer,
            truncation: Truncation::Refuse,
            dataset: "{class}".into(),
            dataset_names: BTreeMap::from([("1".to_owned(), "World".to_owned())]),
            key: None,
            corpus: Some("{title}\n".into()),
            max_column_characters: Some(8),
            train_per_dataset: 2,
            test_per_dataset: 1,
            seed: 4,
        }
    }

    fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    const TABLE: &str = "\"1\",\"a title, with comma\"\n1,b\n1,c\n1,d\n2,e\n2,f\n2,g\n2,h\n";

    #[test]
    fn rows_become_examples_and_the_rest_becomes_the_corpus() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", TABLE);
        let data = load_table(&settings(), &path, None).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (4, 2));
        assert_eq!(data.train[0].dataset, "2");
        assert_eq!(data.train[2].dataset, "World");
        assert_eq!(data.corpus.lines().count(), 2);
        let keys: HashSet<&str> = data
            .train
            .iter()
            .chain(&data.test)
            .map(|e| &*e.key)
            .collect();
        assert_eq!(keys.len(), 6);
        for example in &data.train {
            let title = example.prompt.strip_suffix(" => ").unwrap();
            assert!(title.chars().count() <= 8 && !data.corpus.contains(&format!("{title}\n")));
        }
        assert_eq!(data, load_table(&settings(), &path, None).unwrap());
    }

    #[test]
    fn json_lines_give_the_same_examples_as_csv() {
        let folder = tempfile::tempdir().unwrap();
        let csv = file(&folder, "t.csv", TABLE);
        let lines: String = TABLE
            .lines()
            .map(|line| {
                let (class, title) = line.split_once(',').unwrap();
                let (class, title) = (class.trim_matches('"'), title.trim_matches('"'));
                format!("{{\"class\": {class}, \"title\": \"{title}\"}}\n")
            })
            .collect();
        let json = file(&folder, "t.jsonl", &lines);
        assert_eq!(
            load_table(&settings(), &csv, None).unwrap(),
            load_table(&settings(), &json, None).unwrap()
        );
    }

    #[test]
    fn an_unknown_column_is_named_with_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", TABLE);
        let wrong = TableSettings {
            prompt: Some("{headline}".into()),
            ..settings()
        };
        let message = load_table(&wrong, &path, None).unwrap_err().to_string();
        assert!(
            message.contains("headline") && message.contains("class, title"),
            "{message}"
        );
    }

    #[test]
    fn a_short_row_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", "1,a\n1\n");
        let message = load_table(&settings(), &path, None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn too_few_rows_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", "1,a\n1,b\n");
        assert!(matches!(
            load_table(&settings(), &path, None),
            Err(TextError::TooFewRows {
                got: 2,
                wanted: 3,
                ..
            })
        ));
    }

    #[test]
    fn a_value_that_is_null_is_named_by_row_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"class\": 1, \"title\": \"a\"}\n{\"class\": 1, \"title\": null}\n";
        let path = file(&folder, "t.jsonl", lines);
        let all = TableSettings {
            train_per_dataset: 1,
            ..settings()
        };
        let message = load_table(&all, &path, None).unwrap_err().to_string();
        assert!(
            message.contains("row 1") && message.contains("\"title\""),
            "{message}"
        );
    }

    #[test]
    fn plain_texts_have_no_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", TABLE);
        let texts = TableSettings {
            prompt: None,
            answer: None,
            text: Some("{title}.".into()),
            truncation: Truncation::Right,
            ..settings()
        };
        let data = load_table(&texts, &path, None).unwrap();
        for example in data.train.iter().chain(&data.test) {
            assert!(example.prompt.is_empty() && example.answer.ends_with('.'));
            assert_eq!(example.form, Form::Text);
            assert_eq!(example.truncation, Truncation::Right);
        }
    }

    #[test]
    fn what_an_example_is_must_be_said_once() {
        let text = || Some("{title}".to_owned());
        let with = |change: fn(&mut TableSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().unwrap_err()
        };
        assert_eq!(with(|s| s.answer = None), TextError::Source);
        assert_eq!(with(|s| s.messages = Some("m".into())), TextError::Source);
        let file = |s: &mut TableSettings| s.chat_template = Some("x.jinja".into());
        assert_eq!(with(file), TextError::WithoutMessages);
        let chat = |s: &mut TableSettings| {
            (s.prompt, s.answer, s.messages) = (None, None, Some("m".into()));
        };
        assert_eq!(with(chat), TextError::CutMessages);
        let plain = TableSettings {
            prompt: None,
            answer: None,
            text: text(),
            ..settings()
        };
        assert_eq!(plain.check(), Ok(()));
    }

    /// Run sets keep the settings of their base model's data as text and compare them.
    #[test]
    fn settings_of_before_are_written_as_before() {
        let text = serde_json::to_string(&settings()).unwrap();
        for new in [
            "split",
            "text",
            "messages",
            "chat_template",
            "loss",
            "truncation",
        ] {
            assert!(!text.contains(&format!("\"{new}\"")), "{text}");
        }
        assert!(text.starts_with("{\"path\":null,\"columns\":[\"class\",\"title\"],\"prompt\":"));
    }
}
