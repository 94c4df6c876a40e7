"""Which number stands for a side: domain or general skill."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gentletune.core.errors import UserError, unknown
from gentletune.core.records import FROM_BASE, RunRecord, Score
from gentletune.stats import headroom
from gentletune.stats.numbers import number

Side = Literal["domain", "general"]
Verdict = Literal["better", "worse", "no_difference", "unknown"]

MEAN_KEYS: dict[Side, str] = {"domain": "domain_mean/accuracy", "general": "general_mean/accuracy"}
# What general skill falls back to where the accuracies are no better than guessing, in order.
GENERAL_FALLBACK = ("kl_sampled/bits_per_token", "nll_greedy/bits_per_token", "reference/bits_per_token")
ACCURACIES = ("/accuracy", "/balanced_accuracy")
UNITS = {
    "accuracy": "share correct",
    "balanced_accuracy": "mean share correct over the classes",
    "chrf": "chrF, from 0 to 1",
    "bits_per_token": "bits per token",
    "bits_per_byte": "bits per byte",
    "entropy": "bits per token",
    "ece": "share",
    "overconfidence": "share",
}
# How sure a model is, and whether rightly: neither is skill.
CALIBRATION = {
    "entropy": "entropy of the predictions on {}",
    "ece": "calibration error (ECE) on {}",
    "overconfidence": "confidence minus share right on {}",
}
LABELS = {
    "kl_sampled/bits_per_token": "KL from base on text it samples",
    "nll_greedy/bits_per_token": "rise in NLL of the base model's greedy answers",
    "reference/bits_per_token": "loss on reference text",
}


@dataclass(frozen=True)
class Point:
    """A value with its standard error in the axis's unit; `stderr` is None when unknown, `n` counts items."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Axis:
    """A way to read one number off a run: a single score, or the mean of several (`sources`).

    `key` names it (`clinic/accuracy`), `label` says in plain words what it is, `unit` its unit. `chance` is what
    guessing has on it.
    """

    key: str
    side: Side
    label: str
    unit: str
    higher_is_better: bool
    sources: tuple[str, ...]
    chance: float = 0.0

    def point(self, record: RunRecord, base: bool = False) -> Point | None:
        """The run's point on this axis (of its base model if `base`), None where a score is missing.

        A mean's standard error is √Σse² / k: the k tasks are taken as independent.
        """
        points = [_read(record, key, base) for key in self.sources]
        found = [p for p in points if p is not None]
        if not found or len(found) < len(points):
            return None
        if len(found) == 1:
            return found[0]
        errors = [p.stderr for p in found if p.stderr is not None]
        stderr = math.hypot(*errors) / len(found) if len(errors) == len(found) else None
        return Point(math.fsum(p.value for p in found) / len(found), stderr, sum(p.n for p in found))

    @property
    def is_distance(self) -> bool:
        """Whether it is how far a model has gone from its base model, which is itself at 0."""
        return all(map(is_distance, self.sources))

    @property
    def described(self) -> str:
        """Label, unit and direction: `clinic (share correct, higher is better)`, and what guessing has."""
        guess = f"; by guessing {number(self.chance)}" if self.chance else ""
        return f"{self.label} ({self.unit}, {'higher' if self.higher_is_better else 'lower'} is better{guess})"


def is_distance(key: str) -> bool:
    """Whether a score by its definition compares with the base model, so that the base model scores 0."""
    return key.partition("/")[0] in FROM_BASE


