"""A run, followed from step to step in one process or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from simfluence._errors import UsageError
from simfluence._recorder import OnError, Recorder

Weighting = Literal["micro", "step", "rank"]
WEIGHTINGS = ("micro", "step", "rank")

#: Stands for a number of targets that could not be found; a loader must not fail because of it.
UNKNOWN = -1
UNCOUNTED = (
    "the examples of a batch cannot be told apart: a collator packs several into one row, or "
    "targets(batch) does not give one number per example"
)


@dataclass
class _Micro:
    """A micro-batch: ids, targets per example (`None`: one each), losses in training mode."""

    ids: Any
    targets: Any = None
    losses: Any = None

    def read(self) -> tuple[list[int], list[float], list[float] | None]:
        ids = self.ids.tolist() if isinstance(self.ids, torch.Tensor) else list(self.ids)
        targets = [1.0] * len(ids) if self.targets is None else listed(self.targets)
        if len(targets) != len(ids):
            raise UsageError(
                f"{len(targets)} numbers of targets for a batch of {len(ids)} examples"
            )
        if min(targets, default=0.0) < 0:
            raise UsageError(UNCOUNTED)
        return ids, targets, None if self.losses is None else listed(self.losses)


def require_options(eval_every: Any, weighting: Any) -> None:
    """Refuse what is no number of steps and no weighting."""
    if not isinstance(eval_every, int) or isinstance(eval_every, bool) or eval_every < 0:
        raise UsageError(f"eval_every is {eval_every!r}; it must be a whole number from 0")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise UsageError(f"weighting is {weighting!r}; it must be one of {', '.join(WEIGHTINGS)}")


def listed(values: Any) -> list[float]:
    """Read a tensor, an array or a sequence as numbers."""
    return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def shares(targets: Sequence[Sequence[Sequence[float]]], weighting: Weighting) -> list[float]:
    """Share of every example in the loss of a step.

    Parameters
    ----------
    targets
        Per process and micro-batch, the number of targets of each example.
    weighting
        How the loss of the step comes about. `micro`: each micro-batch takes the mean over its
        targets, and these means are averaged, over processes too. `step`: one mean over all
        targets of the step. `rank`: one mean per process, averaged over the processes.

    Returns
    -------
    list of float
        In the order of the processes, their micro-batches and the examples; sums to 1.
    """
    whole = sum(sum(micro) for rank in targets for micro in rank)
    weights = []
    for rank in targets:
        of_rank = sum(sum(micro) for micro in rank)
        for micro in rank:
            if weighting == "step":
                total = whole
            elif weighting == "rank":
                total = of_rank * len(targets)
            else:
                total = sum(micro) * len(rank) * len(targets)
            # A part without targets has no share, whatever it is divided by.
            weights += [count / total if total else 0.0 for count in micro]
    summed = sum(weights)
    if summed == 0:
        raise UsageError("no example of the step has a target: nothing was trained on")
    # Where a part had no targets its share went to nobody.
    return [weight / summed for weight in weights]


@dataclass
class Tracker:
    """Follows a run from step to step; what the callbacks and the loop recorder have in common.

    A step that was not evaluated is held back until the next one, so that the losses after the
    last step can still be measured when it turns out to be the last.

    Under `torch.distributed` every process has one: they gather what was trained and measured, and
    the first of them writes.

    Parameters
    ----------
    open_recorder
        Makes the recorder of the run; only called in the process that writes.
    evaluate
        Losses of the test examples at these places, in evaluation mode.
    test_count
        Number of test examples m.
    eval_every
        Evaluate all test examples after every so many steps, and after the last; 0: only before
        the first step and after the last.
    weighting
        See `shares`; may change from step to step.
    on_error
        See `simfluence.Recorder`.
    """

    open_recorder: Callable[[], Recorder]
    evaluate: Callable[[Sequence[int]], Any]
    test_count: int
    eval_every: int = 1
    weighting: Weighting = "micro"
    on_error: OnError = "warn"
    recorder: Recorder | None = None
    micro: list[_Micro] = field(default_factory=list)
    stopped: bool = False
    steps: int = 0
    #: The last step, where it is not recorded yet: parts, learning rate, number.
    held: tuple[list[dict[str, Any]], float | None, int | None] | None = None

    @property
    def world(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Number of this process."""
        return dist.get_rank() if self.world > 1 else 0

    def begin(self) -> None:
        """Open the run and measure the losses before the first step."""

        def opened() -> dict[str, Any]:
            if self.rank == 0:
                self.recorder = self.open_recorder()
                self._require_working()
                self.steps = self.recorder.steps
            started = self.steps > 0 or bool(self.recorder and self.recorder.has_initial)
            return {"steps": self.steps, "started": started}

        parts = self._exchange(opened)
        if parts is None:
            return
        self.steps = parts[0]["steps"]
        if parts[0]["started"]:
            return
        parts = self._exchange(self._measured)
        recorder = self.recorder
        if parts is not None and recorder is not None:
            self._guarded(lambda: recorder.log_initial(self._losses(parts)))

    def see(self, ids: Any, targets: Any = None, losses: Any = None) -> None:
        """Note a micro-batch of the step under way."""
        if not self.stopped:
            self.micro.append(_Micro(ids, targets, losses))

    def end_step(
        self, learning_rate: float | None, number: int | None = None, last: bool = False
    ) -> None:
        """Record the step that the noted micro-batches make.

        Parameters
        ----------
        learning_rate
            Its learning rate.
        number
            The step's number as the trainer counts, from 1.
        last
            Whether it is the last step, after which test examples are evaluated in any case.
        """
        if self.stopped:
            return
        self._release()
        micro, self.micro = self.micro, []
        self.steps += 1
        due = last or (self.eval_every > 0 and self.steps % self.eval_every == 0)

        def trained() -> dict[str, Any]:
            if not micro:
                raise UsageError(
                    "the step has no batch whose examples are known: every step needs a batch of its "
                    "own from the loader that is recorded (of several updates on one batch only the "
                    "first can be recorded)"
                )
            return {"micro": [one.read() for one in micro], **(self._measured() if due else {})}

        parts = self._exchange(trained)
        if parts is None:
            return
        self.held = (parts, learning_rate, number)
        if due:
            self._release(self._losses(parts))

    def complete(self) -> None:
        """Measure the losses after the step that has just ended, unless that has been done."""
        if self.stopped or self.held is None:
            return
        parts = self._exchange(self._measured)
        if parts is not None:
            self._release(self._losses(parts))

    def _release(self, losses: Any = None) -> None:
        """Record the step that is held back, with the losses after it if they were measured."""
        held, self.held = self.held, None
        if held is None:
            return
        recorder = self.recorder
        if recorder is not None:
            self._guarded(lambda: self._log(recorder, *held, losses))

    def _log(
        self,
        recorder: Recorder,
        parts: list[dict[str, Any]],
        rate: float | None,
        number: int | None,
        measured: Any,
    ) -> None:
        ranks = [part["micro"] for part in parts]
        members = [micro for rank in ranks for micro in rank]
        numbers = [n for rank in ranks for n, micro in enumerate(rank) for _ in micro[0]]
        losses = [loss for _, _, some in members for loss in some or []]
        ids = [one for batch, _, _ in members for one in batch]
        weights = shares([[micro[1] for micro in rank] for rank in ranks], self.weighting)
        equal = max(weights) - min(weights) < 1e-9
        recorder.log_step(
            ids,
            losses=measured,
            learning_rate=rate,
            weights=None if equal else weights,
            micro=numbers if max(numbers) > 0 else None,
            batch_loss=losses if len(losses) == len(ids) else None,
            step=number,
        )

    def _measured(self) -> dict[str, Any]:
        places = range(self.rank, self.test_count, self.world)
        return {"losses": np.asarray(listed(self.evaluate(places)), np.float32)}

    def _losses(self, parts: list[dict[str, Any]]) -> Any:
        losses = np.empty(self.test_count, np.float32)
        for rank, part in enumerate(parts):
            losses[rank :: self.world] = part["losses"]
        return losses

    def finish(self, aborted: bool = False) -> None:
        """End the run."""
        if not self.stopped:
            self._release()
        if self.recorder is not None and self.recorder.is_open:
            self.recorder.abort() if aborted else self.recorder.finish()
        self.stopped = True

    def flush(self) -> None:
        """Bring everything recorded so far to the disk."""
        if self.recorder is not None and not self.stopped:
            self._release()
            self._guarded(self.recorder.flush)

    def fail(self, error: Exception) -> None:
        """Record nothing more because of an error, or raise it, as `on_error` says."""
        if self.on_error == "raise":
            raise error
        self.stopped = True
        if self.recorder is not None:
            self.recorder.fail(error)
        elif self.rank == 0:
            warnings.warn(
                f"simfluence records nothing of this run; training goes on. "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _guarded(self, work: Callable[[], Any]) -> None:
        if self.stopped:
            return
        try:
            work()
            self._require_working()
        except Exception as error:
            self._failed = error
            if self.world == 1:
                self.fail(error)

    #: An error that the other processes do not know of yet.
    _failed: Exception | None = None

    def _require_working(self) -> None:
        if self.recorder is not None and self.recorder.failure is not None:
            raise self.recorder.failure

    def _exchange(self, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]] | None:
        """What `work` gives in every process; `None` if it failed in one, and then in all.

        A process whose work failed takes part all the same: the others would wait for it forever.
        """
        if self.stopped:
            return None
        result: dict[str, Any] = {}
        error = self._failed
        try:
            if error is None:
                result = work()
        except Exception as caught:
            error = caught
        parts: list[Any] = [(result, error)]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(
                parts, (result, None if error is None else RuntimeError(str(error)))
            )
        for rank, (_, failure) in enumerate(parts):
            if failure is not None:
                # The others only have its text.
                self.fail(error if rank == self.rank and error is not None else failure)
                return None
        return [part for part, _ in parts]
