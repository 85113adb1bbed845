//! Conversations as text, by a tokeniser's chat template.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, context};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of a file with only a chat template, which goes before the one in [`TOKENIZER_CONFIG`].
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Name of the file with a tokeniser's settings.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

const NAME: &str = "chat template";
const ASSISTANT: &str = "assistant";

/// A chat template (Jinja) with the special tokens that it may name.
///
/// Templates see what `apply_chat_template` of transformers shows them, without tools and
/// documents; `strftime_now` is not defined, so that the same data give the same text on any day.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    path: PathBuf,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The text.
    pub text: String,
    /// Bytes of the text that are the assistant's: what the template writes for its turn after
    /// what it writes to prompt for one, the end of the turn included.
    pub answers: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// The chat template of a model folder: `chat_template.jinja`, or `chat_template` of
    /// `tokenizer_config.json` (of several the one named `default`).
    ///
    /// # Errors
    /// There is none, or it is not understood.
    pub fn load(folder: &Path) -> Result<Self, ChatError> {
        let file = folder.join(CHAT_TEMPLATE);
        if file.exists() {
            return Self::from_file(&file, Some(folder));
        }
        let path = folder.join(TOKENIZER_CONFIG);
        let config = tokenizer_config(folder)?;
        let none = || ChatError {
            path: folder.to_owned(),
            problem: format!(
                "there is no chat template, neither {CHAT_TEMPLATE} nor chat_template in {TOKENIZER_CONFIG}; give one with data.chat_template"
            ),
        };
        let source = match config.get("chat_template") {
            Some(Value::String(source)) => source,
            Some(Value::Array(several)) => (several.iter())
                .find(|one| one["name"] == "default")
                .and_then(|one| one["template"].as_str())
                .ok_or_else(none)?,
            _ => return Err(none()),
        };
        Self::new(source, special_tokens(&config), path)
    }

    /// A chat template from a file of its own, with the special tokens of a model folder.
    ///
    /// # Errors
    /// A file that cannot be read or is not understood.
    pub fn from_file(file: &Path, folder: Option<&Path>) -> Result<Self, ChatError> {
        let source = std::fs::read_to_string(file).map_err(|source| ChatError {
            path: file.to_owned(),
            problem: source.to_string(),
        })?;
        let config = folder.map(tokenizer_config).transpose()?;
        let tokens = config.as_ref().map(special_tokens).unwrap_or_default();
        Self::new(&source, tokens, file.to_owned())
    }

    fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        path: PathBuf,
    ) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("only white space differs from the default");
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.set_formatter(as_python_prints);
        (environment.add_template_owned(NAME, without_generation_tags(source))).map_err(
            |source| ChatError {
                path: path.clone(),
                problem: source.to_string(),
            },
        )?;
        Ok(Self {
            environment,
            special_tokens,
            path,
        })
    }

    /// The text of a conversation and what of it is the assistant's.
    ///
    /// # Errors
    /// Messages that are no list of objects with `role` and `content` as text (or none, in a turn
    /// with `tool_calls`), none of them the assistant's; a template that raises an error, or that
    /// changes earlier turns by later ones, so that the assistant's cannot be told apart.
    pub fn conversation(&self, messages: &Value) -> Result<Conversation, String> {
        let messages = checked(messages)?;
        let text = self.render(messages, false)?;
        let turns = (messages.iter().enumerate()).filter(|(_, one)| one["role"] == ASSISTANT);
        let answers: Result<Vec<Range<usize>>, String> = turns
            .map(|(turn, _)| self.answer(messages, turn, &text))
            .collect();
        let answers = answers?;
        if answers.is_empty() {
            return Err(format!(
                "none of the {} messages has the role {ASSISTANT:?}, so that nothing carries loss",
                messages.len()
            ));
        }
        Ok(Conversation { text, answers })
    }

    /// The text of a conversation, all of which is to be learned.
    ///
    /// # Errors
    /// As [`ChatTemplate::conversation`], but the assistant need not speak, nor be told apart.
    pub fn text(&self, messages: &Value) -> Result<String, String> {
        self.render(checked(messages)?, false)
    }

    /// Where the assistant's turn stands in the text.
    fn answer(&self, messages: &[Value], turn: usize, text: &str) -> Result<Range<usize>, String> {
        let before = self.render(&messages[..turn], true)?;
        let whole = self.render(&messages[..=turn], false)?;
        // What stands behind a whole conversation (Phi-3 has an end token there) is no part of the
        // turns before its last.
        let end = self.special_tokens.get("eos_token").map_or("", |eos| eos);
        let after = match whole.strip_suffix(end) {
            Some(turns) if !text.starts_with(&whole) => turns,
            _ => &whole,
        };
        if !text.starts_with(after) || !after.starts_with(&before) || after.len() == before.len() {
            return Err(format!(
                "message {turn} (counted from 0): the chat template does not write the assistant's turn as a continuation of what precedes it, so that its tokens cannot be told apart; loss = \"all\" needs no such thing"
            ));
        }
        Ok(before.len()..after.len())
    }

    /// The text that transformers' `apply_chat_template` gives.
    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template(NAME).expect("it was added");
        let own = context! {
            messages => Jinja::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
        };
        let all = context! { ..own, ..Jinja::from(Serde(&self.special_tokens)) };
        template
            .render(all)
            .map_err(|source| match source.detail() {
                Some(detail) if source.kind() == ErrorKind::InvalidOperation => {
                    format!("the chat template raises: {detail}")
                }
                _ => format!("the chat template fails: {source}"),
            })
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Messages as a list of objects with role and content.
fn checked(messages: &Value) -> Result<&[Value], String> {
    let list = (messages.as_array())
        .ok_or("expected a list of messages, each an object with \"role\" and \"content\"")?;
    for (turn, message) in list.iter().enumerate() {
        // A turn that only calls tools says nothing.
        let calls = message["tool_calls"].as_array();
        let is_silent =
            calls.is_some_and(|calls| !calls.is_empty()) && message["content"].is_null();
        for field in ["role", "content"] {
            let is_text = message.get(field).is_some_and(Value::is_string);
            let may_lack = is_silent && field == "content";
            if !(is_text || may_lack) {
                return Err(format!(
                    "message {turn} (counted from 0) has no {field:?} that is text"
                ));
            }
        }
    }
    Ok(list)
}

