//! Text examples from tables: CSV or JSON Lines with named columns.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use simfluence_core::Example;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A prompt with its answer. The model reads the prompt; the loss is on the answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextExample {
    /// Unique name.
    pub key: String,
    /// The dataset it belongs to.
    pub dataset: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// What the model reads.
    pub prompt: String,
    /// What the model is to say.
    pub answer: String,
    /// Further columns by name; `prompt` and `answer` are taken.
    pub columns: BTreeMap<String, String>,
}

impl TextExample {
    /// As an example of a run set, prompt, answer and [`TextExample::columns`] as columns.
    pub fn to_example(&self) -> Example {
        let mut extra = self.columns.clone();
        extra.insert("prompt".to_owned(), self.prompt.clone());
        extra.insert("answer".to_owned(), self.answer.clone());
        Example {
            key: self.key.clone(),
            dataset: self.dataset.clone(),
            tags: self.tags.clone(),
            extra,
        }
    }
}

/// Where text examples come from and how a row becomes one (`[data]` with `source = "table"`).
///
/// `prompt`, `answer`, `dataset`, `key` and `corpus` are templates: `{column}` stands for the
/// row's value in that column, everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSettings {
    /// CSV (`.csv`, `.tsv`) or JSON Lines (`.jsonl`, `.json`); `--data` overrides it.
    pub path: Option<PathBuf>,
    /// Column names of a CSV file without a header line; default: the first line names them.
    pub columns: Option<Vec<String>>,
    /// What the model reads.
    pub prompt: String,
    /// What the model is to say.
    pub answer: String,
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

/// Training and test examples, and text to pre-train on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskData {
    /// Training examples in id order.
    pub train: Vec<TextExample>,
    /// Test examples in id order.
    pub test: Vec<TextExample>,
    /// Text to pre-train on; none of it comes from a training or test example.
    pub corpus: String,
}

type Row = BTreeMap<String, String>;

/// Reads a table and draws training and test examples from each dataset.
///
/// The same file, settings and seed give the same examples, dataset by dataset in the order of
/// first appearance.
///
/// # Errors
/// An unreadable or malformed file (with line), an unknown column (with those there are), too few
/// rows of a dataset.
pub fn load_table(settings: &TableSettings, path: &Path) -> Result<TaskData, TextError> {
    let rows = read_rows(settings, path)?;
    let mut by_dataset: Vec<(String, Vec<usize>)> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let name = fill(&settings.dataset, row, path)?;
        let name = settings.dataset_names.get(&name).cloned().unwrap_or(name);
        match by_dataset.iter_mut().find(|(known, _)| *known == name) {
            Some((_, members)) => members.push(index),
            None => by_dataset.push((name, vec![index])),
        }
    }
    // Order of names, not of first appearance, so that a reshuffled file keeps its datasets' order.
    by_dataset.sort();
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut data = TaskData::default();
    let mut used = vec![false; rows.len()];
    for (dataset, mut members) in by_dataset {
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
            let example = TextExample {
                key: match &settings.key {
                    Some(template) => fill(template, &rows[index], path)?,
                    None => format!("row-{index}"),
                },
                dataset: dataset.clone(),
                tags: Vec::new(),
                prompt: fill(&settings.prompt, &rows[index], path)?,
                answer: fill(&settings.answer, &rows[index], path)?,
                columns: BTreeMap::new(),
            };
            if k < settings.train_per_dataset {
                data.train.push(example);
            } else {
                data.test.push(example);
            }
        }
    }
    if let Some(template) = &settings.corpus {
        for (row, _) in rows.iter().zip(&used).filter(|(_, used)| !**used) {
            data.corpus.push_str(&fill(template, row, path)?);
        }
    }
    Ok(data)
}

