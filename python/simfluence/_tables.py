"""Tables that any data frame library takes over."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from simfluence import _native


class Exported:
    """What any data frame library takes over as a table (the Arrow PyCapsule interface).

    `pandas.DataFrame.from_arrow`, `polars.DataFrame`, `pyarrow.table` and DuckDB take it as it is.
    """

    def _table(self) -> _native.ArrowTable:
        raise NotImplementedError

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table().__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> Any:
        return self._table().__arrow_c_schema__()

    def to_pandas(self) -> Any:
        """As a `pandas.DataFrame`."""
        import pandas

        if hasattr(pandas.DataFrame, "from_arrow"):
            return pandas.DataFrame.from_arrow(self._table())
        return self.to_pyarrow().to_pandas()

    def to_polars(self) -> Any:
        """As a `polars.DataFrame`."""
        import polars

        return polars.DataFrame(self._table())

    def to_pyarrow(self) -> Any:
        """As a `pyarrow.Table`."""
        import pyarrow

        return pyarrow.table(self._table())


class Table(Exported):
    """A table in Arrow's layout, handed over without copying."""

    def __init__(self, arrow: _native.ArrowTable) -> None:
        self._arrow = arrow

    def _table(self) -> _native.ArrowTable:
        return self._arrow

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self._arrow.column_names

    def __len__(self) -> int:
        return self._arrow.num_rows

    def __repr__(self) -> str:
        return f"<simfluence.Table: {len(self)} rows of {', '.join(self.column_names)}>"


class Records(Exported, Sequence[Mapping[str, Any]]):
    """Rows of named values, for small results.

    Parameters
    ----------
    rows : sequence of mappings
        Values by column; a column that a row lacks is empty there.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = list(rows)

    def _table(self) -> _native.ArrowTable:
        columns = [(name, [row.get(name) for row in self._rows]) for name in self.column_names]
        return _native.ArrowTable([(name, _of_one_type(values)) for name, values in columns])

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

        # pandas reads Arrow through pyarrow only, which rows can do without.
        return pandas.DataFrame(self._rows)

    def __repr__(self) -> str:
        return text(self.column_names, self._rows)

    def _repr_html_(self) -> str:
        return html(self.column_names, self._rows)


def _of_one_type(values: list[Any]) -> list[Any]:
    """Truth values or numbers as they are; anything else, and what is mixed, as text."""
    given = [value for value in values if value is not None]
    truths = sum(isinstance(value, bool) for value in given)
    if truths in (0, len(given)) and all(isinstance(value, (int, float)) for value in given):
        return values
    return [None if value is None else str(value) for value in values]


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
