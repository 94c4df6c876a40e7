"""A control's table: settings over their seeds, each beside the setting it is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gentletune.core.records import RunRecord, Score, Side
from gentletune.statistics import Change, mean_change, over_seeds, paired_change, t_quantile

INITIAL = "initial model"
OWN_ENTROPY = "own_answers/entropy"
_DRIFT = ("drift_sampled/bits_per_token", "drift_greedy/bits_per_token", "reference/bits_per_token")
PREDICTIONS = ("entropy", "overconfidence", "ece")


@dataclass(frozen=True)
class Row:
    """A setting's complete runs, one a seed, and the label of the row it is compared with (None: with none).

    With `initial` the runs stand for the model they began from. `failed` says what went wrong, by seed.
    """

    label: str
    records: tuple[RunRecord, ...]
    baseline: str | None = None
    initial: bool = False
    failed: tuple[str, ...] = ()

    @property
    def by_seed(self) -> dict[int, RunRecord]:
        """The runs by their seed."""
        return {record.seed: record for record in self.records}

    def scores(self, key: str) -> dict[int, Score]:
        """The score of each seed that has it."""
        found = {seed: record.score(key, self.initial) for seed, record in self.by_seed.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    @property
    def norms(self) -> dict[int, float]:
        """‖θ - θ⁰‖ of the final weights, by seed; 0 for the initial model."""
        if self.initial:
            return dict.fromkeys(self.by_seed, 0.0)
        return {seed: r.training["update_norm"] for seed, r in self.by_seed.items() if "update_norm" in r.training}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds in the score's unit, with its standard error over items and seeds (None: unknown)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class ControlTable:
    """The rows of a control, what they show (`title`) and how they were made (`notes`)."""

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {row.label: row for row in self.rows}

    def row(self, label: str) -> Row:
        """The row of that label. Raises `KeyError` where there is none."""
        return self._rows[label]

    @cached_property
    def keys(self) -> list[str]:
        """The scores that any row has, in the order of the columns: domain, drift, accuracies, predictions."""
        scores = [s for row in self.rows for r in row.records for s in (*r.scores, *r.initial_scores)]
        found = {score.key: _place(score) for score in scores if score.metric != "bits_per_byte"}
        return sorted(found, key=found.__getitem__)  # stable

    @cached_property
    def directions(self) -> dict[str, tuple[Side, bool]]:
        """Side of each score, and whether higher is better."""
        scores = [s for row in self.rows for r in row.records for s in (*r.scores, *r.initial_scores)]
        return {s.key: (s.side, s.higher_is_better) for s in scores}

    def mean(self, row: Row, key: str) -> Mean | None:
        """A row's score over its seeds; None where it has none."""
        scores = list(row.scores(key).values())
        if not scores:
            return None
        if row.initial and all(score == scores[0] for score in scores):  # one model, not a sample of trainings
            return Mean(scores[0].value, scores[0].stderr)
        try:
            found = over_seeds(scores if _same_items(row, scores) else [_bare(s) for s in scores])
        except ValueError:  # as many items in other groups, or other numbers of them
            least = min(s.n for s in scores)
            found = over_seeds([_bare(s).model_copy(update={"n": least, "details": {}}) for s in scores])
        return Mean(found.value, found.stderr)

    def norm(self, row: Row) -> Mean | None:
        """The update norm over the seeds, its error from their spread."""
        values = list(row.norms.values())
        if not values:
            return None
        centre = math.fsum(values) / len(values)
        spread = math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else None
        return Mean(centre, None if spread is None else math.sqrt(spread / len(values)))

    def norm_ratio(self, row: Row) -> float | None:
        """The row's update norm over its baseline's, the mean over the seeds that both have."""
        base = self._rows[row.baseline].norms if row.baseline else {}
        ratios = [norm / base[seed] for seed, norm in row.norms.items() if base.get(seed)]
        return math.fsum(ratios) / len(ratios) if ratios else None

    def change(self, row: Row, key: str, level: float = 0.95) -> Change | None:
        """The row minus its baseline, paired by seed and within a seed by item; None where there is no pair.

        Items are averaged over the seeds where all are on the same ones. The variance from seed to seed is that of
        the *differences*, pooled over the rows compared alike, or the row's own if that is larger (ours, cautious): of
        two seeds alone it is hardly known. The half-width is the root of the sum of squares of the items' and the
        seeds', each with its own Student's t (ours).
        """
        pairs = self._pairs(row, key)
        if not pairs:
            return None
        found = _over_items(pairs, _same_items(row, [a for a, _ in pairs]), level)
        own, (pooled, df) = _variance([a.value - b.value for a, b in pairs]), self._pool(row, key)
        between = max(own, pooled) / len(pairs)
        if not between or found.stderr is None or found.low is None or found.high is None:
            return found
        middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
        half = math.hypot(half, t_quantile(level, df) * math.sqrt(between))
        stderr = math.hypot(found.stderr, math.sqrt(between))
        return replace(found, stderr=stderr, low=middle - half, high=middle + half)

    def _pairs(self, row: Row, key: str) -> list[tuple[Score, Score]]:
        if row.baseline is None:
            return []
        base = self._rows[row.baseline].scores(key)
        return [(score, base[seed]) for seed, score in row.scores(key).items() if seed in base]

    def _pool(self, row: Row, key: str) -> tuple[float, int]:
        """The variance between seeds of the differences, pooled over like rows, with its degrees of freedom.

        A change from the initial model has the seed's chance once, one between two trainings twice or less.
        """
        alike = [r for r in self.rows if (r.baseline == INITIAL) == (row.baseline == INITIAL)]
        apart = [[a.value - b.value for a, b in self._pairs(r, key)] for r in alike]
        known = [values for values in apart if len(values) > 1]
        df = sum(len(values) - 1 for values in known)
        return (math.fsum((len(v) - 1) * _variance(v) for v in known) / df if df else 0.0), df


