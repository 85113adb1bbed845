"""Recording PyTorch training loops.

`DataLoader` carries the ids of the examples beside the batches, and `TrainingRecorder` records a run
while a loop of your own trains. `simfluence.transformers` and `simfluence.lightning` have callbacks
that do the same for their trainers.
"""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate

from simfluence._design import Plan
from simfluence._errors import UsageError
from simfluence._recorder import OnError, Recorder

#: Column under which an example's id and number of targets travel through a collator.
ID = "simfluence_id"

Weighting = Literal["micro", "step", "rank"]


class WithIds(Dataset):
    """A dataset whose examples know their place in it.

    Mappings get an entry `simfluence_id`; anything else becomes a pair of the place and the example.

    Parameters
    ----------
    dataset
        A dataset with a length and places from 0.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UsageError(
                "the dataset has no length and no places: recording needs to know which example is "
                "which; give one that is read by place (a map-style dataset)"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> Any:
        return self._named(self.dataset[place], place)

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        # What torch calls if it is there; answered as torch would answer for the dataset itself.
        many = getattr(self.dataset, "__getitems__", None)
        found = many(places) if many else [self.dataset[place] for place in places]
        return [self._named(one, place) for one, place in zip(found, places, strict=True)]

    @staticmethod
    def _named(example: Any, place: int) -> Any:
        if isinstance(example, Mapping):
            return {**example, ID: int(place)}
        return (int(place), example)


def split_ids(examples: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """Take the ids off the examples of `WithIds`: the ids, and the examples as they were."""
    if isinstance(examples[0], Mapping):
        ids = [example[ID] for example in examples]
        return ids, [{k: v for k, v in example.items() if k != ID} for example in examples]
    return [example[0] for example in examples], [example[1] for example in examples]


@dataclass
class _Collated:
    """A collated batch with the ids of its examples."""

    ids: list[int]
    batch: Any

    def pin_memory(self) -> _Collated:
        # What torch calls on a batch of a type that it does not know.
        pin = torch.utils.data._utils.pin_memory.pin_memory
        return _Collated(self.ids, pin(self.batch))


class _Collate:
    """Collates what `WithIds` gives; the collator of the user sees what it always sees."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, examples: list[Any]) -> _Collated:
        ids, plain = split_ids(examples)
        return _Collated(ids, self.collate(plain))


