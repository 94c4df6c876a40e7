"""Hand-made scores and records for the report's tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gentletune.core.records import RunRecord, Score

Value = float | tuple[float, float | None]
Values = Mapping[str, Value]

HIGHER = {"accuracy": True, "bits_per_token": False}


def score(key: str, value: float, stderr: float | None = 0.01, n: int = 100) -> Score:
    """A score named `task/metric`; the task `clinic` is the domain, any other is general."""
    task, metric = key.split("/")
    side: Literal["domain", "general"] = "domain" if task == "clinic" else "general"
    return Score(
        task=task,
        side=side,
        metric=metric,
        value=value,
        stderr=stderr,
        n=n,
        higher_is_better=HIGHER[metric],
    )


def scores(values: Values) -> list[Score]:
    """Scores from `{key: value}` (standard error 0.01) or `{key: (value, stderr)}`."""
    return [score(k, *v) if isinstance(v, tuple) else score(k, v) for k, v in values.items()]


BASE: Values = {"clinic/accuracy": 0.40, "arithmetic/accuracy": 0.60}


def run(
    method: str,
    learning_rate: float,
    tuned: Values,
    *,
    base: Values | None = None,
    **fields: Any,
) -> RunRecord:
    """A complete run (or what `fields` say)."""
    start = BASE if base is None else base
    made = {
        "status": "complete",
        "method": method,
        "label": method,
        "learning_rate": learning_rate,
        "seed": 0,
        "recipe": {},
        "scores": scores(tuned),
        "base_scores": scores(start),
        **fields,
    }
    return RunRecord.model_validate(made)


def pair(
    method: str,
    learning_rate: float,
    domain: Value,
    general: Value,
    **fields: Any,
) -> RunRecord:
    """A run with one domain and one general accuracy."""
    return run(method, learning_rate, {"clinic/accuracy": domain, "arithmetic/accuracy": general}, **fields)


def failed(method: str = "sft", error: str | None = "loss is not finite", **fields: Any) -> RunRecord:
    """A run that failed before it was scored."""
    return run(method, 1e-3, {}, base={}, status="failed", error=error, **fields)
