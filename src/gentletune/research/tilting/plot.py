"""The figure of a tilting fit (PNG, matplotlib)."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gentletune.research.tilting.reading import rate_name
from gentletune.research.tilting.run import KindOfData, TiltingStudy
from gentletune.research.tilting.safe_range import Checkpoint

INK, MUTED = "#1b1f24", "#6b7280"
DPI = 150
_MARKERS = "osD^vPX*"  # one a seed
_BOUNDS: tuple[tuple[str, Any, Callable[[Checkpoint], float | None]], ...] = (
    ("the tilt's own drift", "-", lambda p: p.tilted_drift),
    ("quadratic (no bound)", ":", lambda p: p.quadratic),
    ("convex bound", "--", lambda p: p.convex_bound),
    ("Theorem 1a's bound", (0, (6, 1, 1, 1, 1, 1)), lambda p: p.theorem_bound),
    ("Hoeffding's bound", "-.", lambda p: p.hoeffding_bound),
)


def tilting_png(study: TiltingStudy) -> bytes:
    """PNG bytes: for each kind of data, drift against domain gain by rate, and against λ̂ with its bounds."""
    rows = len(study.kinds)
    figure = Figure(figsize=(13.0, 5.2 * rows), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # attaches itself; no display is asked for
    for kind, (left, right) in zip(study.kinds, figure.subplots(rows, 2, squeeze=False), strict=True):
        _runs(left, kind, study, lambda p: p.gain)
        left.set_xlabel("domain gain (bits per held-out label token, higher is better)", color=INK)
        _runs(right, kind, study, lambda p: p.lambda_general)
        _bounds(right, kind)
        right.set_xlabel("effective λ on general positions", color=INK)
        for axes, what in ((left, "drift against domain gain"), (right, "drift against λ̂, with the bounds at it")):
            axes.set_title(f"{kind.name}: {what}", loc="left", fontsize=12, color=INK)
            _dress(axes, study.budget)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _runs(axes: Axes, kind: KindOfData, study: TiltingStudy, place: Callable[[Checkpoint], float]) -> None:
    colours = matplotlib.colormaps["viridis"]
    for run in kind.runs:
        points = [p for p in run.checkpoints if p.drift > 0]  # the axis is logarithmic
        number = study.rates.index(run.rate)
        first = run.seed == kind.runs[0].seed
        axes.plot(
            [place(p) for p in points],
            [p.drift for p in points],
            color=colours(0.9 * number / max(len(study.rates) - 1, 1)),
            marker=_MARKERS[study.seeds.index(run.seed) % len(_MARKERS)],
            ms=4.5,
            lw=1.0,
            label=f"{rate_name(run.rate)}{', diverged' if run.diverged else ''}" if first else None,
        )


def _bounds(axes: Axes, kind: KindOfData) -> None:
    points = sorted(
        (p for run in kind.runs for p in run.checkpoints if p.lambda_general > 0), key=lambda p: p.lambda_general
    )
    for name, style, read in _BOUNDS:
        known = [(p.lambda_general, value) for p in points if (value := read(p)) is not None and value > 0]
        if known:
            axes.plot(*zip(*known, strict=True), color=INK, ls=style, lw=1.2, label=name, zorder=1)


def _dress(axes: Axes, budget: float) -> None:
    axes.axhline(budget, color="#b91c1c", lw=0.9, label=f"budget, {budget:g}")
    axes.set_yscale("log")
    axes.set_ylabel("drift KL(q‖q_k) (bits per token, lower is better)", color=INK)
    axes.grid(color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=9)
    place: dict[str, Any] = {"loc": "best", "frameon": False, "fontsize": 8.5}
    axes.legend(title="learning rate (marker: seed)", title_fontsize=8.5, **place)
