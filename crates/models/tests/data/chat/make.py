"""Writes what transformers makes of conversations by the chat templates of this folder.

Run with transformers 5.23 and jinja2 3.1: python make.py

`renderings.json`: per template and conversation the text of `apply_chat_template` (with and without
the generation prompt), its token ids by the tokenizer of `../text`, and the message if the template
raises an error. The templates were written for this folder, in the styles of ChatML, Llama 2, Llama
3, Phi-3 (an end token behind the whole), of one that calls tools and of one that uses most of what
Jinja offers.
"""
import json
import pathlib

import transformers

HERE = pathlib.Path(__file__).parent
CONVERSATIONS = {
    "short": [
        {"role": "user", "content": "what follows two?"},
        {"role": "assistant", "content": "three"},
    ],
    "system": [
        {"role": "system", "content": "Answer with one word.\nNothing else."},
        {"role": "user", "content": "  what follows six?  "},
        {"role": "assistant", "content": " seven "},
        {"role": "user", "content": "and \"then\"? <b>ü 你好</b>"},
        {"role": "assistant", "content": "eight"},
    ],
    "open": [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three?"},
    ],
    "two users": [
        {"role": "user", "content": "one?"},
        {"role": "user", "content": "two?"},
    ],
}

# Only for the template that knows them.
TOOLS = {
    "tools": [
        {"role": "user", "content": "what follows two?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {
                "name": "successor", "arguments": {"number": 2, "in_words": True, "base": None}}},
        ]},
        {"role": "tool", "content": "three"},
        {"role": "assistant", "content": "It is three."},
    ],
}


def main():
    file = str(HERE / "../text/tokenizer.json")
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=file)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, bos_token="<s>", eos_token="</s>")
    renderings = []
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_text()
        known = CONVERSATIONS | (TOOLS if path.name == "tools.jinja" else {})
        for name, messages in known.items():
            row = {"template": path.name, "conversation": name, "messages": messages}
            try:
                for key, prompt in [("text", False), ("prompted", True)]:
                    row[key] = tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False,
                        add_generation_prompt=prompt)
                # The tokenizer of `../text` has no such tokens: they are plain text to it.
                named = template.replace("bos_token", "'<s>'").replace("eos_token", "'</s>'")
                row["tokens"] = plain.apply_chat_template(
                    messages, chat_template=named, return_dict=False)
            except Exception as error:
                row["error"] = str(error)
            renderings.append(row)
    (HERE / "renderings.json").write_text(
        json.dumps(renderings, indent=1, ensure_ascii=False) + "\n")


main()