class DataLoader(torch.utils.data.DataLoader):
    """A `torch.utils.data.DataLoader` that knows which examples its batches hold.

    It takes the same arguments and gives the same batches in the same order. Batches need a size:
    with `batch_size=None` there is nothing to collate.
    """

    def __init__(self, dataset: Any, *args: Any, collate_fn: Any = None, **kwargs: Any) -> None:
        if not isinstance(dataset, WithIds):
            dataset = WithIds(dataset)
        if not isinstance(collate_fn, _Collate):
            collate_fn = _Collate(collate_fn or default_collate)
        #: Ids of the batches that were given out and not asked for yet, oldest first.
        self.seen: deque[list[int]] = deque()
        super().__init__(dataset, *args, collate_fn=collate_fn, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # What an epoch before this one left, which ended early, was never trained on.
        seen = self.seen = deque()
        for collated in super().__iter__():
            seen.append(collated.ids)
            yield collated.batch


class CurriculumSampler(Sampler[int]):
    """Draw the examples of one run of a plan, in its order.

    It is a torch `Sampler`: `DataLoader(dataset, batch_size=B, sampler=CurriculumSampler(plan, r))`
    gives the batches of run r where B is the batch size of the plan (or divides it, for gradient
    accumulation). Subset, order and repetition of the examples are the run's own.

    Parameters
    ----------
    plan : Plan, or path
        The plan, or its file (then `train_count` is needed).
    run : int or str
        Which run of the plan: its number from 0, or its id.
    train_count : int, optional
        Number of training examples, for a plan file.
    start : int
        Begin after this many steps, for a run that is resumed; default 0.

    Attributes
    ----------
    run : PlannedRun
        The run; its `design`, `seed` and `id` are for the recorder.
    """

    def __init__(
        self,
        plan: Plan | str | os.PathLike[str],
        run: int | str,
        *,
        train_count: int | None = None,
        start: int = 0,
    ) -> None:
        if not isinstance(plan, Plan):
            if train_count is None:
                raise UsageError(
                    "give train_count, the number of training examples, with a plan file"
                )
            plan = Plan.read(plan, train_count)
        self.run = plan[run]
        self.batches = self.run.batches[start:]
        self._rates = self.run.learning_rates[start:]

    def __iter__(self) -> Iterator[int]:
        return (one for batch in self.batches for one in batch)

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def rates(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Make a scheduler of the run's learning rates; call its `step()` after each update."""
        for group in optimizer.param_groups:
            # LambdaLR multiplies the rate that a group began with.
            group["lr"] = group["initial_lr"] = 1.0
        rates = self._rates
        # After the last step it is asked for one rate more, which nobody uses.
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: rates[min(n, len(rates) - 1)])

    def __repr__(self) -> str:
        return f"<simfluence.CurriculumSampler of {self.run!r}>"


def token_mean_loss(outputs: Any, batch: Any, *, shift: bool | None = None) -> torch.Tensor:
    """Mean negative log-likelihood per target of each example.

    Parameters
    ----------
    outputs
        What the model returned: its `logits`, of shape (b, tokens, vocabulary) or (b, classes), are
        looked at.
    batch : mapping
        What it was given: `labels` of shape (b, tokens) or (b,); −100 is no target.
    shift : bool, optional
        Whether the logits of a token predict the label after it; by default where the logits have
        a vocabulary per token and the model is no encoder-decoder (it had no `decoder_input_ids`).

    Returns
    -------
    tensor of shape (b,)
        An example without targets has the loss 0.
    """
    logits = (
        outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    )
    labels = batch["labels"].to(logits.device)
    if logits.dim() == 2:
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    if shift or shift is None:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    ).view(labels.shape)
    return losses.sum(1) / (labels != -100).sum(1).clamp(min=1)


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while, and leave no trace.

    Afterwards every module is in the mode it was in, and the random numbers of torch (on every
    device), NumPy and Python go on as if nothing had happened.
    """
    modes = [(module, module.training) for module in model.modules()]
    cpu, ours, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(cpu)
        random.setstate(ours)
        np.random.set_state(numpys)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(one, device) for name, one in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [to_device(one, device) for one in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def optimizer_settings(optimizer: Any) -> dict[str, Any] | None:
    """Describe a torch optimiser as a run set does; `None` for one that the format does not know."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    first = optimizer.param_groups[0]
    # Weight decay is usually off for norms and biases, which come in a group of their own.
    decay = max(float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups)
    name = type(optimizer).__name__.lower()
    if name == "sgd":
        names = ("momentum", "dampening", "nesterov")
        return {"name": "sgd", **{k: first[k] for k in names}, "weight_decay": decay}
    if name in ("adam", "adamw"):
        beta1, beta2 = (float(beta) for beta in first["betas"])
        decoupled = name == "adamw" or first.get("decoupled_weight_decay", False)
        return {
            "name": "adamw" if decoupled else "adam",
            "beta1": beta1,
            "beta2": beta2,
            "eps": first["eps"],
            "weight_decay": decay,
        }
    if name == "rmsprop":
        names = ("alpha", "eps", "momentum")
        return {"name": "rmsprop", **{k: first[k] for k in names}, "weight_decay": decay}
    return None


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def run_settings(model: torch.nn.Module) -> dict[str, Any]:
    """What a run set says about a run, as far as the model and torch know it."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {
        "base_model": fingerprint(model),
        "trainable_parameters": trainable,
        "threads": torch.get_num_threads(),
        "device": str(parameters[0].device) if parameters else "cpu",
        "software": {"torch": torch.__version__},
    }


@dataclass
class _Micro:
    """A micro-batch: ids, targets per example (`None`: one each), losses in training mode."""

    ids: Any
    targets: Any = None
    losses: Any = None

    def read(self) -> tuple[list[int], list[float], list[float] | None]:
        ids = self.ids.tolist() if isinstance(self.ids, torch.Tensor) else list(self.ids)
        targets = [1.0] * len(ids) if self.targets is None else _listed(self.targets)
        if len(targets) != len(ids):
            raise UsageError(
                f"{len(targets)} numbers of targets for a batch of {len(ids)} examples"
            )
        return ids, targets, None if self.losses is None else _listed(self.losses)


def _listed(values: Any) -> list[float]:
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
        See `shares`.
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
    evaluated: int = -1
    steps: int = 0

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
        if parts is not None and self.recorder is not None:
            losses = self._losses(parts)
            self._guarded(lambda: self.recorder.log_initial(losses))
            self.evaluated = 0

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
        micro, self.micro = self.micro, []
        self.steps += 1
        due = last or (self.eval_every > 0 and self.steps % self.eval_every == 0)

        def trained() -> dict[str, Any]:
            return {"micro": [one.read() for one in micro], **(self._measured() if due else {})}

        parts = self._exchange(trained)
        if parts is not None and self.recorder is not None:
            self._guarded(lambda: self._log(parts, learning_rate, number, due))

    def _log(
        self, parts: list[dict[str, Any]], rate: float | None, number: int | None, due: bool
    ) -> None:
        ranks = [part["micro"] for part in parts]
        members = [micro for rank in ranks for micro in rank]
        numbers = [n for rank in ranks for n, micro in enumerate(rank) for _ in micro[0]]
        losses = [loss for _, _, some in members for loss in some or []]
        ids = [one for batch, _, _ in members for one in batch]
        weights = shares([[micro[1] for micro in rank] for rank in ranks], self.weighting)
        equal = max(weights) - min(weights) < 1e-9
        self.recorder.log_step(
            ids,
            losses=self._losses(parts) if due else None,
            learning_rate=rate,
            weights=None if equal else weights,
            micro=numbers if max(numbers) > 0 else None,
            batch_loss=losses if len(losses) == len(ids) else None,
            step=number,
        )
        if due:
            self.evaluated = self.steps

    def _measured(self) -> dict[str, Any]:
        places = range(self.rank, self.test_count, self.world)
        return {"losses": np.asarray(_listed(self.evaluate(places)), np.float32)}

    def _losses(self, parts: list[dict[str, Any]]) -> Any:
        losses = np.empty(self.test_count, np.float32)
        for rank, part in enumerate(parts):
            losses[rank :: self.world] = part["losses"]
        return losses

    def finish(self, aborted: bool = False) -> None:
        """End the run."""
        if self.recorder is not None and self.recorder.is_open:
            self.recorder.abort() if aborted else self.recorder.finish()
        self.stopped = True

    def flush(self) -> None:
        """Bring everything recorded so far to the disk."""
        if self.recorder is not None and not self.stopped:
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
        except Exception as failure:
            error = failure
        if self.world == 1:
            parts = [(result, error)]
        else:
            parts = [None] * self.world
            dist.all_gather_object(
                parts, (result, None if error is None else RuntimeError(str(error)))
            )
        for rank, (_, failure) in enumerate(parts):
            if failure is not None:
                self.fail(error if rank == self.rank else failure)
                return None
        return [part for part, _ in parts]


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
        test_count = sum(_length(batch) for batch in test_batches)
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

        def counted(examples: list[Any]) -> _Collated:
            collated = collate(examples)
            collated.ids = list(zip(collated.ids, _listed(targets(collated.batch)), strict=True))
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


def evaluate(
    model: torch.nn.Module,
    batches: Sequence[Any],
    places: Sequence[int],
    example_loss: Callable[[Any], torch.Tensor],
) -> list[float]:
    """Losses of the examples at some places of collated batches, as if nothing had happened.

    Parameters
    ----------
    model
        Put into evaluation mode meanwhile; see `preserved`.
    batches
        Collated batches, in order.
    places
        Places of examples over all batches. Batches that hold none of them are left out, others
        are evaluated whole.
    example_loss
        Losses of a batch, a tensor of shape (b,).
    """
    wanted, first, found = set(places), 0, []
    with preserved(model):
        for batch in batches:
            held = range(first, first + _length(batch))
            first = held.stop
            if wanted.isdisjoint(held):
                continue
            losses = example_loss(batch).float().cpu().tolist()
            found += [loss for place, loss in zip(held, losses, strict=True) if place in wanted]
    return found


def _length(batch: Any) -> int:
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, (list, tuple)):
        batch = batch[0]
    return len(batch)
