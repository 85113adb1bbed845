"""Simulators, what-ifs and comparisons."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simfluence import _arrays, _native, _plots, _progress
from simfluence._errors import UsageError
from simfluence._run_set import Curves, Run, RunSet
from simfluence._tables import Exported, Records, html, text

Path_ = str | os.PathLike[str]
Texts = str | Sequence[str]
#: Which runs: ids or patterns, numbers, runs.
Runs = str | int | Run | Sequence[str | int | Run]


def open(run_set: Path_) -> RunSet:
    """Open a run set.

    Parameters
    ----------
    run_set : path
        Its folder.

    Returns
    -------
    RunSet

    Raises
    ------
    RunSetError
        No run set there, or its examples are missing, malformed or others than it was made with.
    """
    return RunSet(run_set)


def merge(
    run_sets: Sequence[RunSet | Path_], out: Path_, *, progress: bool | None = None
) -> RunSet:
    """Make one run set of several that were recorded in different places.

    Parameters
    ----------
    run_sets : sequence of RunSet or path
        Examples are the same if their keys are; ids of runs must differ.
    out : path
        Folder of the new run set.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.

    Returns
    -------
    RunSet

    Raises
    ------
    UsageError
        One run set instead of a sequence of them.
    RunSetError
        Two examples of one key that differ; two runs of one id; a run set in `out` already.
    """
    if isinstance(run_sets, (RunSet, str, os.PathLike)):
        raise UsageError(f"run_sets must be a sequence of run sets, not one: [{run_sets!r}]")
    sources = [_path(one) for one in run_sets]
    _native.merge(sources, Path(out), _progress.bar(progress))
    return RunSet(out)


class Simulator:
    """Something that maps a curriculum and the losses before the first step to losses after each.

    Made by `fit`, `from_scores` or `Simulator.load`.

    Parameters
    ----------
    data : bytes
        The simulator file.
    report : mapping, optional
        How the fit went.
    """

    def __init__(self, data: bytes, report: Mapping[str, Any] | None = None) -> None:
        self._data = data
        self._described = _native.describe(data)
        #: How the fit went.
        self.report = dict(report or {})

    @classmethod
    def load(cls, path: Path_) -> Simulator:
        """Read a simulator file.

        Parameters
        ----------
        path : path
            A file of `save`, or of `simfluence fit`.

        Returns
        -------
        Simulator
        """
        return cls(Path(path).read_bytes())

    def save(self, path: Path_) -> None:
        """Write the simulator file (safetensors), which the program takes, too.

        Parameters
        ----------
        path : path
            The file; one that is there is replaced.
        """
        Path(path).write_bytes(self._data)

    @property
    def kind(self) -> str:
        """What kind of simulator it is."""
        return self._described.get("kind", "")

    @property
    def name(self) -> str:
        """Name of the method."""
        return self._described.get("name") or self._described.get("method") or self.kind

    @property
    def _has_scores(self) -> bool:
        return self._described.get("simulator") in ("additive", "calibrated")

    @property
    def _method(self) -> str:
        # The names of all rows of scores begin with that of their method.
        return self._described["method"] if self._has_scores else self.name

    @cached_property
    def train_keys(self) -> list[str]:
        """Keys of the training examples it knows."""
        return json.loads(self._described["train_keys"])

    @cached_property
    def test_keys(self) -> list[str]:
        """Keys of the test examples it knows."""
        return json.loads(self._described["test_keys"])

    def __repr__(self) -> str:
        counts = f"{len(self.train_keys)} training and {len(self.test_keys)} test examples"
        runs = self.report.get("training_runs")
        number = len(runs) if isinstance(runs, list) else runs
        fitted = f", fitted on {number} runs" if number else ""
        return f"<simfluence.Simulator {self.name!r} over {counts}{fitted}>"


class Simulated(Curves):
    """A simulated run: `Curves` with the losses before the first step and after each, T + 1.

    Attributes
    ----------
    simulator : str
        Name of the simulator.
    distance : float or None
        How far the curriculum lies from what was recorded; from 2 on the recordings hardly support
        the answer.
    """

    def __init__(self, native: tuple[Any, ...], run_set: RunSet) -> None:
        self.simulator, curves, low, high, self.distance = native
        super().__init__(curves, run_set, band=None if low is None else (low, high))

    def plot(self, ax: Any = None, group_by: str = "dataset") -> Any:
        """Draw the mean loss of each dataset over the steps, with its bands.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; by default in a new figure.
        group_by : str
            Column of the test examples to show means by.

        Returns
        -------
        matplotlib axes
        """
        groups = self._run_set._test_groups(group_by)
        band = None if self.low is None else (self.low, self.high)
        return _plots.groups(
            ax, self.steps, {self.simulator: self.values}, groups, self.simulator, band
        )

    def __repr__(self) -> str:
        steps = len(self.steps) - 1
        return f"<simfluence.Simulated by {self.simulator}: {steps} steps, {self._means()}>"


def fit(
    run_set: RunSet | Path_,
    method: str = "optimizer-dynamics",
    *,
    train_runs: Runs | None = None,
    test_runs: Runs | None = None,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Simulator:
    """Learn a simulator from recorded runs.

    Parameters
    ----------
    run_set : RunSet or path
    method : str
        `optimizer-dynamics`, `simfluence-linear`, `simfluence-additive`,
        `simfluence-multiplicative`, `linearised` (where the run set keeps its tangent kernel),
        `mean-run`.
    train_runs, test_runs : str, int, Run or sequence of them, optional
        Which runs to learn from and which to hold out, by id, pattern or number; by default as the
        runs were designed.
    seed : int
        Seed of the split and of everything random in the fit.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.
    **options
        Further options of `simfluence fit`: `datasets`, `features`, `no_linearised`, `objective`,
        `solver`, `shrink_to`, `lambda_`.

    Returns
    -------
    Simulator

    Raises
    ------
    UsageError
        An option that the method does not have, or one of another type.
    Error
        No usable run, or whatever the fit fails with.
    """
    options = {"method": method, **_split(run_set, train_runs, test_runs, seed), **options}
    arguments = [str(_path(run_set)), *_flags(options)]
    with _python_names():
        data, report = _native.fit(arguments, _progress.bar(progress))
    return Simulator(data, json.loads(report))


def simulate(
    simulator: Simulator | Path_,
    run_set: RunSet | Path_,
    run: str | int | Run | None = None,
    *,
    batches: Sequence[Sequence[int | str] | _arrays.Array] | None = None,
    learning_rates: float | Sequence[float] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    initial_from: str | int | Run | None = None,
    level: float = 0.9,
    progress: bool | None = None,
) -> Simulated:
    """Simulate a run: what would the losses of all test examples be at every step?

    Parameters
    ----------
    simulator : Simulator or path
    run_set : RunSet or path
        The run set that the simulator was made from.
    run : str, int or Run, optional
        A recorded run whose curriculum is to be simulated, by id or number.
    batches : sequence of T sequences of ids or keys, optional
        A curriculum of your own instead.
    learning_rates : float or sequence of length T, optional
        Its learning rates.
    weights : sequence of T sequences, optional
        Shares of the members of each batch; by default equal.
    initial_from : str, int or Run, optional
        Run whose losses before the first step are started from; by default `run`, or the first.
    level : float
        Share of real losses that the bands are to hold, between 0 and 1.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.

    Returns
    -------
    Simulated

    Raises
    ------
    UsageError
        Neither or both of `run` and `batches`; a run or an example that is not there.
    Error
        A simulator of other examples; no losses before the first step to start from.
    """
    if (run is None) == (batches is None):
        raise UsageError("give either run or batches")
    opened = _opened(run_set)
    with ExitStack() as files:
        where = files.enter_context(_written(simulator))
        arguments = [str(where), "--run-set", str(opened.path), "--level", str(level)]
        if run is not None:
            arguments += ["--run", _id(opened, run)]
        else:
            folder = files.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "curriculum.parquet"
            _write_curriculum(path, opened, batches, learning_rates, weights)
            arguments += ["--curriculum", str(path)]
        if initial_from is not None:
            arguments += ["--initial-from", _id(opened, initial_from)]
        with _python_names():
            return Simulated(_native.simulate(arguments, _progress.bar(progress)), opened)


def _write_curriculum(path: Path, run_set: RunSet, batches: Any, rates: Any, weights: Any) -> None:
    known = {key: place for place, key in enumerate(run_set.train_keys)}
    ids = [_arrays.ids(batch, known, "batches").tolist() for batch in batches]
    if rates is None or np.isscalar(rates):
        rates = [rates] * len(ids)
    shares = None if weights is None else [[float(w) for w in one] for one in weights]
    rates = [None if rate is None else float(rate) for rate in rates]
    _native.write_curriculum(path, ids, rates, shares, len(known))


class WhatIf(Exported):
    """The answer to a what-if: losses after the last step, and curves.

    As a table it is that of `test_examples`.

    Attributes
    ----------
    answer : dict
        Everything, as `simfluence whatif --format json` prints it.
    real : Curves
        Losses of the unedited run, as recorded.
    predicted : Curves
        The real losses plus the predicted effect; where the edit changes the number of steps, the
        simulated edited run.
    low, high : array or None
        Ends of the band around `predicted`, where the simulator has bands.
    simulated_now, simulated_then : Curves
        The simulated unedited and edited runs.
    """

    def __init__(self, native: tuple[Any, ...], run_set: RunSet) -> None:
        answer, real, predicted, now, then, band = native
        self.answer: dict[str, Any] = json.loads(answer)
        self.real, self.predicted = Curves(real, run_set), Curves(predicted, run_set, band=band)
        self.simulated_now, self.simulated_then = Curves(now, run_set), Curves(then, run_set)
        self.low: NDArray[np.float32] | None = self.predicted.low
        self.high: NDArray[np.float32] | None = self.predicted.high
        self._run_set = run_set

    def _table(self) -> _native.ArrowTable:
        return self.test_examples._table()

    @property
    def groups(self) -> Records:
        """One row per group of test examples, and one for all: `loss_now`, `loss_then`, `change`."""
        return Records(self.answer["groups"])

    @property
    def test_examples(self) -> Records:
        """One row per test example."""
        return Records(self.answer["test_examples"])

    @property
    def change(self) -> NDArray[np.float64]:
        """Predicted change of each test example's loss, in the order of `test_examples`."""
        return np.array([row["change"] for row in self.answer["test_examples"]])

    def to_pandas(self) -> Any:
        """The rows of all test examples as a `pandas.DataFrame`."""
        return self.test_examples.to_pandas()

    def plot(self, ax: Any = None) -> Any:
        """Draw real and predicted mean losses of each group.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib axes
        """
        groups = self._run_set._test_groups(self.answer["group_by"])
        band = None if self.low is None else (self.low, self.high)
        curves = {"as recorded": self.real.values, "predicted": self.predicted.values}
        if len(self.real.steps) != len(self.predicted.steps):
            curves = {"predicted": self.predicted.values}
        return _plots.groups(ax, self.predicted.steps, curves, groups, self._title(), band)

    def _title(self) -> str:
        return f"{self.answer['run']}: {'; '.join(self.answer['edits'])}"

    _COLUMNS = ("name", "loss_now", "loss_then", "change", "low", "high")

    def _shown(self) -> list[str]:
        return [name for name in self._COLUMNS if name in self.answer["groups"][0]]

    def __repr__(self) -> str:
        table = text(self._shown(), self.answer["groups"])
        return f"What if {self._title()} ({self.answer['simulator']})\n{table}"

    def _repr_html_(self) -> str:
        from html import escape

        title = escape(f"What if {self._title()} ({self.answer['simulator']})")
        return f"<p>{title}</p>" + html(self._shown(), self.answer["groups"])


