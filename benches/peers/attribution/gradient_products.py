"""GradDot by captum, kronfluence and dattri, and by torch.func as a yardstick.

Every function takes `(model, train, test)` and gives `{name of the part: (Stopwatch result,
settings, scores train × test)}`. Scores are `g_i · g_j` at one checkpoint, over all parameters
but where it says otherwise.
"""

import tempfile

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

import models
from measure import Stopwatch


class SumOfExampleLosses(nn.Module):
    reduction = "sum"

    def forward(self, logits, targets):
        return models.example_losses(logits, targets).sum()


def captum_tracin(model, train, test, batch):
    """TracInCP with one checkpoint; per-example gradients by a backward pass per example, the only
    way it has for models with embeddings and norms. Each of these passes goes through the graph of
    its whole batch, so large batches cost more; the test examples are loaded one by one. All test
    gradients are kept at once."""
    from captum.influence import TracInCP

    tracin = TracInCP(
        model, TensorDataset(*train), ["as it is"], checkpoints_load_func=lambda *_: 1.0,
        loss_fn=models.example_losses, batch_size=batch,
    )
    with Stopwatch() as watch:
        scores = tracin.influence(DataLoader(TensorDataset(*test), batch_size=1))
    return {"scores": (watch.result, {"batch": batch}, scores.detach().T)}


def captum_tracin_batched(model, train, test, batch):
    """The same with captum's batched gradients (linear layers only), its faster way."""
    from captum.influence import TracInCP

    tracin = TracInCP(
        model, TensorDataset(*train), ["as it is"], checkpoints_load_func=lambda *_: 1.0,
        loss_fn=SumOfExampleLosses(), batch_size=batch, sample_wise_grads_per_batch=True,
    )
    with Stopwatch() as watch:
        scores = tracin.influence(test)
    settings = {"batch": batch, "sample_wise_grads_per_batch": True}
    return {"scores": (watch.result, settings, scores.detach().T)}


def kronfluence_identity(model, train, test, batch):
    """kronfluence's `identity`: over the linear layers only, 96 % of the decoder's parameters.
    All query gradients are kept at once."""
    from kronecker import analyzer, pairwise_scores

    with tempfile.TemporaryDirectory() as folder:
        a, factor_args = analyzer(model, folder, "identity")
        a.fit_all_factors("factors", TensorDataset(*train), factor_args=factor_args)
        with Stopwatch() as watch:
            pairwise_scores(a, train, test, batch, damping=None)
        scores = a.load_pairwise_scores("scores")["all_modules"].T
    return {"scores": (watch.result, {"batch": batch, "parameters": "linear layers"}, scores)}


def dattri_task(model):
    from dattri.task import AttributionTask

    def loss(parameters, data):
        inputs, targets = data
        # One example alone (TracIn), or a batch; LiSSA's collate function makes targets floats.
        alone = targets.dim() == (0 if inputs.is_floating_point() else 1)
        if alone:
            inputs, targets = inputs[None], targets[None]
        logits = functional_call(model, parameters, inputs)
        return models.example_losses(logits, targets.long()).mean()

    state = {name: p.detach() for name, p in model.named_parameters()}
    return AttributionTask(loss_func=loss, model=model, checkpoints=state)


def dattri_tracin(model, train, test, batch, test_batch):
    """TracInAttributor without projection; test gradients are formed again per training batch.

    Inside `torch.no_grad()`: without it dattri keeps the graph of the gradients.
    """
    from dattri.algorithm.tracin import TracInAttributor

    attributor = TracInAttributor(
        dattri_task(model), weight_list=torch.ones(1), normalized_grad=False
    )
    # The constructor fills in a projection to 512 dimensions even when none is asked for.
    attributor.projector_kwargs = None
    loaders = (
        DataLoader(TensorDataset(*train), batch_size=batch),
        DataLoader(TensorDataset(*test), batch_size=test_batch),
    )
    with torch.no_grad(), Stopwatch() as watch:
        scores = attributor.attribute(*loaders)
    settings = {"batch": batch, "test_batch": test_batch}
    return {"scores": (watch.result, settings, scores.detach())}


def torch_func(model, train, test, batch):
    """No peer, but what a user would write: vmap(grad) and one matrix product per batch. Gives the
    scores over the linear layers too, for the comparison with kronfluence."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    linear = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, nn.Linear)
              for p in ("weight", "bias")}

    def loss(parameters, x, y):
        return models.example_losses(functional_call(model, parameters, (x[None],)), y[None]).sum()

    one = vmap(grad(loss), in_dims=(None, 0, 0))

    def formed(x, y):
        return {name: g.flatten(1) for name, g in one(parameters, x, y).items()}

    with Stopwatch() as watch:
        queries = formed(*test)
        everything, only_linear = [], []
        for x, y in zip(train[0].split(batch), train[1].split(batch)):
            rows = formed(x, y)
            parts = {name: rows[name] @ queries[name].T for name in rows}
            everything.append(sum(parts.values()))
            only_linear.append(sum(part for name, part in parts.items() if name in linear))
    settings = {"batch": batch}
    return {
        "scores": (watch.result, settings, torch.cat(everything)),
        "linear": (watch.result, settings | {"parameters": "linear layers"}, torch.cat(only_linear)),
    }
