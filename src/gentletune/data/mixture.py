"""Training rows drawn from several sources by weight."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.sources import Source
from gentletune.data.disk.stored import drawn
from gentletune.data.forms import Row


@dataclass(frozen=True)
class Pool:
    """What can be drawn from a source: its `rows`, or as many as `make` is asked for.

    `described` says how they came; `leaked` counts those left out because they share a group with held-out rows.
    """

    source: Source
    rows: Sequence[Row] = ()
    make: Callable[[int], list[Row]] | None = None
    described: str = ""
    leaked: int = 0

    def draw(self, count: int, seed: str) -> tuple[Sequence[Row], list[int]]:
        """Rows, and so many places among them: each once, in a random order, before any comes again."""
        if self.make is not None:
            return self.make(count), [*range(count)]
        size = len(self.rows)
        passes, rest = divmod(count, size)
        return self.rows, [*range(size)] * passes + random.Random(seed).sample(range(size), rest)


@dataclass(frozen=True)
class Mixture:
    """The rows drawn, in a random order, and for each the place of its source among the `pools`."""

    pools: Sequence[Pool]
    rows: Sequence[Row]
    origin: list[int]

    def counts(self, kept: Sequence[int], label_tokens: Sequence[int]) -> list[dict[str, Any]]:
        """For each source what a record says: rows drawn, left after encoding, and their label tokens.

        `kept` holds the places of the rows that were encoded, `label_tokens` the number of each.
        """
        all_drawn, left = Counter(self.origin), Counter(self.origin[i] for i in kept)
        tokens = Counter[int]()
        for i, count in zip(kept, label_tokens, strict=True):
            tokens[self.origin[i]] += count
        return [
            {
                "path": pool.source.path,
                "weight": pool.source.weight,
                **({} if pool.make else {"available": len(pool.rows)}),
                "drawn": all_drawn[i],
                "rows": left[i],
                "label_tokens": tokens[i],
            }
            for i, pool in enumerate(self.pools)
        ]

    @property
    def described(self) -> str:
        """How many rows of each source there are, for the user."""
        if len(self.pools) == 1:
            return ""
        times = Counter(self.origin)
        parts = []
        for i, pool in enumerate(self.pools):
            there = f" of {len(pool.rows):,}" if pool.make is None else ""
            again = f", {times[i] / len(pool.rows):.1f} times each" if 0 < len(pool.rows) < times[i] else ""
            parts.append(f"{times[i]:,}{there} of {pool.source.path} ({times[i] / len(self.rows):.0%}{again})")
        first = self.pools[0].source.path
        return f"a mixture of {len(self.rows):,} rows: {', '.join(parts)}; held out and scored: rows of {first}"


def mix(pools: Sequence[Pool], first: int, total: int | None, seed: int) -> Mixture:
    """Rows of every pool in the shares of their weights.

    `total` rows, or as many as it takes for the `first` rows of the first pool to come once each.

    Raises:
        UserError: a weight so small that no row is drawn by it.

    >>> rows = [{"text": "a"}], [{"text": "b"}, {"text": "c"}]
    >>> pools = [Pool(Source(path=f"{i}.txt", weight=i + 1), rows[i]) for i in range(2)]
    >>> [row["text"] for row in sorted(mix(pools, 1, None, 0).rows, key=str)]
    ['a', 'b', 'c']
    """
    weights = [Fraction(pool.source.weight) for pool in pools]
    shares = [weight / sum(weights) for weight in weights]
    counts = _counts(shares, total or round(first / shares[0]))
    if 0 in counts:
        path = pools[counts.index(0)].source.path
        raise UserError(f"data: of {sum(counts)} rows none is drawn from {path}; raise its weight, or train_rows")
    parts, places, before = list[Sequence[Row]](), list[tuple[int, int]](), 0
    for i, pool in enumerate(pools):
        rows, mine = pool.draw(counts[i], f"mixture/{seed}/{i}")
        places += [(before + place, i) for place in mine]
        parts.append(rows)
        before += len(rows)
    random.Random(f"mixture/{seed}").shuffle(places)
    return Mixture(pools, drawn(parts, [place for place, _ in places]), [i for _, i in places])


def _counts(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers in these shares that add up to `total`: what is left over goes to the largest remainders."""
    exact = [share * total for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
