"""Recording runs of the Hugging Face `Trainer`.

::

    callback = RecorderCallback("my-runs", train_dataset, test_dataset, eval_every=10)
    trainer = Trainer(model, args, train_dataset=callback.train_dataset, callbacks=[callback])
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from simfluence._errors import UsageError
from simfluence._evaluation import evaluate, length, preserved, to_device, token_mean_loss
from simfluence._loading import ID, CurriculumSampler, WithIds, split_ids
from simfluence._recorder import OnError, Recorder
from simfluence._settings import optimizer_settings, run_settings
from simfluence._tracker import UNCOUNTED, UNKNOWN, Tracker, Weighting, require_options

#: Columns of a dataset that describe its examples.
_DESCRIBING = ("key", "dataset", "tags")

#: Callbacks of trainings that have not ended.
_unfinished: weakref.WeakSet[RecorderCallback] = weakref.WeakSet()


class RecorderCallback(TrainerCallback):
    """Record the runs of a Hugging Face `Trainer`.

    The trainer gets `callback.train_dataset` instead of the training dataset: the same examples,
    which know their places. Nothing else changes, and neither do the losses: test examples are
    evaluated in evaluation mode, without gradients, and the random state is put back.

    A step is an optimiser update. Its batch is that of all its micro-batches and processes, and an
    example's weight is its share of the loss as the trainer computes it: its share of the target
    tokens of the whole step where the model divides its loss by `num_items_in_batch` (current
    decoders do, which is found out by trying), otherwise the mean over micro-batches of its share in
    each. A `compute_loss` of your own that divides by that number itself needs `weighting="step"`.

    Parameters
    ----------
    run_set : path
        Folder of the run set; it is made if it is not there.
    train_dataset, test_dataset
        What is trained on, and whose losses are followed: datasets with a length and places whose
        examples the trainer's collator takes.
    train_examples, test_examples
        As for `simfluence.Recorder`. By default the columns `key`, `dataset` and `tags` of a
        `datasets.Dataset`, or places.
    eval_every : int
        Evaluate the test examples after every so many steps, default 1, and after the last; 0:
        only before the first step and after the last.
    eval_batch_size : int, optional
        Default: the trainer's `per_device_eval_batch_size`.
    example_loss : callable, optional
        `example_loss(outputs, batch)`: the loss of each example, a tensor of shape (b,). Default:
        mean negative log-likelihood per target token (`simfluence.torch.token_mean_loss`), for
        sequence classification also that of several labels, or the squared error of a regression;
        it is compared with the model's own loss of the first test example, and must be the same.
    batch_loss : bool
        Also record the loss of each member of the batch in training mode, before the update, which
        optimizer-dynamics and cartography use. Costs a softmax over the logits. Default false.
    weighting : {"micro", "step", "rank"}, optional
        How the loss of a step comes about, see `simfluence.torch.shares`; by default what the
        trainer does with this model. Needed with a `compute_loss_func` of your own.
    run : str, optional
        Id of the run. Needed to go on with a run (`resume_from_checkpoint`); by default the next
        that is free.
    on_error : {"warn", "raise"}
        When recording fails: warn once, mark the run `aborted` and train on, the default; or raise.
    **options
        Further arguments of `simfluence.Recorder`, such as `design`.
    """

    def __init__(
        self,
        run_set: Any,
        train_dataset: Any,
        test_dataset: Any,
        *,
        train_examples: Any = None,
        test_examples: Any = None,
        eval_every: int = 1,
        eval_batch_size: int | None = None,
        example_loss: Callable[[Any, Any], torch.Tensor] | None = None,
        batch_loss: bool = False,
        weighting: Weighting | None = None,
        run: str | None = None,
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        self.run_set, self.run, self.on_error, self.options = run_set, run, on_error, options
        #: What the trainer trains on.
        self.train_dataset = WithIds(train_dataset)
        self.test_dataset = test_dataset
        self.train_examples = (
            _described(train_dataset) if train_examples is None else train_examples
        )
        self.test_examples = _described(test_dataset) if test_examples is None else test_examples
        require_options(eval_every, weighting)
        if eval_batch_size is not None and eval_batch_size < 1:
            raise UsageError(f"eval_batch_size is {eval_batch_size}; it must be at least 1")
        self.eval_every, self.eval_batch_size = eval_every, eval_batch_size
        self.example_loss, self.batch_loss, self.weighting = example_loss, batch_loss, weighting
        self.tracker: Tracker | None = None
        self._undo: list[Callable[[], None]] = []
        self._rate: float | None = None
        self._test_batches: list[Any] = []
        self._recording = self._warned = False
        #: Ids and numbers of targets of the batches that were given and not trained on yet.
        self._given: deque[torch.Tensor] = deque()
        #: Of the micro-batch under way: whether the model was told the number of targets of the
        #: step, and whether it got labels; losses of its examples.
        self._call: tuple[bool, bool] | None = None
        self._losses: torch.Tensor | None = None
        #: Whether labels are shifted, and whether the model divides by the number it is told.
        self._shift = self._scales = False

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, in the process that writes."""
        return self.tracker.recorder if self.tracker else None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure the losses before the first step and follow the model's batches."""
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        self._end_what_broke_off()
        self._given.clear()
        self._shift = _shifts_labels(model)
        self._scales = False
        self.tracker = Tracker(
            lambda: self._open(args, state, model, kwargs.get("optimizer")),
            lambda places: self._evaluate(model, places),
            len(self.test_dataset),
            self.eval_every,
            self.weighting or "micro",
            self.on_error,
        )
        # Whatever fails later: the ids must not reach the model.
        self._undo = [
            _taking(loader, self._take_batch),
            model.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True).remove,
        ]
        if self.batch_loss:
            hook = model.register_forward_hook(self._note_losses, with_kwargs=True)
            self._undo.append(hook.remove)
        try:
            inner = _with_ids(loader)
            plain = inner.collate_fn
            plain = plain.collate if isinstance(plain, _Collate) else plain
            size = self.eval_batch_size or args.per_device_eval_batch_size
            with preserved(model):
                self._test_batches = self._collated(plain, size)
                self._look_at_the_loss(model, plain)
            inner.collate_fn = _Collate(plain, self._shift)
        except Exception as error:
            self.tracker._failed = error
        self.tracker.begin()
        self._recording = True
        _unfinished.add(self)

    def _end_what_broke_off(self) -> None:
        """End runs of trainings that broke off, of which no callback is told."""
        for other in list(_unfinished):
            same = other.run == self.run and Path(other.run_set) == Path(self.run_set)
            if other is self or (self.run is not None and same):
                other._end(aborted=True)

    def _look_at_the_loss(self, model: Any, collate: Callable[[list[Any]], Any]) -> None:
        """Find out by trying how the model makes its loss, and whether ours is the same."""
        for place in range(min(len(self.test_dataset), 16)):
            one = dict(collate([self.test_dataset[place]]))
            batch = to_device(one, next(model.parameters()).device)
            try:
                outputs = model(**batch)
            except Exception:
                # It takes no labels, and the trainer's loss is made elsewhere; an evaluation that
                # cannot be made either says why.
                return
            own = _own_loss(outputs)
            # One without a single target says nothing.
            if own is None or (math.isfinite(own) and own > 0):
                break
        if "labels" not in batch:
            if self.example_loss is None:
                raise UsageError(
                    "the test examples have no labels, of which the default loss is made; give "
                    "example_loss(outputs, batch), the loss of each example"
                )
            return
        if own is None:
            return
        try:
            first, second = (_own_loss(model(**batch, num_items_in_batch=n)) for n in (1, 4))
            self._scales = first is not None and second is not None and second < 0.5 * first
        except Exception:
            # A model that does not take it; then the trainer does not give it, either.
            self._scales = False
        if self.example_loss is not None or getattr(outputs, "aux_loss", None) is not None:
            return
        # The trainer cannot know whether a model of one's own shifts its labels; its loss tells.
        ours = {
            shift: _example_loss(model, outputs, batch, shift)[0].item()
            for shift in (self._shift, not self._shift)
        }
        self._shift = min(ours, key=lambda shift: abs(ours[shift] - own))
        half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        if abs(ours[self._shift] - own) > (0.05 if half else 1e-3) * max(1.0, abs(own)):
            raise UsageError(
                f"the model's own loss of the first test example is {own:.4g}, while the mean "
                f"negative log-likelihood per target of its labels is {ours[self._shift]:.4g}; give "
                "example_loss(outputs, batch), the loss of each example"
            )

    def _open(
        self, args: TrainingArguments, state: TrainerState, model: Any, optimizer: Any
    ) -> Recorder:
        kinds = {"linear": "linear", "cosine": "cosine"}
        kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        constant = kind in ("constant", "constant_with_warmup")
        schedule = {
            "kind": "constant" if constant else kinds.get(kind),
            "warmup_steps": args.get_warmup_steps(state.max_steps) if kind != "constant" else 0,
        }
        config = getattr(model, "config", None)
        settings = {
            **run_settings(model),
            "batch_size": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "planned_steps": state.max_steps,
            "loss": "mean negative log-likelihood per target token",
            "extra": {"model": getattr(config, "_name_or_path", "") or type(model).__name__},
        }
        settings["software"]["transformers"] = transformers.__version__
        options = {**self.options}
        settings.update(options.pop("settings", {}))
        options.setdefault("seed", args.seed)
        options.setdefault("schedule", schedule if schedule["kind"] else None)
        if optimizer is not None:
            options.setdefault("optimizer", optimizer_settings(optimizer))
        resume = state.global_step or None
        if resume is not None and self.run is None:
            raise UsageError("the trainer goes on with a run; name it: RecorderCallback(…, run=…)")
        return Recorder(
            self.run_set,
            self.train_examples,
            self.test_examples,
            run=self.run,
            resume=resume,
            settings=settings,
            on_error=self.on_error,
            **options,
        )

    def _take_batch(self, batch: Any) -> None:
        """Take the ids out of a batch that the loader gives, in the order of training."""
        if isinstance(batch, MutableMapping) and ID in batch:
            self._given.append(batch.pop(ID))

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note with what the model is called while it trains."""
        # In an epoch that is resumed the trainer has a loader that nobody has seen.
        ids = kwargs.pop(ID, None)
        if self._recording and model.training and torch.is_grad_enabled() and self._call is None:
            self._call = (kwargs.get("num_items_in_batch") is not None, "labels" in kwargs)
            if ids is not None:
                self._given.append(ids)
        return args, kwargs

    def _note_losses(self, model: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        tracker = self.tracker
        if tracker is None or self._call is None or self._losses is not None or not model.training:
            return
        if "labels" not in kwargs:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "batch_loss: the losses of the batches are not recorded, because the model "
                    "gets no labels (the trainer makes the loss itself)",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return
        try:
            with torch.no_grad():
                self._losses = self._loss(model, outputs, kwargs)
        except Exception as error:
            tracker._failed = error

    def _end_micro(self, args: TrainingArguments) -> None:
        """Note the micro-batch that was just trained on."""
        tracker, call, losses = self.tracker, self._call, self._losses
        self._call = self._losses = None
        if tracker is None:
            return
        if self._given:
            ids = self._given.popleft()
            tracker.see(ids[:, 0], ids[:, 1], losses)
        if self.weighting is None and call is not None:
            # Where the trainer took the labels away it makes the loss itself, and scales it.
            counted, labelled = call
            whole: Weighting = "step" if args.average_tokens_across_devices else "rank"
            tracker.weighting = whole if counted and (self._scales or not labelled) else "micro"

    def _loss(self, model: Any, outputs: Any, batch: Any) -> torch.Tensor:
        if self.example_loss is not None:
            return self.example_loss(outputs, batch)
        return _example_loss(model, outputs, batch, self._shift)

    def _collated(self, collate: Callable[[list[Any]], Any], size: int) -> list[Any]:
        count = len(self.test_dataset)
        places = [range(first, min(first + size, count)) for first in range(0, count, size)]
        batches = [collate([self.test_dataset[place] for place in some]) for some in places]
        for some, batch in zip(places, batches, strict=True):
            if length(batch) != len(some):
                raise UsageError(UNCOUNTED)
        return batches

    def _evaluate(self, model: Any, places: Sequence[int]) -> list[float]:
        device = next(model.parameters()).device
        config = getattr(_inner(model), "config", None)
        # Given labels the model would take a mean loss of its own, which costs as much as ours;
        # an encoder-decoder makes its decoder's input of them.
        alone = self.example_loss is None and not getattr(config, "is_encoder_decoder", False)
        held_back = ("labels", "shift_labels") if alone else ()

        def losses(batch: Any) -> torch.Tensor:
            moved = to_device(dict(batch), device)
            outputs = model(**{k: v for k, v in moved.items() if k not in held_back})
            return self._loss(model, outputs, moved)

        return evaluate(model, self._test_batches, places, losses)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate, before the scheduler changes it."""
        self._rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step."""
        self._end_micro(args)
        last = state.global_step >= state.max_steps or control.should_training_stop
        if self.tracker is not None:
            self.tracker.end_step(self._rate, state.global_step, last)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note a micro-batch."""
        self._end_micro(args)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what an epoch that ended early was given and did not train on."""
        self._given.clear()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the losses after the last step, if training was told to stop."""
        if control.should_training_stop and self.tracker is not None:
            self.tracker.complete()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring to the disk what a run that goes on from this checkpoint needs."""
        if self.tracker is not None:
            if control.should_training_stop:
                self.tracker.complete()
            self.tracker.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run."""
        replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self.tracker is not None and not replaced:
            self.tracker.complete()
        self._end(aborted=state.global_step < state.max_steps)

    def _end(self, aborted: bool) -> None:
        for undo in self._undo:
            undo()
        self._undo, self._recording = [], False
        _unfinished.discard(self)
        if self.tracker is not None:
            self.tracker.finish(aborted)


