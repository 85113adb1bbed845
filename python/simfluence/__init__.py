"""Record fine-tuning runs, and ask what would have happened with other training data.

::

    with simfluence.Recorder("my-runs", train_examples, test_examples) as recorder:
        recorder.log_initial(losses)
        recorder.log_step(batch, losses=losses, learning_rate=1e-3)

    simfluence.whatif("my-runs", "run-000", drop="dataset:Sports")

`simfluence.transformers`, `simfluence.lightning` and `simfluence.torch` record what trainers train;
they are imported when they are asked for, and only then their libraries.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from simfluence._analysis import (
    Comparison,
    Simulated,
    Simulator,
    WhatIf,
    compare,
    fit,
    from_scores,
    merge,
    open,
    simulate,
    whatif,
)
from simfluence._cartography import cartography
from simfluence._design import Plan, PlannedRun
from simfluence._errors import Error, RunSetError, UsageError
from simfluence._recorder import Recorder
from simfluence._run_set import Curves, Run, RunSet
from simfluence._tables import Records, Table

if TYPE_CHECKING:
    from simfluence.torch import CurriculumSampler

__version__ = version("simfluence")

__all__ = [
    "Comparison",
    "CurriculumSampler",
    "Curves",
    "Error",
    "Plan",
    "PlannedRun",
    "Recorder",
    "Records",
    "Run",
    "RunSet",
    "RunSetError",
    "Simulated",
    "Simulator",
    "Table",
    "UsageError",
    "WhatIf",
    "cartography",
    "compare",
    "fit",
    "from_scores",
    "merge",
    "open",
    "simulate",
    "whatif",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and most of this package does without it.
    if name == "CurriculumSampler":
        from simfluence.torch import CurriculumSampler

        return CurriculumSampler
    raise AttributeError(f"module 'simfluence' has no attribute {name!r}")
