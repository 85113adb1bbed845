from __future__ import annotations

import os
import signal
import threading
import time

import matplotlib
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import DATASETS, TEST, follow

import simfluence

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def linear(run_set):
    return simfluence.fit(run_set, "simfluence-linear", lambda_="0.001")


def test_a_run_set_says_what_is_in_it(run_set, plan):
    opened = simfluence.open(run_set)
    assert opened.ids == sorted(plan.ids)
    text = repr(opened)
    assert "red 8" in text and "complete" in text and str(run_set) in text
    assert "<table>" in opened._repr_html_()
    assert "30 steps" in repr(opened["train-000"])
    rows = opened.runs
    assert {"run", "status", "split", "edit"} <= set(rows.column_names)
    assert sum(row["split"] == "train" for row in rows) == 12


def test_tables_go_to_any_data_frame_library_without_copying(run_set):
    run = simfluence.open(run_set)["train-000"]
    frame = run.table().to_pandas()
    assert list(frame.columns) == ["step", "key", "dataset", "test_id", "loss"]
    assert len(frame) == 31 * 4
    steps = pl.DataFrame(run.steps)
    assert steps["batch"].to_list() == run.batches
    table = pa.table(run.steps)
    assert table.column("learning_rate").type == pa.float32()
    assert pa.schema(run.steps).names == run.steps.column_names
    wide = frame.pivot(index="step", columns="test_id", values="loss").to_numpy()
    assert np.array_equal(wide, run.losses)


def test_ref_a_law_that_simfluence_linear_can_hold_is_predicted(run_set, linear, plan):
    """The losses follow L' = L − p·x·(L − 0.5) at one rate: α and β of Simfluence-Linear."""
    batches = [plan["ordinary-000"].batches[t] for t in range(30)]
    simulated = simfluence.simulate(
        linear, run_set, batches=batches, learning_rates=1e-2, initial_from="train-000"
    )
    real = np.array(follow(batches, plan["ordinary-000"].learning_rates))
    assert simulated.values.shape == (31, 4)
    assert np.abs(simulated.values - real).mean() < 0.25
    assert "30 steps" in repr(simulated)


def test_simulating_a_recorded_run_starts_from_its_own_losses(run_set, linear):
    simulated = simfluence.simulate(linear, run_set, "held-out-000")
    real = simfluence.open(run_set)["held-out-000"]
    assert np.array_equal(simulated.initial, real.losses[0])
    assert np.array_equal(simulated.steps, real.curves().steps)


def test_a_simulator_survives_its_file(run_set, linear, tmp_path):
    linear.save(tmp_path / "linear.safetensors")
    loaded = simfluence.Simulator.load(tmp_path / "linear.safetensors")
    first, second = (simfluence.simulate(s, run_set, "held-out-001") for s in (linear, loaded))
    assert np.array_equal(first.values, second.values)
    assert loaded.train_keys[0] == "red-0" and "16 training" in repr(loaded)


def test_a_what_if_tells_which_dataset_matters_for_which_test(run_set, linear):
    answer = simfluence.whatif(run_set, "ordinary-000", drop="dataset:red", simulator=linear)
    change = dict(zip(TEST, answer.change, strict=True))
    # What takes the place of red examples are blue ones.
    assert change["red-test-0"] > 0.3 and change["blue-test-0"] < -0.1
    assert "drop dataset:red" in repr(answer) and "<table>" in answer._repr_html_()
    assert len(answer.to_pandas()) == 4
    assert answer.predicted.values.shape == answer.real.values.shape
    by_hand = answer.real.final + (answer.simulated_then.final - answer.simulated_now.final)
    assert answer.predicted.final == pytest.approx(by_hand)


def test_every_edit_is_understood(run_set, linear):
    ask = lambda **edit: simfluence.whatif(run_set, "ordinary-000", simulator=linear, **edit)  # noqa: E731
    assert ask(repeat={"dataset:red": 2}).answer["edits"] == ["repeat dataset:red x2"]
    assert ask(replace={"key:red-0": "key:blue-8"}).answer["edits"]
    assert ask(keep=["red"], fill="shorten").answer["steps_then"] < 30
    assert ask(reorder="dataset", learning_rate=0.5).answer["edits"][1] == "learning rate x0.5"
    with pytest.raises(simfluence.UsageError):
        ask()
    with pytest.raises(simfluence.Error, match="green"):
        ask(drop="dataset:green")


def test_the_default_simulator_has_bands(run_set):
    answer = simfluence.whatif(run_set, "ordinary-000", drop="dataset:red", progress=False)
    assert answer.answer["simulator"] == "optimizer-dynamics"
    assert (answer.low <= answer.high).all()


