"""How the pictures of the experiments look: one ink, one grid, PNG without a display."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED = "#1b1f24", "#6b7280"
MARKERS = "osD^vPX*<>"


def canvas(width: float, height: float) -> Figure:
    """An empty white picture, in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # attaches itself; no display is asked for
    return figure


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Titles, a quiet grid behind the data, and no frame above and to the right."""
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.grid(color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=9)


def png(figure: Figure) -> bytes:
    """The picture's bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
