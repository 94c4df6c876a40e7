"""Scores with honest errors.

Every score carries linearised items z: their mean is the value, and the error of the value is the error of that
mean (value + influence function; Hampel 1974). So one variance (`items`) serves every metric, and a paired change is a
mean of differences. Shares of right answers get pseudo-observations besides, so that none and all claim no certainty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from gentletune.core.records import Score, Side
from gentletune.stats.items import Array, layout_of, share_error

Answers = Sequence[bool | float]  # each in [0, 1]
Groups = Sequence[Hashable] | None  # of each item; None: every item is its own
Details = Mapping[str, Any] | None


def accuracy_score(
    right: Answers, *, task: str, side: Side, groups: Groups = None, metric: str = "accuracy", details: Details = None
) -> Score:
    """Share of right answers, each in [0, 1].

    The standard error is Agresti and Coull's (1998), from (k + 2) / (n + 4), so that a share of 0 or 1 among few
    items does not claim to be certain; with many items it is the usual √(p(1-p)/n). With `groups`, n is the
    effective n: n over the design effect, which is never taken below 1; where all items agree and it is undefined, the
    number of groups. That Agresti and Coull's formula is applied at the effective n is our choice. Items between 0 and
    1 contribute their own variance instead of p(1-p).

    Raises `ValueError` on no items, an item outside [0, 1] and groups of another number.

    >>> s = accuracy_score([0, 0, 0, 0], task="t", side="domain")
    >>> s.value, round(s.stderr, 3), round(accuracy_score([0] * 4, task="t", side="domain", groups="aabb").stderr, 3)
    (0.0, 0.153, 0.192)
    """
    items = _shares(right, task)
    return _score(items, groups, details, share=True, task=task, side=side, metric=metric, higher_is_better=True)


def mean_score(
    values: Sequence[float],
    *,
    task: str,
    side: Side,
    metric: str,
    higher_is_better: bool,
    groups: Groups = None,
    details: Details = None,
) -> Score:
    """Mean of `values` with its (cluster-robust) standard error. Raises `ValueError` as `accuracy_score` does.

    >>> mean_score([1, 2, 3, 6], task="t", side="general", metric="m", higher_is_better=True, groups="aabb").stderr
    1.5
    """
    items = tuple(float(v) for v in values)
    return _score(items, groups, details, task=task, side=side, metric=metric, higher_is_better=higher_is_better)


def ratio_score(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    task: str,
    side: Side,
    metric: str,
    higher_is_better: bool,
    groups: Groups = None,
    details: Details = None,
) -> Score:
    """Ratio of sums R = Σa/Σb, for per-token figures over sequences; the items are R + (aᵢ - R·bᵢ) / mean(b).

    Tokens of one sequence are not independent, so the item is the sequence. Without `groups`
    se = √(n/(n-1) · Σ(aᵢ - R·bᵢ)²) / Σb (Cochran, Sampling Techniques, §6.3).
    Raises `ValueError` on no items, denominators that do not sum to more than 0, and unequal lengths.
    """
    n, total = len(numerators), math.fsum(denominators)
    if n == 0 or total <= 0:
        raise ValueError(f"no tokens to score for task '{task}'")
    ratio = math.fsum(numerators) / total
    items = tuple(ratio + (a - ratio * b) * n / total for a, b in zip(numerators, denominators, strict=True))
    known: dict[str, Any] = {"value": ratio, "metric": metric, "higher_is_better": higher_is_better}
    return _score(items, groups, details, task=task, side=side, **known)


def balanced_accuracy_score(
    right: Answers, classes: Sequence[str], *, task: str, side: Side, groups: Groups = None, details: Details = None
) -> Score:
    """Mean over the K true classes present of the share of right answers in each (its recall).

    The items are value + n/(K·n_k) · (cᵢ - recall_k). The error is √Σ_k se_k² / K with the Agresti-Coull error of
    each recall at its effective n, all by the one design effect of the items: a model that always answers one class
    has recalls of 0 and 1 and no certainty. `details` gets `recall` and `class_counts`, by class.
    Raises `ValueError` as `accuracy_score` does.

    >>> balanced_accuracy_score([1, 1, 1, 0], "aaab", task="t", side="domain").value
    0.5
    """
    by_class: dict[str, list[float]] = {}
    scores = _shares(right, task)
    for name, score in zip(classes, scores, strict=True):
        by_class.setdefault(name, []).append(score)
    counts = {name: len(mine) for name, mine in by_class.items()}
    recall = {name: math.fsum(mine) / len(mine) for name, mine in by_class.items()}
    n, k = len(scores), len(counts) or 1
    value = math.fsum(recall.values()) / k
    items = tuple(value + n / (k * counts[c]) * (r - recall[c]) for c, r in zip(classes, scores, strict=True))
    found = {"recall": recall, "class_counts": counts} | dict(details or {})
    known: dict[str, Any] = {"value": value, "metric": "balanced_accuracy", "higher_is_better": True}
    known["chance"] = 1 / k  # one class whatever is asked
    plain = _score(items, groups, found, task=task, side=side, **known)
    if plain.stderr is None:
        return plain
    layout = layout_of(n, plain.clusters)
    array = np.asarray(items)
    share = float(layout.effective_n(array, layout.variance(array))) / n
    variances = (_recall_variance(mine, share) for mine in by_class.values())
    return plain.model_copy(update={"stderr": math.sqrt(math.fsum(variances)) / k})


def breakdown(
    right: Answers, categories: Sequence[str], *, groups: Groups = None
) -> dict[str, dict[str, float | int | None]]:
    """`value`, `stderr` and `n` of the accuracy in each category, in order of name; errors as `accuracy_score`'s.

    Raises `ValueError` on unequal lengths and an item outside [0, 1].

    >>> breakdown([1, 0, 1], ["b", "a", "b"])["b"]["value"]
    1.0
    """
    found: dict[str, dict[str, float | int | None]] = {}
    rows = list(zip(right, categories, groups if groups is not None else range(len(right)), strict=True))
    for name in sorted(set(categories)):
        mine = [(r, g) for r, category, g in rows if category == name]
        score = accuracy_score([r for r, _ in mine], task=name, side="domain", groups=[g for _, g in mine])
        found[name] = {"value": score.value, "stderr": score.stderr, "n": score.n}
    return found


def mean_over_tasks(scores: Sequence[Score], *, task: str, side: Side, metric: str = "accuracy") -> Score:
    """Unweighted mean of k tasks' scores with √Σse²/k: the tasks are taken as independent. `n` is the total.

    Raises `ValueError` on no scores, or scores of which one is better higher and another lower.
    """
    if len({s.higher_is_better for s in scores}) != 1:
        raise ValueError(f"no scores to average for '{task}', or some are better higher and some lower")
    errors, k = [s.stderr for s in scores if s.stderr is not None], len(scores)
    return Score(
        task=task,
        side=side,
        metric=metric,
        value=math.fsum(s.value for s in scores) / k,
        stderr=math.hypot(*errors) / k if len(errors) == k else None,
        n=sum(s.n for s in scores),
        higher_is_better=scores[0].higher_is_better,
        details={"tasks": [s.task for s in scores]},
        chance=math.fsum(s.chance for s in scores) / k,
    )


def guessing(targets: Sequence[str], options: Sequence[int] = ()) -> float:
    """The accuracy of who knows nothing: of one of the `options` of each item, or of one answer to all of them.

    The latter is the share of the other items that have the most frequent target, so that targets that are all
    different give 0 (ours). So does one target for all, which is no answer (IFEval's) or too few items to tell.

    >>> guessing(["a", "b", "c"]), guessing(["a", "b", "c"], [4, 4, 4]), guessing(["yes", "yes", "yes", "no", "no"])
    (0.0, 0.25, 0.5)
    """
    n, counts = len(targets), Counter(targets)
    same = (max(counts.values()) - 1) / (n - 1) if len(counts) > 1 else 0.0
    return max(same, math.fsum(1 / k for k in options) / n if options else 0.0)


def headroom(value: float, stderr: float | None, chance: float) -> float:
    """How far an accuracy is shown to be above guessing: by all but two standard errors (ours); 0 if it is not.

    A skill that is not there cannot be lost, so at 0 an accuracy shows nothing to be harmless.

    >>> [round(headroom(value, 0.03, chance=0.25), 2) for value in (0.40, 0.28)], headroom(0.9, None, chance=0)
    ([0.09, 0.0], 0.0)
    """
    return 0.0 if stderr is None else max(0.0, value - 2 * stderr - chance)


def zero_of(score: Score) -> Score:
    """The same score were it 0 on every item: what a score that is a change already is compared with.

    >>> zero_of(mean_score([1, 3], task="t", side="general", metric="m", higher_is_better=True)).items
    (0.0, 0.0)
    """
    return score.model_copy(update={"value": 0.0, "stderr": 0.0, "items": (0.0,) * len(score.items), "details": {}})


def is_share(score: Score) -> bool:
    """Whether the items are right or wrong answers: 0s and 1s."""
    return bool(score.items) and all(item in (0.0, 1.0) for item in score.items)


def least_variance(score: Score) -> float:
    """The least that a change of this score may claim: for a balanced accuracy one discordant pair in each class.

    Linearised items of a model that always answers one class are all alike, which is no certainty (ours, at the number
    of groups). 0 for other scores.
    """
    counts, scale = score.details.get("class_counts", {}).values(), score.units / score.n
    return math.fsum((m * scale + 2) ** -2 for m in counts) / len(counts) ** 2 if counts else 0.0


def _score(
    items: tuple[float, ...], groups: Groups, details: Details, *, task: str, share: bool = False, **fields: Any
) -> Score:
    n = len(items)
    if n == 0:
        raise ValueError(f"no items to score for task '{task}'")
    if groups is not None and len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items of task '{task}'")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups or ()))}
    # A group for every item is no grouping: the score is then the ungrouped one.
    clusters = tuple(numbers[g] for g in groups or ()) if len(numbers) < n else ()
    fields = {"value": math.fsum(items) / n, "details": dict(details or {})} | fields
    stderr = _stderr(np.asarray(items), clusters, share)
    return Score(task=task, stderr=stderr, n=n, items=items, clusters=clusters, **fields)


def _stderr(items: Array, clusters: tuple[int, ...], share: bool) -> float | None:
    layout = layout_of(len(items), clusters)
    if layout.units < 2:
        # One item alone has the pseudo-items to go by; one group of several items has not even an effective n.
        return math.sqrt(_recall_variance([float(items[0])], 1.0)) if share and not clusters else None
    variance = share_error(items, layout) if share else layout.variance(items)
    return math.sqrt(float(variance))


def _recall_variance(right: Sequence[float], scale: float) -> float:
    """Agresti and Coull's variance of the share of right answers, each counted `scale` times."""
    n = len(right) * scale + 4
    mean, square = (math.fsum(right) * scale + 2) / n, (math.fsum(r * r for r in right) * scale + 2) / n
    return max(square - mean**2, 0.0) / n


def _shares(right: Answers, task: str) -> tuple[float, ...]:
    shares = tuple(float(r) for r in right)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"an answer scored outside [0, 1] for task '{task}'")
    return shares