def use_curriculum(trainer: transformers.Trainer, sampler: CurriculumSampler) -> None:
    """Let a trainer train on the batches of a planned run.

    Its `per_device_train_batch_size` times `gradient_accumulation_steps` must be the batch size of
    the plan; run it in one process. For the learning rates of the plan give the trainer
    `optimizers=(optimizer, sampler.rates(optimizer))`.

    Parameters
    ----------
    trainer : transformers.Trainer
        A trainer of `callback.train_dataset`.
    sampler : CurriculumSampler
        The run.

    Raises
    ------
    UsageError
        The batches of the plan are not of the trainer's size.
    """
    size = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    if any(len(batch) != size for batch in sampler.batches):
        raise UsageError(
            f"the trainer's batches have {size} examples (per_device_train_batch_size × "
            f"gradient_accumulation_steps), those of the plan {len(sampler.batches[0])}"
        )
    setattr(trainer, "_get_train_sampler", lambda *_: sampler)  # noqa: B010 (a method)


class _Collate:
    """Carries ids and numbers of targets beside what the trainer's collator makes."""

    def __init__(self, collate: Callable[[list[Any]], Any], shift: bool) -> None:
        self.collate, self.shift = collate, shift

    def __call__(self, examples: list[Any]) -> Any:
        ids, plain = split_ids(examples)
        batch = self.collate(plain)
        if isinstance(batch, MutableMapping):
            targets = self._targets(batch, len(ids))
            batch[ID] = torch.tensor(list(zip(ids, targets, strict=True)))
        return batch

    def _targets(self, batch: Mapping[str, Any], count: int) -> list[int]:
        labels = batch.get("shift_labels", batch.get("labels"))
        if labels is None or labels.dim() == 1:
            return [1] * count
        if len(labels) != count:
            # An error here would end the training; the recorder says it instead.
            return [UNKNOWN] * count
        if self.shift and "shift_labels" not in batch:
            labels = labels[..., 1:]
        return labels.ne(-100).flatten(1).sum(1).tolist()


