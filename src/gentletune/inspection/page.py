"""The page: tokens coloured by probability or by a method's weight, histograms and tables, in one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gentletune.core.records import write_text_atomic
from gentletune.inspection import tables
from gentletune.inspection.inspector import Inspection
from gentletune.inspection.stream import RowTokens
from gentletune.inspection.weights import PLAIN, method_columns, method_weights

# Probabilities between which a token's colour changes, the strongest below the first.
_STEPS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)


def write_page(found: Inspection, path: Path) -> None:
    """Write the page to `path`, whole or not at all. Raises `OSError` where it cannot be written."""
    write_text_atomic(path, render_page(found))


def render_page(found: Inspection) -> str:
    """The whole page as text, which asks nothing of the network; its policy allows only its own script, by hash."""
    script = _resource("inspect.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"visible": visible, "number": tables.number, "percent": tables.percent, "repr": repr}
    return environment.from_string(_resource("inspect.html.j2")).render(
        found=found,
        tables=tables,
        rows={one.name: [(row.row, list(_answers(row, one.tau))) for row in one.coloured] for one in found.sets},
        views=["probability", *(name for name in method_columns() if name != PLAIN)],
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


def levels(probability: Any) -> Any:
    """How strongly tokens of these probabilities are coloured, from 0 (likely) to 9 (hardly possible).

    >>> levels([0.95, 0.1, 0.0001]).tolist()
    [0, 5, 9]
    """
    return len(_STEPS) - np.searchsorted(_STEPS, probability, side="right")


def _answers(row: RowTokens, tau: float) -> Iterator[tuple[str, list[tuple[Any, Any, str]]]]:
    """The text before each answer, and its tokens, each with its weights and its level in every view, a digit each."""
    for before, columns in row.answers():
        tokens, weights = pd.DataFrame(columns), pd.DataFrame(method_weights(columns, tau)).drop(columns=PLAIN)
        digits = (9 * weights).round().clip(0, 9).astype(int)
        digits.insert(0, "probability", levels(tokens["probability"]))
        shown = ["".join(map(str, line)) for line in digits.to_numpy()]
        yield before, list(zip(tokens.to_dict("records"), weights.to_dict("records"), shown, strict=True))


def _resource(name: str) -> str:
    return files("gentletune.inspection").joinpath(name).read_text(encoding="utf-8")
