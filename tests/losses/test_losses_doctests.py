from __future__ import annotations

import doctest
import importlib

import pytest

from gentletune.methods import registry


@pytest.mark.parametrize(
    "name", ["losses.heads", "losses.chunked", "losses.weights", "methods.registry", "core.errors"]
)
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # an example registers a method
    result = doctest.testmod(importlib.import_module(f"gentletune.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
