"""Tables that any data frame library takes over."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


class Table:
    """A table in Arrow's layout, handed over without copying.

    `pandas.DataFrame.from_arrow(table)`, `polars.DataFrame(table)`, `pyarrow.table(table)` and
    DuckDB take it as it is (the Arrow PyCapsule interface).
    """

    def __init__(self, arrow: Any) -> None:
        self._arrow = arrow

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._arrow.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> Any:
        return self._arrow.__arrow_c_schema__()

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self._arrow.column_names

    def __len__(self) -> int:
        return self._arrow.num_rows

    def to_pandas(self) -> Any:
        """As a `pandas.DataFrame`."""
        import pandas

        if hasattr(pandas.DataFrame, "from_arrow"):
            return pandas.DataFrame.from_arrow(self)
        return self.to_pyarrow().to_pandas()

    def to_polars(self) -> Any:
        """As a `polars.DataFrame`."""
        import polars

        return polars.DataFrame(self)

    def to_pyarrow(self) -> Any:
        """As a `pyarrow.Table`."""
        import pyarrow

        return pyarrow.table(self)

    def __repr__(self) -> str:
        return f"<simfluence.Table: {len(self)} rows of {', '.join(self.column_names)}>"


class Records(Sequence[Mapping[str, Any]]):
    """Rows of named values, for small results."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = list(rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(name for row in self._rows for name in row))

    def to_pandas(self) -> Any:
        """As a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self._rows)

    def to_polars(self) -> Any:
        """As a `polars.DataFrame`."""
        import polars

        return polars.DataFrame(self._rows, infer_schema_length=None)

    def to_pyarrow(self) -> Any:
        """As a `pyarrow.Table`."""
        import pyarrow

        return pyarrow.Table.from_pylist(self._rows)

    def __repr__(self) -> str:
        return text(self.column_names, self._rows)

    def _repr_html_(self) -> str:
        return html(self.column_names, self._rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text(names: Sequence[str], rows: Sequence[Mapping[str, Any]], most: int = 20) -> str:
    """Lay rows out as text."""
    cells = [[_cell(row.get(name)) for name in names] for row in rows[:most]]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    out = io.StringIO()
    for line in [names, *cells]:
        out.write(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
        out.write("\n")
    if len(rows) > most:
        out.write(f"… {len(rows) - most} more rows\n")
    return out.getvalue().rstrip("\n")


def html(names: Sequence[str], rows: Sequence[Mapping[str, Any]], most: int = 20) -> str:
    """Lay rows out for notebooks."""
    from html import escape

    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in rows[:most]
    )
    more = f"<p>… {len(rows) - most} more rows</p>" if len(rows) > most else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
