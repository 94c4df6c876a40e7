"""A pytest plugin for `gpu.py`: writes what each test came to as it ends, and leaves out what has passed before.

    GPU_TESTS_SEEN=seen.txt python -m pytest -p gpu_tests tests/losses

Lines are `passed NODE`, `failed NODE`, `skipped NODE`. A test that failed is run again by the next call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

SEEN = Path(os.environ["GPU_TESTS_SEEN"])


def _seen() -> dict[str, str]:
    lines = SEEN.read_text(encoding="utf-8").splitlines() if SEEN.exists() else []
    return {node: kind for kind, _, node in (line.partition(" ") for line in lines)}


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what has passed, or was skipped, before."""
    done = {node for node, kind in config.stash_seen.items() if kind != "failed"}
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_configure(config: Any) -> None:
    """What was there at the start counts, and is the same for every worker of xdist: they must collect alike."""
    worker = getattr(config, "workerinput", None)
    config.stash_seen = _seen() if worker is None else worker["seen"]
    if worker is None:  # what failed before is run again: only its new outcome shall stand
        kept = [f"{kind} {node}\n" for node, kind in config.stash_seen.items() if kind != "failed"]
        SEEN.parent.mkdir(parents=True, exist_ok=True)
        SEEN.write_text("".join(kept), encoding="utf-8")


@pytest.hookimpl(optionalhook=True)  # one of xdist
def pytest_configure_node(node: Any) -> None:
    node.workerinput["seen"] = node.config.stash_seen


def pytest_runtest_logreport(report: Any) -> None:
    """A test's outcome: of its call, or of its set-up or tear-down where that failed or skipped it."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    with SEEN.open("a", encoding="utf-8") as file:
        file.write(f"{report.outcome} {report.nodeid}\n")