def _taking(loader: Any, take: Callable[[Any], None]) -> Callable[[], None]:
    """Let `take` see every batch before the trainer does; gives what undoes it."""
    kind = type(loader)

    class Taking(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Any]:
            for batch in kind.__iter__(self):
                take(batch)
                yield batch

    Taking.__name__, Taking.__qualname__ = kind.__name__, kind.__qualname__
    # accelerate's loaders answer for `__class__` with that of the loader inside.
    become = object.__dict__["__class__"].__set__
    become(loader, Taking)
    return lambda: become(loader, kind)


def _with_ids(loader: Any) -> Any:
    """Give the loader whose examples know their places."""
    inner = getattr(loader, "base_dataloader", loader)
    if not isinstance(inner.dataset, WithIds):
        raise UsageError(
            "the trainer's examples do not know their places; give it callback.train_dataset: "
            "Trainer(…, train_dataset=callback.train_dataset)"
        )
    return inner


def _inner(model: Any) -> Any:
    """Take the model out of PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _shifts_labels(model: Any) -> bool:
    """Whether the loss compares the logits of a token with the label after it."""
    inner = _inner(model)
    # What the model really computes; a class that transformers has no loss for has this one, too.
    causal = getattr(inner, "loss_function", None) is ForCausalLMLoss
    return causal and not getattr(getattr(inner, "config", None), "is_encoder_decoder", False)


def _own_loss(outputs: Any) -> float | None:
    """The loss that the model made of its labels, if it made one."""
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    else:
        loss = outputs[0] if isinstance(outputs, tuple) else getattr(outputs, "loss", None)
    return loss.item() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None


def _example_loss(model: Any, outputs: Any, batch: Any, shift: bool) -> torch.Tensor:
    """The loss of each example as transformers' models make it of logits and labels."""
    labels = batch["labels"]
    outputs_of_one = getattr(getattr(_inner(model), "config", None), "num_labels", None) == 1
    logits = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None or not (labels.is_floating_point() or (outputs_of_one and labels.dim() == 1)):
        return token_mean_loss(outputs, batch, shift=shift)
    kind = getattr(_inner(model).config, "problem_type", None)
    wanted = labels.to(logits.device).float().reshape(logits.shape)
    if kind == "regression" or outputs_of_one:
        losses = torch.nn.functional.mse_loss(logits.float(), wanted, reduction="none")
    else:
        functional = torch.nn.functional
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), wanted, reduction="none"
        )
    return losses.flatten(1).mean(1)


def _described(dataset: Any) -> Any:
    """Key, dataset and tags of the examples, where the dataset has such columns."""
    columns = [
        name for name in _DESCRIBING if name in (getattr(dataset, "column_names", None) or ())
    ]
    if not columns:
        return len(dataset)
    if not hasattr(dataset, "select_columns"):
        return dataset
    return [dict(row) for row in dataset.select_columns(columns)]
