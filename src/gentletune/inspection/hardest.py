"""The hardest tokens in context, a bounded number of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    """The tokens of least probability among those that arrive: the hardest first; of equals, in the order of rows.

    Of one token where the model would have said one other, only the hardest place is kept: the same surprise is not
    told twice.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._found: dict[tuple[int, int], HardToken] = {}

    def add(self, row: RowTokens) -> None:
        """Look at a row's tokens."""
        full = len(self._found) == self._kept
        floor = min(token.nll for token in self._found.values()) if full else -1.0
        found = list(self._found.items())
        for before, tokens in row.answers():
            for place in np.flatnonzero(tokens["nll"] > floor):
                said = before + "".join(tokens["text"][:place])
                told = HardToken(
                    row=row.row,
                    position=int(tokens["position"][place]),
                    before=said[-_BEFORE:],
                    text=tokens["text"][place],
                    after="".join(tokens["text"][place + 1 :])[:_AFTER],
                    kind=tokens["class"][place],
                    nll=float(tokens["nll"][place]),
                    probability=float(tokens["probability"][place]),
                    top_text=tokens["top_text"][place],
                    top_probability=float(tokens["top_probability"][place]),
                )
                found.append(((tokens["token_id"][place], tokens["top_token_id"][place]), told))
        found.sort(key=lambda item: (-item[1].nll, item[1].row, item[1].position))
        hardest: dict[tuple[int, int], HardToken] = {}
        for pair, token in found:
            hardest.setdefault(pair, token)
        self._found = dict(list(hardest.items())[: self._kept])

    def result(self) -> tuple[HardToken, ...]:
        """The tokens found."""
        return tuple(self._found.values())
