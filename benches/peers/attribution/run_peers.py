"""Runs the peers, each in a process of its own, and prints one JSON line for each timed part.

    python run_peers.py --data DIR --results DIR --threads 2 [--only NAME …] [--list]

A line has the peer's name and part, seconds, peak MiB above what the process held before the work
began (`peak_mib_above_start`) and that (`start_mib`), the threads and the settings. Scores go to
RESULTS/NAME.PART.npy, train × test, larger = training on i lowers the loss of j more. Where
reference.py has written its solution, the solvers' lines also have the relative error of their
scores in the Frobenius norm and the mean over test examples of the rank correlation with it.
"""

import argparse
import json
import os
import subprocess
import sys

# name: (model, module, function, settings)
PEERS = {
    "decoder_captum_tracin": ("decoder", "gradient_products", "captum_tracin", {"batch": 8}),
    "decoder_kronfluence_identity": (
        "decoder", "gradient_products", "kronfluence_identity", {"batch": 50},
    ),
    "decoder_torch_func": ("decoder", "gradient_products", "torch_func", {"batch": 25}),
    "decoder_kronfluence_ekfac": (
        "decoder", "kronecker", "kronfluence_ekfac", {"batch": 50, "factor_batch": 25},
    ),
    "mlp_captum_tracin": ("mlp", "gradient_products", "captum_tracin", {"batch": 20}),
    "mlp_captum_tracin_batched": (
        "mlp", "gradient_products", "captum_tracin_batched", {"batch": 500},
    ),
    "mlp_dattri_tracin": (
        "mlp", "gradient_products", "dattri_tracin", {"batch": 500, "test_batch": 200},
    ),
    "mlp_torch_func": ("mlp", "gradient_products", "torch_func", {"batch": 500}),
    "mlp_kronfluence_ekfac": (
        "mlp", "kronecker", "kronfluence_ekfac", {"batch": 500, "factor_batch": 500},
    ),
    "mlp_dattri_ekfac": ("mlp", "kronecker", "dattri_ekfac", {"batch": 500, "damping": 1e-3}),
    "mlp_dattri_lissa_full": (
        "mlp", "solvers", "dattri_lissa", {"batch": 500, "depth": 60, "scale": 6.0},
    ),
    "mlp_dattri_lissa_batch_50": (
        "mlp", "solvers", "dattri_lissa", {"batch": 50, "depth": 60, "scale": 10.0},
    ),
    "mlp_dattri_arnoldi": ("mlp", "solvers", "dattri_arnoldi", {"steps": 17}),
    "mlp_dattri_arnoldi_f64": ("mlp", "solvers", "dattri_arnoldi", {"steps": 25, "double": True}),
}

# glibc gives freed memory back eagerly, and page faults are a large part of everyone's time.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


def environment(threads):
    fixed = {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
    }
    return os.environ | ALLOCATOR | fixed


def drive(arguments):
    for name in arguments.only or PEERS:
        command = [sys.executable, os.path.abspath(__file__), "--worker", name, "--data",
                   arguments.data, "--results", arguments.results, "--threads",
                   str(arguments.threads)]
        done = subprocess.run(command, env=environment(arguments.threads), capture_output=True,
                              text=True)
        if done.returncode == 0:
            print(done.stdout, end="", flush=True)
        else:
            last = (done.stderr.strip() or "killed").splitlines()[-1]
            print(json.dumps({"peer": name, "failed": done.returncode, "message": last}), flush=True)


def accuracy(scores, results):
    """Against reference.py's solution: relative error, and mean rank correlation per test example."""
    import numpy as np

    path = os.path.join(results, "mlp_influence_reference.npy")
    if not os.path.exists(path):
        return {}
    reference = np.load(path)
    error = np.linalg.norm(scores - reference) / np.linalg.norm(reference)
    ranks = [np.argsort(np.argsort(m, 0), 0) for m in (scores, reference)]
    spearman = [np.corrcoef(a, b)[0, 1] for a, b in zip(ranks[0].T, ranks[1].T)]
    return {"relative_error": float(error), "rank_correlation": float(np.mean(spearman))}


def work(arguments):
    import importlib
    import warnings

    import numpy as np
    import torch

    import data

    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    name = arguments.worker
    model_name, module, function, settings = PEERS[name]
    model, train, test = data.load(arguments.data, model_name)
    # PyTorch starts its threads and libraries at the first use.
    model(train[0][:4]).logsumexp(-1).sum().backward()
    model.zero_grad(set_to_none=True)
    run = getattr(importlib.import_module(module), function)
    os.makedirs(arguments.results, exist_ok=True)
    for part, (measured, used, scores) in run(model, train, test, **settings).items():
        line = {"peer": name, "part": part} | measured | {"threads": arguments.threads}
        if scores is not None:
            scores = scores.numpy()
            np.save(os.path.join(arguments.results, f"{name}.{part}.npy"), scores)
            line["finite"] = bool(np.isfinite(scores).all())
            if module == "solvers":
                line |= accuracy(scores, arguments.results)
        print(json.dumps(line | {"settings": used}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/tmp/simfluence-attribution-peers/data")
    parser.add_argument("--results", default="/tmp/simfluence-attribution-peers/results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=PEERS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(PEERS))
    elif arguments.worker:
        work(arguments)
    else:
        drive(arguments)


if __name__ == "__main__":
    main()
