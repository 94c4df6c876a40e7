"""The hardest tokens in context, a bounded number of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gentletune.inspection.classes import CLASSES
from gentletune.inspection.stream import RowTokens

KEPT = 30
_BEFORE, _AFTER = 60, 30  # characters of context


@dataclass(frozen=True)
class HardToken:
    """A label token with its surroundings and what the model would have said: its most probable token.

    `position` counts the tokens of the answer from 1; `nll` is in nats.
    """

    row: int
    position: int
    before: str
    text: str
    after: str
    kind: str
    nll: float
    probability: float
    top_text: str
    top_probability: float


class Hardest:
    """The tokens of least probability among those that arrive.

    Of one token where the model would have said one other, only the hardest place is kept: the same surprise is not
    told twice.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._found: dict[tuple[int, int], HardToken] = {}

    def add(self, row: RowTokens) -> None:
        """Look at a row's tokens."""
        for place in np.argsort(-row.nll, kind="stable")[: self._kept]:
            key, nll = (int(row.token[place]), int(row.top[place])), float(row.nll[place])
            if key in self._found:
                if nll <= self._found[key].nll:
                    continue
            elif len(self._found) == self._kept:
                easiest = min(self._found, key=lambda other: self._found[other].nll)
                if nll <= self._found[easiest].nll:
                    break
                del self._found[easiest]
            self._found[key] = _in_context(row, int(place))

    def result(self) -> tuple[HardToken, ...]:
        """The hardest first; of equals, in the order of rows."""
        return tuple(sorted(self._found.values(), key=lambda token: (-token.nll, token.row, token.position)))


def _in_context(row: RowTokens, place: int) -> HardToken:
    starts = np.flatnonzero(row.position == 1)
    answer = int(np.searchsorted(starts, place, side="right")) - 1
    start = int(starts[answer])
    stop = int(starts[answer + 1]) if answer + 1 < len(starts) else len(row.pieces)
    said = row.before[answer] + "".join(row.pieces[start:place])
    return HardToken(
        row=row.row,
        position=int(row.position[place]),
        before=said[-_BEFORE:],
        text=row.pieces[place],
        after="".join(row.pieces[place + 1 : stop])[:_AFTER],
        kind=CLASSES[row.kind[place]],
        nll=float(row.nll[place]),
        probability=float(row.probability[place]),
        top_text=row.top_text[place],
        top_probability=float(row.top_probability[place]),
    )
