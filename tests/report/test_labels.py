from __future__ import annotations

from gentletune.report.axes import Point
from gentletune.report.labels import place_labels
from gentletune.report.numbers import duration, number, plus_minus, rate


def test_labels_of_a_tight_cluster_do_not_overlap() -> None:
    anchors = [(300.0 + 25 * (i % 3), 200.0 + 18 * (i // 3)) for i in range(8)]
    sizes = [(70.0, 15.0)] * 8
    offsets = place_labels(anchors, sizes, (860.0, 440.0))
    boxes = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(anchors, offsets, strict=True)]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert abs(a[0] - b[0]) >= 70 or abs(a[1] - b[1]) >= 15


def test_labels_stay_inside_the_frame() -> None:
    ((dx, dy),) = place_labels([(855.0, 435.0)], [(70.0, 15.0)], (860.0, 440.0))
    assert dx < 0
    assert dy <= 0


def test_numbers_have_the_digits_their_errors_support() -> None:
    assert plus_minus(Point(0.81234, 0.0213, 9)) == "0.812 ± 0.021"
    assert plus_minus(Point(-0.012345, 0.00042, 9), signed=True) == "−0.01235 ± 0.00042"
    assert plus_minus(Point(1234.5, 25.0, 9)) == "1234 ± 25"
    assert plus_minus(Point(0.5, None, 1)) == "0.5 ± ?"
    assert plus_minus(Point(1.0, 0.0, 5)) == "1.000 ± 0.000"
    assert plus_minus(Point(0.0, 0.0, 0)) == "0"
    assert plus_minus(None) == number(None) == duration(None) == "–"
    assert number(-0.00012345) == "−0.000123"


def test_rates_and_durations() -> None:
    assert [rate(x) for x in (1e-6, 2.5e-5, 1e-4, 0.001, 0.1, 0.0)] == ["1e-6", "2.5e-5", "1e-4", "1e-3", "0.1", "0"]
    assert [duration(x) for x in (0.123, 60.0, 120.0, 7200.0)] == ["0.123 s", "60 s", "2 min", "2 h"]
