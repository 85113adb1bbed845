"""Splits AG News into headlines to train on, a fifth of them with a wrong label, and the rest.

    mislabelled.py AG_NEWS_CSV FOLDER

Writes train.csv and rest.csv with the columns key, class, label, title. `class` is the true one; a
key says whether its label is wrong.
"""

import csv
import random
import sys
from pathlib import Path

PER_CLASS, WRONG = 25, 5


def main(news, folder):
    with open(news, newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file)]
    classes = sorted({label for label, _ in rows})
    draw = random.Random(0)
    train = {}
    for name in classes:
        members = [k for k, (label, _) in enumerate(rows) if label == name]
        for place, k in enumerate(draw.sample(members, PER_CLASS)):
            others = [c for c in classes if c != name]
            train[k] = draw.choice(others) if place < WRONG else name
    folder.mkdir(parents=True, exist_ok=True)
    for path, chosen in (("train.csv", True), ("rest.csv", False)):
        with open(folder / path, "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["key", "class", "label", "title"])
            for k, (name, title) in enumerate(rows):
                if (k in train) == chosen:
                    label = train.get(k, name)
                    kind = "right" if label == name else "wrong"
                    out.writerow([f"{kind}-{k}", name, label, title])


main(sys.argv[1], Path(sys.argv[2]))
