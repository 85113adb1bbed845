"""What is fine-tuned: a small Llama on sentences of three made-up languages.

A language says how probable each word is after each other one. The model has seen three more
languages before, so that fine-tuning neither starts from nothing nor teaches it words.
"""

from __future__ import annotations

import torch
import transformers

DATASETS = ["north", "south", "west"]
WORDS, LENGTH = 16, 13
TRAIN_EACH, TEST_EACH = 24, 6


class Sentences(torch.utils.data.Dataset):
    """Sentences of equal length; all words but the first are targets."""

    def __init__(self, words, datasets):
        self.words, self.datasets = words, datasets

    def __len__(self):
        return len(self.words)

    def __getitem__(self, place):
        return {"input_ids": self.words[place], "labels": self.words[place]}

    def described(self, split):
        """Examples as the recorder takes them."""
        return [
            {"key": f"{split}-{place}", "dataset": name} for place, name in enumerate(self.datasets)
        ]


def languages(draw):
    """Probabilities of the next word, of shape (languages, words, words)."""
    return (2.0 * torch.randn(6, WORDS, WORDS, generator=draw)).softmax(2)


def spoken(language, count, draw):
    """Sentences of one language, of shape (count, LENGTH)."""
    words = torch.empty(count, LENGTH, dtype=torch.long)
    words[:, 0] = torch.randint(WORDS, (count,), generator=draw)
    for t in range(1, LENGTH):
        words[:, t] = torch.multinomial(language[words[:, t - 1]], 1, generator=draw)[:, 0]
    return words


def data():
    """The sentences that were seen before, the training and the test examples."""
    draw = torch.Generator().manual_seed(11)
    spoken_here, spoken_before = languages(draw).split(3)
    before = torch.cat([spoken(one, 200, draw) for one in spoken_before])

    def split(each):
        words = torch.cat([spoken(one, each, draw) for one in spoken_here])
        return Sentences(words, [name for name in DATASETS for _ in range(each)])

    return before, split(TRAIN_EACH), split(TEST_EACH)


def untrained():
    """A Llama in which every matrix but the embedding is a linear layer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None,
        # Attention written out, which every library can take derivatives of.
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def pretrained(before, steps=60):
    """The model that every run starts from."""
    model, draw = untrained(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        words = before[torch.randint(len(before), (16,), generator=draw)]
        optimizer.zero_grad()
        example_losses(model(words).logits, words).mean().backward()
        optimizer.step()
    return model.eval()


def example_losses(logits, words):
    """Mean negative log-likelihood per target of each sentence."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), words[:, 1:], reduction="none"
    )
    return losses.mean(1)
