//! `tokenizer.json`: text to tokens as the model's authors do it.

use std::path::Path;
use std::sync::Arc;

/// Name of the file with a tokeniser.
pub const TOKENIZER: &str = "tokenizer.json";

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

    /// Prompt and answer as one text, with the tokens that stand around every text, and the
    /// position of the first token that has a character of the answer.
    pub(crate) fn prompt_and_answer(
        &self,
        prompt: &str,
        answer: &str,
    ) -> Result<(Vec<u32>, usize), TokenizerFileError> {
        let encoding = self.encoding(&format!("{prompt}{answer}"), true)?;
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end);
        let is_answer = |end: usize| end > prompt.len();
        let start = ends.into_iter().position(is_answer);
        let tokens = encoding.get_ids().to_vec();
        Ok((tokens, start.unwrap_or(encoding.len())))
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
    use super::TokenizerFile;
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

    fn check(file: &TokenizerFile, rows: &[Row]) {
        assert_eq!(rows.len(), 4);
        for row in rows {
            let (tokens, start) = file.prompt_and_answer(&row.prompt, &row.answer).unwrap();
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
        let (tokens, start) = metaspace
            .prompt_and_answer("what follows", " three")
            .unwrap();
        assert_eq!((tokens[0], *tokens.last().unwrap()), (1, 2));
        assert!(start < tokens.len() - 1);
    }

    #[test]
    fn a_token_across_the_boundary_belongs_to_the_answer() {
        let file = TokenizerFile::load(&data("text")).unwrap();
        let (whole, start) = file.prompt_and_answer("Quest", "ion").unwrap();
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
        let (tokens, _) = file.prompt_and_answer("what follows ", "three").unwrap();
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
