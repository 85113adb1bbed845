"""TracIn and influence functions by dattri."""

from __future__ import annotations

import torch
from by_hand import load
from dattri.algorithm.influence_function import IFAttributorCG
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from task import example_losses
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

#: The Hessian has eigenvalues down to −1 where it is asked for: with less damping than that the
#: system is not positive definite, and conjugate gradients give anything.
DAMPING = 2.0


def task(model, checkpoints, target=None):
    """dattri's task over the checkpoints; it attributes `target`, by default the loss."""

    def loss(parameters, data):
        # One sentence under vmap, or a batch.
        words = data[0].reshape(-1, data[0].shape[-1])
        return example_losses(functional_call(model, parameters, (words,)).logits, words).mean()

    return AttributionTask(
        loss_func=loss, model=model, checkpoints=checkpoints, checkpoints_load_func=load,
        target_func=target and (lambda parameters, data: target(loss(parameters, data))),
    )  # fmt: skip


def loaders(train, test):
    """One batch each: dattri forms the test gradients again for every training batch."""
    return [DataLoader(TensorDataset(words), batch_size=len(words)) for words in (train, test)]


def tracin(model, checkpoints, train, test, rate, target=None):
    """`Σ_c η g_c(train) · ∇target_c(test)` over all parameters, train × test."""
    attributor = TracInAttributor(
        task(model, checkpoints, target), torch.full((len(checkpoints),), rate), False
    )
    # The constructor fills in a projection to 512 dimensions even when none is asked for.
    attributor.projector_kwargs = None
    with torch.no_grad():
        return attributor.attribute(*loaders(train, test))


def influence(model, checkpoint, train, test):
    """`g(test)ᵀ (H + λ)⁻¹ g(train)` by conjugate gradients over all parameters, train × test."""
    attributor = IFAttributorCG(task(model, [checkpoint]), max_iter=10, regularization=DAMPING)
    inputs, queries = loaders(train, test)
    attributor.cache(inputs)
    return attributor.attribute(inputs, queries).detach()
