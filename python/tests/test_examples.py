from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import simfluence

TRAIN = [
    {"key": "a", "dataset": "one", "tags": ["long", "clean"], "source": "web"},
    {"key": "b", "dataset": "two"},
]
TEST = ["x"]


def recorded(path, train=TRAIN, test=TEST):
    with simfluence.Recorder(path, train, test) as recorder:
        recorder.log_initial([1.0])
        recorder.log_step(["a", "b"], losses=[0.5])
    return simfluence.open(path)


@pytest.mark.parametrize("as_", ["itself", "to_pandas", "to_polars", "to_pyarrow"])
def test_the_tables_of_a_run_set_describe_its_own_examples(tmp_path, as_):
    run_set = recorded(tmp_path)
    tables = [run_set.train_examples, run_set.test_examples]
    if as_ != "itself":
        tables = [getattr(table, as_)() for table in tables]
    assert len(recorded(tmp_path, *tables)) == 2


@pytest.mark.parametrize("tags", [np.array(["long"], object), ("long",), {"long"}, iter(["long"])])
def test_tags_may_be_any_collection_of_texts(tmp_path, tags):
    run_set = recorded(tmp_path, [{"key": "a", "tags": tags}, {"key": "b", "tags": None}])
    assert run_set.train_examples.to_pyarrow()["tags"].to_pylist() == [["long"], []]


@pytest.mark.parametrize("tags", ["long", 3])
def test_tags_that_are_no_collection_are_refused(tmp_path, tags):
    with pytest.raises(simfluence.UsageError, match="tags of example 'a'"):
        recorded(tmp_path, [{"key": "a", "tags": tags}])


def test_what_a_table_has_no_value_for_is_left_out(tmp_path):
    frame = pd.DataFrame(
        {"key": ["a", "b"], "dataset": ["one", None], "note": ["n", None], "size": [np.nan, 2.5]}
    )
    table = recorded(tmp_path, frame).train_examples.to_pyarrow()
    assert table["dataset"].to_pylist() == ["one", "train"]
    assert table["note"].to_pylist() == ["n", None]
    assert table["size"].to_pylist() == [None, "2.5"]


def test_examples_are_counted_by_any_integer(tmp_path):
    with simfluence.Recorder(tmp_path, np.int64(3), np.uint8(1)):
        pass
    assert simfluence.open(tmp_path).train_keys == ["0", "1", "2"]


def test_one_text_is_no_list_of_examples(tmp_path):
    with pytest.raises(simfluence.UsageError, match="str"):
        simfluence.Recorder(tmp_path, "abc", 1)


@pytest.mark.parametrize(
    "column",
    [np.array, lambda keys: np.array(keys, object), pd.Series, pl.Series, pa.array],
)
def test_a_batch_may_be_a_column_of_keys_or_ids(tmp_path, column):
    with simfluence.Recorder(tmp_path, TRAIN, TEST) as recorder:
        recorder.log_step(column(["b", "a"]))
        recorder.log_step(column([1, 0]))
        with pytest.raises(simfluence.UsageError, match="'c'"):
            recorder.log_step(column(["a", "c"]))
        with pytest.raises(simfluence.UsageError, match="one text"):
            recorder.log_step("ab")
    assert simfluence.open(tmp_path)["run-000"].batches == [[1, 0], [1, 0]]
