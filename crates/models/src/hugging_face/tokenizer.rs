//! `tokenizer.json`: text to tokens as the model's authors do it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Name of the file with a tokeniser.
pub const TOKENIZER: &str = "tokenizer.json";

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    /// The bytes that it stands for; none where it stands around the text.
    pub(crate) bytes: Range<usize>,
    /// Whether it stands around the text.
    pub(crate) is_added: bool,
}

/// A tokeniser of the `tokenizers` library.
#[derive(Clone)]
pub(crate) struct TokenizerFile {
    /// The file's text, by which two are the same.
    json: String,
    tokenizer: Arc<tokenizers::Tokenizer>,
}

impl PartialEq for TokenizerFile {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for TokenizerFile {}

impl std::fmt::Debug for TokenizerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenizerFile({} tokens)", self.size())
    }
}

impl TokenizerFile {
    /// Reads `tokenizer.json` of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TokenizerFileError> {
        let wrong = |problem: String| TokenizerFileError {
            place: folder.join(TOKENIZER).display().to_string(),
            problem,
        };
        let json =
            std::fs::read_to_string(folder.join(TOKENIZER)).map_err(|e| wrong(e.to_string()))?;
        Self::parse(json).map_err(|error| wrong(error.problem))
    }

    /// Parses the text of the file. Truncation and padding that it asks for are left out: an
    /// example is never cut silently.
    pub(crate) fn parse(json: String) -> Result<Self, TokenizerFileError> {
        let wrong = |source: tokenizers::Error| TokenizerFileError {
            place: TOKENIZER.to_owned(),
            problem: source.to_string(),
        };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&json).map_err(wrong)?;
        tokenizer.with_truncation(None).map_err(wrong)?;
        tokenizer.with_padding(None);
        Ok(Self {
            json,
            tokenizer: Arc::new(tokenizer),
        })
    }

    /// The file's text.
    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// The largest token id and 1.
    pub(crate) fn size(&self) -> usize {
        let vocabulary = self.tokenizer.get_vocab(true);
        vocabulary.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The tokens of a text, without those that stand around every text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerFileError> {
        Ok(self.encoding(text, false)?.get_ids().to_vec())
    }

    /// The text of tokens, special ones included.
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        (self.tokenizer.decode(tokens, false)).unwrap_or_else(|_| "\u{FFFD}".to_owned())
    }

    /// The tokens of a text with the bytes that each stands for, and with those that stand around
    /// every text if they are wanted.
    pub(crate) fn pieces(
        &self,
        text: &str,
        has_special: bool,
    ) -> Result<Vec<Piece>, TokenizerFileError> {
        let encoding = self.encoding(text, has_special)?;
        let added = encoding.get_special_tokens_mask().iter();
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok((tokens.zip(added))
            .map(|((&id, &(start, end)), &added)| Piece {
                id,
                bytes: start..end,
                is_added: added == 1,
            })
            .collect())
    }

    fn encoding(
        &self,
        text: &str,
        has_special: bool,
    ) -> Result<tokenizers::Encoding, TokenizerFileError> {
        (self.tokenizer.encode(text, has_special)).map_err(|source| TokenizerFileError {
            place: TOKENIZER.to_owned(),
            problem: source.to_string(),
        })
    }
}

/// Why a tokeniser cannot be read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct TokenizerFileError {
    /// The file.
    pub place: String,
    /// What is wrong.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::{TokenizerFile, TokenizerFileError};
    use serde::Deserialize;
    use std::path::PathBuf;

    #[derive(Deserialize)]
    struct Row {
        prompt: String,
        answer: String,
        tokens: Vec<u32>,
        answer_start: usize,
        of_prompt: Vec<u32>,
        decoded: String,
    }

    #[derive(Deserialize)]
    struct Rows {
        byte_level: Vec<Row>,
        metaspace: Vec<Row>,
    }

    fn data(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}"))
    }

    fn read(name: &str) -> String {
        std::fs::read_to_string(data(name)).unwrap()
    }

    /// The tokens of prompt and answer, and where the answer starts.
    fn prompt_and_answer(
        file: &TokenizerFile,
        prompt: &str,
        answer: &str,
    ) -> Result<(Vec<u32>, usize), TokenizerFileError> {
        let pieces = file.pieces(&format!("{prompt}{answer}"), true)?;
        let start = pieces.iter().position(|p| p.bytes.end > prompt.len());
        Ok((pieces.iter().map(|p| p.id).collect(), start.unwrap()))
    }

    fn check(file: &TokenizerFile, rows: &[Row]) {
        assert_eq!(rows.len(), 4);
        for row in rows {
            let (tokens, start) = prompt_and_answer(file, &row.prompt, &row.answer).unwrap();
            assert_eq!((tokens, start), (row.tokens.clone(), row.answer_start));
            assert_eq!(file.encode(&row.prompt).unwrap(), row.of_prompt);
            assert_eq!(file.decode(&row.of_prompt), row.decoded);
        }
    }

    /// Numbers by `tests/data/make.py` (the Python package tokenizers 0.23).
    #[test]
    fn ref_tokens_are_those_of_the_python_library() {
        let rows: Rows = serde_json::from_str(&read("encodings.json")).unwrap();
        check(
            &TokenizerFile::load(&data("text")).unwrap(),
            &rows.byte_level,
        );
        let metaspace = TokenizerFile::parse(read("metaspace.json")).unwrap();
        check(&metaspace, &rows.metaspace);
        // A token in front of every text and one behind, which is to be predicted, too.
        let (tokens, start) = prompt_and_answer(&metaspace, "what follows", " three").unwrap();
        assert_eq!((tokens[0], *tokens.last().unwrap()), (1, 2));
        assert!(start < tokens.len() - 1);
        let pieces = metaspace.pieces("what follows", true).unwrap();
        let added: Vec<bool> = pieces.iter().map(|p| p.is_added).collect();
        assert_eq!(added.iter().filter(|&&is| is).count(), 2);
        assert!(added[0] && added[added.len() - 1]);
    }

    #[test]
    fn a_token_across_the_boundary_belongs_to_the_answer() {
        let file = TokenizerFile::load(&data("text")).unwrap();
        let (whole, start) = prompt_and_answer(&file, "Quest", "ion").unwrap();
        assert_eq!(file.encode("Question").unwrap(), whole);
        assert!(file.decode(&whole[start..]).ends_with("ion"));
    }

    #[test]
    fn truncation_that_the_file_asks_for_is_left_out() {
        let mut json: serde_json::Value =
            serde_json::from_str(&read("text/tokenizer.json")).unwrap();
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        let file = TokenizerFile::parse(json.to_string()).unwrap();
        let (tokens, _) = prompt_and_answer(&file, "what follows ", "three").unwrap();
        assert!(tokens.len() > 2);
    }

    #[test]
    fn what_is_no_tokenizer_is_refused_with_its_place() {
        let message = TokenizerFile::load(&data("llama")).unwrap_err().to_string();
        assert!(message.contains("llama/tokenizer.json"), "{message}");
        let error = TokenizerFile::parse("{\"model\": 3}".into()).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
    }
}
