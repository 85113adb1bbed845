from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import DATASETS, TEST, follow

import simfluence
from simfluence import _native, _progress

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
    for metric in ("nothing", "method"):
        with pytest.raises(simfluence.UsageError, match="mse"):
            compared.plot(metric=metric)


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
    assert helps._data == hurts._data


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool, np.float16, np.int64])
@pytest.mark.parametrize("means", ["helps", "hurts"])
def test_scores_of_any_type_are_taken_as_the_numbers_they_are(run_set, dtype, means):
    given = simfluence.from_scores(run_set, scores().astype(dtype), "s", larger_means=means)
    assert given._data == simfluence.from_scores(run_set, scores(), "s", larger_means=means)._data


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_scores_that_are_not_finite_are_refused(run_set, wrong):
    broken = scores()
    broken[3, 2] = wrong
    said = re.escape(f"'red-3' for 'blue-test-0' is {wrong}")
    with pytest.raises(simfluence.UsageError, match=said):
        simfluence.from_scores(run_set, broken, "s")


def test_scores_that_are_no_numbers_are_refused(run_set):
    with pytest.raises(simfluence.UsageError, match="must be numbers"):
        simfluence.from_scores(run_set, scores().astype(str), "s")


@pytest.mark.parametrize("calibrated", [False, True])
def test_scores_are_judged_with_all_their_rows_after_save_and_load(run_set, tmp_path, calibrated):
    made = simfluence.from_scores(run_set, scores(), "s", calibrated=calibrated)
    made.save(tmp_path / "s.safetensors")
    loaded = simfluence.Simulator.load(tmp_path / "s.safetensors")
    tables = [
        simfluence.compare(run_set, "simfluence-linear", simulators=given, resamples=200)
        for given in ([made], [loaded], {"mine": loaded})
    ]
    methods = [{row["method"] for row in one.table} for one in tables]
    assert {"s", "s (calibrated)"} <= methods[0] and methods[0] == methods[1]
    assert {"mine", "mine (calibrated)"} <= methods[2]


def test_a_simulator_stands_for_the_method_of_its_name(run_set, linear):
    mean = simfluence.fit(run_set, "mean-run")
    compared = simfluence.compare(
        run_set, ["simfluence-linear"], simulators=[linear, mean], resamples=200
    )
    rows = [row["method"] for row in compared.table if row["block"] == "held-out"]
    assert sorted(rows) == ["mean-run", "no-learning", "simfluence-linear"]
    own = simfluence.fit(run_set, "simfluence-linear", lambda_="1")
    renamed = {"simfluence-linear": own, "other": linear}
    other = simfluence.compare(run_set, "simfluence-linear", simulators=renamed, resamples=200)
    mse = {row["method"]: row["mse"] for row in other.table if row["block"] == "held-out"}
    assert mse["simfluence-linear"] != mse["other"]
    with pytest.raises(simfluence.Error, match="simulator gives it"):
        simfluence.compare(
            run_set, simulators={"optimizer-dynamics": linear}, ablate=True, progress=False
        )


def test_a_simulator_stands_for_its_method_on_the_command_line(run_set, linear, tmp_path, capfd):
    linear.save(tmp_path / "simfluence-linear.safetensors")
    arguments = ["--methods", "simfluence-linear", "--resamples", "200", "--format", "csv"]
    given = ["--simulator", str(tmp_path / "simfluence-linear.safetensors")]
    assert _native.program(["simfluence", "compare", str(run_set), *arguments, *given]) == 0
    rows = re.findall(r"^held-out,\d+,\d+,simfluence-linear,", capfd.readouterr().out, re.MULTILINE)
    assert len(rows) == 1
    other = tmp_path / "other" / "simfluence-linear.safetensors"
    other.parent.mkdir()
    linear.save(other)
    both = [*given, "--simulator", str(other)]
    assert _native.program(["simfluence", "compare", str(run_set), *arguments, *both]) == 1
    assert 'two methods are named "simfluence-linear"' in capfd.readouterr().err


def test_two_simulators_of_one_name_are_refused(run_set, linear):
    again = simfluence.from_scores(run_set, scores(), "s")
    for two, name in (([linear, linear], "simfluence-linear"), ([again, again], "'s'")):
        with pytest.raises(simfluence.UsageError, match=f"two simulators.*{name}"):
            simfluence.compare(run_set, "simfluence-linear", simulators=two)


