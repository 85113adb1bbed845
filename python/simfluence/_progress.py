"""Progress of long work: a bar in terminals and notebooks, where tqdm is there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any


def bar(show: bool | None) -> Callable[[str, str, int], None] | None:
    """Make what draws the progress of one call.

    Parameters
    ----------
    show
        Whether to draw; `None`: in terminals and notebooks only. Without tqdm nothing is drawn,
        which is said once where it was asked for.
    """
    asked = bool(show)
    if show is None:
        show = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not show:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if asked:
            _miss_tqdm()
        return None
    return _Bar(tqdm)


@cache
def _miss_tqdm() -> None:
    warnings.warn(
        "progress bars need tqdm: pip install simfluence[progress]", RuntimeWarning, stacklevel=4
    )


class _Bar:
    def __init__(self, tqdm: Any) -> None:
        self.tqdm = tqdm
        self.drawn: Any = None

    def __call__(self, event: str, what: str, number: int) -> None:
        if event == "begin":
            self.drawn = self.tqdm(total=number or None, desc=what, leave=False)
        elif self.drawn is not None:
            self.drawn.update(number)
            if event == "end":
                self.drawn.close()
                self.drawn = None
