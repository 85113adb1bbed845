"""Makes ref_ridge.json: small recorded runs and what scikit-learn's Ridge fits to them.

    python ref_ridge.py > ref_ridge.json      (scikit-learn 1.9.1, numpy 2.4.6)

The penalties of A and B differ; Ridge has one alpha, so the columns are scaled by 1/sqrt(λ) and
alpha is 1. A is shrunk to `centre` by fitting the deviation from it.
"""

import json

import numpy as np
from sklearn.linear_model import Ridge

N, M, RUNS, STEPS, BATCH = 6, 3, 3, 14, 2
LAMBDA_A, LAMBDA_B = 0.3, 0.7

rng = np.random.default_rng(7)
batches = rng.integers(0, N, (RUNS, STEPS, BATCH))
losses = np.empty((RUNS, STEPS + 1, M))
losses[:, 0] = rng.uniform(2, 4, (RUNS, M))
for t in range(STEPS):
    losses[:, t + 1] = 0.95 * losses[:, t] + 0.05 * rng.standard_normal((RUNS, M))

x = np.zeros((RUNS, STEPS, N))
for r in range(RUNS):
    for t in range(STEPS):
        for i in batches[r, t]:
            x[r, t, i] += 1 / BATCH
x = x.reshape(-1, N)


def fit(columns, target, penalties):
    scale = np.concatenate([np.full(c.shape[1], p**-0.5) for c, p in zip(columns, penalties)])
    model = Ridge(alpha=1.0, fit_intercept=False, solver="cholesky")
    model.fit(np.hstack(columns) * scale, target)
    return model.coef_ * scale


cases = []
for variant in ["linear", "additive", "multiplicative"]:
    for centre in [1.0, 0.0]:
        if variant == "additive" and centre == 0.0:
            continue
        a, b = np.ones((N, M)), np.zeros((N, M))
        for j in range(M):
            before, after = losses[:, :-1, j].ravel(), losses[:, 1:, j].ravel()
            with_a = before[:, None] * x
            shifted = after - centre * with_a.sum(1)
            if variant == "linear":
                w = fit([with_a, x], shifted, [LAMBDA_A, LAMBDA_B])
                a[:, j], b[:, j] = centre + w[:N], w[N:]
            elif variant == "additive":
                b[:, j] = fit([x], after - before, [LAMBDA_B])
            else:
                a[:, j] = centre + fit([with_a], shifted, [LAMBDA_A])
        cases.append({"variant": variant, "centre": centre, "A": a.tolist(), "B": b.tolist()})

print(json.dumps({
    "train_count": N, "test_count": M, "lambda_a": LAMBDA_A, "lambda_b": LAMBDA_B,
    "batches": batches.tolist(), "losses": losses.tolist(), "cases": cases,
}))
