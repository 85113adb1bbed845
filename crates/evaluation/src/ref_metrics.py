"""Makes ref_metrics.rs, the numbers of the `ref_…` tests of metrics.rs and bootstrap.rs.

Run: python ref_metrics.py > ref_metrics.rs   (numpy, scipy, scikit-learn)
"""

import numpy as np
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

rng = np.random.default_rng(11)


def constant(name, values, kind="f64"):
    values = np.asarray(values)
    if values.ndim == 0:
        print(f"pub(crate) const {name}: {kind} = {float(values)!r};")
        return
    literals = [f"{kind}::NAN" if v != v else str(v) for v in values.ravel().tolist()]
    print(f"pub(crate) const {name}: [{kind}; {values.size}] = [{', '.join(literals)}];")


print("//! Numbers of the `ref_…` tests, made by ref_metrics.py.\n")
x = rng.integers(0, 6, 25) / 2
y = np.round(x + rng.normal(size=25), 1)
constant("REF_X", x)
constant("REF_Y", y)
constant("REF_RANKS_X", stats.rankdata(x))
constant("REF_SPEARMAN", stats.spearmanr(x, y).statistic)
constant("REF_PEARSON", stats.pearsonr(x, y).statistic)

steps = np.array([0, 1, 2, 4, 6])
real = np.round(rng.gamma(3, 1, (5, 5)), 3).astype(np.float32)
real[1, 2] = real[2, 0] = real[3, 4] = np.nan
simulated = np.round(rng.gamma(3, 1, (7, 5)), 3).astype(np.float32)
simulated[0] = real[0]
mse, mae = [], []
for j in range(5):
    seen = ~np.isnan(real[1:, j])
    truth, guess = (a.astype(float) for a in (real[1:, j][seen], simulated[steps[1:], j][seen]))
    mse.append(mean_squared_error(truth, guess))
    mae.append(mean_absolute_error(truth, guess))
constant("REF_STEPS", steps, "u32")
constant("REF_REAL", np.round(real.astype(float), 3), "f32")
constant("REF_SIMULATED", np.round(simulated.astype(float), 3), "f32")
constant("REF_MSE", np.mean(mse))
constant("REF_MAE", np.mean(mae))
constant("REF_FINAL", stats.spearmanr(real[-1], simulated[-1]).statistic)
change = real.astype(float)[-1] - real[0], simulated.astype(float)[-1] - real[0]
constant("REF_CHANGE", stats.spearmanr(*change).statistic)

effect = np.round(rng.normal(size=12), 2)
predicted = np.round(0.6 * effect + 0.3 * rng.normal(size=12), 2)
constant("REF_EFFECT", effect)
constant("REF_PREDICTED", predicted)
# R² against 0: append the mirror image, so that scikit-learn's mean is 0.
mirrored = np.concatenate([effect, -effect]), np.concatenate([predicted, -predicted])
constant("REF_R2", r2_score(*mirrored))
constant("REF_EFFECT_SPEARMAN", stats.spearmanr(effect, predicted).statistic)
constant("REF_SIGN", np.mean(np.sign(effect) == np.sign(predicted)))

# Percentile intervals of a mean: many resamples on both sides, so that chance is small.
sample = np.round(rng.gamma(2, 1, 40), 3)
interval = stats.bootstrap(
    (sample,), np.mean, n_resamples=200_000, method="percentile", rng=rng
).confidence_interval
constant("REF_SAMPLE", sample)
constant("REF_INTERVAL", [interval.low, interval.high])
