"""Where to write labels beside points so that they overlap as little as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels, y upwards
GAPS = (9.0, 20.0, 34.0, 52.0, 72.0)
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: tuple[float, float],
    obstacles: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Offset in pixels from each anchor to its label's centre, greedily, the most crowded anchor first.

    `sizes` are the labels' widths and heights, `frame` the plot's; `obstacles` (error bars) are avoided where
    there is room, other labels and points strongly.
    """
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in anchors]
    chosen: dict[int, tuple[float, float]] = {}
    taken: list[Box] = []
    for i in sorted(range(len(anchors)), key=lambda i: -_crowding(anchors, i)):
        options = [_offset(sizes[i], direction, gap) for gap in GAPS for direction in DIRECTIONS]
        costs = [
            4 * sum(_overlap(box, other) for other in taken)
            + 4 * sum(_overlap(box, other) for other in marks)
            + sum(_overlap(box, other) for other in obstacles)
            + 8 * _outside(box, frame)
            + 60 * sum(_crosses(anchors[i], offset, mark) for j, mark in enumerate(marks) if j != i)
            + 2.0 * rank  # all else equal: near, and to the right
            for rank, offset in enumerate(options)
            for box in [_box(anchors[i], offset, sizes[i])]
        ]
        chosen[i] = options[min(range(len(options)), key=costs.__getitem__)]
        taken.append(_box(anchors[i], chosen[i], sizes[i]))
    return [chosen[i] for i in range(len(anchors))]


def _crowding(anchors: Sequence[tuple[float, float]], i: int) -> float:
    return sum(1 / (20 + math.dist(anchors[i], other)) for j, other in enumerate(anchors) if j != i)


def _offset(size: tuple[float, float], direction: tuple[int, int], gap: float) -> tuple[float, float]:
    (width, height), (right, up) = size, direction
    reach = gap if right == 0 or up == 0 else gap / 2
    return right * (width / 2 + reach), up * (height / 2 + reach)


def _box(anchor: tuple[float, float], offset: tuple[float, float], size: tuple[float, float]) -> Box:
    x, y = anchor[0] + offset[0], anchor[1] + offset[1]
    return x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2


def _crosses(anchor: tuple[float, float], offset: tuple[float, float], mark: Box) -> bool:
    """Whether the leader from the anchor to its label would run over another point."""
    steps = [(anchor[0] + offset[0] * t / 8, anchor[1] + offset[1] * t / 8) for t in range(1, 8)]
    return any(mark[0] < x < mark[2] and mark[1] < y < mark[3] for x, y in steps)


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: tuple[float, float]) -> float:
    inside = _overlap(box, (0.0, 0.0, *frame))
    return (box[2] - box[0]) * (box[3] - box[1]) - inside
