"""How torch's threads wait for each other: after a moment asleep, so that a core that others use is left to them."""

from __future__ import annotations

import os

# libgomp, which torch's Linux wheels bring, obeys GOMP_SPINCOUNT: turns before a thread sleeps, 300,000 by default,
# longer than the kernel lets a thread run. 3,000 are 0.05 to 0.15 ms: enough for most waits on a quiet machine, where
# none at all makes generation 1.6 times slower (benchmarks/beside.py). The OpenMP runtimes of LLVM and Intel, which
# other builds of torch use, obey KMP_BLOCKTIME, in milliseconds.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}
VARIABLES = (*PASSIVE, "KMP_LIBRARY")
"""All variables that decide it: where the user has set one, all stay as they are."""


def wait_passively() -> None:
    """Ask the OpenMP runtime of this process, and of its children, for threads that soon sleep while they wait.

    It is read once, when torch is imported: a torch imported earlier keeps its way. Without effect where the user has
    set any of `VARIABLES`. Spinning threads make generation beside one busy process five times slower
    and more (docs/performance.md).
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(PASSIVE)
