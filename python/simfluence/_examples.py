"""Examples of any shape as rows of a run set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

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
        (pandas, polars, pyarrow, `datasets.Dataset`, a run set's own) with such columns. Without
        `key` an example is named by its place. What a table has no value for is left out.
    default_dataset
        Dataset of examples that do not say theirs.

    Raises
    ------
    UsageError
        Nothing that examples can be read from; tags that are no texts.
    """
    if isinstance(examples, Integral):
        return [(str(place), default_dataset, [], {}) for place in range(int(examples))]
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
    is_one_text = isinstance(examples, (str, bytes))
    if hasattr(examples, "__iter__") and not is_one_text:
        return examples
    if hasattr(examples, "__getitem__") and hasattr(examples, "__len__") and not is_one_text:
        return (examples[place] for place in range(len(examples)))
    if hasattr(examples, "__arrow_c_stream__"):
        import pyarrow

        return pyarrow.table(examples).to_pylist()
    raise UsageError(
        f"examples cannot be read from {type(examples).__name__}; give their keys, one mapping per "
        "example, a table, or how many there are"
    )


def _row(example: Any, place: int, default_dataset: str) -> Row:
    if isinstance(example, str):
        return (example, default_dataset, [], {})
    if not isinstance(example, Mapping):
        return (str(place), default_dataset, [], {})
    there = {str(name): value for name, value in example.items() if not _is_missing(value)}
    key = str(there.get("key", place))
    extra = {
        name: str(value)
        for name, value in there.items()
        # Token ids and images have their place in the user's data, not beside every run.
        if name not in _OWN and isinstance(value, (str, bool, int, float, np.number, np.bool_))
    }
    return (
        key,
        str(there.get("dataset", default_dataset)),
        _tags(there.get("tags", ()), key),
        extra,
    )


def _tags(tags: Any, key: str) -> list[str]:
    try:
        if not isinstance(tags, (str, bytes)):
            return [str(tag) for tag in tags]
    except TypeError:
        pass
    raise UsageError(f"tags of example {key!r} are {tags!r}; give a list of texts")


def _is_missing(value: Any) -> bool:
    """Whether a table says so that it has no value here: None, NaN or pandas' NA."""
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ == "NAType"


#: Columns that the format has itself.
_OWN = {"key", "dataset", "tags", "train_id", "test_id"}
