"""Run sets, as one looks at them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simfluence import _native, _plots
from simfluence._errors import UsageError
from simfluence._tables import Records, Table, html, text


class Curves:
    """Losses, or another metric, of the test examples after some steps.

    Attributes
    ----------
    steps : array of shape (s,)
        The steps that were evaluated; 0 is before any step.
    values : array of shape (s, m)
        NaN where `measured` is false.
    measured : array of bool of shape (s, m)
        A NaN where this is true was really measured.
    """

    def __init__(self, native: Any) -> None:
        self.steps: NDArray[np.uint32] = native.steps
        self.values: NDArray[np.float32] = native.values
        if native.measured is None:
            self.measured = np.ones(self.values.shape, bool)
        else:
            self.measured = native.measured
            self.values[~self.measured] = np.nan

    @property
    def initial(self) -> NDArray[np.float32]:
        """Values before the first step, shape (m,)."""
        return self.values[0]

    @property
    def final(self) -> NDArray[np.float32]:
        """Values at the last evaluation, shape (m,)."""
        return self.values[-1]

    def __repr__(self) -> str:
        steps, tests = self.values.shape
        return f"<simfluence.Curves: {steps} evaluations of {tests} test examples>"


class Run:
    """One recorded run of a run set."""

    def __init__(self, run_set: RunSet, id: str) -> None:
        self.run_set, self.id = run_set, id
        self._native = run_set._native

    @cached_property
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
        """One metric over the steps."""
        if metric not in self.metrics:
            raise UsageError(
                f"run {self.id!r} has no metric {metric!r}; it has {', '.join(self.metrics)}"
            )
        return Curves(self._native.curves(self.id, metric))

    @property
    def losses(self) -> NDArray[np.float32]:
        """Losses at every evaluation, shape (s, m)."""
        return self.curves().values

    @property
    def steps(self) -> Table:
        """What was trained: `step`, `learning_rate`, `batch`, `batch_weight`, `batch_loss`, …"""
        return Table(self._native.steps(self.id))

    def table(self, metric: str = "loss") -> Table:
        """One metric as a long table: `step`, `key`, `dataset`, `test_id` and the metric."""
        return Table(self._native.losses(self.id, metric))

    @cached_property
    def _curriculum(self) -> tuple[list[Any], ...]:
        return self._native.curriculum(self.id)

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
        """Draw the mean loss of each dataset over the steps; gives the matplotlib axes."""
        curves = self.curves()
        groups = self.run_set._test_groups(group_by)
        return _plots.groups(ax, curves.steps, {self.id: curves.values}, groups, self.id)

    def __repr__(self) -> str:
        info, curves = self.info, self.curves()
        first, last = (float(np.nanmean(row)) for row in (curves.initial, curves.final))
        return (
            f"<simfluence.Run {self.id!r}: {info['status']}, {len(self.batches)} steps, "
            f"mean test loss {first:.3f} → {last:.3f}>"
        )


class RunSet(Sequence[Run]):
    """A run set: recorded runs over the same training and test examples.

    `run_set[id]` and `run_set[place]` give a run; iterating goes over all of them.
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

    def __getitem__(self, run: Any) -> Any:
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
            design = run.info.get("design") or {}
            edit = design.get("edit") or {}
            rows.append(
                {
                    "run": run.id,
                    "status": run.status,
                    "design": design.get("design") or None,
                    "split": design.get("split"),
                    "edit": edit.get("label"),
                    "seed": run.info.get("seed"),
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
        return self.test_examples.to_pyarrow()[column].to_pylist()

    def plot(self, ax: Any = None) -> Any:
        """Draw the mean test loss of every run over the steps; gives the matplotlib axes."""
        return _plots.runs(ax, [(run.id, run.curves()) for run in self], str(self.path))

    def _counts(self) -> list[dict[str, Any]]:
        train, test = self._native.datasets
        status = Counter(run.status for run in self)
        return [
            {
                "what": "training examples",
                "number": len(train),
                "of which": _listed(Counter(train)),
            },
            {"what": "test examples", "number": len(test), "of which": _listed(Counter(test))},
            {"what": "runs", "number": len(self), "of which": _listed(status)},
        ]

    def __repr__(self) -> str:
        table = text(["what", "number", "of which"], self._counts())
        return f"simfluence.RunSet {str(self.path)!r}\n{table}"

    def _repr_html_(self) -> str:
        return html(["what", "number", "of which"], self._counts())


def _listed(counts: Counter[str], most: int = 6) -> str:
    named = [f"{name} {count}" for name, count in counts.most_common(most)]
    return ", ".join(named) + (", …" if len(counts) > most else "")
