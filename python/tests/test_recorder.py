from __future__ import annotations

import doctest
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import simfluence


def record(path, **options):
    return simfluence.Recorder(path, ["a", "b", "c"], ["x", "y"], **options)


def test_a_run_comes_back_as_it_was_recorded(tmp_path):
    with record(tmp_path, seed=7, optimizer={"name": "adamw"}) as recorder:
        recorder.log_initial([3.0, 4.0], metrics={"accuracy": [0.0, 1.0]})
        recorder.log_step(
            ["a", "c"], losses=[2.0, 3.0], learning_rate=0.5, weights=[0.25, 0.75], micro=[0, 1],
            batch_loss=[1.0, 2.0], grad_norm=0.125, step=1,
        )  # fmt: skip
        recorder.log_step([1, 1], losses=(["y"], [2.5]))
    run = simfluence.open(tmp_path)["run-000"]
    assert run.status == "complete"
    assert run.info["seed"] == 7 and run.info["optimizer"]["name"] == "adamw"
    assert run.batches == [[0, 2], [1, 1]]
    assert run.learning_rates == [0.5, None]
    assert run.weights == [[0.25, 0.75], None]
    assert run.batch_losses == [[1.0, 2.0], None]
    curves = run.curves()
    assert curves.steps.tolist() == [0, 1, 2]
    assert curves.measured.tolist() == [[True, True], [True, True], [False, True]]
    assert np.isnan(curves.values[2, 0]) and curves.values[2, 1] == 2.5
    assert run.metrics == ["accuracy", "loss"]
    assert simfluence.open(tmp_path).check()["problems"] == []


def test_any_parquet_reader_opens_what_was_recorded(tmp_path):
    with record(tmp_path) as recorder:
        recorder.log_initial([3.0, 4.0])
        recorder.log_step([0, 1], losses=[2.0, 3.0])
    rows = pq.read_table(tmp_path / "runs" / "run-000" / "losses-00000.parquet").to_pylist()
    assert [row["values"] for row in rows] == [[3.0, 4.0], [2.0, 3.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_losses_may_be_of_any_float_type_of_torch(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    with record(tmp_path) as recorder:
        recorder.log_initial(
            torch.tensor([3.0, 4.0], dtype=getattr(torch, dtype), requires_grad=True)
        )
        recorder.log_step(torch.tensor([0, 2]), losses=np.array([1.5, 2.5], dtype=np.float64))
    run = simfluence.open(tmp_path)["run-000"]
    assert run.losses.tolist() == [[3.0, 4.0], [1.5, 2.5]]
    assert run.batches == [[0, 2]]


def test_arrays_of_the_right_type_are_not_copied():
    torch = pytest.importorskip("torch")
    from simfluence import _arrays

    array = np.zeros(3, np.float32)
    assert _arrays.floats(array, "losses") is array
    tensor = torch.zeros(3)
    assert _arrays.floats(tensor, "losses").ctypes.data == tensor.data_ptr()

    class Foreign:
        def __dlpack__(self, **options):
            return array.__dlpack__(**options)

        def __dlpack_device__(self):
            return array.__dlpack_device__()

    assert _arrays.floats(Foreign(), "losses").ctypes.data == array.ctypes.data


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(batch=[5]), "out of range"),
        (dict(batch=[]), "empty"),
        (dict(batch=["nobody"]), "nobody"),
        (dict(batch=[-1]), "from 0 to"),
        (dict(batch=[0.5]), "integers"),
        (dict(batch=[0], losses=[1.0]), "2"),
        (dict(batch=[0], losses=[[1.0, 2.0]]), "one row"),
        (dict(batch=[0, 1], weights=[0.5, 0.1]), "sum to 1"),
        (dict(batch=[0], step=2), "step 2"),
        (dict(batch=[0], batch_loss=[1.0, 2.0]), "batch_loss"),
    ],
)
def test_what_does_not_fit_is_refused_and_recording_goes_on(tmp_path, wrong, says):
    with record(tmp_path) as recorder:
        recorder.log_initial([1.0, 1.0])
        with pytest.raises(simfluence.Error, match=says):
            recorder.log_step(**wrong)
        recorder.log_step([0], losses=[0.5, 0.5])
    assert simfluence.open(tmp_path)["run-000"].status == "complete"


def test_errors_are_of_one_family_and_tell_usage_apart(tmp_path):
    with pytest.raises(simfluence.RunSetError, match="not a run set"):
        simfluence.open(tmp_path)
    with pytest.raises(ValueError, match="raise"):
        record(tmp_path, on_error="ignore")
    assert issubclass(simfluence.RunSetError, simfluence.Error)
    assert issubclass(simfluence.UsageError, simfluence.Error)


def test_an_exception_in_the_block_leaves_the_run_aborted(tmp_path):
    with pytest.raises(KeyError), record(tmp_path) as recorder:
        recorder.log_initial([1.0, 1.0])
        recorder.log_step([0])
        raise KeyError
    assert simfluence.open(tmp_path)["run-000"].status == "aborted"


def test_a_loss_that_is_not_finite_marks_the_run_diverged(tmp_path):
    recorder = record(tmp_path)
    recorder.log_initial([1.0, 1.0])
    recorder.log_step([0], losses=[float("nan"), 1.0])
    assert recorder.finish() == "diverged"
    curves = simfluence.open(tmp_path)["run-000"].curves()
    assert curves.measured.all() and np.isnan(curves.values[1, 0])


