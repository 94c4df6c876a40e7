"""The trade-off picture, worked out once for both the interactive and the printed figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gentletune.core.records import RunRecord
from gentletune.report.axes import Axis, Point
from gentletune.report.bootstrap import Draws, draw
from gentletune.report.labels import Box, place_labels
from gentletune.report.pareto import Candidate, candidates, front_of, labels_of

# Mid tones, legible on white and on near-black.
PALETTE = ("#3b82c4", "#d9772b", "#2a9d6f", "#c65fa0", "#8a6fd1", "#2396ab", "#d1495b", "#8f8325")
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"))  # plotly, matplotlib
CROWD = 12  # beyond so many points only the advised one, the ends of the front and the initial model are labelled
GRID = 160  # places at which the front's band is worked out


@dataclass(frozen=True)
class Scene:
    """The points, the front among them, and axis ranges turned so that right and up are better.

    `band` holds (x, low, high) of the front, `shares` the share of bootstrap draws that put each option on the front,
    `advised` the place in `options` of the setting advised.
    """

    domain: Axis
    general: Axis
    options: list[Candidate]
    front: list[int]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    advised: int | None
    styles: dict[str, tuple[str, int]]
    draws: Draws
    band: list[tuple[float, float, float]]
    shares: list[float]

    @property
    def methods(self) -> list[str]:
        """The labels of the settings, in order of first appearance."""
        return list(dict.fromkeys(c.method for c in self.options if c.setting))

    def of(self, method: str) -> list[Candidate]:
        """A method's settings by learning rate."""
        mine = [c for c in self.options if c.setting and c.method == method]
        return sorted(mine, key=lambda c: c.setting.learning_rate if c.setting else 0.0)

    def labelled(self) -> list[int]:
        """Places in `options` of the points whose names are written beside them."""
        return [i for i in range(len(self.options)) if len(self.options) <= CROWD or self._important(i)]

    def _important(self, i: int) -> bool:
        return i in (self.advised, *self.front[:1], *self.front[-1:]) or self.options[i].setting is None

    def offsets(
        self, names: Sequence[int], frame: tuple[float, float], sizes: Sequence[tuple[float, float]]
    ) -> list[tuple[float, float]]:
        """Label offsets (pixels, y upwards) for the points `names` in a plot of `frame` pixels."""
        spots = [self._pixels(self.options[i], frame) for i in range(len(self.options))]
        bars = [box for i, spot in enumerate(spots) for box in self._bars(i, spot, frame)]
        hidden = [(x - 6, y - 6, x + 6, y + 6) for i, (x, y) in enumerate(spots) if i not in names]
        steps = self._steps([spots[i] for i in self.front])
        return place_labels([spots[i] for i in names], sizes, frame, [*bars, *hidden, *steps])

    @staticmethod
    def _steps(spots: Sequence[tuple[float, float]]) -> list[Box]:
        """The front's line as thin boxes: down at each point's x, then right to the next point."""
        pairs = list(pairwise(spots))
        down = [(a[0] - 2, b[1], a[0] + 2, a[1]) for a, b in pairs]
        return [*down, *((a[0], b[1] - 2, b[0], b[1] + 2) for a, b in pairs)]

    def _pixels(self, option: Candidate, frame: tuple[float, float]) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (option.x.value - x0) / (x1 - x0) * frame[0], (option.y.value - y0) / (y1 - y0) * frame[1]

    def _bars(self, i: int, spot: tuple[float, float], frame: tuple[float, float]) -> list[Box]:
        x, y = spot
        wide = (self.options[i].x.stderr or 0.0) / abs(self.x_range[1] - self.x_range[0]) * frame[0]
        high = (self.options[i].y.stderr or 0.0) / abs(self.y_range[1] - self.y_range[0]) * frame[1]
        return [(x - wide, y - 2, x + wide, y + 2), (x - 2, y - high, x + 2, y + high)]


def styles(records: Sequence[RunRecord]) -> dict[str, tuple[str, int]]:
    """Colour and marker number for each distinct label."""
    names = labels_of(records)
    return {n: (PALETTE[i % len(PALETTE)], i // len(PALETTE) % len(MARKERS)) for i, n in enumerate(names)}


def build_scene(
    records: Sequence[RunRecord], domain: Axis | None, general: Axis | None, advised: int | None
) -> Scene | None:
    """The scene of the settings that have both scores; None where there is nothing to draw.

    `advised` is the place in `records` of the run that stands for the setting advised.
    """
    if domain is None or general is None:
        return None
    options = candidates(records, domain, general)
    if not options:
        return None
    draws = draw(options, domain, general)
    x_range = _range([c.x for c in options], domain.higher_is_better)
    y_range = _range([c.y for c in options], general.higher_is_better)
    return Scene(
        domain,
        general,
        options,
        front_of(options, domain, general),
        x_range,
        y_range,
        next((i for i, c in enumerate(options) if advised is not None and advised in c.indices), None),
        styles(records),
        draws,
        _band(draws, x_range, y_range),
        draws.on_front(),
    )


def axis_title(axis: Axis, arrow: str) -> tuple[str, str]:
    """Two lines: the axis's plain name, then its unit and the way that is better."""
    turned = "" if axis.higher_is_better else ", axis reversed"
    return axis.label[:1].upper() + axis.label[1:], f"({axis.unit}{turned}; {arrow} better)"


def _band(draws: Draws, x_range: tuple[float, float], y_range: tuple[float, float]) -> list[tuple[float, float, float]]:
    """The front's band within the picture, in the axes' own directions."""
    x_sign, y_sign = (1.0 if low < high else -1.0 for low, high in (x_range, y_range))
    floor, ceiling = sorted((y_sign * y_range[0], y_sign * y_range[1]))
    places = [x_range[0] + (x_range[1] - x_range[0]) * i / (GRID - 1) for i in range(GRID)]
    bounds = zip(*draws.band([x_sign * x for x in places]), strict=True)
    return [
        (x, y_sign * min(max(float(low), floor), ceiling), y_sign * min(max(float(high), floor), ceiling))
        for x, (low, high) in zip(places, bounds, strict=True)
        if math.isfinite(high)
    ]


def _range(points: Sequence[Point], ascending: bool) -> tuple[float, float]:
    low = min(p.value - (p.stderr or 0.0) for p in points)
    high = max(p.value + (p.stderr or 0.0) for p in points)
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return (low - pad, high + pad) if ascending else (high + pad, low - pad)
