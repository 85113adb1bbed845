"""Types of the compiled part; users have what `simfluence` exports."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ArrowTable",
    "Curves",
    "Plan",
    "RunRecorder",
    "RunSetFolder",
    "additive",
    "check",
    "compare",
    "describe",
    "fit",
    "merge",
    "program",
    "scores",
    "simulate",
    "what_if",
    "write_curriculum",
]

_Path = str | PathLike[str]
_Example = tuple[str, str, list[str], dict[str, str]]
_Metric = tuple[str, NDArray[np.uint32] | None, NDArray[np.float32]]
_Column = NDArray[np.uint32] | NDArray[np.float32] | Sequence[str | bool | float | None]
_Progress = Callable[[str, str, int], None] | None

@final
class ArrowTable:
    num_rows: int
    column_names: list[str]
    def __new__(cls, columns: Sequence[tuple[str, _Column]]) -> ArrowTable: ...
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...
    def __arrow_c_schema__(self) -> Any: ...

@final
class Curves:
    steps: NDArray[np.uint32]
    values: NDArray[np.float32]
    measured: NDArray[np.bool_] | None

@final
class RunRecorder:
    run: str
    steps: int
    has_initial: bool
    is_open: bool
    def log_initial(self, metrics: Sequence[_Metric]) -> None: ...
    def log_step(
        self,
        batch: NDArray[np.uint32],
        learning_rate: float | None,
        weights: NDArray[np.float32] | None,
        micro: NDArray[np.uint16] | None,
        batch_loss: NDArray[np.float32] | None,
        grad_norm: float | None,
        metrics: Sequence[_Metric],
        number: int | None = None,
    ) -> None: ...
    def flush(self) -> None: ...
    def save_checkpoint(self, step: int, bytes: bytes) -> Path: ...
    def finish(self) -> str: ...
    def abort(self) -> str: ...

@final
class RunSetFolder:
    path: Path
    counts: tuple[int, int]
    keys: tuple[list[str], list[str]]
    datasets: tuple[list[str], list[str]]
    @staticmethod
    def open(path: _Path) -> RunSetFolder: ...
    @staticmethod
    def create_or_open(
        path: _Path, train: Sequence[_Example], test: Sequence[_Example]
    ) -> RunSetFolder: ...
    def run_ids(self) -> list[str]: ...
    def has_run(self, run: str) -> bool: ...
    def info(self, run: str) -> str: ...
    def write_info(self, run: str, info: str) -> None: ...
    def train_examples(self) -> ArrowTable: ...
    def test_examples(self) -> ArrowTable: ...
    def metrics(self, run: str) -> list[str]: ...
    def curves(self, run: str, metric: str) -> Curves: ...
    def steps(self, run: str) -> ArrowTable: ...
    def curriculum(
        self, run: str
    ) -> tuple[
        list[list[int]],
        list[float | None],
        list[list[float] | None],
        list[list[float] | None],
    ]: ...
    def losses(self, run: str, metric: str) -> ArrowTable: ...
    def recorder(
        self,
        run: str,
        info: str,
        segment_rows: int | None = None,
        segment_seconds: float | None = None,
    ) -> RunRecorder: ...
    def resume(
        self,
        run: str,
        at_step: int,
        segment_rows: int | None = None,
        segment_seconds: float | None = None,
    ) -> RunRecorder: ...

@final
class Plan:
    ids: list[str]
    @staticmethod
    def draw(
        settings: str,
        schedule: str,
        steps: int,
        batch_size: int,
        learning_rate: float,
        datasets: Sequence[str],
    ) -> Plan: ...
    @staticmethod
    def read(path: _Path, train_count: int) -> Plan: ...
    def write(self, path: _Path) -> None: ...
    def run(self, index: int) -> tuple[int, str, list[list[int]], list[float | None]]: ...

def program(arguments: Sequence[str]) -> int: ...
def check(path: _Path) -> str: ...
def merge(sources: Sequence[_Path], target: _Path, progress: _Progress) -> list[str]: ...
def fit(arguments: Sequence[str], progress: _Progress) -> tuple[bytes, str]: ...
def simulate(
    arguments: Sequence[str], progress: _Progress
) -> tuple[str, Curves, Curves | None, Curves | None, float | None]: ...
def what_if(
    arguments: Sequence[str], progress: _Progress
) -> tuple[str, Curves, Curves, Curves, Curves, tuple[Curves, Curves] | None]: ...
def compare(arguments: Sequence[str], progress: _Progress) -> tuple[str, str, str]: ...
def additive(
    method: str,
    scores: NDArray[np.float32],
    reference_learning_rate: float | None,
    has_natural_unit: bool,
    arguments: Sequence[str],
    progress: _Progress,
) -> tuple[bytes, bytes]: ...
def scores(data: bytes, name: str) -> bytes: ...
def describe(bytes: bytes) -> dict[str, str]: ...
def write_curriculum(
    path: _Path,
    batches: Sequence[Sequence[int]],
    learning_rates: Sequence[float | None],
    weights: Sequence[Sequence[float] | None] | None,
    train_count: int,
) -> None: ...