fn read_rows(settings: &TableSettings, path: &Path) -> Result<Vec<Row>, TextError> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let mut rows = match extension {
        "csv" => read_csv(settings, path, b',')?,
        "tsv" => read_csv(settings, path, b'\t')?,
        "jsonl" | "json" => read_json_lines(path)?,
        _ => {
            return Err(TextError::UnknownFormat {
                path: path.to_owned(),
            });
        }
    };
    if let Some(limit) = settings.max_column_characters {
        for value in rows.iter_mut().flat_map(|row| row.values_mut()) {
            if let Some((end, _)) = value.char_indices().nth(limit) {
                value.truncate(end);
            }
        }
    }
    Ok(rows)
}

fn read_csv(settings: &TableSettings, path: &Path, delimiter: u8) -> Result<Vec<Row>, TextError> {
    let malformed = |source: csv::Error| TextError::Malformed {
        path: path.to_owned(),
        line: source.position().map_or(0, csv::Position::line),
        problem: source.to_string(),
    };
    let file = std::fs::File::open(path).map_err(|source| TextError::Unreadable {
        path: path.to_owned(),
        problem: source.to_string(),
    })?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(settings.columns.is_none())
        .from_reader(file);
    let names: Vec<String> = match &settings.columns {
        Some(columns) => columns.clone(),
        None => {
            let header = reader.headers().map_err(malformed)?;
            header.iter().map(str::to_owned).collect()
        }
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        if record.len() != names.len() {
            return Err(TextError::Malformed {
                path: path.to_owned(),
                line: record.position().map_or(0, csv::Position::line),
                problem: format!("{} columns, expected {}", record.len(), names.len()),
            });
        }
        let values = record.iter().map(str::to_owned);
        rows.push(names.iter().cloned().zip(values).collect());
    }
    Ok(rows)
}

fn read_json_lines(path: &Path) -> Result<Vec<Row>, TextError> {
    let text = std::fs::read_to_string(path).map_err(|source| TextError::Unreadable {
        path: path.to_owned(),
        problem: source.to_string(),
    })?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let values: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(line).map_err(|source| TextError::Malformed {
                path: path.to_owned(),
                line: index as u64 + 1,
                problem: source.to_string(),
            })?;
        let row = values
            .into_iter()
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect();
        rows.push(row);
    }
    Ok(rows)
}

/// Puts the row's values into a template.
fn fill(template: &str, row: &Row, path: &Path) -> Result<String, TextError> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((column, tail)) = after.split_once('}') else {
            break;
        };
        let value = row.get(column).ok_or_else(|| TextError::UnknownColumn {
            path: path.to_owned(),
            column: column.to_owned(),
            columns: row.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        text.push_str(before);
        text.push_str(value);
        rest = tail;
    }
    text.push_str(rest);
    Ok(text)
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
    /// Neither CSV nor JSON Lines by its name.
    #[error("{}: expected a file that ends in .csv, .tsv, .jsonl or .json", path.display())]
    UnknownFormat {
        /// The file.
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
    #[error("{}: there is no column {column:?}; the columns are: {columns}", path.display())]
    UnknownColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// Those there are.
        columns: String,
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
            columns: Some(["class", "title"].map(str::to_owned).to_vec()),
            prompt: "{title} => ".into(),
            answer: "{class}".into(),
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
        let data = load_table(&settings(), &path).unwrap();
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
        assert_eq!(data, load_table(&settings(), &path).unwrap());
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
            load_table(&settings(), &csv).unwrap(),
            load_table(&settings(), &json).unwrap()
        );
    }

    #[test]
    fn an_unknown_column_is_named_with_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", TABLE);
        let wrong = TableSettings {
            prompt: "{headline}".into(),
            ..settings()
        };
        let message = load_table(&wrong, &path).unwrap_err().to_string();
        assert!(
            message.contains("headline") && message.contains("class, title"),
            "{message}"
        );
    }

    #[test]
    fn a_short_row_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", "1,a\n1\n");
        let message = load_table(&settings(), &path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn too_few_rows_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "t.csv", "1,a\n1,b\n");
        assert!(matches!(
            load_table(&settings(), &path),
            Err(TextError::TooFewRows {
                got: 2,
                wanted: 3,
                ..
            })
        ));
    }
}
