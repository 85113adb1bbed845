"""Recording runs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np

from simfluence import _arrays, _examples, _native
from simfluence._arrays import Array
from simfluence._errors import UsageError

OnError = Literal["raise", "warn"]
Result = TypeVar("Result")

_DESIGN = ("design", "split", "edit")
_SETTINGS = (
    "batch_size",
    "planned_steps",
    "trainable_parameters",
    "base_model",
    "loss",
    "threads",
    "device",
    "software",
    "extra",
)

#: Losses of all test examples; or the ids or keys of some and their losses.
Losses = Array | tuple[Array, Array]


class Recorder:
    """Record one run of a training loop into a run set.

    A run set is a folder of Parquet files that any reader opens. It is written as it happens: a
    process that is killed at any moment loses at most the open segment (256 steps, 8 MiB or 30
    seconds, whichever comes first).

    Parameters
    ----------
    run_set : path
        Folder of the run set; it is made if it is not there. All its runs have the same examples.
    train_examples, test_examples
        What batches are made of, and whose losses are followed: how many there are, their keys, a
        mapping from keys to datasets, one mapping per example (`key`, `dataset`, `tags`, further
        texts), or a table with such columns (pandas, polars, pyarrow, `datasets.Dataset`). May be
        left out for a run set that is there.
    run : str, optional
        Id of the run, by default the next free of `run-000`, `run-001`, …
    resume : int, optional
        Go on with the run after this many steps. What was recorded after them is kept aside.
    seed : int, optional
        Seed of everything random in the run.
    optimizer : mapping, optional
        The optimiser with its constants, such as
        `{"name": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}`
        (`sgd`, `rmsprop`, `adam`, `adamw`, `adafactor`).
    schedule : mapping, optional
        Learning-rate schedule, such as `{"kind": "linear", "warmup_steps": 10}`.
    design : mapping, optional
        How the batches were drawn: `design` (`ordinary`, `diversified`, `suite`, `given`), `split`
        (`train`, `held-out`), `edit`.
    settings : mapping, optional
        Further entries of `run.json`: `batch_size`, `planned_steps`, `trainable_parameters`,
        `base_model`, `loss`, `threads`, `device`, `software`, `extra`.
    segment_rows : int, optional
        Close a segment after this many steps, default 256.
    segment_seconds : float, optional
        Close a segment after this long, default 30.
    on_error : {"raise", "warn"}
        What to do when recording fails: raise the error; or warn once, mark the run `aborted` and
        record nothing more, so that training goes on.

    Raises
    ------
    RunSetError
        A run set of other examples, a run that is there or being recorded, a folder that cannot be
        written.

    Examples
    --------
    >>> import tempfile, simfluence
    >>> folder = tempfile.mkdtemp()
    >>> with simfluence.Recorder(folder, ["a", "b"], ["x"]) as recorder:
    ...     recorder.log_initial([2.0])
    ...     recorder.log_step([0, 1], losses=[1.5], learning_rate=1e-3)
    >>> simfluence.open(folder)["run-000"].losses.tolist()
    [[2.0], [1.5]]
    """

    def __init__(
        self,
        run_set: str | os.PathLike[str],
        train_examples: Any = None,
        test_examples: Any = None,
        *,
        run: str | None = None,
        resume: int | None = None,
        seed: int | None = None,
        optimizer: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        design: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        segment_rows: int | None = None,
        segment_seconds: float | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise UsageError(f"on_error is {on_error!r}; it must be 'raise' or 'warn'")
        _require_known(settings or {}, _SETTINGS, "settings")
        _require_known(design or {}, _DESIGN, "design")
        self.on_error = on_error
        #: What recording failed with, if it did.
        self.failure: Exception | None = None
        self.path = Path(run_set)
        self.run = run or ""
        self._native: Any = None
        self._train_ids: dict[str, int] = {}
        self._test_ids: dict[str, int] = {}
        info = {
            "status": "recording",
            "seed": seed,
            "optimizer": None if optimizer is None else dict(optimizer),
            "schedule": None if schedule is None else dict(schedule),
            "design": {"design": "given", **(design or {})},
            **(settings or {}),
        }
        segments = (segment_rows, segment_seconds)
        self._guarded(lambda: self._begin(train_examples, test_examples, info, resume, segments))

    def _begin(
        self,
        train_examples: Any,
        test_examples: Any,
        info: dict[str, Any],
        resume: int | None,
        segments: tuple[int | None, float | None],
    ) -> None:
        folder = _open_or_create(self.path, train_examples, test_examples)
        self._set = folder
        train, test = folder.keys
        self._train_ids = {key: place for place, key in enumerate(train)}
        self._test_ids = {key: place for place, key in enumerate(test)}
        self.run = self.run or _free_id(folder)
        if resume is None:
            self._native = folder.recorder(self.run, json.dumps(info), *segments)
        else:
            self._native = folder.resume(self.run, resume, *segments)

    @property
    def steps(self) -> int:
        """Number of steps recorded so far."""
        return self._native.steps if self.is_open else 0

    @property
    def has_initial(self) -> bool:
        """Whether the losses before the first step are recorded."""
        return bool(self.is_open and self._native.has_initial)

    @property
    def is_open(self) -> bool:
        """Whether more can be recorded."""
        return self._native is not None and self._native.is_open

    def log_initial(self, losses: Losses, metrics: Mapping[str, Losses] | None = None) -> None:
        """Record the losses before the first step.

        Parameters
        ----------
        losses : array of shape (m,), or pair of arrays
            Loss of every test example, in nats per target token; or the ids (or keys) of some test
            examples and their losses.
        metrics : mapping, optional
            Further metrics by name, given like the losses.
        """
        self._guarded(lambda: self._native.log_initial(self._metrics(losses, metrics)))

    def log_step(
        self,
        batch: Sequence[int | str] | Array,
        *,
        losses: Losses | None = None,
        learning_rate: float | None = None,
        weights: Array | None = None,
        micro: Array | None = None,
        batch_loss: Array | None = None,
        grad_norm: float | None = None,
        metrics: Mapping[str, Losses] | None = None,
        step: int | None = None,
    ) -> None:
        """Record the next optimiser update.

        Parameters
        ----------
        batch : sequence of ids or keys, length b
            The training examples that the update was computed on; one may stand there twice.
        losses : array of shape (m,), or pair of arrays, optional
            Losses after the step, where they were evaluated; as for `log_initial`.
        learning_rate : float, optional
            Learning rate of the step.
        weights : array of shape (b,), optional
            Share of each member in the step's loss; they sum to 1. By default equal shares. Where
            the loss is a mean over tokens, a member's share is its share of the tokens.
        micro : array of shape (b,), optional
            Micro-batch of each member, for gradient accumulation.
        batch_loss : array of shape (b,), optional
            Loss of each member in training mode, before the update.
        grad_norm : float, optional
            Norm of the gradient.
        metrics : mapping, optional
            Further metrics of the test examples by name, given like the losses.
        step : int, optional
            Number of the step as the trainer counts, from 1; checked against the recorder's.

        Raises
        ------
        RunSetError
            An id out of range, an empty batch, weights that do not sum to 1, a step out of order, a
            list of another length; nothing is recorded then.
        """
        self._guarded(
            lambda: self._native.log_step(
                _arrays.ids(batch, self._train_ids, "batch"),
                None if learning_rate is None else float(learning_rate),
                None if weights is None else _arrays.floats(weights, "weights"),
                None if micro is None else _arrays.integers(micro, np.uint16, "micro"),
                None if batch_loss is None else _arrays.floats(batch_loss, "batch_loss"),
                None if grad_norm is None else float(grad_norm),
                self._metrics(losses, metrics),
                step,
            )
        )

    def _metrics(self, losses: Losses | None, metrics: Mapping[str, Losses] | None) -> list[Any]:
        named = {} if losses is None else {"loss": losses}
        return [self._metric(name, one) for name, one in {**named, **(metrics or {})}.items()]

    def _metric(self, name: str, values: Losses) -> tuple[str, Any, Any]:
        if isinstance(values, tuple) and len(values) == 2 and not np.isscalar(values[0]):
            some = _arrays.ids(values[0], self._test_ids, f"test ids of {name}")
            return (name, some, _arrays.floats(values[1], name, len(some)))
        return (name, None, _arrays.floats(values, name))

    def save_checkpoint(self, step: int, data: bytes) -> None:
        """Save the state after `step` steps, as the bytes of a safetensors file.

        The open segment is closed first, so that the run can be resumed from there.

        Parameters
        ----------
        step : int
            A recorded step, or 0.
        data : bytes
            A safetensors file, kept as it is.
        """
        self._guarded(lambda: self._native.save_checkpoint(step, data))

    def flush(self) -> None:
        """Close the open segment, so that nothing recorded until now can be lost."""
        self._guarded(lambda: self._native.flush())

    def finish(self) -> str | None:
        """End the run.

        Returns
        -------
        str or None
            Its status: `complete`, or `diverged` where a loss is not finite; None if it had ended.
        """
        return self._end(lambda: self._native.finish())

    def abort(self) -> str | None:
        """End the run before its last step.

        Returns
        -------
        str or None
            Its status, `aborted` or `diverged`; None if it had ended.
        """
        return self._end(lambda: self._native.abort())

    def _end(self, end: Callable[[], str]) -> str | None:
        return self._guarded(end) if self.is_open else None

    def _guarded(self, work: Callable[[], Result]) -> Result | None:
        if self.failure is not None:
            return None
        try:
            return work()
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """Give up recording because of an error: warn once and mark the run `aborted`.

        Parameters
        ----------
        error : Exception
            What the warning tells.
        """
        if self.failure is not None:
            return
        self.failure = error
        warnings.warn(
            f"simfluence records nothing more of run {self.run!r} in {self.path}; training goes on. "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        if self.is_open:
            try:
                self._native.abort()
            # The disk may be what failed: what was closed before is there all the same.
            except Exception:
                pass
            self._native = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def __repr__(self) -> str:
        if self.failure is not None:
            state = "failed"
        else:
            state = f"{self.steps} steps" if self.is_open else "ended"
        return f"<simfluence.Recorder {self.run!r} in {str(self.path)!r}: {state}>"


def _open_or_create(path: Path, train_examples: Any, test_examples: Any) -> Any:
    if train_examples is None and test_examples is None:
        return _native.RunSetFolder.open(path)
    if train_examples is None or test_examples is None:
        raise UsageError("give both train_examples and test_examples, or neither")
    return _native.RunSetFolder.create_or_open(
        path, _examples.rows(train_examples, "train"), _examples.rows(test_examples, "test")
    )


def _require_known(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(f"{what} has no {unknown[0]!r}; there are {', '.join(known)}")


def _free_id(folder: Any) -> str:
    taken = set(folder.run_ids())
    return next(name for name in (f"run-{n:03}" for n in range(10**6)) if name not in taken)
