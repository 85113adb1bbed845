"""LiSSA and Arnoldi by dattri, on the linear system of reference.py: `(H + δI) x_j = g_j`, H the
Hessian of the mean loss over the first 500 training examples of the MLP, in f32.

LiSSA: `c ← g + (1 − d) c − H_b c / s`, R times from `c = g`, answer `c / s`; its fixed point is
`(H + s·d·I)⁻¹ g`, so `d = δ / s`. `H_b` is the Hessian of the mean loss of a batch of b examples
drawn without replacement, anew for every step and every test example; b = 500 is H itself, and
nothing is random. It converges where `|1 − d − λ/s| < 1` for every eigenvalue λ of `H_b`. The solve
is repeated for every batch of the training loader, so one batch holds all of it.

Arnoldi: k steps from a random vector on `H + δI`, answer `V Λ⁻¹ Vᵀ g` with the k − 1 Ritz pairs: the
inverse within the Krylov space only, 0 outside of it. With δ inside, the products stay close to the
vectors they came from, and one pass of Gram-Schmidt loses orthogonality: from about 20 steps in
f32, and somewhat later in f64, Λ has values near or below 0 that `H + δI` does not have, and the
scores are useless or NaN. The steps used are those with the smallest error.

Both run inside `torch.no_grad()`. Without it dattri keeps the graph of the whole recursion, and its
peak grows with the number of steps (10.7 GB for 60 LiSSA steps with batches of 50); the scores are
the same.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from gradient_products import dattri_task
from measure import Stopwatch
from reference import DAMPING, TEST, TRAIN


def loaders(train, test):
    """One batch each, of the first examples of both sets."""
    return (
        DataLoader(TensorDataset(*(t[:TRAIN] for t in train)), batch_size=TRAIN),
        DataLoader(TensorDataset(*(t[:TEST] for t in test)), batch_size=TEST),
    )


def dattri_lissa(model, train, test, batch, depth, scale):
    from dattri.algorithm.influence_function import IFAttributorLiSSA

    torch.manual_seed(0)
    settings = {
        "batch_size": batch, "num_repeat": 1, "recursion_depth": depth,
        "damping": DAMPING / scale, "scaling": scale,
    }
    attributor = IFAttributorLiSSA(dattri_task(model), **settings)
    train_loader, test_loader = loaders(train, test)
    attributor.cache(train_loader)
    with torch.no_grad(), Stopwatch() as watch:
        scores = attributor.attribute(train_loader, test_loader)
    return {"scores": (watch.result, settings, scores.detach())}


def dattri_arnoldi(model, train, test, steps, double=False):
    from dattri.algorithm.influence_function import IFAttributorArnoldi

    if double:
        torch.set_default_dtype(torch.float64)
        model, train, test = model.double(), (train[0].double(), train[1]), (test[0].double(), test[1])
    settings = {"regularization": DAMPING, "max_iter": steps, "proj_dim": steps - 1, "seed": 0}
    kind = {"dtype": "f64" if double else "f32"}
    attributor = IFAttributorArnoldi(dattri_task(model), **settings)
    train_loader, test_loader = loaders(train, test)
    with torch.no_grad(), Stopwatch() as watch:
        attributor.cache(train_loader)
        scores = attributor.attribute(train_loader, test_loader)
    return {"scores": (watch.result, settings | kind, scores.detach())}
