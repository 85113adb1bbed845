"""Makes the numbers of ref_reports.rs: python ref_reports.py > ref_reports.rs && rustfmt ref_reports.rs

NumPy 2, SciPy 1.
"""

import numpy as np
from scipy import stats

rng = np.random.default_rng(4)


def array(name, values, kind="f32"):
    body = ", ".join(str(v) if "." in str(v) else f"{v}.0" for v in values)
    print(f"pub(crate) const {name}: [{kind}; {len(values)}] = [{body}];")


def number(name, value, kind="f64"):
    print(f"pub(crate) const {name}: {kind} = {value!r};")


print("//! Numbers of the `ref_…` tests, made by ref_reports.py.\n")

pairwise = np.round(rng.normal(size=(6, 6)) + np.add.outer(rng.normal(size=6), rng.normal(size=6)), 2)
pairwise = pairwise.astype(np.float32)
array("REF_PAIRWISE", pairwise.ravel())
matrix = pairwise.astype(float)
outside = ~np.eye(6, dtype=bool)
number("REF_PAIRWISE_PEARSON", float(stats.pearsonr(matrix[outside], matrix.T[outside])[0]))
number("REF_PAIRWISE_SPEARMAN", float(stats.spearmanr(matrix[outside], matrix.T[outside])[0]))
off = matrix * outside
number("REF_ASYMMETRY", float(np.linalg.norm(off - off.T) / np.linalg.norm(off + off.T)))
number(
    "REF_ASYMMETRY_WITH_DIAGONAL",
    float(np.linalg.norm(matrix - matrix.T) / np.linalg.norm(matrix + matrix.T)),
)

pairs = [(1, 0), (3, 3), (12, 3), (2, 14), (60, 40), (700, 640), (1000, 3)]
body = ", ".join(f"({a}, {b}, {float(stats.binomtest(a, a + b).pvalue)!r})" for a, b in pairs)
print(f"pub(crate) const REF_SIGN_TESTS: [(usize, usize, f64); {len(pairs)}] = [{body}];")

scores = np.round(rng.standard_t(2.5, size=300), 3).astype(np.float32)
array("REF_SCORES", scores)
values = scores.astype(float)
number("REF_KURTOSIS", float(stats.kurtosis(values)))
positive = np.sort(values[values > 0])[::-1]
count = max(10, int(np.floor(0.1 * len(positive) + 0.5)))
number("REF_TAIL_COUNT", count, "usize")
exponent, _, _ = stats.pareto.fit(positive[:count], floc=0, fscale=positive[count])
number("REF_TAIL_EXPONENT", float(exponent))
