"""Fit against scikit-learn's Ridge and simulation against NumPy, both sides on the same data.

    python benches/peers/run.py [--rust target/release/examples/peer] [--penalty 1.0]

Prints one table; every line has both sides' seconds, the ratio, the largest relative difference
of the objective values (or simulated losses), and the peak memory of both processes.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import fit_ridge
import simulate_numpy
from data import make_runs, write_safetensors

FITS = [
    # n, m, runs, steps, batch
    (200, 100, 22, 96, 4),
    (2000, 200, 160, 100, 8),
]
REPEATS = 7
# Relative residual at which our objective is within 1e-8 of the minimum, as the peer's is.
EQUAL_OBJECTIVE = 1e-5


def ours(rust, *arguments):
    result = subprocess.run([rust, *map(str, arguments)], check=True, capture_output=True)
    return json.loads(result.stdout)


def peak_mb(who):
    return resource.getrusage(who).ru_maxrss / 1024


def compare_fit(rust, folder, shape, penalty):
    n, m, runs, steps, batch = shape
    cores = os.cpu_count()
    batches, losses = make_runs(n, m, runs, steps, batch)
    path = os.path.join(folder, f"fit_{n}.safetensors")
    count = np.array([n], np.uint32)
    write_safetensors(path, {"batches": batches, "losses": losses, "train_count": count})
    exact = ours(rust, "fit", path, penalty, 1e-12, REPEATS)
    minimum = np.array(exact["objective"])
    x = fit_ridge.exposures(batches, n)
    found = fit_ridge.fastest_solver(x, losses, penalty, minimum)
    solver = min(found, key=lambda s: found[s][0])
    for name, (seconds, tolerance) in found.items():
        if np.isfinite(seconds):
            print(f"    Ridge {name:<10} {seconds * 1e3:7.2f} ms per test example, tol {tolerance:g}")
        else:
            print(f"    Ridge {name:<10} far slower, or not within 1e-8 of the minimum")
    theirs = []
    values = None
    equal = []
    # In turns, so that both sides see the same machine.
    for _ in range(3):
        seconds, values = fit_ridge.fit_all(x, losses, penalty, solver, found[solver][1], cores)
        theirs.append(seconds)
        result = ours(rust, "fit", path, penalty, EQUAL_OBJECTIVE, REPEATS)
        equal += result["seconds"]
        exact["seconds"] += ours(rust, "fit", path, penalty, 1e-12, REPEATS)["seconds"]
    size = f"fit n={n} m={m} rows={runs * steps} batch={batch} λ={penalty:g}"
    for what, ours_seconds, objective, memory in [
        ("equal objective", equal, result["objective"], result["peak_rss_mb"]),
        ("to rounding", exact["seconds"], exact["objective"], exact["peak_rss_mb"]),
    ]:
        objective = np.array(objective)
        report(
            f"{size}, ours {what}", f"Ridge {solver}", np.median(theirs), np.median(ours_seconds),
            max((objective / minimum - 1).max(), 0), max((values / minimum - 1).max(), 0),
            memory, max(peak_mb(resource.RUSAGE_CHILDREN), peak_mb(resource.RUSAGE_SELF)),
        )


def compare_simulation(rust, folder, n=2000, m=1000, steps=1000, batch=8):
    rng = np.random.default_rng(1)
    a = 1 - 0.02 * rng.random((n, m))
    b = 0.02 * rng.standard_normal((n, m))
    initial = rng.uniform(2, 5, m).astype(np.float32)
    batches = rng.integers(0, n, (1, steps, batch)).astype(np.uint32)
    path = os.path.join(folder, "simulate.safetensors")
    write_safetensors(path, {"A": a, "B": b, "initial": initial, "batches": batches})
    theirs, ours_seconds = [], []
    for _ in range(3):
        seconds, final = simulate_numpy.timed(a, b, batches[0], initial, REPEATS)
        theirs += seconds
        result = ours(rust, "simulate", path, 3 * REPEATS)
        ours_seconds += result["seconds"]
    difference = np.abs(np.array(result["final"]) / final - 1).max()
    size = f"simulate n={n} m={m} steps={steps} batch={batch}"
    report(
        size, "NumPy", np.median(theirs), np.median(ours_seconds), difference, 0,
        result["peak_rss_mb"], peak_mb(resource.RUSAGE_SELF),
    )


def report(what, peer, theirs, ours_seconds, our_excess, their_excess, our_mb, their_mb):
    print(f"{what}")
    print(
        f"    {peer} {theirs:.4f} s (excess {their_excess:.1e}, {their_mb:.0f} MB), "
        f"ours {ours_seconds:.4f} s (excess {our_excess:.1e}, {our_mb:.0f} MB): "
        f"{theirs / ours_seconds:.1f} times as fast"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rust", default="target/release/examples/peer")
    parser.add_argument("--penalty", type=float, nargs="*", default=[0.1, 1.0, 10.0])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        compare_simulation(arguments.rust, folder)
        for shape in FITS:
            for penalty in arguments.penalty:
                compare_fit(arguments.rust, folder, shape, penalty)


if __name__ == "__main__":
    main()
