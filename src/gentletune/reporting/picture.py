"""The printed trade-off figure (PNG, matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gentletune.reporting.pareto import BASE_LABEL, Candidate
from gentletune.reporting.scene import BASE_LOOK, ROLES, Look, Scene, axis_title

INK, MUTED, RING = "#1b1f24", "#6b7280", "#1f6f54"
DPI = 160
_CROWD = 12  # beyond so many points only the base model and what the findings name are labelled


def pareto_png(scenes: Sequence[tuple[str, Scene | None]], title: str) -> bytes:
    """PNG bytes: for each (name, scene) domain against general skill with the front and its band, one below another.

    A plain note takes the place of a scene where there is nothing to draw.
    """
    figure = Figure(figsize=(9.0, 6.4 * len(scenes)), dpi=DPI, layout="constrained", facecolor="white")
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
    figure.draw_without_rendering()  # the layout must be known before labels can be placed
    figure.set_layout_engine("none")
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
    for method in scene.methods:
        look, options = scene.looks[method], scene.of(method)
        axes.plot([c.x.value for c in options], [c.y.value for c in options], color=look.colour, lw=0.8, zorder=2)
        _series(axes, method, options, look, 7.5)
    base = [c for c in scene.options if c.setting is None]
    _series(axes, BASE_LABEL, base, BASE_LOOK._replace(colour=INK), 15, zorder=4)
    for i, option in enumerate(scene.options):
        if i in scene.marks:
            _series(axes, "", [option], scene.looks[option.method], 9, zorder=5)
            ring: dict[str, Any] = {"mfc": "none", "mec": RING, "mew": 2.2, "ls": "none", "zorder": 6}
            axes.plot([option.x.value], [option.y.value], marker="o", ms=18, **ring)
    _dress(axes, scene)


def _series(axes: Axes, name: str, options: Sequence[Candidate], look: Look, size: float, zorder: int = 3) -> None:
    for i, option in enumerate(options):
        axes.errorbar(
            option.x.value,
            option.y.value,
            xerr=option.x.stderr,
            yerr=option.y.stderr,
            fmt=look.marker,
            ms=size,
            color=look.colour,
            ecolor=(look.colour, 0.45),
            elinewidth=1.1,
            capsize=2,
            label=None if i or not name else _literal(name),
            zorder=zorder,
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
    shown = range(len(scene.options)) if len(scene.options) <= _CROWD else scene.named
    notes = []
    for i in shown:
        option, role = scene.options[i], scene.marks.get(i)
        name = f"{ROLES[role]}: {option.name}" if role else option.name
        weight = "bold" if role else "normal"
        notes.append(
            axes.text(
                option.x.value, option.y.value, _literal(name), fontsize=9.5, color=INK, fontweight=weight, zorder=7
            )
        )
    adjust_text(
        notes,
        x=[c.x.value for c in scene.options],
        y=[c.y.value for c in scene.options],
        ax=axes,
        expand=(1.15, 1.7),
        arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6},
    )


def _literal(text: str) -> str:
    """Text with matplotlib's mathematics switched off."""
    return text.replace("$", r"\$")
