"""What an inspection found, as tables for a terminal and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from gentletune.inspection.hardest import HardToken
from gentletune.inspection.inspector import Inspection
from gentletune.inspection.summary import DECADES, LINEAR_EDGES, Group
from gentletune.inspection.weights import HARD

Format = Mapping[str, Callable[[Any], str]]

CLASS_NAMES = {
    "first": "first of answer",
    "number": "number",
    "unit": "unit",
    "name": "name",
    "word": "other word",
    "punctuation": "punctuation",
    "special": "end of turn",
}


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


@dataclass(frozen=True)
class Table:
    """A table: the index names the rows. `shares` are the values of those cells that are shares to be drawn."""

    title: str
    cells: pd.DataFrame
    shares: pd.DataFrame


def _table(title: str, figures: pd.DataFrame, how: Format, across: bool = False) -> Table:
    """A table of figures, each column written as `how` has it, else as a share; `across`: its columns become rows."""
    cells = pd.DataFrame({name: column.map(how.get(name, percent)) for name, column in figures.items()})
    shares = figures.drop(columns=list(how)).reindex(columns=figures.columns)
    return Table(title, cells.T, shares.T) if across else Table(title, cells, shares)


def overview(found: Inspection) -> Table:
    """Rows, tokens, NLL, τ, quantiles and hard shares, a column a set."""
    nats, left_out = "{:.3f}".format, "rows left out (too long, no label)"
    tau, size = "TALR's τ, median over all rows (nats)", "effective sample size of TALR's weights"
    quantiles = {q: f"{q:.0%} of tokens have p up to" for q in found.quantiles}
    figures = [
        {
            "rows": s.rows,
            left_out: f"{s.too_long}, {s.no_label}",
            "label tokens": s.tokens,
            "mean NLL (nats per token)": s.mean_nll,
            tau: s.tau,
            **{name: s.quantiles[q] for q, name in quantiles.items()},
            **{f"share of tokens with p < {t:g}": share for t, share in s.hard_share.items()},
            size: s.talr_ess_share,
        }
        for s in found.sets
    ]
    plain = dict.fromkeys(("rows", left_out, "label tokens"), str) | {"mean NLL (nats per token)": nats, tau: nats}
    how = plain | dict.fromkeys(quantiles.values(), number) | {size: percent}
    frame = pd.DataFrame(figures, [s.name for s in found.sets])
    return _table(f"Label tokens under {found.model}", frame, how, across=True)


def histogram(found: Inspection, *, decades: bool = False, fine: bool = False) -> Table:
    """The share of tokens by probability, a column a set: in tenths of it (`fine`: twentieths) or in powers of ten."""
    counts = pd.DataFrame({s.name: np.array(s.decades if decades else s.histogram) / s.tokens for s in found.sets})
    edges: Sequence[float] = DECADES if decades else LINEAR_EDGES
    if not (decades or fine):
        counts, edges = counts.groupby(counts.index // 2).sum(), edges[::2]
    counts.index = pd.Index([f"{a:g} – {b:g}" for a, b in pairwise(edges)], name="probability")
    title = "Probabilities by powers of ten" if decades else "Probabilities of the label tokens"
    return _table(title, counts, {})


def by_class(found: Inspection) -> Table:
    """Hard shares by token class, of one set."""
    return _groups(f"By token class, {found.name}", "class", found.classes, found)


def by_position(found: Inspection) -> Table:
    """Hard shares by place in the answer, of one set."""
    return _groups(f"By place in the answer, {found.name}", "token", found.positions, found)


def _groups(title: str, heading: str, groups: Sequence[Group], found: Inspection) -> Table:
    near = min(found.hard_share, key=lambda threshold: (abs(threshold - HARD), threshold))
    names = pd.Index([CLASS_NAMES.get(g.name, g.name) for g in groups], name=heading)
    tokens = pd.Series([g.tokens for g in groups], names)
    shares = pd.DataFrame([g.hard_share for g in groups], names)
    hard = shares[near] * tokens
    figures = pd.DataFrame({
        "tokens": tokens,
        "of all": tokens / found.tokens,
        "of hard": hard / (hard.sum() or 1),
        "NLL": [g.mean_nll for g in groups],
    }).join(shares.rename(columns="p<{:g}".format))  # fmt: skip
    how: Format = {"tokens": str, "of all": percent, "of hard": percent, "NLL": "{:.2f}".format}
    return _table(f"{title} (hard: p < {near:g})", figures, how)


def weights(found: Inspection) -> Table:
    """What each method's weights amount to, of one set."""
    names = {"mean": "mean weight", "hard_share": f"weight on p < {HARD:g}", "ess_share": "effective size"}
    figures = pd.DataFrame(map(asdict, found.weights)).set_index("method").rename(columns=names)
    return _table(f"Weights each method gives, {found.name}", figures, {"mean weight": number})


def hardest(found: Inspection, most: int) -> list[tuple[HardToken, str, str]]:
    """The hardest tokens, each with its probability and what the model would have said."""
    return [(t, number(t.probability), f"{t.top_text!r} ({number(t.top_probability)})") for t in found.hardest[:most]]
