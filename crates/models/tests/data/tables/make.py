"""Writes the same rows as Parquet and as `datasets` folders, with what they are as JSON.

Run with datasets 5.2 and pyarrow 26: python make.py

`rows.json` is by Python's own json; `dataset` has two data files, `splits` two datasets.
"""
import datetime
import decimal
import json
import pathlib
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
SAYS = ["three", "sieben", "grün 你好"]


def row(k):
    return {
        "key": f"k{k}",
        "text": f"what follows {k}? {SAYS[k % 3]}",
        "label": k % 2,
        "score": k / 8,
        "small": 0.1 if k else -1.5,
        "right": k % 2 == 0,
        "note": None if k == 1 else "a note",
        "numbers": list(range(k % 3)),
        "info": {"place": "here" if k % 2 else None, "many": k * 10**12},
        "messages": [
            {"role": "user", "content": f"what follows {k}?"},
            {"role": "assistant", "content": SAYS[k % 3]},
        ],
        "class": ["odd", "even"][k % 2],
        "day": datetime.date(2024, 2, 28 + k % 2),
        "price": decimal.Decimal(k) / 4,
    }


SCHEMA = pa.schema([
    ("key", pa.string()),
    ("text", pa.large_string()),
    ("label", pa.uint8()),
    ("score", pa.float64()),
    ("small", pa.float32()),
    ("right", pa.bool_()),
    ("note", pa.string()),
    ("numbers", pa.list_(pa.int32())),
    ("info", pa.struct([("place", pa.string()), ("many", pa.int64())])),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("class", pa.dictionary(pa.int8(), pa.string())),
    ("day", pa.date32()),
    ("price", pa.decimal128(6, 2)),
])


def main():
    rows = [row(k) for k in range(6)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    for compression in ["snappy", "zstd", "gzip", "brotli"]:
        pq.write_table(table, HERE / f"{compression}.parquet", compression=compression,
                       row_group_size=4)
    with pa.OSFile(str(HERE / "rows.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_table(table, max_chunksize=4)
    # What `datasets` has types for; its folders are written by its own code.
    simple = table.drop_columns(["class", "price"])
    for name in ["dataset", "splits"]:
        shutil.rmtree(HERE / name, ignore_errors=True)
    dataset = datasets.Dataset(simple)
    dataset.save_to_disk(HERE / "dataset", num_shards=2)
    datasets.DatasetDict({"train": dataset.select(range(4)), "test": dataset.select([5, 4])}
                         ).save_to_disk(HERE / "splits")
    expected = [dict(r, day=str(r["day"]), price=f"{r['price']:.2f}") for r in rows]
    (HERE / "rows.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


main()
