"""Losses of examples, measured without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from simfluence._errors import UsageError


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
    if labels.is_floating_point():
        raise UsageError("the labels are no classes; give example_loss")
    if logits.dim() == 2:
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    # Virtual tokens of prompt tuning stand before those of the example.
    logits = logits[:, -labels.shape[1] :]
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
    device), NumPy and Python go on as if nothing had happened. No gradients are taken meanwhile.

    Parameters
    ----------
    model : torch.nn.Module
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
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = {one.name: to_device(getattr(batch, one.name), device) for one in fields(batch)}
        return replace(batch, **parts)
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

    Returns
    -------
    list of float
        One loss per place, in the order of the batches.
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


def counted(batches: Sequence[Any]) -> tuple[int, Exception | None]:
    """Count the examples of collated batches; with the error where that cannot be done."""
    try:
        return sum(length(batch) for batch in batches), None
    except Exception as error:
        return 0, error


def length(batch: Any) -> int:
    """Count the examples of a collated batch."""
    part = batch
    while not hasattr(part, "shape"):
        if isinstance(part, Mapping):
            part = next(iter(part.values()), None)
        elif isinstance(part, (list, tuple)):
            if not part or isinstance(part[0], (str, bytes, float, int)):
                break
            part = part[0]
        elif is_dataclass(part):
            part = getattr(part, fields(part)[0].name)
        else:
            break
    try:
        return len(part)
    except TypeError:
        raise UsageError(
            f"a batch of type {type(batch).__name__} does not say how many examples it has; make "
            "batches tensors, or mappings, tuples or dataclasses of tensors"
        ) from None