def complete(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs that finished."""
    return [r for r in records if r.status == "complete"]


def score_keys(records: Iterable[RunRecord], side: Side | None = None) -> list[str]:
    """Every score key of the runs (of one side, if given), in order of first appearance."""
    scores = (s for r in records for s in (*r.scores, *r.base_scores))
    return list(dict.fromkeys(s.key for s in scores if side in (None, s.side)))


def axis_keys(records: Sequence[RunRecord], side: Side | None = None) -> list[str]:
    """Every key that names an axis (of one side, if given): the scores', and those of the means over several."""
    return [*score_keys(records, side), *(axis.key for axis in _means(records) if side in (None, axis.side))]


def single_axis(records: Sequence[RunRecord], key: str, side: Side | None = None) -> Axis:
    """The axis of one score, of that `side` where runs have it on both. Raises `UserError` where no run has it."""
    found = [score for r in records for score in (*r.scores, *r.base_scores) if score.key == key]
    if not found:
        raise unknown("score", key, axis_keys(records, side))
    # Records that were made before scores had a chance have 0.
    axis = _axis_of(next((score for score in found if score.side == side), found[0]))
    return replace(axis, chance=max(score.chance for score in found))


def choose_axis(records: Sequence[RunRecord], side: Side, key: str | None = None) -> Axis | None:
    """The axis that stands for a side: the one asked for, else accuracy where it can show anything.

    The default is the mean of the side's accuracies (ESCI's is balanced) present in every complete run, if it is more
    than 2 standard errors above guessing: the domain's in some run or its base model, general skill's in the base
    model, since a skill that was never there cannot be lost. Of general skill else the mean of those accuracies that
    are. Else it is the domain task's `bits_per_token`, or `kl_sampled/bits_per_token` for general skill. General scores
    that train the domain's own skill are taken only where there is nothing else. None where there is no score at all.
    Raises `UserError` on an unknown `key`, and on one of the data's own as the general score: a domain cannot vouch for
    its own safety.
    """
    if key is not None:
        if not score_keys(records):
            return None
        asked = next((a for a in _means(records) if a.key == key), None) or single_axis(records, key, side)
        if side == "general" and asked.side == "domain" and is_own(records, asked.key):
            known = ", ".join(axis_keys(records, side)) or "none"
            raise UserError(f"general: '{key}' is the domain's own score; general scores: {known}")
        return asked
    for mean in _means_to_read(records, side):
        if room_above_chance(records, mean, side) > 0:
            return mean
    names = _common(records, side) or _apart(records, side, score_keys(complete(records), side))
    losses = [name for name in names if name.endswith("/bits_per_token")]
    wanted = losses if side == "domain" else [*GENERAL_FALLBACK, *losses]
    chosen = next((name for name in [*wanted, *names] if name in names), None)
    return single_axis(records, chosen) if chosen else None


def is_own(records: Sequence[RunRecord], key: str) -> bool:
    """Whether a score is of the data trained on, which alone have a code length beside their answers, or their mean."""
    scores = [s for r in records for s in (*r.scores, *r.base_scores) if s.side == "domain"]
    own = {s.task for s in scores if s.metric == "bits_per_token"} or {s.task for s in scores}
    return key.partition("/")[0] in own | {"domain_mean"}


def overlapping(records: Sequence[RunRecord]) -> list[str]:
    """General scores of a skill that the domain's data train, so that they may gain by it: arithmetic beside sums."""
    scores = [s for r in complete(records) for s in (*r.scores, *r.base_scores)]
    trained = {skill for s in scores if s.side == "domain" for skill in s.skills}
    return list(dict.fromkeys(s.key for s in scores if s.side == "general" and trained & set(s.skills)))


def _means_to_read(records: Sequence[RunRecord], side: Side) -> Iterator[Axis]:
    """The mean of all accuracies; of general skill then that of those in which the base model has something to lose."""
    keys = _accuracies(records, side)
    if keys:
        yield _mean_axis(records, side, keys)
    if side == "general":
        weak = at_chance(records, side)
        if left := [key for key in keys if key not in weak]:
            yield _mean_axis(records, side, left)


def at_chance(records: Sequence[RunRecord], side: Side) -> list[str]:
    """Accuracies of a side that are not shown to be above guessing, those without an error included."""
    axes = [single_axis(records, key, side) for key in _accuracies(records, side)]
    return [axis.key for axis in axes if room_above_chance(records, axis, side) == 0]


def room_above_chance(records: Sequence[RunRecord], axis: Axis, side: Side) -> float:
    """How far a model is shown to be above guessing: for general skill the base model, which is all that can be lost.

    For the domain, and where the base model's score is not known, the best of all runs. Endless for other scores than
    accuracies.
    """
    if not (axis.chance or all(source.endswith(ACCURACIES) for source in axis.sources)):
        return math.inf
    tuned, base = ([p for r in complete(records) if (p := axis.point(r, of)) is not None] for of in (False, True))
    points = base if side == "general" and base else [*tuned, *base]
    return max((headroom(p.value, p.stderr, axis.chance) for p in points), default=0.0)


def _apart(records: Sequence[RunRecord], side: Side, keys: Sequence[str]) -> list[str]:
    """These keys without general scores of the domain's own skill, unless there are no others."""
    shared = overlapping(records) if side == "general" else []
    return [key for key in keys if key not in shared] or list(keys)


def _read(record: RunRecord, key: str, base: bool) -> Point | None:
    score = record.score(key, base)
    if score is not None:
        return Point(score.value, score.stderr, score.n)
    if base and is_distance(key) and record.score(key) is not None:
        return Point(0.0, 0.0, 0)
    return None


def _axis_of(score: Score) -> Axis:
    unit = UNITS.get(score.metric, score.metric.replace("_", " "))
    task = score.task.replace("_", " ")
    plain = f"{task} {score.metric.replace('_', ' ')}" if f"/{score.metric}" in ACCURACIES else task
    plain = f"loss on {task} answers" if score.metric == "bits_per_token" else plain
    plain = CALIBRATION.get(score.metric, plain).format(task)
    label = LABELS.get(score.key, plain)
    return Axis(score.key, score.side, label, unit, score.higher_is_better, (score.key,), score.chance)


def _common(records: Sequence[RunRecord], side: Side) -> list[str]:
    done = [record for record in complete(records) if record.scores]  # a training alone was not measured
    keys = [[s.key for s in r.scores if s.side == side] for r in done]
    return _apart(records, side, [key for key in keys[0] if all(key in other for other in keys)] if keys else [])


def _accuracies(records: Sequence[RunRecord], side: Side) -> list[str]:
    """The side's accuracies present in every complete run, a balanced one only where it stands alone."""
    found = [key for key in _common(records, side) if key.endswith(ACCURACIES)]
    return [key for key in found if key.replace("/balanced_", "/") not in found or key.endswith("/accuracy")]


def _mean_axis(records: Sequence[RunRecord], side: Side, keys: Sequence[str]) -> Axis:
    if len(keys) == 1:
        return single_axis(records, keys[0], side)
    tasks = " and ".join(key.partition("/")[0].replace("_", " ") for key in keys)
    many = f"{len(keys)} {side} tasks" if len(keys) > 4 else tasks.replace(" and ", ", ", len(keys) - 2)
    label = f"mean accuracy over {many}"
    chance = math.fsum(single_axis(records, key, side).chance for key in keys) / len(keys)
    return Axis(MEAN_KEYS[side], side, label, UNITS["accuracy"], True, tuple(keys), chance)


def _means(records: Sequence[RunRecord]) -> list[Axis]:
    sides: tuple[Side, ...] = ("domain", "general")
    axes = [_mean_axis(records, side, keys) for side in sides if (keys := _accuracies(records, side))]
    return [a for a in axes if len(a.sources) > 1]


def both_axes(records: Sequence[RunRecord], domain: str | None, general: str | None) -> tuple[Axis | None, Axis | None]:
    """The domain and the general axis. Raises `UserError` on a bad key, or one key for both."""
    if domain is not None and domain == general:
        raise UserError(f"both axes are '{domain}'; give two different scores")
    return choose_axis(records, "domain", domain), choose_axis(records, "general", general)
