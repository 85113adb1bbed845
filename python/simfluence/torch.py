"""Recording PyTorch training loops.

`DataLoader` carries the ids of the examples beside the batches, and `TrainingRecorder` records a run
while a loop of your own trains. `simfluence.transformers` and `simfluence.lightning` have callbacks
that do the same for their trainers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

from simfluence._errors import UsageError
from simfluence._evaluation import counted, evaluate, preserved, to_device, token_mean_loss
from simfluence._loading import Counted, CurriculumSampler, DataLoader, WithIds
from simfluence._recorder import OnError, Recorder
from simfluence._settings import optimizer_settings, run_settings
from simfluence._tracker import UNKNOWN, Tracker, Weighting, require_options, shares

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

    A step is a call of `optimizer.step()`. Its batch is what `loader` last gave before each backward
    pass since the gradients were cleared (several batches where gradients are accumulated); batches
    without a backward pass, or whose gradients were cleared without a step, were not trained on.

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
        Evaluate the test examples after every so many steps, default 1, and after the last; 0: only
        before the first step and after the last.
    targets : callable, optional
        `targets(batch)` with the number of targets (tokens) of each example of a batch, where the
        loss is a mean over them; by default one each. It gets the batch as the loader gave it.
    weighting : {"micro", "step", "rank"}
        How the loss of a step comes about from its micro-batches, see `shares`; default `micro`.
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
        on_error: OnError = "raise",
        **options: Any,
    ) -> None:
        if not isinstance(loader, DataLoader):
            raise UsageError(
                "the loader does not know which examples its batches hold; make it with "
                "simfluence.torch.DataLoader, which takes the arguments of torch's"
            )
        self.model, self.optimizer, self.loader = model, optimizer, loader
        require_options(eval_every, weighting)
        self.test_batches, self.example_loss, self.targets = test_batches, example_loss, targets
        self._rate: float | None = None
        test_count, failure = counted(test_batches)
        dataset: Any = loader.dataset
        train_examples = len(dataset) if train_examples is None else train_examples
        test_examples = test_count if test_examples is None else test_examples
        settings = {**run_settings(model), **options.pop("settings", {})}
        settings.setdefault("batch_size", loader.batch_size)
        plain: Any = loader.collate_fn
        plain = plain.collate if isinstance(plain, Counted) else plain
        loader.collate_fn = plain if targets is None else Counted(plain, targets)

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
        self.tracker._failed = failure
        self._hooks: list[Any] = []
        #: How many batches of the loader were looked at, and those with gradients not yet applied.
        self._looked = loader.given
        self._pending: list[list[Any]] = []
        self._warned = False

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
        self._looked = self.loader.given
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._trained = [p for p in trained if p.requires_grad]
        self._hooks = [
            torch.autograd.graph.register_multi_grad_hook(
                self._trained, self._before_gradients, mode="any"
            ),
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def _before_gradients(self, *_: Any) -> None:
        """Note the batch of a backward pass, before its gradients are added to those there."""
        if self._pending and all(p.grad is None or not p.grad.any() for p in self._trained):
            self._pending = []
        self._look()

    def _look(self) -> None:
        new = self.loader.given - self._looked
        self._looked = self.loader.given
        if new == 0:
            return
        if new > 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"the loader gave {new} batches before one backward pass: only the last of them is "
                "recorded as trained on; call backward() for each (gradients add up)",
                RuntimeWarning,
                stacklevel=2,
            )
        self._pending.append(self.loader.newest)
        self.loader.seen.clear()

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        # Before: a scheduler may change it as soon as the step is done.
        self._rate = float(optimizer.param_groups[0]["lr"])

    def _after_step(self, *_: Any) -> None:
        if not self._pending:
            self._look()
        pending, self._pending = self._pending, []
        for ids in pending:
            # Workers that live on may count targets for a recorder before this one, or not yet.
            pairs = [one if isinstance(one, tuple) else (one, UNKNOWN) for one in ids]
            counts = None if self.targets is None else [count for _, count in pairs]
            self.tracker.see([one for one, _ in pairs], counts)
        self.tracker.end_step(self._rate)

    def stop(self, aborted: bool = False) -> None:
        """End the run, and measure the losses after its last step.

        Parameters
        ----------
        aborted : bool
            End it before its last step, without measuring anything; default false.
        """
        if not aborted:
            self.tracker.complete()
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
