"""The printed trade-off figure (PNG, matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gentletune.report.pareto import Candidate
from gentletune.report.scene import MARKERS, Scene, axis_title

INK, MUTED, STAR = "#1b1f24", "#6b7280", "#1b1f24"
DPI = 160


def pareto_png(scenes: Sequence[tuple[str, Scene | None]], title: str) -> bytes:
    """PNG bytes: for each (name, scene) domain against general skill with the front and its band, one below another.

    A plain note takes the place of a scene where there is nothing to draw.
    """
    figure = Figure(figsize=(9.0, 6.0 * len(scenes)), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # attaches itself; no display is asked for
    plots = figure.subplots(len(scenes), squeeze=False)[:, 0]
    for axes, (name, scene) in zip(plots, scenes, strict=True):
        heading = f"{title}\n{name}" if len(scenes) > 1 else title
        axes.set_title(_literal(heading), loc="left", fontsize=13, color=INK)
        if scene is None:
            axes.set_axis_off()
            note = "No complete run with both a domain and a general score:\nnothing to plot."
            axes.text(0.5, 0.5, note, ha="center", va="center", fontsize=14, color=MUTED, transform=axes.transAxes)
        else:
            _draw(axes, scene)
    figure.draw_without_rendering()  # the layout must be known before labels can be placed in pixels
    for axes, (_, scene) in zip(plots, scenes, strict=True):
        if scene is not None:
            _label(axes, scene)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, scene: Scene) -> None:
    axes.set_xlim(*scene.x_range)
    axes.set_ylim(*scene.y_range)
    places, low, high = zip(*scene.band, strict=True) if scene.band else ((), (), ())
    axes.fill_between(places, low, high, color=MUTED, alpha=0.13, lw=0, label="95 % band of the front", zorder=0)
    front = [scene.options[i] for i in scene.front]
    xs, ys = [c.x.value for c in front], [c.y.value for c in front]
    axes.plot(xs, ys, drawstyle="steps-pre", color=MUTED, lw=1.4, ls="--", label="Pareto front", zorder=1)
    _series(axes, [c for c in scene.options if c.setting is None], STAR, "*", 15)
    for method in scene.methods:
        colour, shape = scene.styles[method]
        options = scene.of(method)
        axes.plot([c.x.value for c in options], [c.y.value for c in options], color=colour, lw=0.8, zorder=2)
        _series(axes, options, colour, MARKERS[shape][1], 7.5)
    _dress(axes, scene)


def _series(axes: Axes, options: Sequence[Candidate], colour: str, marker: str, size: float) -> None:
    for i, option in enumerate(options):
        axes.errorbar(
            option.x.value,
            option.y.value,
            xerr=option.x.stderr,
            yerr=option.y.stderr,
            fmt=marker,
            ms=size,
            color=colour,
            ecolor=(colour, 0.45),
            elinewidth=1.1,
            capsize=2,
            label=None if i else _literal(option.method),
            zorder=3,
        )


def _dress(axes: Axes, scene: Scene) -> None:
    axes.set_xlabel(_literal("\n".join(axis_title(scene.domain, "→"))), fontsize=11, color=INK)
    axes.set_ylabel(_literal("\n".join(axis_title(scene.general, "↑"))), fontsize=11, color=INK)
    axes.grid(color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=10)
    # Below the axis titles, which take two lines.
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    columns = min(max(100 // (longest + 6), 1), 4)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.16), "borderaxespad": 0.0}
    axes.legend(ncols=columns, fontsize=9.5, frameon=False, **place)


def _label(axes: Axes, scene: Scene) -> None:
    places = scene.labelled()
    points = [(scene.options[i].x.value, scene.options[i].y.value) for i in places]
    notes = [
        axes.annotate(
            _literal(scene.options[i].name),
            point,
            (0, 0),
            textcoords="offset pixels",
            ha="center",
            va="center",
            fontsize=9.5,
            color=INK,
            fontweight="bold" if i == scene.advised else "normal",
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 5},
            zorder=4,
        )
        for i, point in zip(places, points, strict=True)
    ]
    boxes = [note.get_window_extent() for note in notes]
    frame = axes.get_window_extent()
    sizes = [(box.width, box.height) for box in boxes]
    # The placer thinks in pixels of a 100-dpi screen.
    scale = DPI / 100
    small = [(w / scale, h / scale) for w, h in sizes]
    for note, (dx, dy) in zip(
        notes, scene.offsets(places, (frame.width / scale, frame.height / scale), small), strict=True
    ):
        note.xyann = (dx * scale, dy * scale)


def _literal(text: str) -> str:
    """Text with matplotlib's mathematics switched off."""
    return text.replace("$", r"\$")
