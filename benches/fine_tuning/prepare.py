"""Makes what the fine-tuning experiment of docs/results.md needs, from three public texts.

    prepare.py NEWS_CSV GSM8K_JSONL TEXT_FILE FOLDER

writes to FOLDER

    base/                a Llama-style model with random weights and a byte-level BPE tokeniser that is
                         trained here on the texts to pre-train on
    pretraining.jsonl    texts to pre-train on: {"text"}
    ag_news.jsonl        headlines: {"headline", "topic"}
    gsm8k.jsonl          short problems: {"question", "answer", "operation"}; operation is the one that
                         gives the result

No text to pre-train on is among the headlines or problems. Everything is drawn from one seed.
Needs torch, transformers and tokenizers.
"""

import csv
import json
import pathlib
import random
import re
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 0
VOCABULARY = 8192
LONGEST = 96  # tokens of a headline or a problem with its answer
PER_TOPIC = 60
PER_OPERATION = 60
END = "<|endoftext|>"
TOPICS = {"1": "World", "2": "Sports", "3": "Business", "4": "Technology"}
OPERATIONS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}


def headlines(path):
    with open(path, newline="", encoding="utf-8") as file:
        for label, title, description in csv.reader(file):
            text = " ".join(f"{title}. {description}".replace("\\", " ").split())
            yield {"headline": text, "topic": TOPICS[label]}


def operation(answer):
    """What the last calculation of a solution does, if it is a single operation."""
    calculations = re.findall(r"<<([^=>]+)=", answer)
    if not calculations:
        return None
    signs = re.findall(r"(?<=[\d)%.])\s*([-+*/])", calculations[-1])
    return OPERATIONS[signs[0]] if len(set(signs)) == 1 else None


def problems(path):
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            answer = re.sub(r"<<[^>]*>>", "", row["answer"])
            yield {
                "question": " ".join(row["question"].split()),
                "answer": answer.strip(),
                "operation": operation(row["answer"]),
            }


def pieces(path, characters=400):
    """The text, cut between lines into pieces of about so many characters."""
    piece = ""
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        piece += line
        if len(piece) >= characters:
            yield piece.strip()
            piece = ""


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Every text begins with the end token, so that its first word is predicted, too.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def choose(rows, key, count, length):
    """So many short rows of each group, and all others."""
    chosen, rest, taken = [], [], {}
    for row in rows:
        group = row[key]
        fits = group is not None and taken.get(group, 0) < count and length(row) <= LONGEST
        if fits:
            taken[group] = taken.get(group, 0) + 1
        (chosen if fits else rest).append(row)
    return chosen, rest


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main():
    news, maths, text, folder = sys.argv[1:]
    folder = pathlib.Path(folder)
    (folder / "base").mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    news, maths = list(headlines(news)), list(problems(maths))
    draw.shuffle(news)
    draw.shuffle(maths)
    whole = lambda row: f"{row['question']}\n{row['answer']}"

    # About four characters make a token; the tokeniser that counts them is trained afterwards, on
    # texts to pre-train on only.
    news, other_news = choose(news, "topic", PER_TOPIC, lambda r: len(r["headline"]) / 3)
    maths, other_maths = choose(maths, "operation", PER_OPERATION, lambda r: len(whole(r)) / 3)
    texts = [r["headline"] for r in other_news] + [whole(r) for r in other_maths]
    texts += list(pieces(text))
    draw.shuffle(texts)

    tokenizer = train_tokenizer(texts)
    longest = max(
        len(tokenizer.encode(t).ids)
        for t in [r["headline"] for r in news] + [whole(r) for r in maths]
    )
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=192,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    write(folder / "pretraining.jsonl", [{"text": t} for t in texts])
    write(folder / "ag_news.jsonl", news)
    write(folder / "gsm8k.jsonl", maths)
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    print(
        f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size():,} tokens;"
        f" {len(texts):,} texts of {tokens:,} tokens to pre-train on;"
        f" {len(news)} headlines, {len(maths)} problems, the longest of {longest} tokens"
    )


main()
