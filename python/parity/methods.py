"""The scores that are judged: every library on the same checkpoints, train × test."""

from __future__ import annotations

import from_bergson
import from_captum
import from_dattri
import from_kronfluence
import from_trak
from by_hand import load
from runs import RATE


def scores(model, checkpoints, train, test):
    """Scores by the name that stands in the comparison.

    Those that add up over checkpoints get all of them, the others the last.
    """
    several = (model, checkpoints, train, test)
    made = {
        "TracInCP (captum)": from_captum.tracin_cp(*several, RATE),
        "TRAK (traker)": from_trak.trak(*several),
        "influence by CG (dattri)": from_dattri.influence(model, checkpoints[-1], train, test),
    }
    last = (load(model, checkpoints[-1]), train, test)
    made["EK-FAC (kronfluence)"] = from_kronfluence.influence(*last)
    made["GradDot (bergson)"] = from_bergson.grad_dot(*last)
    made["TrackStar (bergson)"] = from_bergson.trackstar(*last)
    return made
