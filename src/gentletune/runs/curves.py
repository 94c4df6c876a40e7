"""The training curves of a run directory, thinned to what a record keeps."""

from __future__ import annotations

from pathlib import Path

from gentletune.training.callbacks import read_metrics
from gentletune.training.trainer import METRICS_FILE

LIMIT = 200
# No weighted loss: that of one method cannot be held against another's.
_KEPT = ("nll", "grad_norm", "update_norm", "domain_nll", "drift_bits_per_token")

Curves = dict[str, list[tuple[float, float]]]


def read_curves(run: Path) -> Curves:
    """What `metrics.jsonl` of the run says of NLL, norms and probes, by step; empty where there is none.

    A run that took another's weights has none of its own.
    """
    curves: Curves = {}
    for line in read_metrics(run / METRICS_FILE):
        for name in _KEPT:
            if name in line:
                curves.setdefault(name, []).append((line["step"], float(f"{line[name]:.6g}")))
    return {name: thinned(points) for name, points in curves.items()}


def thinned(points: list[tuple[float, float]], limit: int = LIMIT) -> list[tuple[float, float]]:
    """At most `limit` points, evenly spread, the first and the last among them.

    >>> thinned([(float(i), 0.0) for i in range(5)], 3)
    [(0.0, 0.0), (2.0, 0.0), (4.0, 0.0)]
    """
    last = len(points) - 1
    return points if last < limit else [points[round(i * last / (limit - 1))] for i in range(limit)]
