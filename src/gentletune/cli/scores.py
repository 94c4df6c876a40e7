"""Scores on a terminal: one table, then what stands behind each accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gentletune.cli.common import stdout
from gentletune.core.records import FROM_BASE, Score

if TYPE_CHECKING:
    import pandas as pd

_RARE = 0.02  # answers cut off or unreadable up to this share are not told
_WIDE = 95  # columns of a window in which a change and its interval have one line
_MANY = 10  # categories, of which not each has a line of its own


def print_scores(console: Console, scores: Sequence[Score], base: Sequence[Score], title: str) -> None:
    """Scores with standard errors and, where the base model has them, the paired change with its 95 % interval."""
    if not scores:
        return
    before = {score.key: score for score in base}
    headings = ["score", *(["base"] if before else []), "value ± s.e.", "n", *(["change [95 %]"] if before else [])]
    # Narrow enough for 80 columns, with the interval beneath its change where both do not fit.
    wide = console.width >= _WIDE
    caption = "↑ higher, ↓ lower is better"
    table = Table(title=title, box=None, padding=(0, 2 if wide else 1, 0, 0), caption=caption, caption_justify="left")
    for heading in headings:
        # The name is what a reader looks for: in a narrow window it is the last to be cut.
        table.add_column(heading, no_wrap=heading == "score", overflow="fold")
    for side, ours in groupby(sorted(scores, key=lambda score: score.side), key=lambda score: score.side):
        table.add_row(f"{side}:", style="bold")
        for score in ours:
            start = before.get(score.key)
            cells = [f"{score.key} {'↑' if score.higher_is_better else '↓'}"]
            cells += [_figure(start.value) if start else ""] if before else []
            cells += [_with_error(score), str(score.n)]
            change = _change(score, start)
            cells += [change if wide else change.replace(" [", "\n[")] if before else []
            table.add_row(*cells)
    console.print(table)
    if any(_change(score, before.get(score.key)) for score in scores):
        said = "Intervals are over test items: they hold for these weights, not for another training seed."
        console.print(said, soft_wrap=True, highlight=False)
    for score in scores:
        for line in _details(score):
            console.print(line, soft_wrap=True, highlight=False)


def print_code_length(
    console: Console, scores: Sequence[Score], base: Sequence[Score], changes: Sequence[Score], title: str
) -> None:
    """Code lengths with their paired changes, which are scores of their own."""
    table = Table(title=title)
    for heading in ("score", "value ± s.e.", "base", "change ± s.e.", "sequences"):
        table.add_column(heading)
    before, change = ({score.metric: score for score in found} for found in (base, changes))
    for score in scores:
        cells = (score, before.get(score.metric), change.get(score.metric))
        table.add_row(score.metric, *(_with_error(cell) for cell in cells), str(score.n))
    console.print(table)


def show_frame(frame: pd.DataFrame, title: str, *, justify: Any = "left") -> None:
    """A frame as a table, its first column flush left."""
    table = Table(title=title)
    for place, heading in enumerate(frame.columns):
        table.add_column(
            "" if heading == "index" else str(heading), overflow="fold", justify=justify if place else "left"
        )
    for cells in frame.itertuples(index=False):
        table.add_row(*map(str, cells))
    stdout.print(table)


def _with_error(score: Score | None) -> str:
    if score is None:
        return ""
    return _figure(score.value) + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _change(score: Score, base: Score | None) -> str:
    if base is None or score.task in FROM_BASE:
        return ""
    from gentletune.stats import compare  # brings scipy, which no start of the command line need wait for

    change = compare(score, base)
    span = "" if change.low is None or change.high is None else f" [{change.low:+.4f}, {change.high:+.4f}]"
    return f"{change.value:+.4f}{span}"


def _details(score: Score) -> list[str]:
    found: dict[str, Any] = score.details
    lines = []
    limit = "domain_tokens" if score.side == "domain" else "max_gen_toks"
    for key, said in (
        ("unreadable", "could not be read and count as wrong"),
        ("cut_off", f"were cut off by the limit on tokens; raise {limit}"),
    ):
        if found.get(key, 0) > _RARE * score.n:
            lines.append(f"{score.task}: {found[key]} of {score.n} answers {said}")
    if "leaked_notes" in found:
        done = "left out" if found["leaked_dropped"] else "kept; --drop-leaked leaves them out"
        lines.append(
            f"{score.task}: {found['leaked_notes']} notes stand in the training file too, "
            f"with {found['leaked_items']} questions ({done})"
        )
    cells = sorted(found.get("by_category", {}).items(), key=lambda pair: pair[1]["value"])
    if len(cells) > _MANY:
        worst = ", ".join(f"{name} {cell['value']:.2f}" for name, cell in cells[:3])
        lines.append(f"{score.task}, the lowest of {len(cells)} categories: {worst}")
        cells = []
    for name, cell in sorted(cells):
        error = "" if cell["stderr"] is None else f" ± {cell['stderr']:.4f}"
        lines.append(f"{score.task}, {name}: {cell['value']:.4f}{error} (n = {cell['n']})")
    for wanted, read in found.get("confusion", {}).items():
        lines.append(f"{score.task}, right answer {wanted}: " + ", ".join(f"{k} {n}" for k, n in read.items()))
    return lines
