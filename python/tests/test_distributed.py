from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import simfluence

SCRIPT = Path(__file__).with_name("distributed_run.py")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(folder, mode):
    """Two processes that gather over gloo."""
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder, mode],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return json.loads((folder / f"{mode}.json").read_text()), said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


def test_batches_of_all_processes_are_gathered_and_the_run_stays_the_same(folder):
    plain, _ = train(folder, "plain")
    recorded, _ = train(folder, "recorded")
    assert plain == recorded
    run = simfluence.open(folder / "runs")["run-000"]
    assert run.status == "complete"
    assert [len(batch) for batch in run.batches[:2]] == [12, 12]
    assert sorted(one for batch in run.batches[:2] for one in batch) == list(range(24))
    rows = tiny.Texts(24, 1).rows
    for batch, weights in zip(run.batches, run.weights, strict=True):
        counts = np.array([tiny.targets(rows[one]) for one in batch])
        assert weights == pytest.approx(counts / counts.sum(), abs=1e-6)
    micro = run.steps.to_polars()["batch_micro"].to_list()
    assert micro[0] == ([0] * 3 + [1] * 3) * 2
    assert run.curves().steps.tolist() == [0, 2, 4]
    before = tiny.one_by_one(tiny.model(), tiny.Texts(7, 2).rows)
    assert run.losses[0] == pytest.approx(before, abs=1e-5)


def test_a_process_that_fails_stops_recording_in_all_and_training_in_none(tmp_path):
    (tmp_path).mkdir(exist_ok=True)
    failed, said = train(tmp_path, "failing")
    assert len(failed["losses"]) == 4
    assert "training goes on" in said[0]
    assert simfluence.open(tmp_path / "runs")["run-000"].status == "aborted"
