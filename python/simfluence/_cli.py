"""The `simfluence` command."""

from __future__ import annotations

import signal
import sys

from simfluence import _native


def main() -> int:
    """Run the command line with the arguments of this process.

    Returns
    -------
    int
        0 fine, 1 the input or the run failed, 2 wrong usage.
    """
    # Python only notes Ctrl-C and raises once its own code runs again; the program has none.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.program(["simfluence", *sys.argv[1:]])
