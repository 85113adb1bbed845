"""Recording PyTorch training loops.

`DataLoader` carries the ids of the examples beside the batches, and `TrainingRecorder` records a run
while a loop of your own trains. `simfluence.transformers` and `simfluence.lightning` have callbacks
that do the same for their trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

from simfluence._errors import UsageError
from simfluence._evaluation import evaluate, length, preserved, to_device, token_mean_loss
from simfluence._loading import Collated, CurriculumSampler, DataLoader, WithIds
from simfluence._recorder import OnError, Recorder
from simfluence._settings import optimizer_settings, run_settings
from simfluence._tracker import UNKNOWN, Tracker, Weighting, listed, shares

__all__ = [
    "CurriculumSampler",
    "DataLoader",
    "Tracker",
    "TrainingRecorder",
    "WithIds",
    "evaluate",
    "preserved",
    "shares",
    "token_mean_loss",
]


class TrainingRecorder:
    """Record a training loop of your own.

    A step is a call of `optimizer.step()`; its batch is what `loader` gave since the call before
    (several batches where gradients are accumulated).

    Parameters
    ----------
    run_set : path
        Folder of the run set; it is made if it is not there.
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
    loader : DataLoader
        A `simfluence.torch.DataLoader` over the training examples.
    test_batches : sequence
        The test examples as collated batches, in order; kept in memory.
    example_loss : callable
        `example_loss(model, batch)`: the loss of each example of a batch, a tensor of shape (b,).
    train_examples, test_examples
        As for `simfluence.Recorder`; by default named by their places.
    eval_every : int
        Evaluate the test examples after every so many steps, default 1.
    targets : callable, optional
        `targets(batch)` with the number of targets (tokens) of each example of a batch, where the
        loss is a mean over them; by default one each. It gets the batch as the loader gave it.
    weighting : {"micro", "step", "rank"}
        How the loss of a step comes about from its micro-batches, see `shares`; default `micro`.
    last_step : int, optional
        Number of the last step, after which test examples are evaluated in any case.
    on_error : {"raise", "warn"}
        See `simfluence.Recorder`; default `raise`.
    **options
        Further arguments of `simfluence.Recorder`, such as `run`, `seed`, `resume`, `design`.

    Examples
    --------
    ::

        loader = simfluence.torch.DataLoader(train, batch_size=8, shuffle=True)
        with simfluence.torch.TrainingRecorder(
            "my-runs", model, optimizer, loader, test_batches, example_loss
        ):
            for batch in loader:
                loss(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
    """

    def __init__(
        self,
        run_set: Any,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        test_batches: Sequence[Any],
        example_loss: Callable[[torch.nn.Module, Any], torch.Tensor],
        *,
        train_examples: Any = None,
        test_examples: Any = None,
        eval_every: int = 1,
        targets: Callable[[Any], Any] | None = None,
        weighting: Weighting = "micro",
        last_step: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> None:
        if not isinstance(loader, DataLoader):
            raise UsageError(
                "the loader does not know which examples its batches hold; make it with "
                "simfluence.torch.DataLoader, which takes the arguments of torch's"
            )
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.test_batches, self.example_loss = test_batches, example_loss
        self.last_step, self.targets = last_step, targets
        self._rate: float | None = None
        test_count = sum(length(batch) for batch in test_batches)
        train_examples = len(loader.dataset) if train_examples is None else train_examples
        test_examples = test_count if test_examples is None else test_examples
        settings = {**run_settings(model), **options.pop("settings", {})}
        settings.setdefault("batch_size", loader.batch_size)
        if targets is not None:
            self._count_targets()

        def open_recorder() -> Recorder:
            return Recorder(
                run_set,
                train_examples,
                test_examples,
                optimizer=options.pop("optimizer", None) or optimizer_settings(optimizer),
                settings=settings,
                on_error=on_error,
                **options,
            )

        self.tracker = Tracker(
            open_recorder, self._evaluate, test_count, eval_every, weighting, on_error
        )
        self._hooks: list[Any] = []

    def _count_targets(self) -> None:
        """Let the loader note the number of targets with the ids of each batch."""
        collate, targets = self.loader.collate_fn, self.targets

        def counted(examples: list[Any]) -> Collated:
            collated = collate(examples)
            try:
                counts = listed(targets(collated.batch))
                collated.ids = list(zip(collated.ids, counts, strict=True))
            except Exception:
                collated.ids = [(one, UNKNOWN) for one in collated.ids]
            return collated

        self.loader.collate_fn = counted

    def _evaluate(self, places: Sequence[int]) -> Any:
        device = next(self.model.parameters()).device
        return evaluate(
            self.model,
            self.test_batches,
            places,
            lambda batch: self.example_loss(self.model, to_device(batch, device)),
        )

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, in the process that writes."""
        return self.tracker.recorder

    def start(self) -> TrainingRecorder:
        """Measure the losses before the first step, and follow the optimiser from now on."""
        self.tracker.begin()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        # Before: a scheduler may change it as soon as the step is done.
        self._rate = float(optimizer.param_groups[0]["lr"])

    def _after_step(self, *_: Any) -> None:
        while self.loader.seen:
            ids = self.loader.seen.popleft()
            if self.targets is None:
                self.tracker.see(ids)
            else:
                self.tracker.see([one for one, _ in ids], [count for _, count in ids])
        last = self.last_step is not None and self.tracker.steps + 1 == self.last_step
        self.tracker.end_step(self._rate, last=last)

    def stop(self, aborted: bool = False) -> None:
        """End the run."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.tracker.finish(aborted)

    def __enter__(self) -> TrainingRecorder:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(aborted=kind is not None)
