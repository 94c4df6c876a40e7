"""Numbers as people read them: as many digits as the standard error supports."""

from __future__ import annotations

import math
from typing import Protocol

from gentletune.stats.change import Change

MISSING = "–"


class Estimated(Protocol):
    """A value with its standard error, None where that is unknown."""

    @property
    def value(self) -> float: ...

    @property
    def stderr(self) -> float | None: ...


def plus_minus(point: Estimated | None, *, signed: bool = False) -> str:
    """`value ± standard error`, the error to two digits; `–` where there is none.

    >>> from gentletune.stats import Mean
    >>> plus_minus(Mean(0.81234, 0.0213))
    '0.812 ± 0.021'
    """
    if point is None:
        return MISSING
    if point.stderr is None:
        return f"{number(point.value, signed=signed)} ± ?"
    places = _places(point.stderr) if point.stderr > 0 else 3
    if point.value == 0 and point.stderr == 0:
        return "0"
    return f"{_fixed(point.value, places, signed)} ± {_fixed(point.stderr, places, False)}"


def with_interval(change: Change | None) -> str:
    """`+0.012 [−0.003, +0.027]`: a change with its interval, to the digits its standard error supports.

    >>> with_interval(Change(0.0123, 0.0151, 0.001, 0.05, 100, True))
    '+0.012 [+0.001, +0.050]'
    """
    if change is None:
        return MISSING
    if change.stderr is None or change.low is None or change.high is None:
        return f"{number(change.value, signed=True)} [?]"
    places = _places(change.stderr) if change.stderr > 0 else 3
    value, low, high = (_fixed(x, places, True) for x in (change.value, change.low, change.high))
    return f"{value} [{low}, {high}]"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits with a true minus sign; `–` for None."""
    if value is None:
        return MISSING
    text = f"{value:+.3g}" if signed else f"{value:.3g}"
    return text.replace("-", "−")


def rate(learning_rate: float) -> str:
    """A learning rate, short: 5e-6.

    >>> rate(5e-06)
    '5e-6'
    """
    if learning_rate <= 0 or learning_rate >= 0.01:
        return f"{learning_rate:.3g}"
    digits, power = f"{learning_rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def duration(seconds: float | None) -> str:
    """Seconds as `42 s`, `3.5 min` or `1.2 h`; `–` for None."""
    if seconds is None:
        return MISSING
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _places(stderr: float) -> int:
    return min(max(1 - math.floor(math.log10(stderr)), 0), 8)


def _fixed(value: float, places: int, signed: bool) -> str:
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    return text.replace("-", "−")
