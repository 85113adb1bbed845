"""Synthetic recorded runs of realistic shape, the same data for both sides of a comparison.

Diversified runs: every run has 3-6 segments, each with its own Dirichlet(0.4) mixture of four
datasets. Every test example's loss falls towards a floor at a pace set by the datasets and the
examples of the batch, with noise. Losses are rounded to f32, as recorded ones are.
"""

import json

import numpy as np


def make_runs(n, m, runs, steps, batch, seed=0):
    """Curricula `[runs, steps, batch]` (train ids) and losses `[runs, steps + 1, m]` (nats)."""
    rng = np.random.default_rng(seed)
    dataset = np.arange(n) % 4
    affinity = rng.uniform(0.1, 1.0, (4, m))
    pace = 0.06 * (affinity[dataset] + 0.3 * rng.standard_normal((n, m)))
    members = [np.flatnonzero(dataset == d) for d in range(4)]
    batches = np.empty((runs, steps, batch), np.uint32)
    losses = np.empty((runs, steps + 1, m))
    floor = rng.uniform(0.05, 0.5, m)
    initial = rng.uniform(2.0, 5.0, m)
    for r in range(runs):
        segments = np.sort(rng.choice(np.arange(1, steps), rng.integers(2, 6), replace=False))
        segment = np.searchsorted(segments, np.arange(steps), side="right")
        mixture = rng.dirichlet([0.4] * 4, segment.max() + 1)
        losses[r, 0] = initial
        for t in range(steps):
            chosen = rng.choice(4, batch, p=mixture[segment[t]])
            ids = np.array([rng.choice(members[d]) for d in chosen])
            batches[r, t] = ids
            push = pace[ids].mean(0)
            noise = 0.03 * rng.standard_normal(m)
            last = losses[r, t]
            losses[r, t + 1] = np.maximum(last - push * (last - floor) + noise, 1e-3)
    return batches, losses.astype(np.float32)


def write_safetensors(path, tensors):
    """Writes arrays as a safetensors file (the format is a JSON header and the raw bytes)."""
    names = {"float32": "F32", "float64": "F64", "uint32": "U32"}
    header, offset, blobs = {}, 0, []
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for blob in blobs:
            file.write(blob)
