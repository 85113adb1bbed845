"""Loaders and samplers that know which examples they give."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate

from simfluence._design import Plan
from simfluence._errors import UsageError
from simfluence._tracker import UNKNOWN, listed

#: Column under which an example's id and number of targets travel through a collator.
ID = "simfluence_id"


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
class Collated:
    """A collated batch with the ids of its examples."""

    ids: list[Any]
    batch: Any

    def pin_memory(self) -> Collated:
        # What torch calls on a batch of a type that it does not know.
        pin = torch.utils.data._utils.pin_memory.pin_memory
        return Collated(self.ids, pin(self.batch))


class _Collate:
    """Collates what `WithIds` gives; the collator of the user sees what it always sees."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, examples: list[Any]) -> Collated:
        ids, plain = split_ids(examples)
        return Collated(ids, self.collate(plain))


class Counted:
    """Collates, and notes the number of targets with the id of each example."""

    def __init__(self, collate: Callable[[list[Any]], Collated], targets: Callable[[Any], Any]):
        self.collate, self.targets = collate, targets

    def __call__(self, examples: list[Any]) -> Collated:
        collated = self.collate(examples)
        try:
            counts = listed(self.targets(collated.batch))
            collated.ids = list(zip(collated.ids, counts, strict=True))
        except Exception:
            # A loader must not fail because of it; the recorder says it.
            collated.ids = [(one, UNKNOWN) for one in collated.ids]
        return collated


class DataLoader(torch.utils.data.DataLoader):
    """A `torch.utils.data.DataLoader` that knows which examples its batches hold.

    It takes the same arguments, but for `batch_size=None`, and gives the same batches in the same
    order.
    """

    def __init__(self, dataset: Any, *args: Any, collate_fn: Any = None, **kwargs: Any) -> None:
        if args[:1] == (None,) or kwargs.get("batch_size", 1) is None:
            raise UsageError("batch_size is None: without batches there is nothing to record")
        if not isinstance(dataset, WithIds):
            dataset = WithIds(dataset)
        if not isinstance(collate_fn, _Collate):
            collate_fn = _Collate(collate_fn or default_collate)
        #: Ids of the batches that were given out and not asked for yet, oldest first.
        self.seen: deque[list[Any]] = deque()
        #: How many batches were given out, and the ids of the last one.
        self.given = 0
        self.newest: list[Any] = []
        super().__init__(dataset, *args, collate_fn=collate_fn, **kwargs)  # type: ignore[misc]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # What an epoch before this one left, which ended early, was never trained on.
        seen = self.seen = deque()
        for collated in super().__iter__():
            seen.append(collated.ids)
            self.given, self.newest = self.given + 1, collated.ids
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
        """Make a scheduler of the run's learning rates; call its `step()` after each update.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Its own learning rates are replaced, in every group.

        Returns
        -------
        torch.optim.lr_scheduler.LambdaLR

        Raises
        ------
        UsageError
            The plan has no learning rates.
        """
        for group in optimizer.param_groups:
            # LambdaLR multiplies the rate that a group began with.
            group["lr"] = group["initial_lr"] = 1.0
        rates = [rate for rate in self._rates if rate is not None]
        if len(rates) < len(self._rates):
            raise UsageError(f"the plan has no learning rates for every step of run {self.run.id}")
        # After the last step it is asked for one rate more, which nobody uses.
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: rates[min(n, len(rates) - 1)])

    def __repr__(self) -> str:
        return f"<simfluence.CurriculumSampler of {self.run!r}>"
