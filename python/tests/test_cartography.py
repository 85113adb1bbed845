from __future__ import annotations

import math

import pytest

import simfluence


@pytest.fixture
def run(tmp_path):
    with simfluence.Recorder(tmp_path, ["a", "b", "c"], ["x"]) as recorder:
        recorder.log_initial([5.0])
        for a, b, x in [(0.9, 0.2, 0.1), (0.2, 0.3, 0.6), (0.8, 0.4, 0.3)]:
            recorder.log_step(
                ["a", "b"], batch_loss=[-math.log(a), -math.log(b)], losses=[-math.log(x)]
            )
    return simfluence.open(tmp_path)["run-000"]


def test_ref_statistics_by_hand(run):
    """p of a: 0.9, 0.2, 0.8 (forgotten once); of b: 0.2, 0.3, 0.4 (never correct)."""
    a, b, c = simfluence.cartography(run)
    assert a["observations"] == 3
    assert a["confidence"] == pytest.approx(1.9 / 3, rel=1e-6)
    variance = sum((p - 1.9 / 3) ** 2 for p in (0.9, 0.2, 0.8)) / 3
    assert a["variability"] == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert a["correctness"] == pytest.approx(2 / 3)
    assert (a["forgetting_events"], a["never_correct"]) == (1, False)
    assert (b["forgetting_events"], b["never_correct"]) == (0, True)
    assert c["observations"] == 0 and c["confidence"] is None


def test_test_examples_are_looked_at_after_each_evaluation(run):
    (x,) = simfluence.cartography(run, of="test")
    assert x["observations"] == 3 and x["forgetting_events"] == 1
    assert x["confidence"] == pytest.approx(1 / 3, rel=1e-6)


def test_without_losses_of_the_batches_it_says_what_to_do(tmp_path):
    with simfluence.Recorder(tmp_path, 1, 1) as recorder:
        recorder.log_initial([1.0])
        recorder.log_step([0])
    for run in ("run-000", 0):
        with pytest.raises(simfluence.UsageError, match="batch_loss=True"):
            simfluence.cartography(tmp_path, run)
    with pytest.raises(simfluence.UsageError, match="no run 1"):
        simfluence.cartography(tmp_path, 1)
