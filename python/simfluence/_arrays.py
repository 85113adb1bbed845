"""Arrays of any library as NumPy arrays, without copies where the type allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simfluence._errors import UsageError

#: Whatever `array` reads: NumPy, torch, DLPack, sequences.
Array = ArrayLike | Any


def numpy(values: Array) -> NDArray[Any]:
    """View values as a NumPy array.

    A torch tensor on the CPU and any other object with DLPack share their memory with the array; a
    tensor on another device is copied to the CPU first, and one of `bfloat16`, which NumPy does not
    have, is converted to `float32`.
    """
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        tensor = values.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return tensor.numpy()
    if hasattr(values, "__dlpack__"):
        array: NDArray[Any] = np.from_dlpack(values)  # type: ignore[arg-type]
        return array
    return np.asarray(values)


def floats(values: Array, what: str, length: int | None = None) -> NDArray[np.float32]:
    """View values as one contiguous row of `float32`; copies only where it must convert."""
    array = numpy(values)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{what} must be numbers, not {array.dtype}")
    return _row(array, np.float32, what, length)


def integers(values: Array, dtype: type, what: str) -> NDArray[Any]:
    """View values as one contiguous row of unsigned integers; copies only where it must convert."""
    array = numpy(values)
    if array.size == 0:
        return np.empty(0, dtype)
    if array.dtype.kind not in "iu":
        raise UsageError(f"{what} must be integers, not {array.dtype}")
    most = np.iinfo(dtype).max
    if array.dtype != dtype and (array.min() < 0 or array.max() > most):
        raise UsageError(
            f"{what} must be from 0 to {most}; they go from {array.min()} to {array.max()}"
        )
    return _row(array, dtype, what, None)


def _row(array: NDArray[Any], dtype: type, what: str, length: int | None) -> NDArray[Any]:
    if array.ndim != 1:
        raise UsageError(f"{what} must be one row of numbers, not of shape {array.shape}")
    if length is not None and len(array) != length:
        raise UsageError(f"{what}: {len(array)} numbers, expected {length}")
    return np.ascontiguousarray(array, dtype)


def ids(batch: Sequence[int | str] | Array, known: dict[str, int], what: str) -> NDArray[np.uint32]:
    """Ids of examples that are named by id or by key, in a sequence, an array or a column."""
    if isinstance(batch, str):
        raise UsageError(f"{what}: {batch!r} is one text; give a sequence of ids or keys")
    if hasattr(batch, "to_pylist"):
        batch = batch.to_pylist()
    elif not isinstance(batch, Sequence):
        batch = numpy(batch)
    if isinstance(batch, np.ndarray) and batch.ndim == 1 and batch.dtype.kind in "UOT":
        batch = batch.tolist()
    if isinstance(batch, Sequence) and any(isinstance(one, str) for one in batch):
        missing = [one for one in batch if one not in known]
        if missing:
            raise UsageError(f"{what}: there is no example with the key {missing[0]!r}")
        return np.array([known[str(one)] for one in batch], np.uint32)
    return integers(batch, np.uint32, what)
