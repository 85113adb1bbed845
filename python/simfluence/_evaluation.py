"""Losses of examples, measured without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def token_mean_loss(outputs: Any, batch: Any, *, shift: bool | None = None) -> torch.Tensor:
    """Mean negative log-likelihood per target of each example.

    Parameters
    ----------
    outputs
        What the model returned: its `logits`, of shape (b, tokens, vocabulary) or (b, classes), are
        looked at.
    batch : mapping
        What it was given: `labels` of shape (b, tokens) or (b,); −100 is no target.
    shift : bool, optional
        Whether the logits of a token predict the label after it; by default where the logits have
        a vocabulary per token and the model is no encoder-decoder (it had no `decoder_input_ids`).

    Returns
    -------
    tensor of shape (b,)
        An example without targets has the loss 0.
    """
    logits = (
        outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    )
    labels = batch["labels"].to(logits.device)
    if logits.dim() == 2:
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    if shift or shift is None:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    ).view(labels.shape)
    return losses.sum(1) / (labels != -100).sum(1).clamp(min=1)


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while, and leave no trace.

    Afterwards every module is in the mode it was in, and the random numbers of torch (on every
    device), NumPy and Python go on as if nothing had happened.
    """
    modes = [(module, module.training) for module in model.modules()]
    cpu, ours, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(cpu)
        random.setstate(ours)
        np.random.set_state(numpys)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(one, device) for name, one in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [to_device(one, device) for one in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def evaluate(
    model: torch.nn.Module,
    batches: Sequence[Any],
    places: Sequence[int],
    example_loss: Callable[[Any], torch.Tensor],
) -> list[float]:
    """Losses of the examples at some places of collated batches, as if nothing had happened.

    Parameters
    ----------
    model
        Put into evaluation mode meanwhile; see `preserved`.
    batches
        Collated batches, in order.
    places
        Places of examples over all batches. Batches that hold none of them are left out, others
        are evaluated whole.
    example_loss
        Losses of a batch, a tensor of shape (b,).
    """
    wanted, first, found = set(places), 0, []
    with preserved(model):
        for batch in batches:
            held = range(first, first + length(batch))
            first = held.stop
            if wanted.isdisjoint(held):
                continue
            losses = example_loss(batch).float().cpu().tolist()
            found += [loss for place, loss in zip(held, losses, strict=True) if place in wanted]
    return found


def length(batch: Any) -> int:
    """Count the examples of a collated batch."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, (list, tuple)):
        batch = batch[0]
    return len(batch)