def test_runs_that_were_not_recorded_by_the_program_are_compared_without_notes(
    run_set, linear, capfd
):
    given = {"optimizer-dynamics": linear, "simfluence-linear": linear}
    simfluence.compare(run_set, simulators=given, resamples=200, progress=False)
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_what_the_guide_shows_works(run_set):
    guide = (Path(__file__).parents[1] / "README.md").read_text()
    ask = guide.split("## Ask\n")[1].split("\n## ")[0]
    lines = [line[4:] for line in ask.splitlines() if line.startswith("    ")]
    program = "\n".join(lines).replace("all-runs", str(run_set)).replace("Sports", "red")
    exec(program, {"simfluence": simfluence, "scores": scores()})


def test_scores_of_another_shape_are_refused(run_set):
    with pytest.raises(simfluence.UsageError, match="transpose"):
        simfluence.from_scores(run_set, scores().T, "t")


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


def test_progress_is_drawn_where_asked_for(run_set, linear, tmp_path, capsys):
    scores = np.ones(simfluence.open(run_set)._native.counts, np.float32)
    for work in (
        lambda **show: simfluence.fit(run_set, "simfluence-linear", **show),
        lambda **show: simfluence.simulate(linear, run_set, "train-000", **show),
        lambda **show: simfluence.whatif(run_set, 0, drop="red", simulator=linear, **show),
        lambda **show: simfluence.compare(run_set, simulators=[linear], resamples=100, **show),
        lambda **show: simfluence.from_scores(run_set, scores, "ones", **show),
        lambda **show: simfluence.merge([run_set], tmp_path / str(show["progress"]), **show),
    ):
        work(progress=True)
        assert "%|" in capsys.readouterr().err
        work(progress=False)
        assert "%|" not in capsys.readouterr().err


def test_an_option_that_is_not_known_is_said_so(run_set):
    with pytest.raises(simfluence.UsageError, match=r"'metod'.*'method'") as raised:
        simfluence.fit(run_set, metod="x")
    assert "--" not in str(raised.value)


def test_wrong_values_are_told_by_the_names_that_arguments_have_here(run_set, linear):
    for options, said in [
        ({"seed": 1.5}, "'1.5' for 'seed'"),
        ({"lambda_": ["1", "2"]}, "'lambda_' cannot be used multiple times"),
        ({"solver": "much"}, "'much' for 'solver'"),
        ({"train_runs": 3.5}, "train_runs"),
        ({"train_runs": [None]}, "NoneType"),
    ]:
        with pytest.raises(simfluence.UsageError, match=said) as raised:
            simfluence.fit(run_set, "simfluence-linear", **options)
        assert "--" not in str(raised.value)
    with pytest.raises(simfluence.UsageError, match="drop must be"):
        simfluence.whatif(run_set, 0, drop=3, simulator=linear)
    with pytest.raises(simfluence.UsageError, match="repeat must be a mapping"):
        simfluence.whatif(run_set, 0, repeat=["red"], simulator=linear)
    with pytest.raises(simfluence.UsageError, match=r"drop\|keep"):
        simfluence.whatif(run_set, 0, drop=None, simulator=linear)
    for wrong in (linear, "linear.safetensors", [None]):
        with pytest.raises(simfluence.UsageError, match="simulators"):
            simfluence.compare(run_set, simulators=wrong)
    with pytest.raises(simfluence.UsageError, match="NoneType"):
        simfluence.fit(None)


def test_a_run_is_given_by_its_id_its_number_or_itself(run_set, linear):
    opened = simfluence.open(run_set)
    place = opened.ids.index("held-out-000")
    for run in ("held-out-000", place, np.int64(place), opened[place]):
        answer = simfluence.whatif(run_set, run, drop="red", simulator=linear)
        assert answer.answer["run"] == "held-out-000"
        simulated = simfluence.simulate(linear, opened, run, initial_from=run)
        assert np.array_equal(simulated.initial, opened[place].losses[0])
    some = [opened.ids.index(f"train-{number:03}") for number in range(3)]
    by_number = simfluence.fit(opened, "mean-run", train_runs=some, test_runs=opened[place])
    by_id = simfluence.fit(opened, "mean-run", train_runs="train-00[0-2]", test_runs="held-out-000")
    assert by_number._data == by_id._data
    for wrong, said in ((99, "no run 99"), ("train-999", "no run 'train-999'"), (None, "NoneType")):
        with pytest.raises(simfluence.UsageError, match=said):
            simfluence.whatif(run_set, wrong, drop="red", simulator=linear)


