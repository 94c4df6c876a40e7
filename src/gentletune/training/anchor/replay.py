"""The replayed rows of each step: which they are, and in what passes they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import ceil
from random import Random
from typing import Any

import torch

from gentletune.data import Encoded
from gentletune.data.batches import pad_batch
from gentletune.data.encode import IGNORE, label_counts
from gentletune.methods.base import Replay
from gentletune.training.anchor.base import Lookup
from gentletune.training.packing import label_places


@dataclass(frozen=True)
class ReplayRows:
    """Rows to replay, each with a label, and the token to pad them with.

    Args:
        rows: at least one.
        pad_id: token of the padding.
        base: the base model's distributions at the label tokens of the rows, for `loss=kl`.
        sequences: how many rows a row of the training set stands for: more than one where rows are packed.
    """

    rows: Sequence[Encoded]
    pad_id: int
    base: Lookup | None = None
    sequences: float = 1.0


@dataclass(frozen=True)
class Replayer:
    """What each rank replays at each step. It follows from the step and the seed: a resumed training goes on with it.

    A step replays `count` rows over all `processes`; each row comes once, in a random order, before any comes again.
    """

    replay: Replay
    source: ReplayRows
    count: int
    seed: int
    rank: int
    processes: int

    @property
    def described(self) -> str:
        """For the user."""
        return f"replay: {self.count:,} of {len(self.source.rows):,} rows beside those of each step"

    def passes(self, step: int, size: int) -> list[dict[str, Any]]:
        """This rank's rows of a step in batches of at most `size`, on every rank as many.

        A rank without a row for a pass has one without labels, which costs a pass and changes nothing.
        """
        chosen = drawn(self.count, len(self.source.rows), step, self.seed)
        number = ceil(ceil(self.count / self.processes) / size)
        mine = chosen[self.rank :: self.processes]
        mine.sort(key=lambda i: len(self.source.rows[i].input_ids))
        cuts = [len(mine) * i // number for i in range(number + 1)]
        parts = [mine[cuts[i] : cuts[i + 1]] for i in range(number)]
        return [self._batch(part) if part else self._empty(chosen[0]) for part in parts]

    def tokens(self, step: int) -> int:
        """The label tokens that a step replays, over all ranks."""
        chosen = drawn(self.count, len(self.source.rows), step, self.seed)
        return sum(self._starts[i + 1] - self._starts[i] for i in chosen)

    def _batch(self, places: Sequence[int]) -> dict[str, Any]:
        rows = [self.source.rows[i] for i in places]
        batch = pad_batch(rows, self.source.pad_id)
        if self.replay.loss == "kl":
            found = torch.full_like(batch["labels"], -1)
            for number, (place, row) in enumerate(zip(places, rows, strict=True)):
                found[number, : len(row.labels)] = torch.as_tensor(label_places(row.labels, self._starts[place]))
            batch["base_place"] = found
        return batch

    def _empty(self, place: int) -> dict[str, Any]:
        batch = self._batch([place])
        batch["labels"] = torch.full_like(batch["labels"], IGNORE)
        return batch

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(label_counts(self.source.rows))]


def drawn(count: int, total: int, step: int, seed: int) -> list[int]:
    """The places of a step's `count` rows among `total`.

    >>> sorted(drawn(3, 6, 0, seed=1) + drawn(3, 6, 1, seed=1))
    [0, 1, 2, 3, 4, 5]
    """
    turns = (divmod(number, total) for number in range(step * count, (step + 1) * count))
    return [_order(total, seed, turn)[at] for turn, at in turns]


@lru_cache(maxsize=4)
def _order(total: int, seed: int, turn: int) -> list[int]:
    return Random(f"replay/{seed}/{turn}").sample(range(total), total)
