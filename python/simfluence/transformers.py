"""Recording runs of the Hugging Face `Trainer`.

::

    callback = RecorderCallback("my-runs", train_dataset, test_dataset, eval_every=10)
    trainer = Trainer(model, args, train_dataset=callback.train_dataset, callbacks=[callback])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
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
from simfluence._tracker import UNCOUNTED, UNKNOWN, Tracker, Weighting

#: Columns of a dataset that describe its examples.
_DESCRIBING = ("key", "dataset", "tags")


class RecorderCallback(TrainerCallback):
    """Record the runs of a Hugging Face `Trainer`.

    The trainer gets `callback.train_dataset` instead of the training dataset: the same examples,
    which know their places. Nothing else changes, and neither do the losses: test examples are
    evaluated in evaluation mode, without gradients, and the random state is put back.

    A step is an optimiser update. Its batch is that of all its micro-batches and processes, and an
    example's weight is its share of the loss as the trainer computes it: its share of the target
    tokens of the whole step where the model takes `num_items_in_batch` (as current models do),
    otherwise the mean over micro-batches of its share in each.

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
        mean negative log-likelihood per target token (`simfluence.torch.token_mean_loss`).
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
        self.eval_every, self.eval_batch_size = eval_every, eval_batch_size
        self.example_loss, self.batch_loss, self.weighting = example_loss, batch_loss, weighting
        self.tracker: Tracker | None = None
        self._hooks: list[Any] = []
        self._rate: float | None = None
        self._test_batches: list[Any] = []
        self._recording = False

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
        shift = _shifts_labels(model)
        loss = self.example_loss or (lambda outputs, batch: _token_loss(outputs, batch, shift))
        self.tracker = Tracker(
            lambda: self._open(args, state, model, kwargs.get("optimizer")),
            lambda places: self._evaluate(model, places, loss),
            len(self.test_dataset),
            self.eval_every,
            self.weighting or _weighting(model, args),
            self.on_error,
        )
        # Whatever fails later: the ids must not reach the model.
        take = model.register_forward_pre_hook(self._take_ids, prepend=True, with_kwargs=True)
        self._hooks = [take]
        if self.batch_loss:
            hook = partial(self._note_losses, loss)
            self._hooks.append(model.register_forward_hook(hook, with_kwargs=True))
        try:
            collate = _find_collate(loader, shift)
            size = self.eval_batch_size or args.per_device_eval_batch_size
            with preserved(model):
                self._test_batches = self._collated(collate, size)
        except Exception as error:
            self.tracker._failed = error
        self.tracker.begin()
        self._recording = True

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
        settings = {
            **run_settings(model),
            "batch_size": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "planned_steps": state.max_steps,
            "loss": "mean negative log-likelihood per target token",
            "extra": {"model": getattr(model.config, "_name_or_path", "") or type(model).__name__},
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

    def _take_ids(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Take the ids out of the model's input, and note them while it trains."""
        noted = kwargs.pop(ID, None)
        if noted is not None and self._recording and model.training and torch.is_grad_enabled():
            self.tracker.see(noted[:, 0], noted[:, 1])
        return args, kwargs

    def _note_losses(
        self, loss: Any, model: Any, args: Any, kwargs: dict[str, Any], outputs: Any
    ) -> None:
        micro = self.tracker.micro if self.tracker else []
        if not micro or not model.training or "labels" not in kwargs:
            return
        try:
            with torch.no_grad():
                micro[-1].losses = loss(outputs, kwargs)
        except Exception as error:
            self.tracker._failed = error

    def _collated(self, collate: Callable[[list[Any]], Any], size: int) -> list[Any]:
        count = len(self.test_dataset)
        places = [range(first, min(first + size, count)) for first in range(0, count, size)]
        batches = [collate([self.test_dataset[place] for place in some]) for some in places]
        for some, batch in zip(places, batches, strict=True):
            if length(batch) != len(some):
                raise UsageError(UNCOUNTED)
        return batches

    def _evaluate(self, model: Any, places: Sequence[int], loss: Any) -> list[float]:
        device = next(model.parameters()).device
        config = getattr(_inner(model), "config", None)
        # Given labels the model would take a mean loss of its own, which costs as much as ours;
        # an encoder-decoder makes its decoder's input of them.
        alone = self.example_loss is None and not getattr(config, "is_encoder_decoder", False)
        held_back = ("labels", "shift_labels") if alone else ()

        def losses(batch: Any) -> torch.Tensor:
            moved = to_device(dict(batch), device)
            outputs = model(**{k: v for k, v in moved.items() if k not in held_back})
            return loss(outputs, moved)

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
        last = state.global_step >= state.max_steps or control.should_training_stop
        self.tracker.end_step(self._rate, state.global_step, last)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring to the disk what a run that goes on from this checkpoint needs."""
        self.tracker.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._recording = [], False
        self.tracker.finish(aborted=state.global_step < state.max_steps)


def use_curriculum(trainer: transformers.Trainer, sampler: CurriculumSampler) -> None:
    """Let a trainer train on the batches of a planned run.

    Its `per_device_train_batch_size` times `gradient_accumulation_steps` must be the batch size of
    the plan; run it in one process. For the learning rates of the plan give the trainer
    `optimizers=(optimizer, sampler.rates(optimizer))`.
    """
    size = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    if any(len(batch) != size for batch in sampler.batches):
        raise UsageError(
            f"the trainer's batches have {size} examples (per_device_train_batch_size × "
            f"gradient_accumulation_steps), those of the plan {len(sampler.batches[0])}"
        )
    trainer._get_train_sampler = lambda *_: sampler


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


def _find_collate(loader: Any, shift: bool) -> Callable[[list[Any]], Any]:
    """Let the loader carry ids; gives the collator as it was."""
    inner = getattr(loader, "base_dataloader", loader)
    if not isinstance(inner.dataset, WithIds):
        raise UsageError(
            "the trainer's examples do not know their places; give it callback.train_dataset: "
            "Trainer(…, train_dataset=callback.train_dataset)"
        )
    if isinstance(inner.collate_fn, _Collate):
        return inner.collate_fn.collate
    plain = inner.collate_fn
    inner.collate_fn = _Collate(plain, shift)
    return plain


def _inner(model: Any) -> Any:
    """Take the model out of PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _shifts_labels(model: Any) -> bool:
    """Whether the loss compares the logits of a token with the label after it."""
    inner = _inner(model)
    # What the model really computes; a class that transformers has no loss for has this one, too.
    causal = getattr(inner, "loss_function", None) is ForCausalLMLoss
    return causal and not getattr(getattr(inner, "config", None), "is_encoder_decoder", False)


def _weighting(model: Any, args: TrainingArguments) -> Weighting:
    """How the trainer makes the loss of a step of its micro-batches."""
    inner = _inner(model)
    takes = getattr(inner, "accepts_loss_kwargs", None)
    if takes is None:
        parameters = inspect.signature(inner.forward).parameters.values()
        takes = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    if not takes:
        return "micro"
    return "step" if args.average_tokens_across_devices else "rank"


def _token_loss(outputs: Any, batch: Any, shift: bool) -> torch.Tensor:
    return token_mean_loss(outputs, batch, shift=shift)


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
