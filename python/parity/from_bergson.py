"""Cosines of gradients by bergson, plain and as TrackStar has them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bergson import CollectorComputer, GradientProcessor, InMemoryCollector
from bergson.config.config import IndexConfig
from bergson.hessians.preconditioner import DensePreconditioner
from datasets import Dataset


def gradients(model, words, processor, curvature=False):
    """Gradient of each sentence's loss, by linear layer below the output layer.

    With `curvature` the processor gets their second moments.
    """
    data = Dataset.from_dict({"input_ids": words.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        settings = IndexConfig(run_path=str(Path(folder) / "run"), loss_reduction="mean")
        settings.partial_run_path.mkdir()
        collector = InMemoryCollector(
            model=model.base_model, data=data, cfg=settings, processor=processor,
            skip_hessians=not curvature,
        )  # fmt: skip
        CollectorComputer(model, data, collector=collector, cfg=settings).run_with_collector_hooks()
    return collector.gradients


def grad_dot(model, train, test):
    """`g(train) · g(test)`, train × test."""
    rows, columns = (gradients(model, words, GradientProcessor()) for words in (train, test))
    return sum(rows[name] @ columns[name].T for name in rows)


def trackstar(model, train, test, dimension=8):
    """Cosine of `R^(-1/2) P g(train)` and `R^(-1/2) P g(test)`, train × test.

    `P` is a random projection of each layer's gradient to `dimension` squared numbers, `R` their
    second moments over the training sentences. Without the optimiser's second moments, and `R` is
    not mixed with that of the test sentences.
    """
    processor = GradientProcessor(projection_dim=dimension)
    rows = gradients(model, train, processor, curvature=True)
    columns = gradients(model, test, processor)
    whitener = DensePreconditioner.from_processor(processor, power=-0.5)
    rows, columns = (
        torch.nn.functional.normalize(torch.cat(list(whitener.apply(one).values()), 1))
        for one in (rows, columns)
    )
    return rows @ columns.T
