use super::{CHAT_TEMPLATE, ChatTemplate, TOKENIZER_CONFIG};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Rendering {
    template: String,
    conversation: String,
    messages: Value,
    text: Option<String>,
    prompted: Option<String>,
    tokens: Option<Vec<u32>>,
    error: Option<String>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/chat")
        .join(name)
}

/// A model folder with a chat template and the special tokens of `make.py`.
fn folder(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(data(template), folder.path().join(CHAT_TEMPLATE)).unwrap();
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "no"});
    std::fs::write(folder.path().join(TOKENIZER_CONFIG), config.to_string()).unwrap();
    folder
}

fn chat(template: &str) -> ChatTemplate {
    ChatTemplate::load(folder(template).path()).unwrap()
}

fn in_config(config: &Value) -> Result<ChatTemplate, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(TOKENIZER_CONFIG), config.to_string()).unwrap();
    ChatTemplate::load(folder.path()).map_err(|error| error.to_string())
}

/// Texts by `tests/data/chat/make.py` (transformers 5.23).
fn renderings() -> Vec<Rendering> {
    serde_json::from_str(&std::fs::read_to_string(data("renderings.json")).unwrap()).unwrap()
}

#[test]
fn ref_texts_are_those_of_transformers() {
    let all = renderings();
    assert_eq!(all.len(), 25);
    for row in all {
        let chat = chat(&row.template);
        let messages = row.messages.as_array().unwrap();
        let place = format!("{}, {}", row.template, row.conversation);
        for (wanted, prompt) in [(&row.text, false), (&row.prompted, true)] {
            match (chat.render(messages, prompt), wanted) {
                (Ok(got), Some(wanted)) => assert_eq!(got, *wanted, "{place}"),
                (Err(got), None) => assert!(got.ends_with(row.error.as_ref().unwrap()), "{got}"),
                (got, wanted) => panic!("{place}: {got:?} {wanted:?}"),
            }
        }
    }
}

#[test]
fn ref_tokens_of_a_conversation_are_those_of_transformers() {
    use crate::example::{Form, TextExample};
    use crate::reading::Reading;
    use crate::tokenizer::Tokenizer;
    let tokenizer = Tokenizer::load(&data("../text")).unwrap();
    for row in renderings().into_iter().filter(|row| row.tokens.is_some()) {
        let text = row.text.unwrap();
        let all = 0..text.len();
        let form = Form::Conversation {
            messages: row.messages.to_string(),
            scored: vec![all],
        };
        let example = TextExample {
            answer: text,
            form,
            ..TextExample::default()
        };
        let tokens = (tokenizer.example(&example, &Reading::Text { context: 1000 })).unwrap();
        assert_eq!(
            Some(&tokens.tokens),
            row.tokens.as_ref(),
            "{}",
            row.template
        );
        assert_eq!(tokens.target_count(), tokens.tokens.len() - 1);
    }
}

fn answers(template: &str, conversation: &str) -> Result<Vec<String>, String> {
    let all = renderings();
    let row = (all.iter())
        .find(|row| row.template == template && row.conversation == conversation)
        .unwrap();
    let rendered = chat(template).conversation(&row.messages)?;
    let parts = rendered
        .answers
        .iter()
        .map(|range| rendered.text[range.clone()].to_owned());
    Ok(parts.collect())
}

#[test]
fn the_assistants_turns_are_what_follows_the_generation_prompt() {
    let found = |template, conversation| answers(template, conversation).unwrap();
    assert_eq!(
        found("chatml.jinja", "system"),
        [" seven <|im_end|>\n", "eight<|im_end|>\n"]
    );
    assert_eq!(
        found("llama2.jinja", "system"),
        [" seven </s>", " eight </s>"]
    );
    assert_eq!(found("llama3.jinja", "open"), ["two<|eot_id|>"]);
    // The end token stands behind the whole conversation, so that only its last turn has it.
    assert_eq!(
        found("phi3.jinja", "system"),
        [" seven <|end|>\n", "eight<|end|>\n</s>"]
    );
    assert_eq!(found("phi3.jinja", "open"), ["two<|end|>\n"]);
    let [call, answer] = &found("tools.jinja", "tools")[..] else {
        panic!("two turns are the assistant's");
    };
    assert!(call.contains(r#"{"number": 2, "in_words": true, "base": null}"#));
    assert!(call.ends_with(" number=2 in_words=True base=None[end]"));
    assert_eq!(answer, " It is three.[end]");
    let message = answers("chatml.jinja", "two users").unwrap_err();
    assert!(message.contains("\"assistant\""), "{message}");
}

#[test]
fn a_template_that_raises_is_quoted() {
    let message = answers("llama2.jinja", "two users").unwrap_err();
    assert!(
        message.contains("raises: Roles must alternate"),
        "{message}"
    );
}

#[test]
fn a_template_that_changes_earlier_turns_cannot_tell_the_assistants_apart() {
    let chat = in_config(&json!({"chat_template":
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"}))
    .unwrap();
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]);
    let message = chat.conversation(&messages).unwrap_err();
    assert!(message.contains("loss = \"all\""), "{message}");
    assert_eq!(chat.text(&messages).unwrap(), "3abc");
}

#[test]
fn messages_without_role_or_content_are_named() {
    let chat = chat("chatml.jinja");
    for (messages, part) in [
        (json!("hello"), "list of messages"),
        (
            json!([{"role": "user", "content": "a"}, {"role": "user"}]),
            "message 1",
        ),
        (json!([{"role": null, "content": "a"}]), "\"role\""),
        (json!([]), "none of the 0 messages"),
    ] {
        let message = chat.conversation(&messages).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_template_is_found_in_the_tokenizers_settings() {
    let messages = json!([{"role": "assistant", "content": "a"}]);
    for config in [
        json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}),
        json!({"chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
        ]}),
    ] {
        let conversation = in_config(&config).unwrap().conversation(&messages).unwrap();
        assert_eq!(conversation.text, "a");
        assert_eq!(conversation.answers, vec![0..1]);
    }
    for config in [
        json!({}),
        json!({"chat_template": [{"name": "rag", "template": ""}]}),
    ] {
        let message = in_config(&config).unwrap_err();
        assert!(message.contains("data.chat_template"), "{message}");
    }
    let message = in_config(&json!({"chat_template": "{% for %}"})).unwrap_err();
    assert!(
        message.contains("tokenizer_config.json") && message.contains(":1)"),
        "{message}"
    );
}
