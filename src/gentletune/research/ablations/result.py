"""What an ablation found: settings over their seeds, each beside the setting it is compared with, and its words."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from gentletune.core.records import RunRecord, Score, Side, write_text_atomic
from gentletune.core.render import MISSING, one_line, template
from gentletune.reporting.axes import CALIBRATION, GENERAL_FALLBACK, LABELS, Axis, score_keys, single_axis
from gentletune.stats import Change, Mean, Run, compare, holm, mean_of, measured, seed_pool
from gentletune.stats.numbers import plus_minus, with_interval

BASE = "base model"
OWN_ENTROPY = "own_answers/entropy"
_SIGNS = {True: "≠", False: "≈", None: "?"}
_PREDICTIONS = tuple(CALIBRATION)


@dataclass(frozen=True)
class Row:
    """A setting's complete runs, one a seed, and the label of the row it is compared with (None: with none).

    With `base` the runs stand for the base model they began from. `failed` says what went wrong, by seed.
    """

    label: str
    records: tuple[RunRecord, ...]
    baseline: str | None = None
    base: bool = False
    failed: tuple[str, ...] = ()

    @property
    def by_seed(self) -> dict[int, RunRecord]:
        """The runs by their seed."""
        return {record.seed: record for record in self.records}

    def scores(self, key: str) -> dict[int, Score]:
        """The score of each seed that has it."""
        found = {seed: record.score(key, self.base) for seed, record in self.by_seed.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def runs(self, key: str) -> list[Run]:
        """The runs that have the score; of a base model one for each set of items it was measured on.

        Held-out rows are drawn anew for each seed without a file, so that only equal ones are the same sample.
        """
        found: dict[Hashable, Run] = {}
        for seed, score in self.scores(key).items():
            sample = None if score.side == "general" else self.by_seed[seed].hashes.get("test")
            run = Run((score,), None if self.base else seed, sample)
            found.setdefault(sample if self.base else seed, run)
        return list(found.values())

    @property
    def norms(self) -> dict[int, float]:
        """‖θ - θ⁰‖ of the final weights, by seed; 0 for the base model."""
        if self.base:
            return dict.fromkeys(self.by_seed, 0.0)
        return {seed: r.training["update_norm"] for seed, r in self.by_seed.items() if "update_norm" in r.training}


@dataclass(frozen=True)
class Ablation:
    """The rows of an ablation, what they show (`title`) and how they were made (`notes`)."""

    name: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def row(self, label: str) -> Row:
        """The row of that label. Raises `KeyError` where there is none."""
        return self._rows[label]

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {row.label: row for row in self.rows}

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """The scores that any row has, in the order of the columns: domain, KL from base, accuracies, predictions."""
        records = [record for row in self.rows for record in row.records]
        found = [single_axis(records, key) for key in score_keys(records) if not key.endswith("/bits_per_byte")]
        return {axis.key: axis for axis in sorted(found, key=_place)}

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
        if key not in self._changes:
            pool = seed_pool([row.runs(key) for row in self.rows if not row.base])
            pairs = {r.label: (r.runs(key), self._rows[r.baseline].runs(key)) for r in self.rows if r.baseline}
            found = [compare(a, b, pool=pool) if a and b else None for a, b in pairs.values()]
            self._changes[key] = dict(zip(pairs, holm(found), strict=True))
        return self._changes[key].get(row.label)

    @cached_property
    def _changes(self) -> dict[str, dict[str, Change | None]]:
        return {}

    def values(self) -> pd.DataFrame:
        """Each setting's update norm and scores, with their errors, as text."""
        return pd.DataFrame([
            {"setting": row.label, "seeds": str(len(row.records)), "update norm": plus_minus(self.norm(row))}
            | {_head(key): plus_minus(self.mean(row, key)) for key in self.axes}
            for row in self.rows
        ])  # fmt: skip

    def differences(self) -> pd.DataFrame:
        """Each setting minus its baseline, with intervals and whether they are significant, as text."""
        ratios = {row.label: self.norm_ratio(row) for row in self.rows}
        told = {label: MISSING if ratio is None else f"× {ratio:.3g}" for label, ratio in ratios.items()}
        return pd.DataFrame([
            {"setting": row.label, "against": row.baseline, "update norm": told[row.label]}
            | {_head(key): difference(self.change(row, key)) for key in self.axes}
            for row in self.rows
            if row.baseline is not None
        ])  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """A row a setting, numbers; each score with its error, its difference and that one's interval."""
        lines = []
        for row in self.rows:
            first, norm = None if row.base or not row.records else row.records[0], self.norm(row)
            line: dict[str, Any] = {
                "setting": row.label,
                "against": row.baseline,
                "method": first and first.label,
                "learning_rates": first and " ".join(dict.fromkeys(f"{r.learning_rate:g}" for r in row.records)),
                "seeds": " ".join(str(r.seed) for r in row.records),
                "update_norm": norm and norm.value,
                "update_norm stderr": norm and norm.stderr,
                "norm_ratio": self.norm_ratio(row),
            }
            for key in self.axes:
                mean, change = self.mean(row, key), self.change(row, key)
                line |= {key: mean and mean.value, f"{key} stderr": mean and mean.stderr}
                line |= {f"{key} change": change and change.value}
                line |= {f"{key} change low": change and change.low, f"{key} change high": change and change.high}
                certain = None if change is None else change.significant
                line[f"{key} significant"] = None if certain is None else float(certain)
            lines.append(line)
        return pd.DataFrame(lines)

    def sentences(self) -> list[str]:
        """What the figures say of each row beside its baseline, whichever way they fall; those that are significant."""
        words = _template().module
        compared = [row for row in self.rows if row.baseline is not None and row.records]
        return [one_line(words.sentence(self._reading(row))) for row in compared]

    def _reading(self, row: Row) -> dict[str, Any]:
        """What the template says of a row: its significant changes by name, and on which side they are good or bad."""
        told: dict[str, Change] = {}
        sides: dict[Side, dict[bool, list[str]]] = {side: {True: [], False: []} for side in ("general", "domain")}
        changes = {key: self.change(row, key) for key, axis in self.axes.items() if not _is_prediction(axis)}
        for key, change in changes.items():
            if change is not None and change.significant:
                axis = self.axes[key]
                told[axis.label] = change
                sides[axis.side][(change.value > 0) == axis.higher_is_better].append(axis.label)
        return {
            "row": row,
            "ratio": self.norm_ratio(row),
            "entropy": self.change(row, OWN_ENTROPY),
            "compared": any(changes.values()),
            "told": told,
            "sides": sides,
        }

    def markdown(self) -> str:
        """Title, notes, both tables, sentences and failures."""
        failed = [(row.label, what) for row in self.rows for what in row.failed]
        return str(_template().render(found=self, failed=failed))

    def write(self, directory: Path) -> None:
        """Write NAME.md and NAME.csv into the directory, each whole or not at all."""
        write_text_atomic(directory / f"{self.name}.md", self.markdown())
        sheet = self.frame().to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text_atomic(directory / f"{self.name}.csv", sheet)


def difference(change: Change | None) -> str:
    """`−0.31 [−0.41, −0.21] ≠`: a change with its interval, and whether it is significant.

    >>> difference(Change(-0.31, 0.05, -0.41, -0.21, 100, True, p=1e-9))
    '−0.310 [−0.410, −0.210] ≠'
    """
    return with_interval(change) + ("" if change is None else f" {_SIGNS[change.significant]}")


def _template() -> Any:
    return template("gentletune.research.ablations", "ablation.md.j2", difference=difference)


def _head(key: str) -> str:
    return key.replace("_", " ")


def _is_prediction(axis: Axis) -> bool:
    """Whether it is entropy or calibration: how sure a model is, which is no skill."""
    return axis.key.endswith(tuple(f"/{metric}" for metric in _PREDICTIONS))


def _place(axis: Axis) -> tuple[int, int]:
    """Where a score's column stands."""
    task, _, metric = axis.key.partition("/")
    if metric in _PREDICTIONS:
        view = 3 if task == "own_answers" else 4 if axis.side == "domain" else 5
        return view, _PREDICTIONS.index(metric)
    if axis.key in LABELS:
        return 1, GENERAL_FALLBACK.index(axis.key)
    return (0 if axis.side == "domain" else 2), 0
