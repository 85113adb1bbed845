"""Fit against scikit-learn's Ridge and simulation against NumPy, both sides on the same data.

    python benches/peers/run.py [--rust target/release/examples] [--penalty 1.0] [--only fit]

Every line has both sides' seconds, the ratio, the largest relative difference of the objective
values (or simulated losses), and the peak memory of both processes. Beside it: what choosing the
penalties costs in fits, a thousand what-ifs at once against one by one, simulation against the
bandwidth of STREAM's triad, and the fit's time and memory against its size (`--only scale`: with
the largest fit it takes minutes and 4 GB).
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
# Both sides run as often, in turns, and each counts with its fastest time: what else the machine
# does only ever adds.
TURNS = 7
REPEATS = 7
# Test examples that scikit-learn's exact solver is timed on; the others take as long.
EXACT_SAMPLE = {200: 100, 2000: 4}
SIMULATIONS = [
    # n, m, steps, batch; the larger one trains on every example once
    (2000, 1000, 1000, 8),
    (20000, 1000, 1250, 16),
]
WHAT_IFS = 1000
SCALE_BASE = (20000, 125, 25000, 8)
SCALE_FULL = (20000, 1000, 100000, 16)
PARTS = ["fit", "choose", "what-ifs", "simulate", "scale"]


def ours(rust, *arguments, example="peer"):
    command = [os.path.join(rust, example), *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def peak_mb(who):
    return resource.getrusage(who).ru_maxrss / 1024


def recorded(folder, shape):
    """Runs as a file for our side and as arrays."""
    n, m, runs, steps, batch = shape
    batches, losses = make_runs(n, m, runs, steps, batch)
    path = os.path.join(folder, f"fit_{n}.safetensors")
    count = np.array([n], np.uint32)
    write_safetensors(path, {"batches": batches, "losses": losses, "train_count": count})
    return path, batches, losses


def loosest(rust, path, penalty, minimum):
    """Our loosest sufficient tolerance, of those that the peers' solvers are tried with."""
    for tolerance in fit_ridge.TOLERANCES:
        values = np.array(ours(rust, "fit", path, penalty, tolerance, 0)["objective"])
        if (values / minimum - 1).max() <= fit_ridge.EXCESS:
            return tolerance
    raise RuntimeError("no tolerance suffices")


def compare_fit(rust, folder, shape, penalty):
    n, m, runs, steps, batch = shape
    cores = os.cpu_count()
    path, batches, losses = recorded(folder, shape)
    minimum = np.array(ours(rust, "fit", path, penalty, 1e-12, 0)["objective"])
    tolerance = loosest(rust, path, penalty, minimum)
    x = fit_ridge.exposures(batches, n)
    found = fit_ridge.fastest_solver(x, losses, penalty, minimum)
    solver = min(found, key=lambda s: found[s][0])
    for name, (seconds, their_tolerance) in found.items():
        if np.isfinite(seconds):
            print(f"    Ridge {name:<10} {seconds * 1e3:7.2f} ms per test example, tol {their_tolerance:g}")
        else:
            print(f"    Ridge {name:<10} far slower, or not within 1e-8 of the minimum")
    theirs, their_exact, equal, exact = [], [], [], []
    sample = EXACT_SAMPLE[n]
    # In turns, so that both sides see the same machine.
    for _ in range(TURNS):
        seconds, values = fit_ridge.fit_all(x, losses, penalty, solver, found[solver][1], cores)
        theirs.append(seconds)
        close = ours(rust, "fit", path, penalty, tolerance, 1)
        equal += close["seconds"]
        seconds, _ = fit_ridge.fit_all(x, losses[:, :, :sample], penalty, "cholesky", 0, cores)
        their_exact.append(seconds * m / sample)
        rounding = ours(rust, "fit", path, penalty, 1e-12, 1)
        exact += rounding["seconds"]
    size = f"fit n={n} m={m} rows={runs * steps} batch={batch} λ={penalty:g}"
    their_mb = max(peak_mb(resource.RUSAGE_CHILDREN), peak_mb(resource.RUSAGE_SELF))
    excess = max((values / minimum - 1).max(), 0)
    extrapolated = f" ({sample} test examples, extrapolated)" if sample < m else ""
    for what, peer, peer_seconds, peer_excess, own_seconds, own in [
        (f"tol {tolerance:g}", f"Ridge {solver}", theirs, excess, equal, close),
        ("exact", f"Ridge {solver}", theirs, excess, exact, rounding),
        ("exact", "Ridge cholesky" + extrapolated, their_exact, 0, exact, rounding),
    ]:
        objective = np.array(own["objective"])
        report(
            f"{size}, ours {what}", peer, min(peer_seconds), min(own_seconds),
            max((objective / minimum - 1).max(), 0), peer_excess, own["peak_rss_mb"], their_mb,
        )
    iterations = np.mean(close["iterations"])
    # Per entry, iteration and test example: a parameter pair and a result pair are read and the
    # latter is written, 4 bytes each.
    moved = iterations * runs * steps * batch * m * 2 * 3 * 4
    print(
        f"    {iterations:.1f} iterations on average; "
        f"{moved / min(equal) / 1e9:.0f} GB/s through the caches"
    )


