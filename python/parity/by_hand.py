"""What the libraries are held against, in plain PyTorch and SciPy."""

from __future__ import annotations

import copy

import torch
from safetensors.torch import load_file
from scipy.sparse.linalg import LinearOperator, cg
from task import example_losses


def load(model, checkpoint):
    """Give a model the weights of a checkpoint of the Trainer."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model.eval()


def gradients(model, words, wanted=lambda name: True):
    """Gradient of each sentence's loss, of shape (sentences, parameters): one backward pass each."""
    parameters = [p for name, p in model.named_parameters() if wanted(name)]
    rows = []
    for one in words.split(1):
        loss = example_losses(model(one).logits, one).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def inner_products(model, checkpoints, train, test, rate):
    """`Σ_c η g_c(train) · g_c(test)`: TracInCP over all parameters."""
    total = 0.0
    for checkpoint in checkpoints:
        load(model, checkpoint)
        total = total + rate * gradients(model, train) @ gradients(model, test).T
    return total


def influence(model, train, test, damping):
    """`g(test)ᵀ (H + λ)⁻¹ g(train)` with the Hessian of the mean training loss, λ the damping.

    In 64-bit floats, one system per test sentence, solved to a relative residual of 1e-6.
    """
    model = copy.deepcopy(model).double()
    rows, queries = gradients(model, train), gradients(model, test)
    parameters = list(model.parameters())
    loss = example_losses(model(train).logits, train).mean()
    formed = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)]
    )

    def product(vector):
        vector = torch.from_numpy(vector)
        parts = torch.autograd.grad(formed, parameters, vector, retain_graph=True)
        return (torch.cat([part.flatten() for part in parts]) + damping * vector).numpy()

    system = LinearOperator((len(formed), len(formed)), product, dtype="float64")
    solved = []
    for query in queries:
        solution, failed = cg(system, query.numpy(), rtol=1e-6)
        assert not failed
        solved.append(torch.from_numpy(solution))
    return rows @ torch.stack(solved).T
