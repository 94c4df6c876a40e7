"""Children that start in milliseconds, and models too small to share a step among cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def processes() -> Any:
    """A server with everything imported forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gentletune.study", "trl.trainer.sft_trainer", "peft"])
    first = context.Process(target=int)  # the server starts with its first child
    first.start()
    first.join()
    return context


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several threads wait for each other longer than they add numbers, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
