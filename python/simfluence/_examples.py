"""Examples of any shape as rows of a run set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from simfluence._errors import UsageError

#: Key, dataset, tags, further columns.
Row = tuple[str, str, list[str], dict[str, str]]


def rows(examples: Any, default_dataset: str) -> list[Row]:
    """Read examples.

    Parameters
    ----------
    examples
        How many there are; or their keys; or a mapping from keys to datasets; or one mapping per
        example with `key`, `dataset`, `tags` and whatever else is text or a number; or a table
        (pandas, polars, pyarrow, `datasets.Dataset`) with such columns. Without `key` an example is
        named by its place.
    default_dataset
        Dataset of examples that do not say theirs.
    """
    if isinstance(examples, int):
        return [(str(place), default_dataset, [], {}) for place in range(examples)]
    if isinstance(examples, Mapping):
        return [(str(key), str(dataset), [], {}) for key, dataset in examples.items()]
    return [_row(one, place, default_dataset) for place, one in enumerate(_records(examples))]


def _records(examples: Any) -> Iterable[Any]:
    if hasattr(examples, "to_pylist"):
        return examples.to_pylist()
    if hasattr(examples, "to_dicts"):
        return examples.to_dicts()
    if hasattr(examples, "to_dict") and hasattr(examples, "columns"):
        return examples.to_dict("records")
    if hasattr(examples, "__iter__"):
        return examples
    if hasattr(examples, "__getitem__") and hasattr(examples, "__len__"):
        return (examples[place] for place in range(len(examples)))
    raise UsageError(
        f"examples cannot be read from {type(examples).__name__}; give their keys, one mapping per "
        "example, a table, or how many there are"
    )


def _row(example: Any, place: int, default_dataset: str) -> Row:
    if isinstance(example, str):
        return (example, default_dataset, [], {})
    if not isinstance(example, Mapping):
        return (str(place), default_dataset, [], {})
    tags = example.get("tags")
    extra = {
        str(name): value if isinstance(value, str) else str(value)
        for name, value in example.items()
        # Token ids and images have their place in the user's data, not beside every run.
        if name not in _OWN and isinstance(value, (str, bool, int, float))
    }
    return (
        str(example.get("key", place)),
        str(example.get("dataset", default_dataset)),
        [str(tag) for tag in tags] if isinstance(tags, (list, tuple)) else [],
        extra,
    )


#: Columns that the format has itself.
_OWN = {"key", "dataset", "tags", "train_id", "test_id"}
