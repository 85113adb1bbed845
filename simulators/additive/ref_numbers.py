"""Makes the numbers of `ref_gain_and_roll_outs_of_numpy` in algorithm.rs (NumPy 2)."""

import numpy as np

E = np.array([[0.4, -0.1], [0.2, 0.3], [-0.3, 0.5]])
ETA_REF = 0.2
RUNS = [
    (  # per step: exposure of each training example, learning rate
        [([0.5, 0.5, 0], 0.2), ([0, 0.75, 0.25], 0.4), ([1, 0, 0], 0.1)],
        np.array([[3.0, 2.0], [2.8, 1.9], [2.7, 1.4], [2.5, 1.45]]),
    ),
    (
        [([0, 2 / 3, 1 / 3], 0.2), ([0, 0, 1], 0.3)],
        np.array([[3.1, 2.1], [3.0, 1.6], [3.4, np.nan]]),
    ),
]


def decrease(steps):
    pushes = [eta / ETA_REF * np.array(x) @ E for x, eta in steps]
    return np.vstack([np.zeros(2), np.cumsum(pushes, axis=0)])


product = square = 0.0
for steps, losses in RUNS:
    p = decrease(steps)[1:]
    fall = (losses[0] - losses)[1:]
    seen = ~np.isnan(fall)
    product += (fall * p)[seen].sum()
    square += (p * p)[seen].sum()
gain = max(0.0, product / square)

stack = np.full((2, 4, 2), np.nan)
stack_p = np.full((2, 4, 2), np.nan)
for r, (steps, losses) in enumerate(RUNS):
    stack[r, : len(losses)] = losses
    stack_p[r, : len(losses)] = np.where(np.isnan(losses), np.nan, decrease(steps))
mean, mean_p = np.nanmean(stack, axis=0), np.nanmean(stack_p, axis=0)

p = decrease(RUNS[0][0])
additive = RUNS[0][1][0] - gain * p
calibrated = mean - gain * (p - mean_p)
calibrated[0] = RUNS[0][1][0]
fmt = lambda a: ", ".join(f"{v:.7}" for v in a.ravel())
print(f"const REF_GAIN: f64 = {gain!r};")
print(f"const REF_ADDITIVE: [f32; 8] = [{fmt(additive)}];")
print(f"const REF_CALIBRATED: [f32; 8] = [{fmt(calibrated)}];")
