"""Children that start in milliseconds."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest


@pytest.fixture(scope="session")
def processes() -> Any:
    """A server with everything imported forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gentletune.study", "trl.trainer.sft_trainer", "peft"])
    first = context.Process(target=int)  # the server starts with its first child
    first.start()
    first.join()
    return context