def whatif(
    run_set: RunSet | Path_,
    run: str | int | Run,
    *,
    drop: Texts | None = None,
    keep: Texts | None = None,
    repeat: Mapping[str, float] | None = None,
    replace: Mapping[str, str] | None = None,
    reorder: str | None = None,
    learning_rate: float | None = None,
    simulator: Simulator | Path_ | None = None,
    fill: str = "resample",
    group_by: str = "dataset",
    level: float = 0.9,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> WhatIf:
    """Ask what would have happened to a recorded run with other training data.

    Parameters
    ----------
    run_set : RunSet or path
    run : str, int or Run
        The run that is edited, by id or number.
    drop, keep : str or sequence of str, optional
        What to leave out, or to keep alone: `dataset:NAME` (or just the name), `key:KEY`, `id:ID`,
        `tag:TAG`, or a pattern.
    repeat : mapping, optional
        How many times as often a selection is to be seen.
    replace : mapping, optional
        Selections to be replaced, each by another.
    reorder : str, optional
        `dataset`, `dataset:A,B`, `random`, `reversed` or `given:FILE`.
    learning_rate : float, optional
        Factor of the learning rate.
    simulator : Simulator or path, optional
        What to simulate with; by default optimizer-dynamics is fitted first, which takes longest.
    fill : {"resample", "shrink", "shorten"}
        What takes the place of dropped examples: others, drawn anew; nothing, in smaller batches;
        nothing, in fewer steps.
    group_by : str
        Column of the test examples to show means by.
    level : float
        Share of real losses that the bands are to hold.
    seed : int
        Seed of the edit and of the fit.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.
    **options
        Further options of `simfluence whatif`: `datasets`, `features`, `train_runs`, `test_runs`.

    Returns
    -------
    WhatIf

    Raises
    ------
    UsageError
        No edit, or an argument of another type; no such run.
    Error
        A selection that nothing matches; a simulator of other examples, or whatever the fit fails
        with.

    Examples
    --------
    ::

        simfluence.whatif("my-runs", "ordinary-000", drop="dataset:Sports").plot()
    """
    opened = _opened(run_set)
    edits = {
        "drop": _listed(drop, "drop"),
        "keep": _listed(keep, "keep"),
        "repeat": _pairs(repeat, "repeat"),
        "replace": _pairs(replace, "replace"),
        "reorder": reorder,
        "learning_rate": learning_rate,
        "fill": fill,
        "group_by": group_by,
        "level": level,
        "seed": seed,
        **options,
    }
    with ExitStack() as files:
        arguments = [str(opened.path), "--run", _id(opened, run)]
        arguments += _flags(edits)
        if simulator is not None:
            arguments += ["--simulator", str(files.enter_context(_written(simulator)))]
        with _python_names():
            return WhatIf(_native.what_if(arguments, _progress.bar(progress)), opened)


class Comparison(Exported):
    """How well methods predict real runs.

    As a data frame it is its `table`.

    Attributes
    ----------
    results : dict
        Everything, as `simfluence compare --format json` prints it.
    """

    def __init__(self, native: tuple[str, str, str]) -> None:
        self._text, results, table = native
        self.results: dict[str, Any] = json.loads(results)
        self._csv = table

    @property
    def table(self) -> Records:
        """One row per block (held-out runs, kinds of edits) and method."""
        rows = csv.DictReader(io.StringIO(self._csv))
        return Records([{name: _number(value) for name, value in row.items()} for row in rows])

    def _table(self) -> _native.ArrowTable:
        return self.table._table()

    def to_pandas(self) -> Any:
        """`table` as a `pandas.DataFrame`."""
        return self.table.to_pandas()

    def plot(self, ax: Any = None, block: str = "held-out", metric: str = "mse") -> Any:
        """Draw one bar per method.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; by default in a new figure.
        block : str
            What the methods are judged by: `held-out`, or a kind of edit.
        metric : str
            Column of `table` with numbers.

        Returns
        -------
        matplotlib axes

        Raises
        ------
        UsageError
            No such block, or no such numbers in it.
        """
        rows = [row for row in self.table if row["block"] == block]
        if not rows:
            blocks = dict.fromkeys(row["block"] for row in self.table)
            raise UsageError(f"there is no block {block!r}; the blocks are {', '.join(blocks)}")
        return _plots.bars(ax, rows, metric, f"{block}: {metric}")

    def __repr__(self) -> str:
        return self._text.rstrip("\n")


def _number(value: str) -> Any:
    if value == "":
        return None
    try:
        return float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return value


def compare(
    run_set: RunSet | Path_,
    methods: Texts | None = None,
    *,
    simulators: Mapping[str, Simulator] | Sequence[Simulator] = (),
    train_runs: Runs | None = None,
    test_runs: Runs | None = None,
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Judge methods by how well they predict runs that they have not seen.

    The baselines `no-learning`, `mean-run` and, on the counterfactual suite, `no-effect` stand in
    every comparison.

    Parameters
    ----------
    run_set : RunSet or path
    methods : str or sequence of str, optional
        `optimizer-dynamics`, `simfluence-linear`, …; by default those that need no model.
    simulators : mapping or sequence of Simulator
        Further simulators, such as those of `from_scores`; the names of a mapping stand in the
        table. One with the name of a method stands for that method, which is not fitted again.
        Scores take part with all their rows: fitted gain, calibrated, and gain 1 where they have a
        unit.
    train_runs, test_runs : str, int, Run or sequence of them, optional
        Which runs to learn from and which to judge by, by id, pattern or number; by default as the
        runs were designed.
    seed : int
        Seed of the split and of the bootstrap.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.
    **options
        Further options of `simfluence compare`, such as `resamples`, `datasets`, `thin_steps`.

    Returns
    -------
    Comparison

    Raises
    ------
    UsageError
        Two simulators of one name; an argument of another type.
    Error
        No run to judge by; a simulator of other examples, or one that was made from a run that
        judges.
    """
    given = {
        "methods": _joined(methods, "methods"),
        **_split(run_set, train_runs, test_runs, seed),
        **options,
    }
    arguments = [str(_path(run_set)), *_flags(given)]
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, simulator) in enumerate(_named(simulators).items()):
            # The name of a file is the name in the table; its folder keeps equal ones apart.
            own = Path(folder) / str(place)
            own.mkdir()
            path = own / f"{name.replace('/', '-')}.safetensors"
            if simulator._has_scores:
                path.write_bytes(_native.scores(simulator._data, name))
                arguments += ["--scores", str(path)]
            else:
                simulator.save(path)
                arguments += ["--simulator", str(path)]
        with _python_names():
            return Comparison(_native.compare(arguments, _progress.bar(progress)))


def _named(simulators: Any) -> dict[str, Simulator]:
    if isinstance(simulators, str) or not isinstance(simulators, Iterable):
        raise UsageError(
            "simulators must be a sequence, or a mapping from names, of simulators, not "
            f"{type(simulators).__name__}"
        )
    named: dict[str, Simulator] = {}
    for one in simulators:
        simulator = simulators[one] if isinstance(simulators, Mapping) else one
        if not isinstance(simulator, Simulator):
            raise UsageError(
                f"simulators hold {simulator!r}, which is no Simulator (Simulator.load reads a file)"
            )
        name = str(one) if isinstance(simulators, Mapping) else simulator._method
        if name in named:
            raise UsageError(
                f"two simulators are named {name!r}; give each its own name with a mapping"
            )
        named[name] = simulator
    return named


def from_scores(
    run_set: RunSet | Path_,
    scores: _arrays.Array,
    name: str,
    *,
    larger_means: str = "helps",
    natural_unit: bool = False,
    reference_learning_rate: float | None = None,
    calibrated: bool = False,
    train_runs: Runs | None = None,
    test_runs: Runs | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Simulator:
    """Make a simulator of attribution scores that another library computed.

    `L_t = L_{t−1} − gain · (η_t/η_ref) · Σ_i x_t(i) s(i→j)` with the exposures `x_t(i)` of the
    step's batch, and the gain that fits the training runs best.

    Parameters
    ----------
    run_set : RunSet or path
    scores : array of shape (n, m)
        Score of every training example for every test example, in the order of the run set's
        (`run_set.train_keys`, `run_set.test_keys`): finite numbers of any type, in NumPy, torch or
        DLPack. Libraries that give [test × train] need a transpose.
    name : str
        Name of the method.
    larger_means : {"helps", "hurts"}
        What a larger score says: training on the example lowers the test loss (most libraries), or
        raises it (influence on the loss, as in Koh & Liang's equation).
    natural_unit : bool
        Whether scores are in nats per step whose batch is only the training example.
    reference_learning_rate : float, optional
        Learning rate at which the scores hold; by default the mean rate of the first training run.
    calibrated : bool
        Add the predicted effect to the mean of the training runs, instead of to `L_0`.
    train_runs, test_runs, seed
        Which runs the gain is fitted on, as for `fit`.
    progress : bool, optional
        Whether to draw a progress bar; by default in terminals and notebooks.

    Returns
    -------
    Simulator

    Raises
    ------
    UsageError
        Scores of another shape, or that are no finite numbers.
    Error
        No run to fit the gain on.

    Examples
    --------
    ::

        scores = kronfluence_scores["all_modules"].T    # it gives [test × train]
        ekfac = simfluence.from_scores("my-runs", scores, "ek-fac (kronfluence)")
        simfluence.compare("my-runs", simulators=[ekfac])
    """
    if larger_means not in ("helps", "hurts"):
        raise UsageError(f"larger_means is {larger_means!r}; it must be 'helps' or 'hurts'")
    opened = _opened(run_set)
    array = _arrays.numpy(scores)
    shape = opened._native.counts
    if array.shape != shape:
        hint = "; transpose it" if array.shape == shape[::-1] else ""
        raise UsageError(
            f"{name}: scores of shape {array.shape}, expected (training, test) = {shape}{hint}"
        )
    with np.errstate(over="ignore"):
        values = _arrays.floats(array.reshape(-1), name)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        train, test = np.unravel_index(wrong[0], shape)
        raise UsageError(
            f"{name}: the score of {opened.train_keys[train]!r} for {opened.test_keys[test]!r} is "
            f"{array[train, test]}; scores must be finite in 32 bits"
        )
    if larger_means == "hurts":
        values = -values
    arguments = [str(opened.path), *_flags(_split(opened, train_runs, test_runs, seed))]
    with _python_names():
        made = _native.additive(
            name,
            values,
            reference_learning_rate,
            natural_unit,
            arguments,
            _progress.bar(progress),
        )
    return Simulator(made[1] if calibrated else made[0])


def _opened(run_set: RunSet | Path_) -> RunSet:
    return run_set if isinstance(run_set, RunSet) else RunSet(_path(run_set))


def _path(run_set: RunSet | Path_) -> Path:
    if isinstance(run_set, RunSet):
        return run_set.path
    if isinstance(run_set, (str, os.PathLike)):
        return Path(run_set)
    raise UsageError(f"a RunSet or the path of one is needed, not {type(run_set).__name__}")


def _id(run_set: RunSet, run: str | int | Run) -> str:
    if isinstance(run, Run):
        if run not in run_set:
            raise UsageError(f"run {run.id!r} is of {run.run_set.path}, not of {run_set.path}")
        return run.id
    if isinstance(run, (str, int, np.integer)):
        try:
            return run_set[run].id
        except IndexError:
            raise UsageError(f"there is no run {run} in a run set of {len(run_set)}") from None
    raise UsageError(f"a run is given by its id or number or as a Run, not {type(run).__name__}")


@contextmanager
def _written(simulator: Simulator | Path_) -> Iterator[Path]:
    """The file of a simulator, written for the moment if it is only in memory."""
    if not isinstance(simulator, Simulator):
        yield Path(simulator)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulator.safetensors"
        simulator.save(path)
        yield path


def _listed(texts: Texts | None, what: str) -> list[str]:
    if texts is None:
        return []
    listed = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    if not all(isinstance(one, str) for one in listed):
        raise UsageError(f"{what} must be a text or a sequence of texts, not {texts!r}")
    return listed


def _joined(texts: Texts | None, what: str) -> str | None:
    return None if texts is None else ",".join(_listed(texts, what))


def _pairs(pairs: Mapping[str, Any] | None, what: str) -> list[str]:
    if not isinstance(pairs, Mapping | None):
        raise UsageError(f"{what} must be a mapping from selections, not {pairs!r}")
    return [f"{old}={new}" for old, new in (pairs or {}).items()]


def _split(
    run_set: RunSet | Path_, train_runs: Runs | None, test_runs: Runs | None, seed: int
) -> dict[str, Any]:
    """Options that say which runs are for what."""
    given = {"train_runs": train_runs, "test_runs": test_runs}
    return {**{name: _which(run_set, runs, name) for name, runs in given.items()}, "seed": seed}


def _which(run_set: RunSet | Path_, runs: Runs | None, what: str) -> str | None:
    if isinstance(runs, (Run, int, np.integer)):
        runs = [runs]
    if isinstance(runs, Sequence) and not isinstance(runs, str):
        # A text may be a pattern; what is no text is one run.
        return ",".join(one if isinstance(one, str) else _id(_opened(run_set), one) for one in runs)
    return _joined(runs, what)


@contextmanager
def _python_names() -> Iterator[None]:
    """Tell wrong arguments with their names here instead of those on the command line."""
    try:
        yield
    except UsageError as error:
        parts = [" ".join(part.split()) for part in str(error).split("\n\n")]
        parts = [part for part in parts if not part.startswith(("Usage:", "For more"))]
        told = "; ".join(parts).removeprefix("error: ")
        raise UsageError(re.sub(r"--([a-z][a-z-]*)( <.*?>)?", _python_name, told)) from None


def _python_name(flag: re.Match[str]) -> str:
    name = flag[1].replace("-", "_")
    return name + "_" if iskeyword(name) else name


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options as the program takes them; those that are `None` or false are left out."""
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, (list, tuple)):
            flags += [f"{flag}={one}" for one in value]
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags
