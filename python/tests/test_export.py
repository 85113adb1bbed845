from __future__ import annotations

import contextlib
import sys
import types

import numpy as np
import pytest

import simfluence
from simfluence import export


@pytest.fixture
def run(tmp_path):
    test = {"x": "one", "y": "two"}
    with simfluence.Recorder(tmp_path, 2, test) as recorder:
        recorder.log_initial([1.0, 3.0])
        recorder.log_step([0], learning_rate=0.5)
        recorder.log_step([1], losses=[0.5, 2.5])
    return simfluence.open(tmp_path)["run-000"]


def test_means_and_rates_go_where_they_belong(run):
    assert list(export.scalars(run)) == [
        (0, {"test_loss": 2.0, "test_loss/one": 1.0, "test_loss/two": 3.0}),
        (1, {"learning_rate": 0.5}),
        (2, {"test_loss": 1.5, "test_loss/one": 0.5, "test_loss/two": 2.5}),
    ]


def test_the_trackers_own_clients_do_the_logging(run, monkeypatch):
    logged = []

    class Started:
        info = types.SimpleNamespace(run_id="there")

        def log(self, values, step):
            logged.append((step, values))

    @contextlib.contextmanager
    def start(**options):
        logged.append(options)
        yield Started()

    mlflow = types.ModuleType("mlflow")
    mlflow.start_run, mlflow.log_metrics = start, lambda values, step: logged.append((step, values))
    wandb = types.ModuleType("wandb")
    wandb.init = start
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert export.to_mlflow(run, tags={"a": "b"}) == "there"
    assert logged[0] == {"run_name": "run-000", "tags": {"a": "b"}} and len(logged) == 4
    export.to_wandb(run, project="p")
    assert logged[4]["project"] == "p" and logged[4]["config"]["status"] == "complete"
    assert logged[5:] == logged[1:4]


def test_values_that_were_not_measured_are_left_out_of_means(tmp_path):
    with simfluence.Recorder(tmp_path, 1, {"x": "one", "y": "one"}) as recorder:
        recorder.log_initial(([1], [4.0]))
    run = simfluence.open(tmp_path)["run-000"]
    ((_, values),) = export.scalars(run)
    assert values["test_loss"] == 4.0 and not np.isnan(values["test_loss/one"])
