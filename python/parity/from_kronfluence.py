"""EK-FAC influence by kronfluence."""

from __future__ import annotations

import copy
import tempfile

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from task import example_losses
from torch.utils.data import TensorDataset


class MeanPerTarget(Task):
    """The loss that the runs were trained with, one for each sentence."""

    def compute_train_loss(self, batch, model, sample=False):
        (words,) = batch
        return example_losses(model(words).logits, words).sum()

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def influence(model, train, test, strategy="ekfac"):
    """`g(test)ᵀ (F + λ)⁻¹ g(train)` over the linear layers, train × test.

    Damping is kronfluence's default, F the empirical Fisher matrix. With the strategy `identity`
    there is no F.
    """
    task, sets = MeanPerTarget(), (TensorDataset(train), TensorDataset(test))
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "parity", prepare_model(copy.deepcopy(model), task), task, cpu=True, log_level=40,
            output_dir=folder, disable_tqdm=True,
        )  # fmt: skip
        analyzer.fit_all_factors(
            "factors", sets[0], per_device_batch_size=len(train),
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True),
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "scores", "factors", query_dataset=sets[1], train_dataset=sets[0],
            per_device_query_batch_size=len(test), per_device_train_batch_size=len(train),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].T  # it gives test × train
