"""Markdown tables of the comparisons that run.sh left in a folder.

    tables.py FOLDER
"""

import json
import math
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
TASKS = {
    "ag_news_full": "AG News, all parameters",
    "ag_news_lora": "AG News, LoRA",
    "gsm8k_full": "GSM8K, all parameters",
    "gsm8k_lora": "GSM8K, LoRA",
}
BLOCKS = ["held-out diversified", "held-out ordinary", "dropped", "kept-only", "blocked",
          "repeated", "learning-rate"]
OURS, LINEAR = "optimizer-dynamics", "simfluence-linear"


def value(row, field):
    return row[field]["value"] if row and row[field] else None


def number(x):
    return "" if x is None else f"{x:.3g}"


def line(cells):
    print("| " + " | ".join(cells) + " |")


def head(first, *more):
    line([first, *BLOCKS, *more])
    line(["---"] + ["---:"] * (len(BLOCKS) + len(more)))


def rows(comparison):
    """By method, in order, its row of every block."""
    found = {}
    for block in comparison["blocks"]:
        for row in block["rows"]:
            found.setdefault(row["method"], {})[block["name"]] = row
    return found


def cell(row, is_edit):
    mse, r2 = number(value(row, "mse")), value(row, "effect_r2")
    return f"{mse} ({r2:.2f})" if is_edit and r2 is not None else mse


comparisons = {}
for name in TASKS:
    path = FOLDER / f"{name}.json"
    if path.exists():
        comparisons[name] = json.loads(path.read_text())

print("MSE over that of Simfluence-Linear:\n")
head("run set")
ratios = {block: [] for block in BLOCKS}
for name, comparison in comparisons.items():
    found, cells = rows(comparison), []
    for block in BLOCKS:
        ratio = value(found[OURS][block], "mse") / value(found[LINEAR][block], "mse")
        ratios[block].append(ratio)
        cells.append(f"{ratio:.2f}×")
    line([TASKS[name], *cells])
means = [math.exp(sum(map(math.log, r)) / len(r)) for r in ratios.values()]
line(["geometric mean", *(f"**{mean:.2f}×**" for mean in means)])

for name, comparison in comparisons.items():
    print(f"\n**{TASKS[name]}**: MSE in nats² (R² of the final effect)\n")
    head("method", "gradients of examples")
    counted = {cost["method"]: cost["gradient_evaluations"] for cost in comparison["costs"]}
    for method, found in rows(comparison).items():
        if method.endswith("(gain 1)"):
            continue
        cells = [cell(found.get(block), not block.startswith("held-out")) for block in BLOCKS]
        shown = f"**{method}**" if method == OURS else method
        count = counted.get(method)
        line([shown, *cells, "" if count is None else f"{count:,}".replace(",", " ")])
