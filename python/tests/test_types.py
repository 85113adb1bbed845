"""What a type checker sees: the package itself, its compiled part, and a program that uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONFIG = ("--config-file", PACKAGE / "pyproject.toml")

PROGRAM = """
from pathlib import Path

import numpy as np
import simfluence

run_set: simfluence.RunSet = simfluence.open(Path("runs"))
with simfluence.Recorder("runs", 100, ["a", "b"], on_error="warn") as recorder:
    recorder.log_initial(np.ones(2))
    recorder.log_step([1, 2], losses=[0.5, 0.25], learning_rate=1e-3)
model = simfluence.fit(run_set, "simfluence-linear")
answer = simfluence.whatif(run_set, "train-000", drop="dataset:a")
reveal_type(answer.low)
reveal_type(run_set["train-000"].losses)
recorder.log_step([1], learning_rate="fast")
"""


def mypy(tmp_path, *arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


def test_the_package_is_well_typed(tmp_path):
    done = mypy(tmp_path, "mypy", *CONFIG, PACKAGE / "simfluence")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_is_that_of_the_compiled_part(tmp_path):
    done = mypy(tmp_path, "mypy.stubtest", "--mypy-config-file", CONFIG[1], "simfluence._native")
    assert done.returncode == 0, done.stdout + done.stderr


def test_users_see_the_types(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = mypy(tmp_path, "mypy", *CONFIG, "--strict", "program.py")
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1 and '"str"' in errors[0], done.stdout + done.stderr
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == 2 and all("numpy.ndarray" in line for line in revealed), done.stdout
