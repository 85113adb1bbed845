"""Writes attribution.json: one small network, its data, and the scores that other programs give.

    PEERS=~/.cache/simfluence/attribution-peers PYDVL=~/.cache/simfluence/attribution-pydvl
    $PEERS/bin/python make.py --pydvl $PYDVL/bin/python

The environments are those of benches/peers/attribution (run.sh there makes them; the versions are
in its two requirements files). The script prints how far the programs agree, and stops if they do
not; README.md says what each entry means.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import tempfile
import warnings
from importlib.metadata import version

os.environ["TQDM_DISABLE"] = "1"

import torch

import network
import peers

# Added to the Hessian and to the Gauss-Newton matrix; the smallest eigenvalue of the Hessian is
# about -0.12 at the second checkpoint.
DAMPING = 0.25
# LiSSA solves (H/scale + d) x = v/scale: d = DAMPING / scale.
LISSA_SCALE = 10.0
DAMPINGS = {"damped": 1e-3, "heuristic": None}
INFLUENCE = "g_j^T (H + damping I)^-1 g_i; larger = a step on i lowers the loss of j more"
PRODUCT = "g_j . g_i; larger = a step on i lowers the loss of j more"
BLOCKS = "g_j^T P g_i, P the damped inverse per layer; larger = a step on i lowers the loss of j more"

PYDVL_REQUESTS = {
    "influence.pydvl_direct": ("direct", {"regularization": DAMPING}),
    "influence.pydvl_cg": ("cg", {"regularization": DAMPING, "rtol": 1e-11, "atol": 1e-13}),
    "lissa.pydvl": (
        "lissa",
        {"regularization": DAMPING, "maxiter": 3000, "scale": LISSA_SCALE, "rtol": 1e-9},
    ),
    "arnoldi.pydvl": (
        "arnoldi",
        {"regularization": DAMPING, "rank": 20, "tol": 1e-10, "use_woodbury": True},
    ),
}
DATTRI_REQUESTS = {
    "influence.dattri_explicit": ("explicit", {"regularization": DAMPING}),
    "influence.dattri_cg": ("cg", {"regularization": DAMPING, "max_iter": 60}),
    "lissa.dattri": (
        "lissa",
        {
            "batch_size": network.TRAIN,
            "num_repeat": 1,
            "recursion_depth": 2000,
            "damping": DAMPING / LISSA_SCALE,
            "scaling": LISSA_SCALE,
        },
    ),
    "arnoldi.dattri": (
        "arnoldi",
        # From 36 iterations on it returns a Ritz value near 0 that the matrix does not have.
        {"regularization": DAMPING, "max_iter": 30, "proj_dim": 29},
    ),
}


class Scores:
    """The entries of the file, in the order in which they are added."""

    def __init__(self):
        self.entries = {}

    def add(self, name, peer, checkpoints, sign, values, settings=None):
        values = values.double()
        assert values.shape == (network.TRAIN, network.TEST), (name, values.shape)
        assert torch.isfinite(values).all(), name
        self.entries[name] = {
            "peer": peer,
            "checkpoints": checkpoints,
            "sign": sign,
            "settings": settings or {},
            "values": values,
        }

    def difference(self, name, other):
        """Largest difference relative to the largest value of `other`."""
        a, b = (self.entries[n]["values"] for n in (name, other))
        return ((a - b).abs().max() / b.abs().max()).item()

    def agree(self, name, other, tolerance):
        difference = self.difference(name, other)
        print(f"{name:38} {other:34} {difference:.1e} (at most {tolerance:.0e})")
        assert difference <= tolerance, (name, other, difference)

    def inform(self, name, other):
        print(f"{name:38} {other:34} {self.difference(name, other):.1e}")


def gradient_products(scores, checkpoints, train, test, grads):
    rates = [rate for rate, _ in checkpoints]
    last = checkpoints[-1]
    products = [a @ b.T for a, b in grads]
    scores.add("graddot.own", "plain autograd, f64", [1], PRODUCT, products[1])
    scores.add(
        "graddot.kronfluence_identity", f"kronfluence {version('kronfluence')}, f64", [1], PRODUCT,
        peers.kronfluence(last[1], train, test, "identity", None),
    )
    captum = f"captum {version('captum')} TracInCP, f64"
    scores.add("graddot.captum", captum, [1], PRODUCT, peers.captum([(1.0, last[1])], train, test))
    dattri = f"dattri {version('dattri')} TracInAttributor without projection, f64"
    scores.add("graddot.dattri", dattri, [1], PRODUCT,
               peers.dattri_tracin([last], train, test, [1.0]))
    weighted = "sum over checkpoints of learning rate times g_j . g_i; larger = lowers j more"
    scores.add("tracin.own", "plain autograd, f64", [0, 1], weighted,
               sum(r * p for r, p in zip(rates, products)))
    scores.add("tracin.captum", captum, [0, 1], weighted, peers.captum(checkpoints, train, test))
    scores.add("tracin.dattri", dattri, [0, 1], weighted,
               peers.dattri_tracin(checkpoints, train, test, rates))
    for peer in ["kronfluence_identity", "captum", "dattri"]:
        scores.agree(f"graddot.{peer}", "graddot.own", 1e-12)
    for peer in ["captum", "dattri"]:
        scores.agree(f"tracin.{peer}", "tracin.own", 1e-12)


def influences(scores, state, train, test, grads, pydvl):
    settings = {"damping": DAMPING}
    own = {
        "influence.own": network.hessian(state, train),
        "gauss_newton.own": network.gauss_newton(state, train),
        "empirical_fisher.own": grads[0].T @ grads[0] / len(grads[0]),
    }
    for name, matrix in own.items():
        scores.add(name, "dense solve, f64", [1], INFLUENCE,
                   network.solved_scores(matrix, DAMPING, *grads), settings)
    for name, (solver, settings) in DATTRI_REQUESTS.items():
        scores.add(name, f"dattri {version('dattri')}, f64, one full batch", [1], INFLUENCE,
                   peers.dattri_influence(state, train, test, solver, settings), settings)
    for name, values in run_pydvl(pydvl, state, train, test).items():
        scores.add(name, "pyDVL 0.10.0, f64, one full batch", [1], INFLUENCE, values,
                   PYDVL_REQUESTS[name][1])
    for peer in ["dattri_explicit", "dattri_cg", "pydvl_direct", "pydvl_cg"]:
        scores.agree(f"influence.{peer}", "influence.own", 1e-9)
    for peer in ["lissa.dattri", "lissa.pydvl"]:
        scores.agree(peer, "influence.own", 1e-5)
    for peer in ["arnoldi.dattri", "arnoldi.pydvl"]:
        scores.inform(peer, "influence.own")
    return {name: torch.linalg.eigvalsh(matrix) for name, matrix in own.items()}


def run_pydvl(python, state, train, test):
    with tempfile.TemporaryDirectory() as folder:
        problem, result = (os.path.join(folder, n) for n in ("problem.pt", "scores.pt"))
        torch.save(
            {"state": state, "train": train, "test": test, "requests": PYDVL_REQUESTS}, problem
        )
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_pydvl.py")
        subprocess.run([python, script, problem, result], check=True)
        return torch.load(result)


def layerwise(scores, state, train, test, grads):
    for strategy in ["ekfac", "kfac", "diagonal"]:
        for label, damping in DAMPINGS.items():
            settings = {"damping_factor": damping, "use_empirical_fisher": True}
            name = f"{strategy}.{label}"
            scores.add(
                f"{name}.kronfluence", f"kronfluence {version('kronfluence')}, f64", [1], BLOCKS,
                peers.kronfluence(state, train, test, strategy, damping), settings,
            )
            scores.add(
                f"{name}.own", "definition in README.md, f64", [1], BLOCKS,
                network.layerwise_scores(state, train, strategy, damping, "label", grads), settings,
            )
            scores.add(
                f"{name}.own_exact_labels", "definition in README.md, labels' expectation, f64",
                [1], BLOCKS,
                network.layerwise_scores(state, train, strategy, damping, "model", grads),
                {"damping_factor": damping, "use_empirical_fisher": False},
            )
            scores.agree(f"{name}.own", f"{name}.kronfluence", 1e-9)
    single = peers.kronfluence(state, train, test, "ekfac", None, torch.float32)
    scores.add("ekfac.heuristic.kronfluence_f32", f"kronfluence {version('kronfluence')}, f32 with "
               "the eigendecomposition in f64 (its defaults)", [1], BLOCKS, single,
               {"damping_factor": None, "use_empirical_fisher": True})
    scores.agree("ekfac.heuristic.kronfluence_f32", "ekfac.heuristic.kronfluence", 1e-4)


def plain(value):
    """Tensors as nested lists; every 64-bit float is written so that it reads back exactly."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    assert not isinstance(value, float) or math.isfinite(value)
    return value


