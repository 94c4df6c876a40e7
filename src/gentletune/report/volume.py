"""The area each method's points enclose: one number for a whole trade-off curve (hypervolume)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gentletune.report.bootstrap import Array, Estimate, hypervolume, interval
from gentletune.report.scene import Scene


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
    """The area of each method, the largest first; none where all points lie on a line."""
    d = scene.draws
    corner = _corner(scene)
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


def area_note(scene: Scene) -> str:
    """What the area is, in words."""
    where = "the initial model's domain score" if scene.options[0].setting is None else "the worst domain score seen"
    return (
        f"The area (hypervolume) that a method's settings enclose above {where} and the worst general score seen, as "
        "a share of the box up to the best of each: 1 would be both at once. A method tried at more rates has more "
        "points to enclose it with. Differences are taken within each bootstrap draw."
    )


def _corner(scene: Scene) -> tuple[float, float]:
    d = scene.draws
    x = d.x[0] if scene.options[0].setting is None else d.x.min()
    return float(x), float(d.y.min())


def _estimate(values: Array) -> Estimate:
    return interval(float(values[0]), values[1:])
