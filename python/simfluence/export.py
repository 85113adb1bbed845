"""Mean losses of a run in the trackers that people have, with their own clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from simfluence._run_set import Run


def scalars(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Go over the steps of a run with what there is to plot.

    Yields
    ------
    step : int
        0 is before any step.
    values : dict
        `test_loss` (mean over the test examples), `test_loss/DATASET`, `learning_rate`; where they
        were recorded.
    """
    curves = run.curves()
    datasets = np.array(run.run_set._test_groups("dataset"))
    measured = {int(step): row for step, row in zip(curves.steps, curves.values, strict=True)}
    for step in range(len(run.batches) + 1):
        values: dict[str, float] = {}
        if step in measured:
            values["test_loss"] = float(np.nanmean(measured[step]))
            for name in dict.fromkeys(datasets):
                values[f"test_loss/{name}"] = float(np.nanmean(measured[step][datasets == name]))
        rate = run.learning_rates[step - 1] if step > 0 else None
        if rate is not None:
            values["learning_rate"] = rate
        yield step, values


def to_mlflow(run: Run, **options: Any) -> str:
    """Log a run to MLflow; gives the id of its run there.

    Parameters
    ----------
    run : Run
    **options
        Arguments of `mlflow.start_run`.
    """
    import mlflow

    with mlflow.start_run(**{"run_name": run.id, **options}) as started:
        for step, values in scalars(run):
            mlflow.log_metrics(values, step=step)
        return started.info.run_id


def to_wandb(run: Run, **options: Any) -> None:
    """Log a run to Weights & Biases.

    Parameters
    ----------
    run : Run
    **options
        Arguments of `wandb.init`, such as `project`.
    """
    import wandb

    with wandb.init(**{"name": run.id, "config": run.info, **options}) as started:
        for step, values in scalars(run):
            started.log(values, step=step)
