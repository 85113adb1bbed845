"""The same scores by pyDVL 0.10.0, which needs numpy < 2 and so a virtual environment of its own.

    python peer_pydvl.py problem.pt scores.pt
"""

import sys
import warnings

# pyDVL's own use of a deprecated decorator, at import.
warnings.simplefilter("ignore", FutureWarning)

import torch
from pydvl.influence.torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    LissaInfluence,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from network import loaded

SOLVERS = {
    "direct": DirectInfluence,
    "cg": CgInfluence,
    "arnoldi": ArnoldiInfluence,
    "lissa": LissaInfluence,
}


def scores(problem, solver, settings):
    torch.manual_seed(0)
    model = SOLVERS[solver](loaded(problem["state"]), nn.functional.cross_entropy, **settings)
    train, test = problem["train"], problem["test"]
    model = model.fit(DataLoader(TensorDataset(*train), batch_size=len(train[0])))
    return model.influences(*test, *train).detach().T


def main():
    problem = torch.load(sys.argv[1])
    torch.save(
        {name: scores(problem, *request) for name, request in problem["requests"].items()},
        sys.argv[2],
    )


if __name__ == "__main__":
    main()
