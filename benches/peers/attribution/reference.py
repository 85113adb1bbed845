"""The linear system that the solvers are judged on, and its solution to high accuracy.

    python reference.py DATA RESULTS THREADS

The system is `(H + δI) x = g_j` with H the Hessian of the mean loss of the first 500 training
examples of the MLP and g_j the gradient of each of the first 100 test examples' losses; the scores
are `g_i · x_j`, 500 × 100. In 64-bit floats: conjugate gradients on all test examples at once to a
relative residual of 1e-8, and the extreme eigenvalues by Lanczos with full reorthogonalisation.
Writes mlp_influence_reference.npy and mlp_influence_reference.json.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from torch.func import functional_call, grad, jvp, vmap

import data
import models

TRAIN, TEST = 500, 100
DAMPING = 1.0
TOLERANCE = 1e-8


def problem(folder):
    """The MLP and the first examples of both sets."""
    model, train, test = data.load(folder, "mlp")
    return model, tuple(t[:TRAIN] for t in train), tuple(t[:TEST] for t in test)


class Flat:
    """A model as a function of one vector of all its parameters."""

    def __init__(self, model):
        self.model = model
        named = {name: p.detach() for name, p in model.named_parameters()}
        self.shapes = {name: p.shape for name, p in named.items()}
        self.vector = torch.cat([p.reshape(-1) for p in named.values()])

    def named(self, vector):
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {n: p.view(shape) for (n, shape), p in zip(self.shapes.items(), parts)}

    def loss(self, vector, inputs, targets):
        logits = functional_call(self.model, self.named(vector), (inputs,))
        return models.example_losses(logits, targets).mean()

    def gradients(self, inputs, targets):
        one = lambda v, x, y: self.loss(v, x[None], y[None])
        return vmap(grad(one), in_dims=(None, 0, 0))(self.vector, inputs, targets)

    def hessian_products(self, vectors, inputs, targets, chunk=20):
        gradient = grad(lambda v: self.loss(v, inputs, targets))
        one = lambda direction: jvp(gradient, (self.vector,), (direction,))[1]
        return torch.cat([vmap(one)(part) for part in vectors.split(chunk)])


def conjugate_gradients(product, right, tolerance, limit=1000):
    """One system per row of `right`; each row stops moving when it is solved."""
    x = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    square = (residual**2).sum(1)
    stop = tolerance**2 * square
    for iteration in range(limit):
        active = square > stop
        if not active.any():
            break
        image = product(direction)
        curvature = (direction * image).sum(1)
        assert (curvature > 0).all(), "the damped Hessian is not positive definite"
        step = torch.where(active, square / curvature, torch.zeros_like(square))
        x += step[:, None] * direction
        residual -= step[:, None] * image
        new = (residual**2).sum(1)
        direction = residual + (new / square)[:, None] * direction
        square = new
    return x, iteration, (right - product(x)).norm(dim=1) / right.norm(dim=1)


def extreme_eigenvalues(product, size, steps=60):
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(1, size, generator=generator, dtype=torch.float64)
    basis /= basis.norm()
    diagonal, beside = [], []
    for _ in range(steps):
        image = product(basis[-1:])[0]
        diagonal.append(image @ basis[-1])
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        beside.append(image.norm())
        basis = torch.cat([basis, (image / beside[-1])[None]])
    beside = torch.stack(beside[:-1])
    tridiagonal = torch.diag(torch.stack(diagonal)) + torch.diag(beside, 1) + torch.diag(beside, -1)
    values = torch.linalg.eigvalsh(tridiagonal)
    return values[0].item(), values[-1].item()


def main():
    folder, results, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    model, train, test = problem(folder)
    flat = Flat(model.double())
    train, test = (train[0].double(), train[1]), (test[0].double(), test[1])
    hessian = lambda v: flat.hessian_products(v, *train)
    start = time.perf_counter()
    smallest, largest = extreme_eigenvalues(hessian, len(flat.vector))
    queries = flat.gradients(*test)
    damped = lambda v: hessian(v) + DAMPING * v
    solutions, iterations, residuals = conjugate_gradients(damped, queries, TOLERANCE)
    scores = flat.gradients(*train) @ solutions.T
    np.save(os.path.join(results, "mlp_influence_reference.npy"), scores.numpy())
    summary = {
        "peer": "mlp_influence_reference",
        "seconds": time.perf_counter() - start,
        "damping": DAMPING,
        "smallest_eigenvalue": smallest,
        "largest_eigenvalue": largest,
        "iterations": iterations,
        "largest_relative_residual": residuals.max().item(),
    }
    with open(os.path.join(results, "mlp_influence_reference.json"), "w") as file:
        json.dump(summary, file)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
