from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("simfluence")


def run(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)


def test_the_wheel_brings_the_program(run_set):
    assert run("--version").stdout.startswith("simfluence ")
    checked = run("check", run_set)
    assert checked.returncode == 0 and "whole" in checked.stdout


def test_exit_codes_are_those_of_the_program(tmp_path):
    wrong = run("fit", tmp_path, "--methode", "x")
    assert wrong.returncode == 2 and "--method" in wrong.stderr
    failed = run("check", tmp_path)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ")


def test_training_is_said_to_need_libtorch(tmp_path):
    task = tmp_path / "task.toml"
    task.write_text("")
    failed = run("record", task, "--out", tmp_path / "runs")
    assert failed.returncode == 1 and "LibTorch" in failed.stderr


def test_a_reader_that_closes_the_pipe_is_no_error(run_set):
    line = f"{COMMAND} check {run_set} --format json | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout == "{\n"


def test_run_sets_are_merged_from_the_command_line(run_set, tmp_path):
    done = run("merge", run_set, "--out", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert run("check", tmp_path / "copy").returncode == 0
