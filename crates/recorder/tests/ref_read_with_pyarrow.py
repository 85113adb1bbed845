"""Reads a run set with pyarrow alone, as docs/format.md describes it.

Usage: python ref_read_with_pyarrow.py RUN_SET   (needs pyarrow)

Prints what it found; fails if a table has other columns or types than documented.
"""

import json
import pathlib
import sys

import pyarrow.parquet as pq

TYPES = {
    "steps": {
        "step": "uint32",
        "learning_rate": "float",
        "batch": "list<uint32>",
        "batch_weight": "list<float>",
        "batch_micro": "list<uint16>",
        "batch_loss": "list<float>",
        "grad_norm": "float",
    },
    "losses": {
        "step": "uint32",
        "metric": "string",
        "test_ids": "list<uint32>",
        "values": "list<float>",
    },
}


def short(arrow_type):
    """The type without polars' choice between large and small offsets."""
    text = str(arrow_type).replace("large_", "").replace("string_view", "string")
    return text.replace("<item: ", "<").replace("<element: ", "<")


def main(run_set):
    manifest = json.loads((run_set / "run_set.json").read_text())
    assert manifest["format_version"] == 1
    tests = pq.read_table(run_set / "test_examples-00000.parquet")
    assert tests["test_id"].to_pylist() == list(range(manifest["test_examples"]["count"]))
    for folder in sorted((run_set / "runs").iterdir()):
        recorded = json.loads((folder / "run.json").read_text())["recorded"]
        for table, types in TYPES.items():
            rows = 0
            for path in sorted(folder.glob(f"{table}-*.parquet")):
                segment = pq.read_table(path)
                found = {field.name: short(field.type) for field in segment.schema}
                assert found == types, found
                entries = pq.read_metadata(path).metadata
                assert entries[b"simfluence.table"] == table.encode()
                assert entries[b"simfluence.run"] == folder.name.encode()
                if table == "losses":
                    lengths = {len(values) for values in segment["values"].to_pylist()}
                    assert lengths == {tests.num_rows}, lengths
                rows += segment.num_rows
            assert rows == recorded["steps" if table == "steps" else "evaluations"]
            print(folder.name, table, rows)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
