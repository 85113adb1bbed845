from __future__ import annotations

import operator
import random
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import simfluence
from simfluence._settings import optimizer_settings
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


def steps_of(folder, work, accumulation=1, **options):
    """Batches that are recorded while `work` trains."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(DATA, batch_size=4)
    with TrainingRecorder(folder, model, optimizer, loader, TEST, example_loss, **options):
        work(model, optimizer, loader)
    return simfluence.open(folder)["run-000"].batches


FIVE = [[4 * n + i for i in range(4)] for n in range(5)]


def train_on(model, optimizer, batch, step=True):
    example_loss(model, batch).mean().backward()
    if step:
        optimizer.step()
    optimizer.zero_grad()


def test_a_batch_that_is_left_out_belongs_to_no_step(tmp_path):
    def work(model, optimizer, loader):
        for number, batch in enumerate(loader):
            if number != 2:
                train_on(model, optimizer, batch)

    with pytest.warns(RuntimeWarning, match="only the last"):
        assert steps_of(tmp_path, work) == FIVE[:2] + FIVE[3:]


@pytest.mark.parametrize("to_none", [True, False])
def test_a_batch_whose_gradients_were_cleared_belongs_to_no_step(tmp_path, to_none):
    """As a gradient scaler does with an infinite gradient."""

    def work(model, optimizer, loader):
        for number, batch in enumerate(loader):
            example_loss(model, batch).mean().backward()
            if number != 2:
                optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)

    assert steps_of(tmp_path, work) == FIVE[:2] + FIVE[3:]


def test_batches_that_were_trained_on_before_are_passed_over(tmp_path):
    def work(until, first):
        def loop(model, optimizer, loader):
            for number, batch in enumerate(loader):
                if first <= number < until:
                    train_on(model, optimizer, batch)

        return loop

    steps_of(tmp_path, work(2, 0), run="run-000")
    with pytest.warns(RuntimeWarning, match="only the last"):
        assert steps_of(tmp_path, work(5, 2), run="run-000", resume=2) == FIVE


def test_a_loader_can_be_read_in_between_and_followed_by_two_recorders(tmp_path):
    model, loader = network(), DataLoader(DATA, batch_size=4)
    halves = [torch.optim.SGD(list(model.parameters())[i::2], lr=0.1) for i in range(2)]
    recorders = [
        TrainingRecorder(tmp_path / str(i), model, half, loader, TEST, example_loss)
        for i, half in enumerate(halves)
    ]
    with recorders[0], recorders[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, batch in enumerate(loader):
            example_loss(model, batch).mean().backward()
            for half in halves:
                half.step()
                half.zero_grad()
            if number == 2:
                with torch.no_grad():
                    assert len([example_loss(model, batch) for batch in loader]) == 5
    assert [simfluence.open(tmp_path / str(i))["run-000"].batches for i in range(2)] == [FIVE] * 2


def test_a_loader_counts_targets_for_one_recorder_after_another(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(DATA, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    wanted = operator.itemgetter(1)
    for targets in (wanted, wanted, None):
        with TrainingRecorder(
            tmp_path, model, optimizer, loader, TEST, example_loss, targets=targets
        ):
            for batch in loader:
                train_on(model, optimizer, batch)
    runs = simfluence.open(tmp_path)
    counts = Y[:4].numpy()
    assert [run.batches for run in runs] == [FIVE] * 3
    assert runs[1].weights[0] == pytest.approx(counts / counts.sum())
    assert runs[2].weights[0] is None


def test_the_last_step_is_evaluated(tmp_path):
    def work(model, optimizer, loader):
        for batch in loader:
            train_on(model, optimizer, batch)

    steps_of(tmp_path, work, eval_every=3)
    assert simfluence.open(tmp_path)["run-000"].curves().steps.tolist() == [0, 3, 5]


@dataclass
class Batch:
    inputs: torch.Tensor
    wanted: torch.Tensor


def test_test_batches_are_what_the_loss_takes(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(DATA, batch_size=4)

    def loss(model, batch):
        return example_loss(model, (batch.inputs, batch.wanted))

    with TrainingRecorder(tmp_path, model, optimizer, loader, [Batch(*one) for one in TEST], loss):
        train_on(model, optimizer, next(iter(loader)))
    assert simfluence.open(tmp_path)["run-000"].losses.shape == (2, 5)
    with pytest.warns(RuntimeWarning, match="how many examples"):
        recorder = TrainingRecorder(
            tmp_path, model, optimizer, loader, [object()], loss, on_error="warn"
        )
        with recorder:
            train_on(model, optimizer, next(iter(loader)))


def test_optimisers_are_described_as_the_format_knows_them_or_not_at_all():
    some = [torch.nn.Parameter(torch.zeros(2, 2))]
    described = optimizer_settings(torch.optim.Adafactor(some, lr=0.1, weight_decay=0.1))
    assert described == {
        "name": "adafactor", "beta2_decay": -0.8, "eps1": torch.finfo(torch.float32).eps,
        "eps2": 1e-3, "d": 1.0, "weight_decay": 0.1,
    }  # fmt: skip
    for other in (
        torch.optim.RMSprop(some, centered=True),
        torch.optim.Adam(some, amsgrad=True),
        torch.optim.SGD(some, lr=0.1, maximize=True),
        torch.optim.Adagrad(some),
    ):
        assert optimizer_settings(other) is None
