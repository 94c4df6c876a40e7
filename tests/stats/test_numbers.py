from __future__ import annotations

from gentletune.reporting.axes import Point
from gentletune.stats.numbers import duration, number, plus_minus, rate


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
