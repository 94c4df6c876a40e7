"""A training in a process that is not ours leaves the garbage collector as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gentletune.runs.run
from gentletune import UserError, train
from tests.helpers import tiny_recipe


@pytest.fixture
def thawed() -> Iterator[None]:
    """As in a process that is not ours, where nothing is frozen."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_a_training_from_python_walks_through_the_imports_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []

    def seen(*_: Any, **__: Any) -> None:
        frozen.append(gc.get_freeze_count())
        raise UserError("seen")

    monkeypatch.setattr(gentletune.runs.run, "fit", seen)
    with pytest.raises(UserError, match="seen"):
        train(tiny_recipe(tiny_dir, tmp_path / "run", evaluate=False, probe_every=0))
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0  # all is the process's own again