/// `{% generation %}` marks what the assistant says, for transformers alone; the text stays.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + length];
        text.push_str(&rest[..start + 2]);
        text.push_str(&match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        });
        rest = &rest[start + length..];
    }
    text + rest
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `None`, `True` and `False`; the rest is the same.
fn as_python_prints(
    output: &mut Output,
    state: &mut State,
    value: &Jinja,
) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::None => Ok(output.write_str("None")?),
        ValueKind::Bool if value.is_true() => Ok(output.write_str("True")?),
        ValueKind::Bool => Ok(output.write_str("False")?),
        _ => minijinja::escape_formatter(output, state, value),
    }
}

/// `tojson` with the spaces of Python's `json.dumps`, and nothing escaped for HTML.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0));
    let written = match indent {
        Some(_) => {
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, pretty,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, Spaced,
        )),
    };
    written
        .map_err(|source| minijinja::Error::new(ErrorKind::BadSerialization, source.to_string()))?;
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

/// `{"a": 1, "b": 2}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `tokenizer_config.json`, nothing if there is none.
fn tokenizer_config(folder: &Path) -> Result<Value, ChatError> {
    let path = folder.join(TOKENIZER_CONFIG);
    if !path.exists() {
        return Ok(Value::Null);
    }
    let wrong = |problem: String| ChatError {
        path: path.clone(),
        problem,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))
}

/// `bos_token` and its like, which stand there as text or as an object with the text.
fn special_tokens(config: &Value) -> BTreeMap<String, String> {
    let fields = config.as_object().into_iter().flatten();
    let token = |(name, value): (&String, &Value)| {
        let text = value.as_str().or(value["content"].as_str())?;
        (name.ends_with("_token")).then(|| (name.clone(), text.to_owned()))
    };
    fields.filter_map(token).collect()
}

/// A chat template that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ChatError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

#[cfg(test)]
mod tests;
