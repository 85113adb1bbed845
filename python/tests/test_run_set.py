from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import simfluence

matplotlib.use("Agg")


@pytest.fixture
def begun(tmp_path):
    """A run of which nothing is on the disk yet."""
    recorder = simfluence.Recorder(tmp_path, ["a"], {"x": "one", "y": "two"})
    yield recorder
    recorder.abort()


def recorded(path, *, initial=True, **settings):
    with simfluence.Recorder(path, ["a"], {"x": "one", "y": "two"}, **settings) as recorder:
        if initial:
            recorder.log_initial([2.0, 2.0])
        recorder.log_step(["a"], losses=[1.0, 2.0])
    return simfluence.open(path)


def test_a_run_equals_itself_however_it_was_come_by(tmp_path, monkeypatch):
    run_set = recorded(tmp_path / "runs")
    recorded(tmp_path / "runs")
    run, other = run_set
    assert run == run_set["run-000"] == simfluence.open(tmp_path / "runs")[0] != other
    assert len({run, run_set[0], other}) == 2
    assert run_set.index(run_set[1]) == 1 and run_set.count(run) == 1
    monkeypatch.chdir(tmp_path)
    assert simfluence.open("runs")[0] == run
    assert run != recorded(tmp_path / "elsewhere")[0] and run != "run-000"


def test_a_run_set_knows_whether_a_run_is_in_it(tmp_path):
    run_set, elsewhere = recorded(tmp_path / "runs"), recorded(tmp_path / "elsewhere")
    assert "run-000" in run_set and run_set[0] in run_set
    assert "run-001" not in run_set and elsewhere[0] not in run_set and 0 not in run_set


def test_losses_before_the_first_step_are_only_where_they_were_measured(tmp_path):
    with_initial, without = recorded(tmp_path)[0], recorded(tmp_path, initial=False)[1]
    assert with_initial.curves().initial.tolist() == [2.0, 2.0]
    assert "mean test loss 2.000 → 1.500" in repr(with_initial)
    with pytest.raises(simfluence.UsageError, match="log_initial"):
        without.curves().initial  # noqa: B018
    assert without.curves().final.tolist() == [1.0, 2.0]
    assert repr(without).endswith("1 steps, mean test loss 1.500>")


def test_a_run_that_has_just_begun_can_be_looked_at(tmp_path, begun):
    recorded(tmp_path)
    run_set = simfluence.open(tmp_path)
    assert "recording, 0 steps, nothing evaluated" in repr(run_set["run-000"])
    assert "recording 1" in repr(run_set)
    assert len(run_set.plot().get_lines()) == 1
    with pytest.raises(simfluence.UsageError, match="nothing was evaluated"):
        run_set["run-000"].curves()
    with pytest.raises(simfluence.UsageError, match="it has loss"):
        run_set["run-001"].table("accuracy")


@pytest.mark.filterwarnings("error")
def test_a_run_set_without_evaluations_can_be_drawn(tmp_path, begun):
    assert not simfluence.open(tmp_path).plot().get_lines()


@pytest.mark.filterwarnings("error")
def test_losses_that_are_all_nan_are_shown_as_such(tmp_path):
    with simfluence.Recorder(tmp_path, ["a"], ["x"]) as recorder:
        recorder.log_initial([np.nan])
    assert "nan → nan" in repr(simfluence.open(tmp_path)[0])


def test_a_damaged_run_is_shown_as_damaged(tmp_path):
    run_set = recorded(tmp_path)
    recorded(tmp_path)
    (tmp_path / "runs" / "run-000" / "run.json").write_text("{")
    assert "complete 1" in repr(run_set) and "not readable 1" in repr(run_set)
    assert "not readable 1" in run_set._repr_html_()
    assert "not readable" in repr(run_set[0]) and "run.json" in repr(run_set[0])


def test_a_run_is_read_anew_while_it_is_recorded(tmp_path, begun):
    run = simfluence.open(tmp_path)[0]
    assert (run.status, run.batches) == ("recording", [])
    begun.log_step([0], losses=[1.0, 1.0])
    begun.flush()
    assert len(run.batches) == len(run.steps) == 1
    begun.finish()
    assert run.status == "complete" and run.batches is run.batches


def test_groups_are_of_one_text_per_example(tmp_path):
    run = recorded(tmp_path)[0]
    with pytest.raises(simfluence.UsageError, match="lists"):
        run.plot(group_by="tags")
    with pytest.raises(simfluence.UsageError, match="colour"):
        run.plot(group_by="colour")