def examples(data, state):
    model = network.loaded(state)
    losses = torch.nn.functional.cross_entropy(model(data[0]), data[1], reduction="none").detach()
    return {"inputs": data[0], "labels": data[1], "losses_at_checkpoint_1": losses}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydvl", required=True, help="Python of the environment with pyDVL")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "attribution.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    train, test = network.make_data()
    checkpoints = network.make_checkpoints(train)
    state = checkpoints[-1][1]
    grads = [[network.gradients(s, d) for d in (train, test)] for _, s in checkpoints]
    scores = Scores()
    gradient_products(scores, checkpoints, train, test, grads)
    spectra = influences(scores, state, train, test, grads[-1], arguments.pydvl)
    layerwise(scores, state, train, test, grads[-1])
    document = {
        "made_by": {
            "script": "data/golden/attribution/make.py",
            "versions": {n: version(n) for n in ["torch", "kronfluence", "captum", "dattri"]}
            | {"pyDVL": "0.10.0", "python": platform.python_version()},
        },
        "architecture": {
            "sizes": network.SIZES,
            "activation": "tanh",
            "loss": "cross-entropy in nats",
            "parameters": list(state),
        },
        "train": examples(train, state),
        "test": examples(test, state),
        "checkpoints": [{"learning_rate": r, "parameters": s} for r, s in checkpoints],
        "damping": DAMPING,
        "smallest_and_largest_eigenvalue": {
            name.removesuffix(".own").replace("influence", "hessian"): [e[0], e[-1]]
            for name, e in spectra.items()
        },
        "axes": ["train", "test"],
        "scores": scores.entries,
    }
    for name, e in spectra.items():
        print(f"{name}: eigenvalues {e[0]:.4f} to {e[-1]:.4f}, damping {DAMPING}")
    with open(arguments.out, "w") as file:
        json.dump(plain(document), file)
        file.write("\n")
    print(f"{arguments.out}: {os.path.getsize(arguments.out) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
