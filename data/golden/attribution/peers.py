"""The same scores by kronfluence 1.0.1, captum 0.9.0 and dattri 0.3.0; all return train × test."""

import tempfile

import torch
from captum.influence import TracInCP
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from network import Network, loaded


class Classification(Task):
    """Sums of losses, as kronfluence's factors expect."""

    def compute_train_loss(self, batch, model, sample=False):
        assert not sample, "only the empirical Fisher is used"
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs), labels, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def kronfluence(state, train, test, strategy, damping, dtype=torch.float64, batch=7):
    task = Classification()
    model = prepare_model(loaded(state).to(dtype), task)
    train, test = (TensorDataset(x.to(dtype), y) for x, y in (train, test))
    factor_args = FactorArguments(
        strategy=strategy,
        use_empirical_fisher=True,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        eigendecomposition_dtype=torch.float64,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    score_args = ScoreArguments(
        damping_factor=damping,
        query_gradient_svd_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        precondition_dtype=dtype,
        score_dtype=dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "golden", model, task, cpu=True, output_dir=folder, disable_tqdm=True, log_level=40
        )
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=batch, factor_args=factor_args
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=test,
            train_dataset=train,
            per_device_query_batch_size=len(test),
            per_device_train_batch_size=batch,
            score_args=score_args,
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"].T.clone()


def captum(checkpoints, train, test):
    """`checkpoints`: `[(learning rate, state)]`; TracInCP sums `learning rate · ⟨g_j, g_i⟩`."""

    def load(model, checkpoint):
        learning_rate, state = checkpoint
        model.load_state_dict(state)
        return learning_rate

    tracin = TracInCP(
        Network().double(),
        TensorDataset(*train),
        checkpoints,
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=len(train[0]),
    )
    return tracin.influence(test).detach().T


def dattri_task(states):
    model = Network().double()

    def loss(parameters, data):
        inputs, labels = data
        # LiSSA's collate function turns everything into 32-bit floats.
        logits = functional_call(model, parameters, inputs.double())
        return nn.functional.cross_entropy(logits, labels.long())

    return AttributionTask(loss_func=loss, model=model, checkpoints=list(states))


def loaders(train, test):
    """One full batch each: dattri sums the inverses of its batches' Hessians."""
    return [DataLoader(TensorDataset(*d), batch_size=len(d[0])) for d in (train, test)]


def dattri_tracin(checkpoints, train, test, weights):
    attributor = TracInAttributor(
        dattri_task([state for _, state in checkpoints]),
        weight_list=torch.tensor(weights),
        normalized_grad=False,
    )
    # The constructor fills in a projection to 512 dimensions even when none is asked for.
    attributor.projector_kwargs = None
    return attributor.attribute(*loaders(train, test)).detach()


IF_SOLVERS = {
    "explicit": IFAttributorExplicit,
    "cg": IFAttributorCG,
    "arnoldi": IFAttributorArnoldi,
    "lissa": IFAttributorLiSSA,
}


def dattri_influence(state, train, test, solver, settings):
    attributor = IF_SOLVERS[solver](dattri_task([state]), **settings)
    train_loader, test_loader = loaders(train, test)
    attributor.cache(train_loader)
    return attributor.attribute(train_loader, test_loader).detach()
