"""The experimental design of a run set: which examples a run trains on, in which order, how often."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simfluence import _native
from simfluence._errors import UsageError


class Plan:
    """The curricula of the runs of a run set: what each run trains on, step by step.

    With ordinary runs alone (everything shuffled) no simulator can answer a what-if, because every
    dataset is there all the time. The default design is *diversified*: segments with their own
    mixture of the datasets and learning rates that vary, ordinary runs held out besides, and a
    *counterfactual suite* of held-out runs with a dataset dropped, repeated, kept alone, trained in
    blocks, or with another learning rate.

    Make one with `Plan.draw` or `Plan.read`. The same arguments draw the same plan on any machine.
    """

    def __init__(self, native: Any, train_count: int) -> None:
        self._native = native
        #: Number of training examples.
        self.train_count = train_count

    @classmethod
    def draw(
        cls,
        datasets: int | Sequence[str],
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        schedule: Mapping[str, Any] | None = None,
        seed: int = 0,
        kind: str = "diversified",
        runs: int = 24,
        held_out: int = 8,
        held_out_ordinary: int = 2,
        subset: int | None = None,
        suite: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Plan:
        """Draw a plan.

        Parameters
        ----------
        datasets : sequence of str, length n, or int
            The dataset of each training example; or their number, all of one dataset.
        steps, batch_size : int
            Steps of a run, and examples per batch.
        learning_rate : float
            Peak learning rate.
        schedule : mapping, optional
            Schedule of ordinary runs: `kind` (`constant`, `linear`, `cosine`), `warmup_steps`.
        seed : int
            Seed of everything that is drawn.
        kind : {"diversified", "ordinary"}
            How runs are drawn: segments with their own mixture of the datasets, or shuffled epochs
            over a subset.
        runs, held_out, held_out_ordinary : int
            Numbers of training runs, of held-out runs of the same kind, and of ordinary held-out
            runs besides.
        subset : int, optional
            Training examples in an ordinary run, drawn anew for each; by default all.
        suite : mapping, optional
            The counterfactual suite: `bases` (how many held-out runs are edited, 0 for none),
            `kinds`, `repeat`, `blocked_orders`, `kept_pairs`, `learning_rate_factors`.
        **settings
            `segments`, `concentration`, `subsets`, `learning_rate_factors` of diversified runs, and
            `ordinary`: how many of the training runs are ordinary.

        Returns
        -------
        Plan

        Raises
        ------
        UsageError
            A setting that is not known or does not fit.
        """
        named = (
            ["train"] * datasets if isinstance(datasets, int) else [str(one) for one in datasets]
        )
        design = {
            "kind": kind,
            "runs": runs,
            "held_out": held_out,
            "held_out_ordinary": held_out_ordinary,
            "subset": subset,
            "suite": dict(suite or {}),
            "seed": seed,
            **settings,
        }
        native = _native.Plan.draw(
            json.dumps(design),
            json.dumps(dict(schedule or {})),
            steps,
            batch_size,
            learning_rate,
            named,
        )
        return cls(native, len(named))

    @classmethod
    def read(cls, path: str | os.PathLike[str], train_count: int) -> Plan:
        """Read a plan file.

        Parameters
        ----------
        path : path
            A file of `write`, or of `simfluence plan`.
        train_count : int
            Number of training examples.

        Returns
        -------
        Plan

        Raises
        ------
        RunSetError
            No such file, or one of more training examples.
        """
        return cls(_native.Plan.read(Path(path), train_count), train_count)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, so that its runs can be trained anywhere.

        Parameters
        ----------
        path : path
            The Parquet file; one that is there is replaced.
        """
        self._native.write(Path(path))

    @property
    def ids(self) -> list[str]:
        """Ids of the runs, in order."""
        return self._native.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, run: int | str) -> PlannedRun:
        ids = self.ids
        if isinstance(run, str):
            if run not in ids:
                raise UsageError(f"the plan has no run {run!r}; its runs are {', '.join(ids)}")
            run = ids.index(run)
        if not -len(ids) <= run < len(ids):
            raise IndexError(f"run {run} of a plan of {len(ids)} runs")
        return PlannedRun(ids[run], *self._native.run(run % len(ids)))

    def __iter__(self) -> Iterator[PlannedRun]:
        return (self[run] for run in range(len(self)))

    def __repr__(self) -> str:
        return f"<simfluence.Plan: {len(self)} runs over {self.train_count} training examples>"


class PlannedRun:
    """A run that is still to be trained.

    Attributes
    ----------
    id : str
        Id of the run.
    seed : int
        Seed of everything random in its training.
    design : dict
        What the run is for, as `Recorder(design=…)` takes it.
    batches : list of list of int
        Ids of the training examples of each step.
    learning_rates : list of float or None
        Learning rate of each step.
    """

    def __init__(
        self,
        id: str,
        seed: int,
        design: str,
        batches: list[list[int]],
        learning_rates: list[float | None],
    ) -> None:
        self.id, self.seed, self.design = id, seed, json.loads(design)
        self.batches, self.learning_rates = batches, learning_rates

    def __repr__(self) -> str:
        return f"<simfluence.PlannedRun {self.id!r}: {len(self.batches)} steps>"
