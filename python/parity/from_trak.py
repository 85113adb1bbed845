"""TRAK by its authors' library."""

from __future__ import annotations

import logging
import tempfile

import torch
from safetensors.torch import load_file
from task import example_losses
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType


class LogOdds(AbstractModelOutput):
    """`log(p / (1 − p))` with `p` the geometric mean of the probabilities of a sentence's targets.

    The loss is `−log p`, so that its derivative by the output is `−(1 − p)`.
    """

    def __init__(self):
        pass

    @staticmethod
    def get_output(model, weights, buffers, words):
        loss = LogOdds.losses(model, weights, buffers, words[None])[0]
        return -loss - torch.log(-torch.expm1(-loss))

    @staticmethod
    def get_out_to_loss_grad(model, weights, buffers, batch):
        return 1 - (-LogOdds.losses(model, weights, buffers, batch[0])).exp()[:, None]

    @staticmethod
    def losses(model, weights, buffers, words):
        logits = functional_call(model, (weights, buffers), (words,)).logits
        return example_losses(logits, words)


def trak(model, checkpoints, train, test, dimension=32):
    """TRAK scores over all parameters, the mean over checkpoints, train × test.

    TRAK wants models that were trained apart; checkpoints of one run are a cheap stand-in.
    """
    size = sum(p.numel() for p in model.parameters())
    weights = [load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints]
    with tempfile.TemporaryDirectory() as folder:
        made = TRAKer(
            model, LogOdds(), len(train), save_dir=folder, device="cpu", use_half_precision=False,
            projector=BasicProjector(size, dimension, 0, ProjectionType.normal, "cpu"),
            logging_level=logging.WARNING,
        )  # fmt: skip
        for place, one in enumerate(weights):
            made.load_checkpoint(one, model_id=place)
            made.featurize([train], num_samples=len(train))
        made.finalize_features()
        for place, one in enumerate(weights):
            made.start_scoring_checkpoint("test", one, place, len(test))
            made.score([test], num_samples=len(test))
        return torch.tensor(made.finalize_scores("test"))
