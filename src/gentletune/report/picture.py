"""The printed trade-off figure (PNG, matplotlib)."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gentletune.report.scene import MARKERS, Scene, axis_title

INK, MUTED, STAR = "#1b1f24", "#6b7280", "#1b1f24"
DPI = 160


def pareto_png(scene: Scene | None, title: str) -> bytes:
    """PNG bytes of domain against general skill with the front; a plain note where there is nothing to draw."""
    figure = Figure(figsize=(9.0, 6.0), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # attaches itself; no display is asked for
    axes = figure.add_subplot()
    axes.set_title(_literal(title), loc="left", fontsize=13, color=INK)
    if scene is None:
        axes.set_axis_off()
        note = "No complete run with both a domain and a general score:\nnothing to plot."
        axes.text(0.5, 0.5, note, ha="center", va="center", fontsize=14, color=MUTED, transform=axes.transAxes)
    else:
        _draw(axes, scene)
        figure.draw_without_rendering()  # the layout must be known before labels can be placed in pixels
        _label(axes, scene)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, scene: Scene) -> None:
    axes.set_xlim(*scene.x_range)
    axes.set_ylim(*scene.y_range)
    front = [scene.options[i] for i in scene.front]
    xs, ys = [c.x.value for c in front], [c.y.value for c in front]
    axes.plot(xs, ys, drawstyle="steps-pre", color=MUTED, lw=1.4, ls="--", label="Pareto front", zorder=1)
    seen: set[str] = set()
    for option in scene.options:
        colour, shape = scene.styles.get(option.method, (STAR, 0))
        initial = option.index is None
        axes.errorbar(
            option.x.value,
            option.y.value,
            xerr=option.x.stderr,
            yerr=option.y.stderr,
            fmt="*" if initial else MARKERS[shape][1],
            ms=15 if initial else 7.5,
            color=colour,
            ecolor=(colour, 0.45),
            elinewidth=1.1,
            capsize=2,
            label=_literal(option.method) if option.method not in seen else None,
            zorder=3,
        )
        seen.add(option.method)
    _dress(axes, scene)


def _dress(axes: Axes, scene: Scene) -> None:
    axes.set_xlabel(_literal("\n".join(axis_title(scene.domain, "→"))), fontsize=11, color=INK)
    axes.set_ylabel(_literal("\n".join(axis_title(scene.general, "↑"))), fontsize=11, color=INK)
    axes.grid(color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=10)
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=9.5, frameon=False
    )


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
