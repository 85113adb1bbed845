"""The comparison as the table that stands in the package's README."""

from __future__ import annotations

#: (heading, block, whether of the calibrated simulator, column)
_COLUMNS = [
    ("held-out MSE", "held-out", False, "mse"),
    ("calibrated", "held-out", True, "mse"),
    ("dropped MSE", "dropped", False, "mse"),
    ("calibrated", "dropped", True, "mse"),
    ("effect R²", "dropped", False, "effect_r2"),
    ("effect ρ", "dropped", False, "effect_spearman"),
]


def markdown(comparison, methods):
    """One row per method; empty where a method has no such number."""
    rows = {(row["block"], row["method"]): row for row in comparison.table}
    lines = [
        "| method | " + " | ".join(heading for heading, *_ in _COLUMNS) + " |",
        "| --- |" + " ---: |" * len(_COLUMNS),
    ]
    for method in methods:
        cells = []
        for _, block, calibrated, column in _COLUMNS:
            row = rows.get((block, f"{method} (calibrated)" if calibrated else method), {})
            value = row.get(column)
            cells.append("" if value is None else f"{value:.{4 if column == 'mse' else 2}f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
