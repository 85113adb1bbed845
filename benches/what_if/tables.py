"""Markdown tables of the comparisons that run.sh left in a folder."""

import json
import math
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
TASKS = ["ag_news_adamw", "ag_news_momentum", "numbers_adamw", "number_words_adam"]
# Nobody looked at it while the simulator was made; by itself, without thinned evaluations.
UNSEEN = "ag_news_unseen"
# A fifth of its training labels are wrong.
MISLABELLED = "ag_news_mislabelled"
BLOCKS = ["held-out diversified", "held-out ordinary", "dropped", "kept-only", "blocked",
          "repeated", "learning-rate"]
OURS, LINEAR = "optimizer-dynamics", "simfluence-linear"


def load(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def row(comparison, block, method):
    for b in comparison["blocks"]:
        if b["name"] == block:
            for r in b["rows"]:
                if r["method"] == method:
                    return r
    return None


def value(r, field):
    return r[field]["value"] if r and r[field] else None


def line(cells):
    print("| " + " | ".join(cells) + " |")


def table(headings, rows):
    line(headings)
    line(["---"] + ["---:"] * (len(headings) - 1))
    for r in rows:
        line(r)
    print()


def number(x):
    return "" if x is None else f"{x:.3g}"


def geometric(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def ratios_to_linear(whole):
    print("MSE over that of Simfluence-Linear (R² of the final effect):\n")
    rows, ratios = [], {b: [] for b in BLOCKS}
    for task, c in whole.items():
        cells = [task]
        for b in BLOCKS:
            ours, linear = row(c, b, OURS), row(c, b, LINEAR)
            ratio = value(ours, "mse") / value(linear, "mse")
            ratios[b].append(ratio)
            r2 = value(ours, "effect_r2")
            cells.append(f"{ratio:.2f}×" + ("" if r2 is None else f" ({r2:.2f})"))
        rows.append(cells)
    if len(whole) > 1:
        rows.append(["geometric mean"] + [f"**{geometric(ratios[b]):.2f}×**" for b in BLOCKS])
    table(["run set"] + BLOCKS, rows)


def every_method(whole):
    for task, c in whole.items():
        print(f"**{task}**: MSE in nats² (R² of the final effect)\n")
        methods = [r["method"] for r in c["blocks"][0]["rows"]] + ["no-effect"]
        rows = []
        for m in methods:
            cells = [f"**{m}**" if m == OURS else m]
            for b in BLOCKS:
                r = row(c, b, m)
                r2 = value(r, "effect_r2")
                cells.append(number(value(r, "mse")) + ("" if r2 is None else f" ({r2:.2f})"))
            cost = next((k["fit_seconds"] for k in c["costs"] if k["method"] == m), None)
            rows.append(cells + ["" if cost is None else f"{cost:.1f}"])
        ceilings = {b["name"]: b.get("effect_r2_ceiling") for b in c["blocks"]}
        cells = [f"({ceilings[b]['r2']:.2f})" if ceilings.get(b) else "" for b in BLOCKS]
        if any(cells):
            rows.append(["noise ceiling"] + cells + [""])
        datasets = load(f"{task}.ceilings")
        if datasets:
            cells = [f"({datasets[b]:.2f})" if b in datasets else "" for b in BLOCKS]
            rows.append(["ceiling of datasets"] + cells + [""])
        counts = {b["name"]: len(b["runs"]) for b in c["blocks"]}
        heads = [f"{b} ({counts.get(b, 0)})" for b in BLOCKS]
        table(["method"] + heads + ["fit (s)"], rows)


def coverage(whole):
    print("Share of real losses in the bands of 90 % [95 % interval over runs]:\n")
    rows = []
    for task, c in whole.items():
        cells = [task]
        for b in ["held-out"] + BLOCKS[2:]:
            held = row(c, b, OURS)["coverage"]
            i = held["interval"]
            cells.append(f"{100 * held['value']:.0f} %"
                         + (f" [{100 * i['low']:.0f}, {100 * i['high']:.0f}]" if i else ""))
        rows.append(cells)
    table(["run set", "held-out"] + BLOCKS[2:], rows)


def fewer_evaluations(whole):
    print("MSE over that with all evaluations:\n")
    rows = []
    shares = [("1/2: every 2nd step", 2, 1), ("1/4: every 4th step", 4, 1),
              ("1/4: a quarter of the test examples in turn", 1, 4), ("1/8: every 8th step", 8, 1),
              ("1/16: a quarter at every 4th step", 4, 4)]
    for name, steps, tests in shares:
        cells, all_ratios = [name], {"held-out": [], "suite": []}
        for task, c in whole.items():
            thin = load(f"{task}.steps-{steps}.tests-{tests}")
            if thin is None:
                cells.append("")
                continue
            pair = []
            for b in ("held-out", "suite"):
                ratio = value(row(thin, b, OURS), "mse") / value(row(c, b, OURS), "mse")
                all_ratios[b].append(ratio)
                pair.append(f"{ratio:.2f}")
            cells.append(" / ".join(pair))
        cells.append(" / ".join(f"{geometric(r):.2f}" for r in all_ratios.values() if r))
        rows.append(cells)
    table(["evaluations"] + [f"{t} (held-out / suite)" for t in whole] + ["geometric mean"], rows)


def learned_datasets(whole):
    print("MSE with learned datasets over that with the given ones (R² of the final effect):\n")
    rows = []
    for task, given in whole.items():
        learned = load(f"{task}.learned")
        if learned is None:
            continue
        cells = [task]
        for b in BLOCKS:
            ours = row(learned, b, OURS)
            ratio = value(ours, "mse") / value(row(given, b, OURS), "mse")
            r2 = value(ours, "effect_r2")
            cells.append(f"{ratio:.2f}×" + ("" if r2 is None else f" ({r2:.2f})"))
        rows.append(cells)
    table(["run set"] + BLOCKS, rows)


def linearised_model(whole):
    print("MSE in nats² (R² of the final effect):\n")
    rows = []
    for task, both in whole.items():
        alone, without = load(f"{task}.linearised"), load(f"{task}.no-linearised")
        if alone is None or without is None:
            continue
        for name, comparison, method in [
            ("linearised", alone, "linearised"),
            (LINEAR, both, LINEAR),
            (f"{OURS} without it", without, OURS),
            (f"{OURS} with it", both, OURS),
        ]:
            cells = [task, name]
            for b in BLOCKS:
                r = row(comparison, b, method)
                r2 = value(r, "effect_r2")
                cells.append(number(value(r, "mse")) + ("" if r2 is None else f" ({r2:.2f})"))
            rows.append(cells)
    table(["run set", "method"] + BLOCKS, rows)


def main():
    whole = {task: load(f"{task}.all") for task in TASKS}
    whole = {task: c for task, c in whole.items() if c}
    ratios_to_linear(whole)
    every_method(whole)
    coverage(whole)
    fewer_evaluations(whole)
    unseen = load(f"{UNSEEN}.all")
    if unseen:
        print("### A run set that nobody had looked at\n")
        for part in (ratios_to_linear, every_method, coverage):
            part({UNSEEN: unseen})
    print("### Learned datasets\n")
    others = {task: load(f"{task}.all") for task in (UNSEEN, MISLABELLED)}
    every = whole | {task: c for task, c in others.items() if c}
    learned_datasets(every)
    print("### The linearised model\n")
    linearised_model(every)


main()
