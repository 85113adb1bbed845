"""Recording runs of PyTorch Lightning.

::

    loader = simfluence.torch.DataLoader(train_dataset, batch_size=8, shuffle=True)
    callback = RecorderCallback("my-runs", test_batches, example_loss)
    Trainer(callbacks=[callback]).fit(module, loader)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl  # type: ignore[no-redef]

from simfluence._errors import UsageError
from simfluence._evaluation import counted, evaluate, to_device
from simfluence._loading import DataLoader
from simfluence._recorder import OnError, Recorder
from simfluence._settings import optimizer_settings, run_settings
from simfluence._tracker import Tracker, Weighting, require_options


class RecorderCallback(pl.Callback):
    """Record the runs of a Lightning `Trainer`.

    The training loader must be a `simfluence.torch.DataLoader`, which takes the arguments of
    torch's and gives the same batches. A step is an optimiser update; accumulated batches are its
    micro-batches. Test examples are evaluated in evaluation mode, without gradients, and the random
    state is put back, so that losses are those of a run that is not recorded.

    Parameters
    ----------
    run_set : path
        Folder of the run set; it is made if it is not there.
    test_batches : sequence
        The test examples as collated batches, in order; kept in memory.
    example_loss : callable
        `example_loss(module, batch)`: the loss of each example of a batch, a tensor of shape (b,).
    train_examples, test_examples
        As for `simfluence.Recorder`; by default named by their places.
    eval_every : int
        Evaluate the test examples after every so many steps, default 1, and after the last.
    targets : callable, optional
        `targets(batch)` with the number of targets (tokens) of each example of a batch, where the
        loss is a mean over them; by default one each.
    run : str, optional
        Id of the run. Needed to go on with a run (`ckpt_path`).
    on_error : {"warn", "raise"}
        When recording fails: warn once, mark the run `aborted` and train on, the default; or raise.
    **options
        Further arguments of `simfluence.Recorder`, such as `seed` and `design`.
    """

    def __init__(
        self,
        run_set: Any,
        test_batches: Sequence[Any],
        example_loss: Callable[[Any, Any], torch.Tensor],
        *,
        train_examples: Any = None,
        test_examples: Any = None,
        eval_every: int = 1,
        targets: Callable[[Any], Any] | None = None,
        run: str | None = None,
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        super().__init__()
        require_options(eval_every, None)
        self.run_set, self.run, self.on_error, self.options = run_set, run, on_error, options
        self.test_batches, self.example_loss = test_batches, example_loss
        self.train_examples, self.test_examples = train_examples, test_examples
        self.eval_every, self.targets = eval_every, targets
        self.tracker: Tracker | None = None
        self._loader: DataLoader | None = None
        self._rate: float | None = None
        self._steps = 0

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, in the process that writes."""
        return self.tracker.recorder if self.tracker else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the losses before the first step."""
        # What Lightning averages over the processes are means over each one's batch.
        weighting: Weighting = "micro"
        test_count, failure = counted(self.test_batches)
        loader = trainer.train_dataloader
        self.tracker = Tracker(
            lambda: self._open(trainer, pl_module, loader, test_count),
            lambda places: self._evaluate(pl_module, places),
            test_count,
            self.eval_every,
            weighting,
            self.on_error,
        )
        self._steps = trainer.global_step
        if isinstance(loader, DataLoader):
            self._loader = loader
            self.tracker._failed = failure
        else:
            self.tracker._failed = UsageError(
                "the training loader does not know which examples its batches hold; make it with "
                "simfluence.torch.DataLoader, which takes the arguments of torch's"
            )
        self.tracker.begin()

    def _open(
        self, trainer: pl.Trainer, module: pl.LightningModule, loader: Any, test_count: int
    ) -> Recorder:
        settings = {
            **run_settings(module),
            "batch_size": (loader.batch_size or 1)
            * trainer.accumulate_grad_batches
            * trainer.world_size,
        }
        settings["software"]["lightning"] = pl.__version__
        options = {**self.options}
        settings.update(options.pop("settings", {}))
        if len(trainer.optimizers) == 1:
            options.setdefault("optimizer", optimizer_settings(trainer.optimizers[0]))
        else:
            raise UsageError("a run has one optimiser; the module configures several")
        if trainer.global_step and self.run is None:
            raise UsageError("the trainer goes on with a run; name it: RecorderCallback(…, run=…)")
        train = self.train_examples
        return Recorder(
            self.run_set,
            len(loader.dataset) if train is None else train,
            test_count if self.test_examples is None else self.test_examples,
            run=self.run,
            resume=trainer.global_step or None,
            settings=settings,
            on_error=self.on_error,
            **options,
        )

    def _evaluate(self, module: pl.LightningModule, places: Sequence[int]) -> list[float]:
        precision = module.trainer.precision_plugin

        def losses(batch: Any) -> torch.Tensor:
            with precision.val_step_context():
                moved = precision.convert_input(to_device(batch, module.device))
                return self.example_loss(module, moved)

        return evaluate(module, self.test_batches, places, losses)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the loader of the epoch, which may be a new one."""
        if isinstance(trainer.train_dataloader, DataLoader):
            self._loader = trainer.train_dataloader

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch."""
        if self._loader is None or self.tracker is None:
            return
        try:
            # Lightning fetches ahead: the oldest batch not asked for is the one that comes now.
            ids = self._loader.seen.popleft()
            self.tracker.see(ids, None if self.targets is None else self.targets(batch))
        except Exception as error:
            self.tracker._failed = error

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Note the learning rate, before the scheduler changes it."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step if the optimiser made one."""
        if self.tracker is not None and trainer.global_step > self._steps:
            self._steps = trainer.global_step
            last = self._steps >= trainer.estimated_stepping_batches or trainer.should_stop
            self.tracker.end_step(self._rate, self._steps, last)

    def on_save_checkpoint(self, *_: Any) -> None:
        """Bring to the disk what a run that goes on from this checkpoint needs."""
        if self.tracker is not None:
            self.tracker.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run."""
        if self.tracker is not None:
            self.tracker.complete()
            self.tracker.finish()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the run before its last step."""
        if self.tracker is not None:
            self.tracker.finish(aborted=True)
