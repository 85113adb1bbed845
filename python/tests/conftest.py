"""Run sets that the tests share."""

from __future__ import annotations

import numpy as np
import pytest

import simfluence

DATASETS = ["red"] * 8 + ["blue"] * 8
TEST = {"red-test-0": "red", "red-test-1": "red", "blue-test-0": "blue", "blue-test-1": "blue"}
#: How much of its distance to the floor a test loss loses per step on its own dataset alone.
PULL = 0.1


def follow(batches, rates):
    """Losses of the test examples: each is pulled to 0.5 by the share of its dataset."""
    train, test = np.array(DATASETS), np.array(list(TEST.values()))
    losses = [np.full(len(test), 3.0)]
    for batch, rate in zip(batches, rates, strict=True):
        share = (train[batch][:, None] == test[None, :]).mean(0)
        losses.append(losses[-1] - PULL * (rate / 1e-2) * share * (losses[-1] - 0.5))
    return losses


@pytest.fixture(scope="session")
def plan():
    return simfluence.Plan.draw(
        DATASETS, steps=30, batch_size=4, learning_rate=1e-2, seed=3, runs=12, held_out=2,
        held_out_ordinary=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run_set(plan, tmp_path_factory):
    """Runs of a plan whose losses follow a known law."""
    path = tmp_path_factory.mktemp("law") / "runs"
    train = [{"key": f"{name}-{i}", "dataset": name} for i, name in enumerate(DATASETS)]
    for run in plan:
        losses = follow(run.batches, run.learning_rates)
        with simfluence.Recorder(
            path, train, TEST, run=run.id, seed=run.seed, design=run.design
        ) as recorder:
            recorder.log_initial(losses[0])
            for batch, rate, after in zip(run.batches, run.learning_rates, losses[1:], strict=True):
                recorder.log_step(batch, losses=after, learning_rate=rate)
    return path