def measurable(change: Change | None) -> bool | None:
    """Whether the interval leaves out 0; None where there is no interval.

    >>> measurable(Change(0.2, 0.1, 0.01, 0.4, 10, True)), measurable(Change(0.2, None, None, None, 1, False))
    (True, None)
    """
    if change is None or change.low is None or change.high is None:
        return None
    return change.low > 0 or change.high < 0


def _over_items(pairs: Sequence[tuple[Score, Score]], same: bool, level: float) -> Change:
    """Mean of the paired differences with the error over items alone."""
    if same:
        try:
            first, second = (_items_alone(side) for side in zip(*pairs, strict=True))
            return paired_change(first, second, level=level)
        except ValueError:  # other items for each seed
            pass
    return mean_change(pairs, level=level)


def _items_alone(scores: Sequence[Score]) -> Score:
    """Average over the seeds, with the error over items only: what the seeds add is counted on the differences."""
    found = over_seeds(scores)
    if found.stderr is None or len(scores) == 1:
        return found
    between = found.details["between_seed_sd"] ** 2 / found.details["seeds"]
    within = math.sqrt(max(found.stderr**2 - between, 0.0))
    return found.model_copy(update={"stderr": within, "details": found.details | {"between_seed_sd": 0.0}})


def _same_items(row: Row, scores: Sequence[Score]) -> bool:
    """Whether all seeds were measured on the same items: held-out rows are drawn anew for each seed without a file."""
    return scores[0].side == "general" or len({record.hashes.get("test") for record in row.records}) == 1


def _bare(score: Score) -> Score:
    return score.model_copy(update={"items": (), "clusters": ()})


def _variance(values: Sequence[float]) -> float:
    centre, n = math.fsum(values) / len(values), len(values)
    return math.fsum((v - centre) ** 2 for v in values) / (n - 1) if n > 1 else 0.0


def _place(score: Score) -> tuple[int, int]:
    """Where a score's column stands."""
    if score.metric in PREDICTIONS:
        view = 3 if score.task == "own_answers" else 4 if score.side == "domain" else 5
        return view, PREDICTIONS.index(score.metric)
    if score.key in _DRIFT:
        return 1, _DRIFT.index(score.key)
    return (0 if score.side == "domain" else 2), 0
