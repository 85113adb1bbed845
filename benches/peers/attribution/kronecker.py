"""EK-FAC by kronfluence and by dattri.

kronfluence: the empirical Fisher (recorded labels), damping by its heuristic (0.1 times the mean
corrected eigenvalue of each layer), factors in f32 with the eigendecomposition in f64: its
defaults. data/golden/attribution/README.md says what it computes, line by line. The loss of the
factors is the sum over a batch of each sequence's mean loss over its 32 positions.

dattri 0.3.0's IFAttributorEKFAC runs on the MLP only: on inputs with a sequence axis
(`fisher.py`, `_update_covariance`) it stops with an UnboundLocalError. What it computes is not
EK-FAC either: it rotates by the transposes of the eigenvectors (`q_s @ G @ q_a.T` where `q_s`,
`q_a` have the eigenvectors as columns), and reads weights and biases, laid out one after the
other, as rows of `[outputs × (inputs + 1)]`. Its time is a time; its scores are compared with
nothing.
"""

import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset

import models
from measure import Stopwatch


def analyzer(model, folder, strategy):
    """kronfluence's analyzer and the arguments of its factors."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class MeanPerExample(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample, "only the empirical Fisher is used"
            inputs, targets = batch
            return models.example_losses(model(inputs), targets).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = MeanPerExample()
    made = Analyzer(
        "bench", prepare_model(model, task), task, cpu=True, output_dir=folder,
        disable_tqdm=True, log_level=40,
    )
    return made, FactorArguments(strategy=strategy, use_empirical_fisher=True)


def pairwise_scores(made, train, test, batch, damping):
    from kronfluence.arguments import ScoreArguments

    made.compute_pairwise_scores(
        "scores", "factors", query_dataset=TensorDataset(*test),
        train_dataset=TensorDataset(*train), per_device_query_batch_size=len(test[0]),
        per_device_train_batch_size=batch, score_args=ScoreArguments(damping_factor=damping),
    )


def kronfluence_ekfac(model, train, test, batch, factor_batch):
    """Factors and scores, timed apart; kronfluence writes and reads both on disk."""
    with tempfile.TemporaryDirectory() as folder:
        made, factor_args = analyzer(model, folder, "ekfac")
        dataset = TensorDataset(*train)
        with Stopwatch() as covariances:
            made.fit_covariance_matrices(
                "factors", dataset, per_device_batch_size=factor_batch, factor_args=factor_args
            )
        with Stopwatch() as eigen:
            made.perform_eigendecomposition("factors", factor_args=factor_args)
        with Stopwatch() as corrected:
            made.fit_lambda_matrices(
                "factors", dataset, per_device_batch_size=factor_batch, factor_args=factor_args
            )
        with Stopwatch() as scoring:
            pairwise_scores(made, train, test, batch, damping=None)
        scores = made.load_pairwise_scores("scores")["all_modules"].T
    settings = {"use_empirical_fisher": True, "damping_factor": None, "parameters": "linear layers"}
    factors = settings | {"batch": factor_batch}
    return {
        "covariances": (covariances.result, factors, None),
        "eigendecomposition": (eigen.result, factors, None),
        "corrected_eigenvalues": (corrected.result, factors, None),
        "scores": (scoring.result, settings | {"batch": batch}, scores),
    }


def dattri_ekfac(model, train, test, batch, damping):
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    from gradient_products import dattri_task

    attributor = IFAttributorEKFAC(dattri_task(model), damping=damping)
    train_loader = DataLoader(TensorDataset(*train), batch_size=batch)
    test_loader = DataLoader(TensorDataset(*test), batch_size=len(test[0]))
    with Stopwatch() as factors:
        attributor.cache(train_loader)
    with Stopwatch() as scoring:
        scores = attributor.attribute(train_loader, test_loader)
    settings = {"batch": batch, "damping": damping}
    return {
        "factors": (factors.result, settings, None),
        "scores": (scoring.result, settings, scores.detach()),
    }