def test_with_warn_training_goes_on_after_one_warning(tmp_path):
    with record(tmp_path, on_error="warn") as recorder:
        recorder.log_initial([1.0, 1.0])
        recorder.log_step([0])
        with pytest.warns(RuntimeWarning, match="training goes on") as caught:
            recorder.log_step([99])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recorder.log_step([98])
    assert len(caught) == 1
    assert "99" in str(recorder.failure)
    run = simfluence.open(tmp_path)["run-000"]
    assert run.status == "aborted" and len(run.batches) == 1


def test_with_warn_not_even_a_run_set_that_cannot_be_opened_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning):
        recorder = record(tmp_path / "file", on_error="warn")
    recorder.log_initial([1.0, 1.0])
    assert recorder.finish() is None


def test_a_run_is_resumed_after_a_step(tmp_path):
    recorder = record(tmp_path, run="mine")
    recorder.log_initial([1.0, 1.0])
    for loss in (0.9, 0.8, 0.7):
        recorder.log_step([0], losses=[loss, loss])
    recorder.abort()
    with simfluence.Recorder(tmp_path, run="mine", resume=1) as again:
        assert again.steps == 1 and again.has_initial
        again.log_step([1], losses=[0.5, 0.5], step=2)
    run = simfluence.open(tmp_path)["mine"]
    assert run.batches == [[0], [1]]
    assert run.losses[:, 0].tolist() == pytest.approx([1.0, 0.9, 0.5])


def test_a_second_writer_is_refused(tmp_path):
    first = record(tmp_path, run="mine")
    with pytest.raises(simfluence.RunSetError):
        simfluence.Recorder(tmp_path, run="mine", resume=0)
    first.finish()


def test_other_examples_are_refused(tmp_path):
    record(tmp_path).finish()
    with pytest.raises(simfluence.RunSetError, match="training examples"):
        simfluence.Recorder(tmp_path, ["a", "b"], ["x", "y"])


@pytest.mark.parametrize(
    "examples",
    [
        [{"key": "a", "dataset": "one", "tags": ["t"], "text": "hello", "input_ids": [1, 2]}],
        pd.DataFrame({"key": ["a"], "dataset": ["one"], "text": ["hello"], "tags": [["t"]]}),
    ],
    ids=["mappings", "pandas"],
)
def test_examples_are_read_from_what_people_have(tmp_path, examples):
    simfluence.Recorder(tmp_path, examples, 1).finish()
    run_set = simfluence.open(tmp_path)
    assert run_set.train_examples.to_pyarrow().to_pylist() == [
        {"train_id": 0, "key": "a", "dataset": "one", "tags": ["t"], "text": "hello"}
    ]
    assert run_set.test_keys == ["0"]


def test_a_run_killed_at_any_moment_loses_at_most_the_open_segment(tmp_path):
    script = textwrap.dedent(
        """
        import sys, simfluence
        recorder = simfluence.Recorder(sys.argv[1], 4, 2, segment_rows=8)
        recorder.log_initial([1.0, 1.0])
        for step in range(1, 10**6):
            recorder.log_step([step % 4], losses=[1.0 / step, 2.0], step=step)
            print(step, flush=True)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 100:
            break
    os.kill(process.pid, signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().split()]
    process.wait()
    last = max([100, *told])
    run = simfluence.open(tmp_path)["run-000"]
    assert run.status == "aborted"
    assert last - 8 <= len(run.batches) <= last + 1
    assert run.losses[50, 0] == pytest.approx(1 / 50)


def test_nothing_but_numpy_is_imported():
    script = (
        "import sys, simfluence; print(*{'torch', 'pandas', 'transformers'} & set(sys.modules))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "", time.perf_counter() - started


def test_the_example_in_the_documentation_is_true():
    from simfluence import _recorder

    failed, tried = doctest.testmod(_recorder)
    assert failed == 0 and tried > 0


def test_settings_that_the_format_does_not_have_are_refused(tmp_path):
    for wrong in ({"settings": {"batchsize": 8}}, {"design": {"splt": "held-out"}}):
        with pytest.raises(simfluence.UsageError, match="there are"):
            simfluence.Recorder(tmp_path, 2, 2, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_forked_leaves_the_run_alone(tmp_path):
    with simfluence.Recorder(tmp_path, 2, 1, segment_rows=4) as recorder:
        recorder.log_initial([1.0])
        for _ in range(6):
            recorder.log_step([0, 1], losses=[0.5])
        child = os.fork()
        if child == 0:
            try:
                recorder.log_step([0, 1], losses=[9.0])
            except simfluence.Error as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            del recorder
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(3):
            recorder.log_step([1], losses=[0.25])
    run = simfluence.open(tmp_path)["run-000"]
    assert run.status == "complete" and run.losses[:, 0].tolist() == [1.0] + [0.5] * 6 + [0.25] * 3


def test_a_process_that_was_forked_says_that_it_lacks_threads(run_set):
    simfluence.fit(run_set, "simfluence-linear")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        with pytest.raises(simfluence.Error, match="spawn"):
            pool.apply(simfluence.open, [run_set])