def compare_choice(rust, folder, shape):
    n, m, runs, steps, batch = shape
    path, _, _ = recorded(folder, shape)
    print(f"choose λ of 6 by 5-fold leave-run-out, n={n} m={m} rows={runs * steps} batch={batch}")
    for what, tolerance in [("our default, 1e-12", 1e-12), ("as loose as the search's, 1e-5", 1e-5)]:
        result = ours(rust, "choose", path, tolerance, 3)
        one, all_ = min(result["fit_seconds"]), min(result["choice_seconds"])
        print(
            f"    one fit ({what}) {one:.4f} s, choosing {all_:.4f} s: {all_ / one:.1f} fits; "
            f"{result['peak_rss_mb']:.0f} MB, λ={result['best']['a']:g}"
        )


def simulation_data(folder, n, m, steps, batch):
    rng = np.random.default_rng(1)
    a = 1 - 0.02 * rng.random((n, m))
    b = 0.02 * rng.standard_normal((n, m))
    initial = rng.uniform(2, 5, m).astype(np.float32)
    if steps * batch == n:
        batches = rng.permutation(n).reshape(1, steps, batch).astype(np.uint32)
    else:
        batches = rng.integers(0, n, (1, steps, batch)).astype(np.uint32)
    path = os.path.join(folder, f"simulate_{n}.safetensors")
    write_safetensors(path, {"A": a, "B": b, "initial": initial, "batches": batches})
    return path, a, b, batches[0], initial


def compare_simulation(rust, folder, n, m, steps, batch):
    path, a, b, batches, initial = simulation_data(folder, n, m, steps, batch)
    theirs, ours_seconds, triad = [], [], []
    for _ in range(TURNS):
        seconds, final = simulate_numpy.timed(a, b, batches, initial, REPEATS)
        theirs += seconds
        result = ours(rust, "simulate", path, REPEATS)
        ours_seconds += result["seconds"]
        triad += ours(rust, "triad", REPEATS)["bytes_per_second"]
    difference = np.abs(np.array(result["final"]) / final - 1).max()
    size = f"simulate n={n} m={m} steps={steps} batch={batch}"
    seconds = min(ours_seconds)
    report(
        size, "NumPy", min(theirs), seconds, difference, 0,
        result["peak_rss_mb"], peak_mb(resource.RUSAGE_SELF),
    )
    rate, limit = 16 * n * m / seconds, max(triad)
    print(
        f"    {16 * n * m / 2**20:.0f} MiB of parameters at {rate / 1e9:.1f} GB/s, "
        f"triad {limit / 1e9:.1f} GB/s: {100 * rate / limit:.0f} %"
    )


def compare_what_ifs(rust, folder, n, m, steps, batch):
    path, a, b, batches, initial = simulation_data(folder, n, m, steps, batch)
    seconds, _ = simulate_numpy.timed(a, b, batches, initial, REPEATS)
    result = ours(rust, "what-ifs", path, WHAT_IFS, 3)
    alone, together = min(result["alone_seconds"]), min(result["seconds"])
    numpy_seconds = WHAT_IFS * min(seconds)
    print(
        f"{WHAT_IFS} what-ifs n={n} m={m} steps={steps} batch={batch}\n"
        f"    at once {together:.2f} s, one by one {alone:.2f} s: {alone / together:.1f} times as "
        f"fast; NumPy one by one {numpy_seconds:.0f} s (from {REPEATS} of them): "
        f"{numpy_seconds / together:.0f} times; {result['peak_rss_mb']:.0f} MB"
    )


def scale(rust, penalty=1.0, tolerance=1e-5):
    """The fit's time against its size: each of steps, batch and test examples doubled in turn."""
    print(f"fit to {tolerance:g}, λ={penalty:g}")
    print("    n       m    steps  batch  seconds  iterations  ns/entry/iteration  peak MB")
    n, m, steps, batch = SCALE_BASE
    shapes = [SCALE_BASE]
    for double in (1, 2, 4):
        shapes.append((n, m, steps * 2 * double, batch))
    for double in (1, 2):
        shapes.append((n, m, steps, batch * 2 * double))
    for double in (1, 2):
        shapes.append((n, m * 2 * double, steps, batch))
    shapes.append(SCALE_FULL)
    for shape in shapes:
        r = ours(rust, *shape, penalty, tolerance, example="scale")
        print(
            f"    {r['n']:<6} {r['m']:>5} {r['steps']:>7} {r['batch']:>6} {r['seconds']:>8.2f} "
            f"{r['iterations']:>11.1f} {r['nanoseconds_per_entry_and_iteration']:>19.2f} "
            f"{r['peak_rss_mb']:>8.0f}",
            flush=True,
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
    parser.add_argument("--rust", default="target/release/examples")
    parser.add_argument("--penalty", type=float, nargs="*", default=[0.1, 1.0, 10.0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        # The fits first: the peak memory of this process is that of its largest part so far.
        if "fit" in arguments.only:
            for shape in FITS:
                for penalty in arguments.penalty:
                    compare_fit(arguments.rust, folder, shape, penalty)
        if "choose" in arguments.only:
            for shape in FITS:
                compare_choice(arguments.rust, folder, shape)
        if "what-ifs" in arguments.only:
            compare_what_ifs(arguments.rust, folder, *SIMULATIONS[0])
        if "simulate" in arguments.only:
            for shape in SIMULATIONS:
                compare_simulation(arguments.rust, folder, *shape)
    if "scale" in arguments.only:
        scale(arguments.rust)


if __name__ == "__main__":
    main()