def test_a_run_of_another_run_set_is_refused(run_set, linear, tmp_path):
    with simfluence.Recorder(tmp_path, 1, 1, run="train-000") as recorder:
        recorder.log_initial([1.0])
    with pytest.raises(simfluence.UsageError, match=str(tmp_path)):
        simfluence.simulate(linear, run_set, simfluence.open(tmp_path)[0])


def test_selections_may_come_from_any_collection(run_set, linear):
    ask = lambda drop: simfluence.whatif(run_set, 0, drop=drop, simulator=linear)  # noqa: E731
    given = [f"key:red-{number}" for number in range(3)]
    edits = [ask(drop).answer["edits"] for drop in (given, tuple(given), iter(given))]
    assert edits == [["drop key:red-0, key:red-1, key:red-2"]] * 3


def test_a_progress_bar_that_cannot_be_drawn_is_missed_once(run_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    _progress._miss_tqdm.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for show in (None, False, True, True):
            simfluence.fit(run_set, "mean-run", progress=show)
    assert [one.filename for one in caught] == [__file__]
    assert "pip install" in str(caught[0].message)


def test_results_go_to_any_data_frame_library(run_set, linear):
    opened = simfluence.open(run_set)
    answer = simfluence.whatif(run_set, "ordinary-000", drop="red", simulator=linear)
    compared = simfluence.compare(run_set, "simfluence-linear", resamples=200)
    results = [
        answer, answer.groups, answer.predicted, compared, compared.table, opened.runs,
        simfluence.simulate(linear, run_set, "train-000"), opened["train-000"].curves(),
        simfluence.cartography(run_set, "train-000", of="test"),
    ]  # fmt: skip
    for result in results:
        frame, arrow, table = result.to_pandas(), result.to_polars(), result.to_pyarrow()
        assert len(frame) == arrow.height == table.num_rows > 0
        assert list(frame.columns) == arrow.columns == table.column_names
        assert pa.table(result) == table and pa.schema(result) == table.schema
        assert pl.DataFrame(result).equals(arrow)
    assert answer.to_polars()["change"].to_numpy() == pytest.approx(answer.change)
    methods = compared.to_polars()["method"].to_list()
    assert methods == [row["method"] for row in compared.table]


def test_curves_are_long_tables_with_their_bands(run_set):
    opened = simfluence.open(run_set)
    run = opened["train-000"]
    assert run.curves().to_polars().equals(run.table().to_polars())
    dynamics = simfluence.fit(run_set, progress=False)
    simulated = simfluence.simulate(dynamics, run_set, "held-out-000")
    frame = simulated.to_polars()
    assert frame.columns == ["step", "key", "dataset", "test_id", "loss", "low", "high"]
    for name, values in (("loss", simulated.values), ("low", simulated.low)):
        assert np.array_equal(frame[name].to_numpy().reshape(values.shape), values)
    assert frame.filter(step=3, key="blue-test-0")["loss"].item() == simulated.values[3, 2]
    answer = simfluence.whatif(run_set, 0, drop="red", simulator=dynamics)
    assert "high" in answer.predicted.to_polars().columns
    assert "high" not in answer.real.to_polars().columns


@pytest.mark.parametrize("what", ["fit", "simulate", "merge"])
def test_ctrl_c_ends_long_work(run_set, linear, tmp_path, monkeypatch, what):
    work = {
        "fit": lambda: simfluence.fit(run_set, "optimizer-dynamics"),
        "simulate": lambda: simfluence.simulate(linear, run_set, 0),
        "merge": lambda: simfluence.merge([run_set], tmp_path / "merged"),
    }[what]
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
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert events[0] == "begin" and events[-1] == "end"
    monkeypatch.undo()
    assert simfluence.fit(run_set, "mean-run").name == "mean-run"
