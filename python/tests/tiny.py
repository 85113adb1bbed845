"""Tiny models and data, made on the fly."""

from __future__ import annotations

import random

import torch
import transformers

WORDS = 60


class Texts(torch.utils.data.Dataset):
    """Sequences of different lengths; the first tokens are a prompt without loss."""

    def __init__(self, count, seed=0):
        draw = random.Random(seed)
        self.rows = []
        for _ in range(count):
            length = draw.randint(5, 12)
            ids = [draw.randrange(1, WORDS) for _ in range(length)]
            prompt = draw.randint(1, 3)
            self.rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return {name: list(value) for name, value in self.rows[place].items()}


def collate(examples):
    """Pads to the longest."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name, value):
        return torch.tensor([e[name] + [value] * (longest - len(e[name])) for e in examples])

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": padded("labels", -100)}


def model(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def targets(row):
    """Labels that a token before them predicts."""
    return sum(label != -100 for label in row["labels"][1:])


def one_by_one(model, rows):
    """Mean loss per target of each row, alone and without padding."""
    model.eval()
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
            labels = torch.tensor(row["labels"][1:])
            mean = torch.nn.functional.cross_entropy(logits, labels)
            losses.append(mean.item())
    model.train()
    return losses
