"""What an inspection found, as tables for a terminal and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gentletune.inspection.hardest import HardToken
from gentletune.inspection.inspector import Inspection
from gentletune.inspection.summary import DECADES, LINEAR_EDGES, Group
from gentletune.inspection.weights import HARD

CLASS_NAMES = {
    "first": "first of answer",
    "number": "number",
    "unit": "unit",
    "name": "name",
    "word": "other word",
    "punctuation": "punctuation",
    "special": "end of turn",
}


@dataclass(frozen=True)
class Cell:
    """A cell's text and, where it is a share to be drawn, the share in [0, 1]."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row, the others hold figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number(value: float) -> str:
    """A probability or weight with what digits it needs.

    >>> number(0.12345), number(0.00001234), number(0.0), number(0.99996)
    ('0.123', '1.2e-05', '0', '1.000')
    """
    return f"{value:.3f}" if value >= 0.001 else "0" if value == 0 else f"{value:.1e}"


def percent(value: float) -> str:
    """A share in percent.

    >>> percent(0.1234), percent(0.00004), percent(0.0), percent(1.0)
    ('12.3%', '<0.1%', '0%', '100%')
    """
    return f"{value:.0%}" if value in (0, 1) else "<0.1%" if value < 0.0005 else f"{value:.1%}"


def overview(found: Inspection) -> Table:
    """Rows, tokens, NLL, τ, quantiles and hard shares, a column a set."""
    sets = found.sets
    rows = [
        _row("rows", [f"{s.rows}" for s in sets]),
        _row("rows left out (too long, no label)", [f"{s.too_long}, {s.no_label}" for s in sets]),
        _row("label tokens", [f"{s.tokens}" for s in sets]),
        _row("mean NLL (nats per token)", [f"{s.mean_nll:.3f}" for s in sets]),
        _row("TALR's τ, median over all rows (nats)", [f"{s.tau:.3f}" for s in sets]),
    ]
    for q in found.quantiles:
        rows.append(_row(f"{q:.0%} of tokens have p up to", [number(s.quantiles[q]) for s in sets]))
    for t in found.hard_share:
        name = f"share of tokens with p < {t:g}"
        rows.append((Cell(name), *(Cell(percent(s.hard_share[t]), s.hard_share[t]) for s in sets)))
    rows.append(_row("effective sample size of TALR's weights", [percent(s.talr_ess_share) for s in sets]))
    title = f"Label tokens under {found.model}"
    return Table(title, ("", *(s.name for s in sets)), tuple(rows))


def histogram(found: Inspection, *, decades: bool = False) -> Table:
    """The share of tokens by probability, in tenths of it or in powers of ten."""
    edges = DECADES if decades else LINEAR_EDGES[::2]
    columns = []
    for s in found.sets:
        counts = s.decades if decades else tuple(map(sum, zip(s.histogram[::2], s.histogram[1::2], strict=True)))
        columns.append([count / s.tokens for count in counts])
    if decades:
        names = [f"< {edges[1]:g}", *(f"{a:g} – {b:g}" for a, b in pairwise(edges[1:]))]
    else:
        names = [f"{a:.1f} – {b:.1f}" for a, b in pairwise(edges)]
    rows = [(Cell(n), *(Cell(percent(c[i]), c[i]) for c in columns)) for i, n in enumerate(names)]
    title = "Probabilities by powers of ten" if decades else "Probabilities of the label tokens"
    return Table(title, ("probability", *(s.name for s in found.sets)), tuple(rows))


def by_class(found: Inspection) -> Table:
    """Hard shares by token class, of one set."""
    groups = [(CLASS_NAMES[g.name], g) for g in found.classes]
    return _groups(f"By token class, {found.name}", "class", groups, found)


def by_position(found: Inspection) -> Table:
    """Hard shares by place in the answer, of one set."""
    return _groups(f"By place in the answer, {found.name}", "token", [(g.name, g) for g in found.positions], found)


def weights(found: Inspection) -> Table:
    """What each method's weights amount to, of one set."""
    rows = [
        (
            Cell(w.method),
            Cell(number(w.mean)),
            Cell(percent(w.hard_share), w.hard_share),
            Cell(percent(w.ess_share), w.ess_share),
        )
        for w in found.weights
    ]
    headings = ("method", "mean weight", f"weight on p < {HARD:g}", "effective size")
    return Table(f"Weights each method gives, {found.name}", headings, tuple(rows))


def hardest(found: Inspection, most: int) -> list[tuple[HardToken, str, str]]:
    """The hardest tokens, each with its probability and what the model would have said."""
    return [(t, number(t.probability), f"{t.top_text!r} ({number(t.top_probability)})") for t in found.hardest[:most]]


def _groups(title: str, heading: str, groups: Sequence[tuple[str, Group]], found: Inspection) -> Table:
    near = min(found.hard_share, key=lambda threshold: (abs(threshold - HARD), threshold))
    hard = found.hard_share[near] * found.tokens
    rows = [
        (
            Cell(name),
            Cell(str(g.tokens)),
            Cell(percent(g.tokens / found.tokens)),
            Cell(percent(g.hard_share[near] * g.tokens / hard if hard else 0.0)),
            Cell(f"{g.mean_nll:.2f}"),
            *(Cell(percent(share), share) for share in g.hard_share.values()),
        )
        for name, g in groups
    ]
    headings = (heading, "tokens", "of all", "of hard", "NLL", *(f"p<{t:g}" for t in found.hard_share))
    return Table(f"{title} (hard: p < {near:g})", headings, tuple(rows))


def _row(name: str, figures: Sequence[str]) -> tuple[Cell, ...]:
    return (Cell(name), *map(Cell, figures))
