"""How torch's threads wait for each other: asleep, not spinning, so that a core that others use is left to them."""

from __future__ import annotations

import os

# libgomp, which torch's Linux wheels bring, obeys OMP_WAIT_POLICY (GOMP_SPINCOUNT becomes 0); the OpenMP runtimes of
# LLVM and Intel, which other builds of torch use, obey KMP_BLOCKTIME (milliseconds before a thread sleeps).
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
VARIABLES = (*PASSIVE, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""All variables that decide it: where the user has set one, all stay as they are."""


def wait_passively() -> None:
    """Ask the OpenMP runtime of this process, and of its children, for threads that sleep while they wait.

    It is read once, when torch is imported: a torch imported earlier keeps its way. Without effect where the user has
    set any of `VARIABLES`. Spinning threads made generation beside one busy process tens of times
    slower (docs/performance.md).
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(PASSIVE)
