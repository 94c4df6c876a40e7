"""A control's table: settings over their seeds, each beside the setting it is compared with."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from gentletune.core.records import RunRecord, Score, Side
from gentletune.stats import Change, Mean, Run, compare, holm, mean_of, measured, seed_pool

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

    def runs(self, key: str) -> list[Run]:
        """The runs that have the score; of an initial model one for each set of items it was measured on.

        Held-out rows are drawn anew for each seed without a file, so that only equal ones are the same sample.
        """
        found: dict[Hashable, Run] = {}
        for seed, score in self.scores(key).items():
            sample = None if score.side == "general" else self.by_seed[seed].hashes.get("test")
            run = Run((score,), None if self.initial else seed, sample)
            found.setdefault(sample if self.initial else seed, run)
        return list(found.values())

    @property
    def norms(self) -> dict[int, float]:
        """‖θ - θ⁰‖ of the final weights, by seed; 0 for the initial model."""
        if self.initial:
            return dict.fromkeys(self.by_seed, 0.0)
        return {seed: r.training["update_norm"] for seed, r in self.by_seed.items() if "update_norm" in r.training}


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
        runs = row.runs(key)
        return mean_of(runs) if runs else None

    def norm(self, row: Row) -> Mean | None:
        """The update norm over the seeds, its error from their spread."""
        return mean_of(measured(row.norms)) if row.norms else None

    def norm_ratio(self, row: Row) -> float | None:
        """The row's update norm over its baseline's, the mean over the seeds that both have."""
        base = self._rows[row.baseline].norms if row.baseline else {}
        ratios = [norm / base[seed] for seed, norm in row.norms.items() if base.get(seed)]
        return math.fsum(ratios) / len(ratios) if ratios else None

    def change(self, row: Row, key: str) -> Change | None:
        """The row minus its baseline, paired by seed and within a seed by item; None where there is none to compare.

        All rows of the table are one family for each score (Holm), and share what is known of the variance from seed to
        seed.
        """
        return self.changes(key).get(row.label)

    def changes(self, key: str) -> dict[str, Change | None]:
        """The change of each row that has a baseline, by label."""
        if key not in self._changes:
            pool = seed_pool([row.runs(key) for row in self.rows if not row.initial])
            pairs = {r.label: (r.runs(key), self._rows[r.baseline].runs(key)) for r in self.rows if r.baseline}
            found = [compare(a, b, pool=pool) if a and b else None for a, b in pairs.values()]
            self._changes[key] = dict(zip(pairs, holm(found), strict=True))
        return self._changes[key]

    @cached_property
    def _changes(self) -> dict[str, dict[str, Change | None]]:
        return {}


def _place(score: Score) -> tuple[int, int]:
    """Where a score's column stands."""
    if score.metric in PREDICTIONS:
        view = 3 if score.task == "own_answers" else 4 if score.side == "domain" else 5
        return view, PREDICTIONS.index(score.metric)
    if score.key in _DRIFT:
        return 1, _DRIFT.index(score.key)
    return (0 if score.side == "domain" else 2), 0
