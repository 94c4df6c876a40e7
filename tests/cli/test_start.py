"""A start is quick: fewer collections of garbage until the work begins, no package that nobody looks into."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest

import gentletune.cli.start as start
from gentletune.cli.common import prepare


def test_garbage_is_collected_as_usual_where_the_work_begins() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    with start.quick_start():
        assert gc.get_threshold()[0] > 100 * usual[0]
        prepare()
        assert gc.get_threshold() == usual
        assert gc.get_freeze_count() > frozen  # what was imported is walked no more
    assert gc.get_threshold() == usual


def test_a_late_package_is_executed_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("latecomer", "prompt_one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"from pathlib import Path\nPath('{name}.ran').touch()\nVALUE = 1\n"
        )
        (tmp_path / name / "part.py").write_text("VALUE = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(start, "_LATE", {"latecomer"})
    with start.quick_start():
        late = importlib.import_module("latecomer")
        importlib.import_module("prompt_one")
    assert Path("prompt_one.ran").exists()
    assert not Path("latecomer.ran").exists()
    assert importlib.import_module("latecomer.part").VALUE == 2  # of whoever needs it
    assert Path("latecomer.ran").exists()
    assert late.VALUE == 1
    assert not any(isinstance(finder, start._Late) for finder in sys.meta_path)
    for name in ("latecomer", "latecomer.part", "prompt_one"):
        del sys.modules[name]
