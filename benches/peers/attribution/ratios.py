"""Ours and the peers in turn, several rounds; medians, and how many times as long the peer takes.

    python ratios.py --ours BINARY --data DIR --results DIR [--threads 2] [--rounds 3] [--only KIND …]

BINARY is the example `attribution_peer`. One JSON line for every run, then the table. Seconds are
wall-clock seconds of the work alone, in processes of their own, once, after the first use of the
library on a few examples.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

import run_peers

# kind: (work, our task, peers)
KINDS = {
    "graddot-decoder": (
        "GradDot, decoder, 500 × 100", ["decoder_kronfluence_identity", "decoder_captum_tracin"],
    ),
    "graddot-mlp": ("GradDot, MLP, 2 000 × 200", ["mlp_captum_tracin_batched"]),
    "ekfac-decoder": ("EK-FAC, decoder: factors and scores", ["decoder_kronfluence_ekfac"]),
    "lissa-mlp": ("LiSSA, MLP, 500 × 100", ["mlp_dattri_lissa_full"]),
    "arnoldi-mlp": ("Arnoldi, 17 steps", ["mlp_dattri_arnoldi"]),
}

# Our memory limit, MiB: what is asked for is less than 1.5 GB.
MEMORY = "1400"

# Short spinning, as the program sets for itself (src/environment.rs).
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def ours(arguments, kind):
    out = os.path.join(arguments.results, f"ours-{kind}.safetensors")
    command = [arguments.ours, kind, arguments.data, str(arguments.threads), out, MEMORY]
    environment = run_peers.environment(arguments.threads) | WAITING
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    line = json.loads(done.stdout)
    if kind in ("lissa-mlp", "arnoldi-mlp"):
        line |= run_peers.accuracy(load_file(out)["products"], arguments.results)
    return {
        "who": "ours", "kind": kind, "seconds": line["seconds"],
        "processor_seconds": line["processor_seconds"], "peak_mib": line["peak_mib"],
        "relative_error": line.get("relative_error"),
    }


def peer(arguments, kind, name):
    command = [sys.executable, run_peers.__file__, "--worker", name, "--data", arguments.data,
               "--results", arguments.results, "--threads", str(arguments.threads)]
    environment = run_peers.environment(arguments.threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr}")
    parts = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [part["relative_error"] for part in parts if "relative_error" in part]
    return {
        "who": name, "kind": kind, "seconds": sum(part["seconds"] for part in parts),
        "processor_seconds": sum(part["cpu_seconds"] for part in parts),
        "peak_mib": max(part["peak_mib_above_start"] for part in parts),
        "relative_error": errors[0] if errors else None,
    }


def summed_up(rows):
    median = {key: statistics.median(row[key] for row in rows)
              for key in ("seconds", "processor_seconds", "peak_mib")}
    error = rows[0]["relative_error"]
    text = "{:.4g} s ({:.4g} processor), {:.0f} MiB".format(*median.values())
    return median["seconds"], text + (f", error {error:.1e}" if error is not None else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=KINDS, metavar="KIND")
    arguments = parser.parse_args()
    table = ["| work | ours | peer | ratio |", "| --- | --- | --- | ---: |"]
    for kind in arguments.only or KINDS:
        title, names = KINDS[kind]
        rows = {who: [] for who in ["ours", *names]}
        for _ in range(arguments.rounds):
            rows["ours"].append(ours(arguments, kind))
            for name in names:
                rows[name].append(peer(arguments, kind, name))
        for row in (row for all_of_one in rows.values() for row in all_of_one):
            print(json.dumps(row), flush=True)
        seconds, text = summed_up(rows["ours"])
        for name in names:
            theirs, other = summed_up(rows[name])
            table.append(f"| {title} | {text} | {name}: {other} | {theirs / seconds:.2f}× |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
