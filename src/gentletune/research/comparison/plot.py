"""The picture of a comparison: at each equal domain score, every method's general skill beside plain SFT's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from gentletune.reporting.axes import Verdict
from gentletune.reporting.settings import verdict
from gentletune.research.plot import INK, MUTED, canvas, dress, png

if TYPE_CHECKING:
    from gentletune.research.comparison.result import Comparison, Level

COLOURS: dict[Verdict, str] = {"better": "#009e73", "worse": "#d55e00", "no_difference": INK, "unknown": MUTED}


def picture(found: Sequence[Comparison]) -> bytes:
    """PNG: a row for each comparison, a panel for each level, a line for each method with its 95 % interval."""
    shown = [one for one in found if one.levels]
    columns = max((len(one.levels) for one in shown), default=1)
    most = max((len(level.reads) for one in shown for level in one.levels), default=1)
    figure = canvas(5.4 * columns, (0.24 * most + 1.4) * max(len(shown), 1))
    panels = figure.subplots(max(len(shown), 1), columns, squeeze=False)
    for row, one in zip(panels, shown, strict=False):
        for axes, level in zip(row, one.levels, strict=False):
            _panel(axes, one, level)
    return png(figure)


def _panel(axes: Axes, one: Comparison, level: Level) -> None:
    general = one.section.general
    if general is None:
        return
    names = []
    for place, read in enumerate(reversed(level.reads)):
        change = read.from_plain.get(general.key)
        names.append(read.method)
        if change is None:
            note = read.state.replace("_", " ") if read.place is None else "0" if read.method == "sft" else "?"
            axes.text(0.0, place, note, ha="center", va="center", fontsize=7.5, color=MUTED)
            continue
        colour = COLOURS[verdict(general, change)]
        low = change.value if change.low is None else change.low
        high = change.value if change.high is None else change.high
        axes.plot([low, high], [place, place], color=colour, lw=1.6)
        axes.plot([change.value], [place], marker="o", ms=4.5, color=colour)
    axes.axvline(0.0, color=MUTED, lw=0.9, ls=":")
    better = "right" if general.higher_is_better else "left"
    title = f"{one.section.name}: domain score {level.target:.3g}\n({level.name})"
    dress(axes, title=title, x=f"{general.label} minus SFT's ({better} is better)")
    axes.title.set_fontsize(9)
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names], fontsize=7.5)
