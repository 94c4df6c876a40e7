"""The picture of a tilting fit: KL from base against gain by rate, and against λ̂ with its bounds."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes

from gentletune.research.plot import INK, MARKERS, canvas, dress, png
from gentletune.research.tilting.study import KindOfData, TiltingStudy
from gentletune.stats.numbers import rate

_BOUNDS: tuple[tuple[str, Any, str], ...] = (
    ("the tilt's own KL", "-", "tilted_kl"),
    ("quadratic (no bound)", ":", "quadratic"),
    ("convex bound", "--", "convex_bound"),
    ("Theorem 1a's bound", (0, (6, 1, 1, 1, 1, 1)), "theorem_bound"),
    ("Hoeffding's bound", "-.", "hoeffding_bound"),
)
_GAIN = "domain gain (bits per held-out label token, higher is better)"
_KL = "KL(q‖q_k) from base (bits per token, lower is better)"


def tilting_png(study: TiltingStudy) -> bytes:
    """PNG bytes: a row a kind of data."""
    figure = canvas(13.0, 5.2 * len(study.kinds))
    plots = figure.subplots(len(study.kinds), 2, squeeze=False)
    for kind, (left, right) in zip(study.kinds, plots, strict=True):
        _runs(left, kind, study, "gain")
        dress(left, title=f"{kind.name}: KL from base against domain gain", x=_GAIN, y=_KL)
        _runs(right, kind, study, "lambda_general")
        _bounds(right, kind)
        dress(
            right, title=f"{kind.name}: against λ̂, with the bounds at it", x="effective λ on general positions", y=_KL
        )
        for axes in (left, right):
            axes.axhline(study.budget, color="#b91c1c", lw=0.9, label=f"budget, {study.budget:g}")
            axes.set_yscale("log")
            axes.legend(title="learning rate (marker: seed)", title_fontsize=8.5, frameon=False, fontsize=8.5)
    return png(figure)


def _runs(axes: Axes, kind: KindOfData, study: TiltingStudy, place: str) -> None:
    colours = matplotlib.colormaps["viridis"]
    for run in kind.runs:
        points = [p for p in run.checkpoints if p.kl > 0]  # the axis is logarithmic
        first = run.seed == kind.runs[0].seed
        axes.plot(
            [getattr(p, place) for p in points],
            [p.kl for p in points],
            color=colours(0.9 * study.rates.index(run.rate) / max(len(study.rates) - 1, 1)),
            marker=MARKERS[study.seeds.index(run.seed) % len(MARKERS)],
            ms=4.5,
            lw=1.0,
            label=f"{rate(run.rate)}{', diverged' if run.diverged else ''}" if first else None,
        )


def _bounds(axes: Axes, kind: KindOfData) -> None:
    points = [p for run in kind.runs for p in run.checkpoints if p.lambda_general > 0]
    for name, style, bound in _BOUNDS:
        known = sorted((p.lambda_general, getattr(p, bound)) for p in points if (getattr(p, bound) or 0) > 0)
        if known:
            axes.plot(*zip(*known, strict=True), color=INK, ls=style, lw=1.2, label=name, zorder=1)
