"""The picture of token dynamics: one column per method, one line per bin."""

from __future__ import annotations

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from gentletune.research.plot import MARKERS, canvas, dress, png

_ROWS = {"probability": "mean probability", "weight": "mean weight", "gradient_share": "share of the gradient"}


def dynamics_png(means: pd.DataFrame) -> bytes:
    """PNG bytes: probability, weight and gradient share of each bin over the steps, the band one standard error.

    `means` are `TokenDynamics.means`. Bins run from dark (hardest) to light, in a colour scale that keeps its order for
    the colour-blind and in grey, and differ in marker. All methods share their scales.
    """
    methods, bins = means.index.unique("method"), sorted(means.index.unique("bin"))
    width = max(3.1 * len(methods) + 0.9, 6.0)
    figure = canvas(width, 8.6)
    grid = figure.subplots(len(_ROWS), len(methods), sharex=True, sharey="row", squeeze=False)
    for row, (quantity, title) in enumerate(_ROWS.items()):
        for column, method in enumerate(methods):
            axes: Axes = grid[row, column]
            for place, number in enumerate(bins):
                _line(axes, means.xs((method, number), level=("method", "bin")), quantity, place, len(bins))
            if quantity == "probability":
                axes.set_yscale("log", nonpositive="clip")
            else:
                top = max(1.0, *(mean.value for mean in means[quantity]))  # a method may weigh above 1
                axes.set_ylim(-0.03 * top, 1.03 * top)
            last = row == len(_ROWS) - 1
            dress(axes, title="" if row else method, x="optimiser step" if last else "", y="" if column else title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), max(2, int(width / 1.9))), frameon=False,
        fontsize=9.5, title="probability under the base model (tokens)", title_fontsize=9.5,
    )  # fmt: skip
    return png(figure)


def _line(axes: Axes, points: pd.DataFrame, quantity: str, place: int, bins: int) -> None:
    """One bin of one method; the light end of the colour scale is too pale for white paper."""
    colour, marker = colormaps["viridis"](0.88 * place / max(bins - 1, 1)), MARKERS[place % len(MARKERS)]
    label = f"{points['name'].iloc[0]} ({points['tokens'].iloc[0]})" if len(points) else ""
    values = [mean.value for mean in points[quantity]]
    errors = [mean.stderr for mean in points[quantity]]
    every = max(1, len(points) // 8)
    axes.plot(points.index, values, color=colour, marker=marker, markevery=every, ms=4.5, lw=1.6, label=label)
    if errors and None not in errors:
        low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(points.index, low, high, color=colour, alpha=0.2, lw=0)
