"""The picture of a curriculum (PNG, matplotlib): a column a method, a line a bin."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gentletune.research.dynamics.table import MethodRun, Point, aggregate, by_method

INK, MUTED = "#1b1f24", "#6b7280"
_MARKERS = "osD^vPX*<>"
_ROWS = (
    ("probability", "mean probability", True),
    ("weight", "mean weight", False),
    ("gradient_share", "share of the gradient", False),
)


def curriculum_png(runs: Sequence[MethodRun]) -> bytes:
    """PNG bytes: probability, weight and gradient share of each bin over the steps, the band one standard error.

    Bins run from dark (hardest) to light, in a colour scale that keeps its order for the colour-blind and in grey, and
    differ in marker. All methods share their scales.
    """
    points, methods = aggregate(runs), list(by_method(runs))
    size = (max(3.1 * len(methods) + 0.9, 6.0), 8.6)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # attaches itself; no display is asked for
    grid = figure.subplots(len(_ROWS), len(methods), sharex=True, sharey="row", squeeze=False)
    styles = _styles(points)
    for row, (quantity, title, logarithmic) in enumerate(_ROWS):
        for column, method in enumerate(methods):
            axes: Axes = grid[row, column]
            _draw(axes, [p for p in points if p.method == method], quantity, styles)
            if logarithmic:
                axes.set_yscale("log", nonpositive="clip")
            else:
                top = max(1.0, *(point.means[quantity].value for point in points))  # a method may weigh above 1
                axes.set_ylim(-0.03 * top, 1.03 * top)
            if row == 0:
                axes.set_title(method.replace("$", r"\$"), loc="left", fontsize=11, color=INK)
            if column == 0:
                axes.set_ylabel(title, fontsize=10, color=INK)
            if row == len(_ROWS) - 1:
                axes.set_xlabel("optimiser step", fontsize=10, color=INK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    columns = min(len(labels), max(2, int(size[0] / 1.9)))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5,
        title="probability under the initial model (tokens)", title_fontsize=9.5,
    )  # fmt: skip
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _styles(points: Sequence[Point]) -> dict[int, tuple[tuple[float, float, float, float], str]]:
    """Colour and marker of each bin; the light end of the scale is too pale for white paper."""
    bins = sorted({point.bin for point in points})
    scale, steps = colormaps["viridis"], max(len(bins) - 1, 1)
    return {number: (scale(0.88 * i / steps), _MARKERS[i % len(_MARKERS)]) for i, number in enumerate(bins)}


def _draw(
    axes: Axes, points: Sequence[Point], quantity: str, styles: dict[int, tuple[tuple[float, float, float, float], str]]
) -> None:
    for number, (colour, marker) in styles.items():
        mine = [point for point in points if point.bin == number]
        steps, means = [point.step for point in mine], [point.means[quantity] for point in mine]
        label = f"{mine[0].name} ({mine[0].tokens})" if mine else ""
        every = max(1, len(mine) // 8)
        values = [mean.value for mean in means]
        axes.plot(steps, values, color=colour, marker=marker, markevery=every, ms=4.5, lw=1.6, label=label)
        if means and all(mean.stderr is not None for mean in means):
            low = [mean.value - (mean.stderr or 0.0) for mean in means]
            high = [mean.value + (mean.stderr or 0.0) for mean in means]
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
    axes.grid(color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=9)
