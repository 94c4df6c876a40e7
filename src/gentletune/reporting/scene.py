"""The trade-off picture, worked out once for the page and the printed figure: points, front, band, areas, looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gentletune.core.records import RunRecord
from gentletune.reporting.axes import Axis, Point
from gentletune.reporting.findings import Findings
from gentletune.reporting.pareto import (
    Array,
    Candidate,
    Draws,
    Estimate,
    candidates,
    draw,
    front_of,
    hypervolume,
    interval,
    labels_of,
)

# After Okabe and Ito: the blue lighter, for dark paper, and without the yellow, which white paper swallows.
PALETTE = ("#1b81bf", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6fc9", "#8a8f98")
# plotly's names, and matplotlib's. The star is the base model's.
MARKERS = (
    ("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("triangle-down", "v"),
    ("cross", "P"), ("x", "X"), ("pentagon", "p"), ("hexagon", "h"),
)  # fmt: skip
ROLES = {"safe": "safe choice", "most_gain": "most domain gain", "least_harmful": "least harmful"}
GRID = 160  # places at which the front's band is worked out


class Look(NamedTuple):
    """A method's colour, and its marker for plotly and for matplotlib."""

    colour: str
    symbol: str
    marker: str


BASE_LOOK = Look("$ink", "star", "*")
Looks = dict[str, Look]


@dataclass(frozen=True)
class Scene:
    """The points, the front among them, and axis ranges turned so that right and up are better.

    `band` holds (x, low, high) of the front, `shares` the share of bootstrap draws that put each option on the front,
    `marks` the role of the options that the findings name (`safe`, `most_gain`, `least_harmful`).
    """

    domain: Axis
    general: Axis
    options: list[Candidate]
    front: list[int]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    marks: dict[int, str]
    looks: Looks
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

    @property
    def named(self) -> list[int]:
        """Places of the options whose names are written beside them: the base model, and what the findings name."""
        return [i for i, option in enumerate(self.options) if option.setting is None or i in self.marks]

    def place(self, option: Candidate) -> tuple[float, float]:
        """Where it lies in the picture: shares of the width and the height."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (option.x.value - x0) / (x1 - x0), (option.y.value - y0) / (y1 - y0)


def looks_of(records: Sequence[RunRecord]) -> Looks:
    """A look for each distinct label, for all figures of a report; no two share both colour and marker."""
    return {
        name: Look(PALETTE[i % len(PALETTE)], *MARKERS[i % len(MARKERS)]) for i, name in enumerate(labels_of(records))
    }


def roles(findings: Findings) -> dict[int, str]:
    """What the findings call a run's place in the records: `safe`, `most_gain` or `least_harmful`."""
    picks = (("least_harmful", findings.least_harmful), ("most_gain", findings.most_gain), ("safe", findings.safe))
    return {pick.index: role for role, pick in picks if pick is not None}


def build_scene(
    records: Sequence[RunRecord], domain: Axis | None, general: Axis | None, findings: Findings, looks: Looks
) -> Scene | None:
    """The scene of the settings that have both scores; None where there is nothing to draw."""
    options = candidates(records, domain, general) if domain and general else []
    if domain is None or general is None or not options:
        return None
    named = roles(findings)
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
        {i: named[place] for i, option in enumerate(options) for place in option.indices if place in named},
        looks,
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


# ------------------------------------------------------------------------------------------ areas


@dataclass(frozen=True)
class Volume:
    """A method's area as a share of the box between the corner and the best score seen on each axis.

    `against` is the difference to plain SFT in the same draws, None for plain SFT and where there is none.
    """

    method: str
    points: int
    area: Estimate
    against: Estimate | None


def volumes(scene: Scene) -> list[Volume]:
    """The area that each method's points enclose (hypervolume), the largest first; none where all lie on a line."""
    d = scene.draws
    x = d.x[0] if scene.options[0].setting is None else d.x.min()
    corner = float(x), float(d.y.min())
    box = (d.x.max() - corner[0]) * (d.y.max() - corner[1])
    if not box > 0:
        return []

    def areas(method: str) -> Array:
        """The area seen, then those drawn."""
        mine = [i for i, c in enumerate(scene.options) if c.setting and c.method == method]
        seen = hypervolume(d.x[None, mine], d.y[None, mine], corner)
        return np.asarray(np.concatenate([seen, hypervolume(d.xs[:, mine], d.ys[:, mine], corner)]) / box)

    plain = areas("sft") if "sft" in scene.methods else None
    found = []
    for method in scene.methods:
        mine = areas(method)
        apart = None if plain is None or method == "sft" else _estimate(mine - plain)
        area = _estimate(mine)
        area = replace(area, low=max(area.low, 0.0))  # no area is less than none
        found.append(Volume(method, len(scene.of(method)), area, apart))
    return sorted(found, key=lambda v: -v.area.value)


def _estimate(values: Array) -> Estimate:
    return interval(float(values[0]), values[1:])
