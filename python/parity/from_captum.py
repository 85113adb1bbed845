"""TracInCP by captum."""

from __future__ import annotations

import torch
from by_hand import load
from captum.influence import TracInCP
from task import example_losses
from torch.utils.data import DataLoader, TensorDataset


class ExampleLosses(torch.nn.Module):
    """Tells captum that the loss is one for each example."""

    reduction = "none"

    def forward(self, logits, words):
        return example_losses(logits, words)


class Logits(torch.nn.Module):
    """The model as captum calls it: it wants a tensor, not what transformers' models give."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, words):
        return self.model(words).logits


def tracin_cp(model, checkpoints, train, test, rate):
    """`Σ_c η g_c(train) · g_c(test)` over all parameters, train × test."""

    def use(module, checkpoint):
        load(module.model, checkpoint)
        return rate

    tracin = TracInCP(
        Logits(model), TensorDataset(train, train), checkpoints, checkpoints_load_func=use,
        loss_fn=ExampleLosses(), batch_size=8,
    )  # fmt: skip
    scores = tracin.influence(DataLoader(TensorDataset(test, test), batch_size=1))
    return scores.T  # captum gives test × train
