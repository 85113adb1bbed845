"""Makes ref_truth.rs, the numbers of the `ref_…` tests of truth.rs.

Run: python ref_truth.py > ref_truth.rs && rustfmt ref_truth.rs   (numpy, scipy)
"""

from itertools import combinations

import numpy as np
from scipy import stats

rng = np.random.default_rng(5)


def constant(name, values):
    values = np.asarray(values, dtype=float)
    if values.ndim == 0:
        print(f"pub(crate) const {name}: f64 = {float(values)!r};")
        return
    literals = ", ".join(repr(v) for v in values.ravel().tolist())
    print(f"pub(crate) const {name}: [f64; {values.size}] = [{literals}];")


def over_columns(correlation, a, b):
    return np.array([correlation(a[:, j], b[:, j]).statistic for j in range(a.shape[1])])


def pearson(a, b):
    return over_columns(stats.pearsonr, a, b).mean()


def spearman(a, b):
    return over_columns(stats.spearmanr, a, b).mean()


print("//! Numbers of the `ref_…` tests, made by ref_truth.py.\n")
subsets, tests = 16, 5
# Rounded, so that there are ties.
real = np.round(rng.normal(size=(subsets, tests)), 1)
predicted = np.round(0.7 * real + 0.7 * rng.normal(size=real.shape), 1)
third = np.round(0.5 * real + rng.normal(size=real.shape), 1)
constant("REF_REAL", real)
constant("REF_PREDICTED", predicted)
constant("REF_THIRD", third)
constant("REF_LDS_PER_TEST", over_columns(stats.spearmanr, real, predicted))
constant("REF_LDS", spearman(real, predicted))
# Subsets are resampled, the statistic is the mean over test examples; correlations vectorised.
resamples = []
for _ in range(20_000):
    draw = rng.integers(0, subsets, subsets)
    a, b = (stats.rankdata(x[draw], axis=0) for x in (real, predicted))
    a, b = a - a.mean(0), b - b.mean(0)
    resamples.append(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))
constant("REF_LDS_INTERVAL", np.quantile(resamples, [0.025, 0.975]))
constant("REF_AGREEMENT", [pearson(real, predicted), spearman(real, predicted)])
pairs = list(combinations([real, predicted, third], 2))
constant(
    "REF_SEED_TO_SEED",
    [np.mean([pearson(a, b) for a, b in pairs]), np.mean([spearman(a, b) for a, b in pairs])],
)
