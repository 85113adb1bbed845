"""The simulation with vectorised NumPy: per step a gather, a mean and a multiply-add over all
test examples, in f64."""

import time

import numpy as np


def simulate(a, b, batches, initial):
    losses = np.empty((len(batches) + 1, len(initial)), np.float32)
    state = initial.astype(np.float64)
    losses[0] = state
    for t, batch in enumerate(batches):
        state = a[batch].mean(0) * state + b[batch].mean(0)
        losses[t + 1] = state
    return losses


def timed(a, b, batches, initial, repeats):
    """Seconds of each repeat, and the final losses."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        losses = simulate(a, b, batches, initial)
        seconds.append(time.perf_counter() - start)
    return seconds[1:], losses[-1]
