"""Dataset cartography of recorded runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from simfluence._analysis import Path_, _id, _opened
from simfluence._errors import UsageError
from simfluence._run_set import Run, RunSet
from simfluence._tables import Records


def cartography(
    run: Run | RunSet | Path_,
    id: str | int | None = None,
    *,
    of: str = "train",
    threshold: float = 0.5,
) -> Records:
    """Tell easy, ambiguous and hard examples apart by how a run learns them.

    The probability of an example's targets is `p = exp(−loss)`, per target token.

    Parameters
    ----------
    run : Run, RunSet or path
        A run, or a run set and the run's `id`.
    id : str or int, optional
        Id or number of the run.
    of : {"train", "test"}
        Training examples, from the losses of the batches (`batch_loss`): one observation for each
        time that an example is trained on, before the update. Or test examples, from their losses
        at every evaluation after the first step.
    threshold : float
        An observation counts as correct if `p` exceeds this; with 0.5 no other answer can be more
        probable. Where the run has a metric `correct` or `accuracy` of the test examples, that is
        taken.

    Returns
    -------
    Records
        One row per example: `key`, `dataset`, `observations`, `confidence` (mean of p),
        `variability` (its standard deviation over the observations), `correctness` (share of
        correct observations), `forgetting_events` (correct, then not, at successive observations)
        and `never_correct`. Without observations the numbers are `None`.

    Raises
    ------
    UsageError
        No such run, or a run without the losses that are looked at.

    References
    ----------
    Swayamdipta et al. 2020, section 2 (confidence, variability, correctness); Toneva et al. 2019,
    section 3 (forgetting events).
    """
    if not isinstance(run, Run):
        if id is None:
            raise UsageError("give the id of a run of the run set")
        opened = _opened(run)
        run = opened[_id(opened, id)]
    if of not in ("train", "test"):
        raise UsageError(f"of is {of!r}; it must be 'train' or 'test'")
    axis = 0 if of == "train" else 1
    keys, datasets = run.run_set._native.keys[axis], run.run_set._native.datasets[axis]
    seen = _train_losses(run, len(keys)) if of == "train" else _test_losses(run)
    given = _correct(run) if of == "test" else None
    rows = []
    for place, losses in enumerate(seen):
        p = np.exp(-np.asarray(losses, np.float64))
        correct = p > threshold if given is None else given[place]
        rows.append({"key": keys[place], "dataset": datasets[place], **_statistics(p, correct)})
    return Records(rows)


def _statistics(p: Any, correct: Any) -> dict[str, Any]:
    if len(p) == 0:
        names = ("confidence", "variability", "correctness", "forgetting_events", "never_correct")
        return {"observations": 0, **dict.fromkeys(names)}
    return {
        "observations": len(p),
        "confidence": float(p.mean()),
        "variability": float(p.std()),
        "correctness": float(np.mean(correct)),
        "forgetting_events": int(np.sum(correct[:-1] & ~correct[1:])),
        "never_correct": not bool(np.any(correct)),
    }


def _train_losses(run: Run, count: int) -> list[list[float]]:
    if not any(losses is not None for losses in run.batch_losses):
        raise UsageError(
            f"run {run.id!r} has no losses of its batches; record them (batch_loss=True), or look at "
            "the test examples: of='test'"
        )
    seen: list[list[float]] = [[] for _ in range(count)]
    for batch, losses in zip(run.batches, run.batch_losses, strict=True):
        for example, loss in zip(batch, losses or [], strict=False):
            seen[example].append(loss)
    return seen


def _test_losses(run: Run) -> list[Any]:
    curves = run.curves()
    after = curves.steps > 0
    return [
        curves.values[after & curves.measured[:, test], test]
        for test in range(curves.values.shape[1])
    ]


def _correct(run: Run) -> list[Any] | None:
    metric = next((name for name in ("correct", "accuracy") if name in run.metrics), None)
    if metric is None:
        return None
    loss, curves = run.curves(), run.curves(metric)
    if not np.array_equal(loss.steps, curves.steps) or (loss.measured != curves.measured).any():
        return None
    after = curves.steps > 0
    return [
        curves.values[after & curves.measured[:, test], test] > 0.5
        for test in range(curves.values.shape[1])
    ]
