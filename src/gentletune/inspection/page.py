"""The page: tokens coloured by probability or by a method's weight, histograms and tables, in one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gentletune.core.records import write_text_atomic
from gentletune.inspection import tables
from gentletune.inspection.classes import CLASSES
from gentletune.inspection.inspector import Inspection
from gentletune.inspection.stream import RowTokens
from gentletune.inspection.summary import DECADES, LINEAR_EDGES
from gentletune.inspection.weights import PLAIN, method_columns, method_weights

# Probabilities between which a token's colour changes, the strongest below the first.
_STEPS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Token:
    """A coloured token: its text, its level 0…9 in each of the views (a digit each), and all that is known of it."""

    text: str
    levels: str
    told: str


@dataclass(frozen=True)
class Answer:
    """An answer's tokens, with the text before it."""

    before: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram: what the axis says of it, and its height in each set, in percent of the highest."""

    tick: str
    heights: tuple[float, ...]
    told: str


@dataclass(frozen=True)
class Chart:
    """A histogram with the share of tokens that its highest bar stands for."""

    title: str
    highest: str
    bars: tuple[Bar, ...]


def write_page(found: Inspection, path: Path) -> None:
    """Write the page to `path`, whole or not at all. Raises `OSError` where it cannot be written."""
    write_text_atomic(path, render_page(found))


def render_page(found: Inspection) -> str:
    """The whole page as text, which asks nothing of the network; its policy allows only its own script, by hash."""
    script = _resource("inspect.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("inspect.html.j2")).render(
        found=found,
        tables=tables,
        charts=_charts(found),
        rows={one.name: [(row.row, list(_answers(row, one.tau))) for row in one.coloured] for one in found.sets},
        views=["probability", *(name for name in method_columns() if name != PLAIN)],
        visible=visible,
        script=Markup(script),
        style=Markup(_resource("inspect.css")),
        policy=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
    )


def visible(text: str) -> str:
    """Text with its line ends shown.

    >>> visible("a\\nb")
    'a↵\\nb'
    """
    return text.replace("\n", "↵\n")


def level(probability: float) -> int:
    """How strongly a token of that probability is coloured, from 0 (likely) to 9 (hardly possible).

    >>> level(0.95), level(0.1), level(0.0001)
    (0, 5, 9)
    """
    return sum(probability < step for step in _STEPS)


def _answers(row: RowTokens, tau: float) -> Iterator[Answer]:
    weights = method_weights(row.nll, row.eaft, tau)
    tokens = []
    for i, text in enumerate(row.pieces):
        given = {method: float(values[i]) for method, values in weights.items() if method != PLAIN}
        levels = [level(float(row.probability[i])), *(min(9, max(0, round(9 * weight))) for weight in given.values())]
        told = [
            f"p {tables.number(float(row.probability[i]))}",
            tables.CLASS_NAMES[CLASSES[row.kind[i]]],
            f"the model would say {row.top_text[i]!r} (p {tables.number(float(row.top_probability[i]))})",
            f"entropy {row.entropy[i]:.2f} nats",
            "weights: " + ", ".join(f"{m} {w:.2f}" for m, w in given.items()),
        ]
        tokens.append(Token(visible(text), "".join(map(str, levels)), " · ".join(told)))
    starts = [i for i, position in enumerate(row.position) if position == 1]
    for before, start, stop in zip(row.before, starts, [*starts[1:], len(tokens)], strict=True):
        yield Answer(before, tuple(tokens[start:stop]))


def _charts(found: Inspection) -> list[Chart]:
    linear = [f"{edge:g}" for edge in LINEAR_EDGES]
    decades = ["0", *(f"{edge:g}" for edge in DECADES[1:])]
    return [
        _chart("Probabilities", linear, [s.histogram for s in found.sets], found, every=4),
        _chart("By powers of ten", decades, [s.decades for s in found.sets], found, every=1),
    ]


def _chart(
    title: str, edges: Sequence[str], counts: Sequence[Sequence[int]], found: Inspection, *, every: int
) -> Chart:
    shares = [[count / one.tokens for count in bins] for bins, one in zip(counts, found.sets, strict=True)]
    highest = max(max(bins) for bins in shares)
    bars = []
    for i, (low, high) in enumerate(pairwise(edges)):
        values = [bins[i] for bins in shares]
        named = ", ".join(f"{one.name} {tables.percent(v)}" for one, v in zip(found.sets, values, strict=True))
        tick = low if i % every == 0 else ""
        bars.append(Bar(tick, tuple(100 * v / highest for v in values), f"p {low} – {high}: {named}"))
    return Chart(title, tables.percent(highest), tuple(bars))


def _resource(name: str) -> str:
    return files("gentletune.inspection").joinpath(name).read_text(encoding="utf-8")