def test_methods_are_compared(run_set):
    compared = simfluence.compare(run_set, ["simfluence-linear"], resamples=200)
    methods = {row["method"] for row in compared.table}
    assert {"no-learning", "mean-run", "simfluence-linear"} <= methods
    frame = compared.to_pandas()
    held_out = frame[frame.block == "held-out"].set_index("method")
    assert held_out.mse["simfluence-linear"] < held_out.mse["no-learning"]
    assert "simfluence-linear" in repr(compared)
    assert compared.plot(metric="mse").get_title() == "held-out: mse"
    with pytest.raises(simfluence.UsageError, match="held-out"):
        compared.plot(block="nothing")


def scores():
    """Scores of a training for a test example: 1 if they are of one dataset."""
    train, test = np.array(DATASETS), np.array(list(TEST.values()))
    return (train[:, None] == test[None, :]).astype(np.float64)


def test_scores_of_another_library_are_judged_by_our_protocol(run_set):
    right = simfluence.from_scores(run_set, scores(), "right")
    wrong = simfluence.from_scores(run_set, 1 - scores(), "wrong")
    compared = simfluence.compare(
        run_set, "simfluence-linear", simulators=[right, wrong], resamples=200
    )
    rows = {row["method"]: row for row in compared.table if row["block"] == "dropped"}
    assert rows["right"]["effect_spearman"] > rows["wrong"]["effect_spearman"]
    assert "right (calibrated)" in rows


def test_ref_an_additive_simulator_is_what_its_equation_says(run_set, plan):
    """L_t = L_{t−1} − gain · (η_t/η_ref) · Σ_i x_t(i) s(i→j), by hand in NumPy."""
    simulator = simfluence.from_scores(run_set, scores(), "right", reference_learning_rate=1e-2)
    gain = float(simulator._described["gain"])
    run = plan["held-out-000"]
    expected = [np.full(4, 3.0)]
    for batch, rate in zip(run.batches, run.learning_rates, strict=True):
        expected.append(expected[-1] - gain * rate / 1e-2 * scores()[batch].mean(0))
    simulated = simfluence.simulate(simulator, run_set, "held-out-000")
    assert simulated.values == pytest.approx(np.array(expected), abs=2e-5)


def test_scores_that_hurt_when_larger_are_turned_around(run_set):
    helps = simfluence.from_scores(run_set, scores(), "s")
    hurts = simfluence.from_scores(run_set, -scores(), "s", larger_means="hurts")
    assert helps._scores == hurts._scores


def test_scores_of_another_shape_are_refused(run_set):
    with pytest.raises(simfluence.UsageError, match="transpose"):
        simfluence.from_scores(run_set, scores().T, "t")
    with pytest.raises(simfluence.Error, match="red-0"):
        simfluence.from_scores(run_set, np.where(scores() > 0, np.nan, 0), "n")


def test_pictures_are_matplotlib_axes(run_set, linear):
    opened = simfluence.open(run_set)
    assert len(opened.plot().get_lines()) == len(opened)
    assert len(opened["train-000"].plot().get_lines()) == 2
    answer = simfluence.whatif(opened, "ordinary-000", drop="red", simulator=linear)
    assert len(answer.plot().get_lines()) == 4
    assert simfluence.simulate(linear, opened, "train-000").plot().get_xlabel() == "step"


def test_the_interpreter_is_free_while_a_simulator_is_fitted(run_set):
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    simfluence.fit(run_set, progress=False)
    ended = time.perf_counter()
    done.set()
    thread.join()
    assert sum(started < at < ended for at in ticks) > 3


def test_progress_is_drawn_where_asked_for(run_set, capsys):
    simfluence.fit(run_set, "simfluence-linear", progress=True)
    assert "%|" in capsys.readouterr().err


def test_an_option_that_is_not_known_is_said_so(run_set):
    with pytest.raises(simfluence.UsageError, match="--metod"):
        simfluence.fit(run_set, metod="x")


def test_ctrl_c_ends_long_work(run_set, monkeypatch):
    noticed, events = threading.Event(), []

    def handler(*_):
        noticed.set()
        raise KeyboardInterrupt

    def bar(event, what, number):
        events.append(event)
        if event == "begin":
            os.kill(os.getpid(), signal.SIGINT)
            noticed.wait()

    monkeypatch.setattr("simfluence._progress.bar", lambda show: bar)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            simfluence.fit(run_set, "optimizer-dynamics")
    finally:
        signal.signal(signal.SIGINT, before)
    assert events[0] == "begin" and events[-1] == "end"
    monkeypatch.undo()
    assert simfluence.fit(run_set, "mean-run").name == "mean-run"
