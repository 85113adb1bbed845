"""Run sets, as one looks at them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from simfluence import _native, _plots
from simfluence._errors import Error, UsageError
from simfluence._tables import Exported, Records, Table, html, text


class Curves(Exported):
    """Losses (nats per target token), or another metric, of the test examples after some steps.

    As a table it is long: `step`, `key`, `dataset`, `test_id`, the metric and, where there are
    bands, `low` and `high`; one row for each value that was measured.

    Attributes
    ----------
    steps : array of shape (s,)
        The steps that were evaluated; 0 is before any step.
    values : array of shape (s, m)
        NaN where `measured` is false.
    measured : array of bool of shape (s, m)
        A NaN where this is true was really measured.
    low, high : array of shape (s, m), or None
        Ends of the bands, where a simulator has them.
    """

    def __init__(
        self,
        native: _native.Curves,
        run_set: RunSet,
        metric: str = "loss",
        band: tuple[_native.Curves, _native.Curves] | None = None,
    ) -> None:
        self._run_set, self._metric = run_set, metric
        self.low: NDArray[np.float32] | None = None if band is None else band[0].values
        self.high: NDArray[np.float32] | None = None if band is None else band[1].values
        self.steps: NDArray[np.uint32] = native.steps
        self.values: NDArray[np.float32] = native.values
        self.measured: NDArray[np.bool_]
        if native.measured is None:
            self.measured = np.ones(self.values.shape, bool)
        else:
            self.measured = native.measured
            self.values[~self.measured] = np.nan

    @property
    def initial(self) -> NDArray[np.float32]:
        """Values before the first step, shape (m,).

        Raises
        ------
        UsageError
            They were not measured.
        """
        if not self._has_initial:
            raise UsageError(f"there is no {self._metric} before the first step (log_initial)")
        return self.values[0]

    @property
    def _has_initial(self) -> bool:
        return bool(np.any(self.steps[:1] == 0))

    @property
    def final(self) -> NDArray[np.float32]:
        """Values at the last evaluation, shape (m,).

        Raises
        ------
        UsageError
            Nothing was evaluated.
        """
        if len(self.steps) == 0:
            raise UsageError(f"there is no {self._metric} yet: nothing was evaluated")
        return self.values[-1]

    def _table(self) -> _native.ArrowTable:
        at, test = np.nonzero(self.measured)
        keys, datasets = self._run_set.test_keys, self._run_set._native.datasets[1]
        named = {self._metric: self.values, "low": self.low, "high": self.high}
        return _native.ArrowTable(
            [
                ("step", self.steps[at]),
                ("key", [keys[one] for one in test]),
                ("dataset", [datasets[one] for one in test]),
                ("test_id", test.astype(np.uint32)),
                *((name, one[at, test]) for name, one in named.items() if one is not None),
            ]
        )

    def _means(self) -> str:
        """Mean loss at the start, where it was measured, and at the end."""
        if len(self.steps) == 0:
            return "nothing evaluated"
        means = [f"{_mean(row):.3f}" for row in (self.values[0], self.values[-1])]
        shown = " → ".join(means) if self._has_initial else means[1]
        return f"mean test {self._metric} {shown}"

    def __repr__(self) -> str:
        steps, tests = self.values.shape
        return f"<simfluence.Curves: {steps} evaluations of {tests} test examples>"


def _mean(values: NDArray[np.float32]) -> float:
    """Mean of what is not NaN; NaN, without a warning, where that is nothing."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


