"""Pictures with matplotlib, which is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simfluence._errors import Error, UsageError

_UNIT = "loss (nats per target token)"


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise Error("plots need matplotlib: pip install simfluence[plot]") from None
    return plt.subplots(figsize=(7, 4))[1]


def _finish(ax: Any, title: str, ylabel: str = _UNIT) -> Any:
    ax.set(xlabel="step", ylabel=ylabel, title=title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    return ax


def groups(
    ax: Any,
    steps: Any,
    curves: Mapping[str, Any],
    group_of: Sequence[str],
    title: str,
    band: tuple[Any, Any] | None = None,
) -> Any:
    """Draw the mean of each group; one style of line per named curve."""
    ax = _axes(ax)
    styles = ["-", "--", ":", "-."]
    for colour, group in enumerate(dict.fromkeys(group_of)):
        members = np.array([one == group for one in group_of])
        for style, (name, values) in zip(styles, curves.items(), strict=False):
            label = group if len(curves) == 1 else f"{group}, {name}"
            mean = np.nanmean(values[:, members], axis=1)
            ax.plot(
                steps,
                mean,
                styles[0] if len(curves) == 1 else style,
                color=f"C{colour}",
                label=label,
            )
        if band is not None:
            ends = [np.nanmean(end[:, members], axis=1) for end in band]
            ax.fill_between(steps, *ends, color=f"C{colour}", alpha=0.15, linewidth=0)
    return _finish(ax, title)


def runs(ax: Any, curves: Sequence[tuple[str, Any]], title: str) -> Any:
    """Draw the mean over the test examples of several runs."""
    ax = _axes(ax)
    for name, one in curves:
        ax.plot(one.steps, np.nanmean(one.values, axis=1), label=name, alpha=0.8)
    return _finish(ax, title)


def bars(ax: Any, rows: Sequence[Mapping[str, Any]], column: str, title: str) -> Any:
    """Draw one bar per method that has a number in the column."""
    numbers = [
        {name for name, value in row.items() if isinstance(value, (int, float))} for row in rows
    ]
    shown = [row for row, there in zip(rows, numbers, strict=True) if column in there]
    if not shown:
        names = [name for name in rows[0] if any(name in there for there in numbers)]
        raise UsageError(f"{title}: no numbers to draw; there are {', '.join(names)}")
    ax = _axes(ax)
    ax.barh([row["method"] for row in shown], [row[column] for row in shown])
    ax.invert_yaxis()
    ax.set(xlabel=column, title=title)
    return ax
