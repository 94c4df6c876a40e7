"""Short ways to a score of each kind, for the tests of the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gentletune.core.records import Score
from gentletune.stats import accuracy_score, balanced_accuracy_score, mean_score, ratio_score


def accuracy(right: Sequence[float], groups: Sequence[object] | None = None, task: str = "t") -> Score:
    return accuracy_score(right, task=task, side="domain", groups=groups)


def mean(values: Sequence[float], groups: Sequence[object] | None = None) -> Score:
    return mean_score(values, task="t", side="general", metric="m", higher_is_better=True, groups=groups)


def ratio(a: Sequence[float], b: Sequence[float], groups: Sequence[object] | None = None) -> Score:
    kwargs: dict[str, Any] = {"task": "t", "side": "general", "metric": "bits_per_token", "higher_is_better": False}
    return ratio_score(a, b, groups=groups, **kwargs)


def balanced(right: Sequence[float], classes: Sequence[str], groups: Sequence[object] | None = None) -> Score:
    return balanced_accuracy_score(right, classes, task="t", side="domain", groups=groups)


def bare(value: float, stderr: float | None, n: int = 10, task: str = "t") -> Score:
    """A score as old records hold it: no items."""
    return Score(task=task, side="domain", metric="accuracy", value=value, stderr=stderr, n=n, higher_is_better=True)
