from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import simfluence
from simfluence.torch import DataLoader, TrainingRecorder, preserved, shares

X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20.0) % 3
DATA = torch.utils.data.TensorDataset(X, Y)
TEST = [(X[:3] + 1, Y[:3]), (X[3:5] + 1, Y[3:5])]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )


def example_loss(model, batch):
    inputs, wanted = batch
    return (model(inputs)[:, 0] - wanted) ** 2


def loop(model, optimizer, loader, accumulation=1, epochs=2):
    losses = []
    for _ in range(epochs):
        for number, batch in enumerate(loader, 1):
            loss = example_loss(model, batch).mean() / accumulation
            loss.backward()
            losses.append(loss.item())
            if number % accumulation == 0 or number == len(loader):
                optimizer.step()
                optimizer.zero_grad()
    return losses


def trained(folder=None, accumulation=1, **options):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    kwargs = dict(batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    if folder is None:
        return loop(model, optimizer, torch.utils.data.DataLoader(DATA, **kwargs), accumulation)
    loader = DataLoader(DATA, **kwargs)
    with TrainingRecorder(folder, model, optimizer, loader, TEST, example_loss, **options):
        return loop(model, optimizer, loader, accumulation)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorded_loop_is_bit_for_bit_the_loop_that_is_not(tmp_path, accumulation):
    assert trained(None, accumulation) == trained(tmp_path, accumulation)
    run = simfluence.open(tmp_path)["run-000"]
    assert len(run.batches) == (10 if accumulation == 1 else 6)
    assert sorted(one for b in run.batches for one in b) == sorted([*range(20)] * 2)
    assert run.losses.shape[1] == 5 and run.learning_rates[0] == pytest.approx(0.1)
    assert run.info["optimizer"] == {
        "name": "sgd", "momentum": 0.5, "dampening": 0, "nesterov": False, "weight_decay": 0,
    }  # fmt: skip


def test_micro_batches_of_other_sizes_have_their_shares(tmp_path):
    trained(tmp_path, 2)
    run = simfluence.open(tmp_path)["run-000"]
    # The last batch of an epoch makes a step of its own.
    assert run.weights[0] is None and run.weights[2] is None
    assert [len(b) for b in run.batches] == [8, 8, 4] * 2


def test_numbers_of_targets_weight_the_examples(tmp_path):
    trained(tmp_path, targets=lambda batch: batch[1] + 1)
    run = simfluence.open(tmp_path)["run-000"]
    counts = Y[run.batches[0]].numpy() + 1
    assert run.weights[0] == pytest.approx(counts / counts.sum())


def test_evaluation_leaves_no_trace():
    model = network()
    model[1].eval()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with pytest.raises(KeyError), preserved(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(7), random.random(), np.random.rand()
        raise KeyError
    assert (torch.rand(1), random.random(), np.random.rand()) == before
    assert model.training and not model[1].training and torch.is_grad_enabled()


def test_a_loader_of_torch_is_refused(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(simfluence.UsageError, match=r"simfluence\.torch\.DataLoader"):
        TrainingRecorder(
            tmp_path, model, optimizer, torch.utils.data.DataLoader(DATA), TEST, example_loss
        )


def test_what_has_no_batches_or_no_places_is_refused():
    with pytest.raises(simfluence.UsageError, match="batch_size"):
        DataLoader(DATA, batch_size=None)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(X)

    with pytest.raises(simfluence.UsageError, match="map-style"):
        DataLoader(Stream())


def test_shares_by_hand():
    targets = [[[1.0, 3.0], [4.0]], [[2.0]]]
    assert shares(targets, "step") == pytest.approx([0.1, 0.3, 0.4, 0.2])
    assert shares(targets, "rank") == pytest.approx([1 / 16, 3 / 16, 4 / 16, 1 / 2])
    assert shares(targets, "micro") == pytest.approx([1 / 16, 3 / 16, 1 / 4, 1 / 2])
    assert shares([[[0.0, 0.0], [1.0]]], "micro") == pytest.approx([0, 0, 1])
    with pytest.raises(simfluence.UsageError, match="target"):
        shares([[[0.0]]], "step")
