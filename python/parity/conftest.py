"""Recorded runs, scores and their comparison, made once; the comparison is printed at the end."""

from __future__ import annotations

from types import SimpleNamespace

import methods
import numpy as np
import pytest
import runs
import table
import task
import torch

import simfluence

_TABLE = pytest.StashKey[str]()
_OURS = ["optimizer-dynamics", "simfluence-linear"]


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """The run set, the examples, and a model with checkpoints that it can be given."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parity")
    before, train, test = task.data()
    start = task.pretrained(before)
    return SimpleNamespace(
        run_set=runs.record(folder, start, train, test),
        checkpoints=runs.checkpoints(folder, start, train),
        model=task.untrained(),
        train=train,
        test=test,
    )


@pytest.fixture(scope="session")
def scores(tuned):
    """Scores of every method, train × test."""
    return methods.scores(tuned.model, tuned.checkpoints, tuned.train.words, tuned.test.words)


@pytest.fixture(scope="session")
def shuffled(scores):
    """Scores of one method, given to other training examples than their own."""
    one, draw = scores["TracInCP (captum)"], np.random.default_rng(0)
    return {f"shuffled {n}": one[draw.permutation(len(one))] for n in range(3)}


@pytest.fixture(scope="session")
def simulators(tuned, scores, shuffled):
    """A simulator of each."""
    everything = {**scores, **shuffled}
    return {
        name: simfluence.from_scores(tuned.run_set, one, name) for name, one in everything.items()
    }


@pytest.fixture(scope="session")
def comparison(tuned, scores, simulators, request):
    """All of them judged, beside simulators that learn from the runs."""
    judged = simfluence.compare(tuned.run_set, _OURS, simulators=simulators)
    request.config.stash[_TABLE] = table.markdown(judged, ["mean-run", *_OURS, *scores])
    return judged


def pytest_terminal_summary(terminalreporter, config):
    """Print the table that stands in the package's README."""
    if _TABLE in config.stash:
        terminalreporter.write_line("\n" + config.stash[_TABLE] + "\n")