class Run:
    """One recorded run of a run set; runs of one folder and id are equal.

    What is asked of a run that is being recorded is read anew each time.

    Parameters
    ----------
    run_set : RunSet
    id : str
        Id of the run.
    """

    def __init__(self, run_set: RunSet, id: str) -> None:
        self.run_set, self.id = run_set, id
        self._native = run_set._native
        self._read: tuple[str, Any] | None = None

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Path, str]:
        return self.run_set.path.resolve(), self.id

    @property
    def info(self) -> dict[str, Any]:
        """Settings and status, as in `run.json`."""
        return json.loads(self._native.info(self.id))

    @property
    def status(self) -> str:
        """`complete`, `aborted`, `diverged` or `recording`."""
        return self.info["status"]

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured; `loss` is the loss."""
        return self._native.metrics(self.id)

    def curves(self, metric: str = "loss") -> Curves:
        """One metric over the steps.

        Parameters
        ----------
        metric : str
            One of `metrics`.

        Returns
        -------
        Curves

        Raises
        ------
        UsageError
            The run has no such metric.
        """
        self._require(metric)
        return Curves(self._native.curves(self.id, metric), self.run_set, metric)

    def _require(self, metric: str) -> None:
        metrics = self.metrics
        if metric not in metrics:
            there = f"it has {', '.join(metrics)}" if metrics else "nothing was evaluated yet"
            raise UsageError(f"run {self.id!r} has no metric {metric!r}; {there}")

    @property
    def losses(self) -> NDArray[np.float32]:
        """Losses at every evaluation, shape (s, m)."""
        return self.curves().values

    @property
    def steps(self) -> Table:
        """What was trained: `step`, `learning_rate`, `batch`, `batch_weight`, `batch_loss`, …"""
        return Table(self._native.steps(self.id))

    def table(self, metric: str = "loss") -> Table:
        """One metric as a long table: `step`, `key`, `dataset`, `test_id` and the metric.

        Parameters
        ----------
        metric : str
            One of `metrics`.

        Returns
        -------
        Table

        Raises
        ------
        UsageError
            The run has no such metric.
        """
        self._require(metric)
        return Table(self._native.losses(self.id, metric))

    @property
    def _curriculum(self) -> tuple[list[Any], ...]:
        # Kept for as long as nobody records the run.
        info = self._native.info(self.id)
        live = json.loads(info)["status"] == "recording"
        if self._read is None or self._read[0] != info or live:
            self._read = (info, self._native.curriculum(self.id))
        return self._read[1]

    @property
    def batches(self) -> list[list[int]]:
        """Training ids of each step."""
        return self._curriculum[0]

    @property
    def learning_rates(self) -> list[float | None]:
        """Learning rate of each step, where it was recorded."""
        return self._curriculum[1]

    @property
    def weights(self) -> list[list[float] | None]:
        """Share of each member of a batch in the step's loss; `None` for equal shares."""
        return self._curriculum[2]

    @property
    def batch_losses(self) -> list[list[float] | None]:
        """Loss of each member of a batch before the update, where it was recorded."""
        return self._curriculum[3]

    def plot(self, ax: Any = None, group_by: str = "dataset") -> Any:
        """Draw the mean loss of each dataset over the steps.

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
        curves = self.curves()
        groups = self.run_set._test_groups(group_by)
        return _plots.groups(ax, curves.steps, {self.id: curves.values}, groups, self.id)

    def __repr__(self) -> str:
        try:
            shown = [self.status, f"{len(self.batches)} steps"]
            shown.append(self.curves()._means() if "loss" in self.metrics else "nothing evaluated")
        # It must be possible to look at a run that is damaged.
        except Error as error:
            shown = [f"not readable ({error})"]
        return f"<simfluence.Run {self.id!r}: {', '.join(shown)}>"


class RunSet(Sequence[Run]):
    """A run set: recorded runs over the same training and test examples.

    `run_set[id]` and `run_set[place]` give a run; iterating goes over all of them.

    Parameters
    ----------
    path : path
        The folder.

    Raises
    ------
    RunSetError
        No run set there, or its examples are missing, malformed or others than it was made with.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._native = _native.RunSetFolder.open(Path(path))
        #: The folder.
        self.path = Path(path)

    @property
    def ids(self) -> list[str]:
        """Ids of the runs, sorted."""
        return self._native.run_ids()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, run: int | str) -> Run: ...
    @overload
    def __getitem__(self, run: slice) -> list[Run]: ...  # type: ignore[override]
    def __getitem__(self, run: int | str | slice) -> Run | list[Run]:
        ids = self.ids
        if isinstance(run, slice):
            return [Run(self, id) for id in ids[run]]
        if isinstance(run, str):
            if run not in ids:
                raise UsageError(
                    f"{self.path}: there is no run {run!r}; the runs are {', '.join(ids)}"
                )
            return Run(self, run)
        return Run(self, ids[run])

    def __contains__(self, run: object) -> bool:
        if isinstance(run, Run):
            return run.id in self.ids and run == Run(self, run.id)
        return run in self.ids

    def __iter__(self) -> Iterator[Run]:
        return (Run(self, id) for id in self.ids)

    @property
    def train_examples(self) -> Table:
        """The training examples: `train_id`, `key`, `dataset`, `tags` and further columns."""
        return Table(self._native.train_examples())

    @property
    def test_examples(self) -> Table:
        """The test examples: `test_id`, `key`, `dataset`, `tags` and further columns."""
        return Table(self._native.test_examples())

    @property
    def train_keys(self) -> list[str]:
        """Keys of the training examples, in id order."""
        return self._native.keys[0]

    @property
    def test_keys(self) -> list[str]:
        """Keys of the test examples, in id order."""
        return self._native.keys[1]

    @property
    def runs(self) -> Records:
        """One row per run: id, status, design, split, edit, seed."""
        rows = []
        for run in self:
            info = run.info
            design = info.get("design") or {}
            edit = design.get("edit") or {}
            rows.append(
                {
                    "run": run.id,
                    "status": info["status"],
                    "design": design.get("design") or None,
                    "split": design.get("split"),
                    "edit": edit.get("label"),
                    "seed": info.get("seed"),
                }
            )
        return Records(rows)

    def check(self) -> dict[str, Any]:
        """Read everything and list what is wrong (`problems`) and what is there."""
        return json.loads(_native.check(self.path))

    def _test_groups(self, column: str) -> list[str]:
        if column == "dataset":
            return self._native.datasets[1]
        if column not in self.test_examples.column_names:
            raise UsageError(f"no test example has a column {column!r}")
        values = self.test_examples.to_pyarrow()[column].to_pylist()
        if any(isinstance(value, list) for value in values):
            raise UsageError(f"{column!r} holds lists; group by a column with one text per example")
        return values

    def plot(self, ax: Any = None) -> Any:
        """Draw the mean test loss of every run that was evaluated over the steps.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib axes
        """
        evaluated = [(run.id, run.curves()) for run in self if "loss" in run.metrics]
        return _plots.runs(ax, evaluated, str(self.path))

    def _counts(self) -> list[dict[str, Any]]:
        train, test = self._native.datasets
        try:
            runs = {"number": len(self), "of which": _listed(Counter(map(_status, self)))}
        # The folder may have gone.
        except Error as error:
            runs = {"number": None, "of which": f"not readable ({error})"}
        return [
            {
                "what": "training examples",
                "number": len(train),
                "of which": _listed(Counter(train)),
            },
            {"what": "test examples", "number": len(test), "of which": _listed(Counter(test))},
            {"what": "runs", **runs},
        ]

    def __repr__(self) -> str:
        table = text(["what", "number", "of which"], self._counts())
        return f"simfluence.RunSet {str(self.path)!r}\n{table}"

    def _repr_html_(self) -> str:
        return html(["what", "number", "of which"], self._counts())


def _status(run: Run) -> str:
    try:
        return run.status
    except Error:
        return "not readable"


def _listed(counts: Counter[str], most: int = 6) -> str:
    named = [f"{name} {count}" for name, count in counts.most_common(most)]
    return ", ".join(named) + (", …" if len(counts) > most else "")
