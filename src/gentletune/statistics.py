"""Scores with honest errors, and the changes between them.

Every score carries linearised items z: their mean is the value, and the error of the value is the error of that
mean (value + influence function; Hampel 1974). So one cluster-robust variance serves every metric, and a paired
change is a mean of differences. Items of one group (questions on one patient note) are not independent:

    V = G/(G-1) · Σ_g (Σ_{i∈g} (zᵢ - z̄))² / n²         (Cochran, Sampling Techniques, §9A; Liang and Zeger 1986)

with G groups, or G = n where every item is its own. Clustered errors in LLM evaluations: Miller 2024,
arXiv 2411.00640. Shares of right answers get pseudo-observations besides, so that none and all claim no certainty.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from gentletune.core.records import Score, Side

Answers = Sequence[bool | float]  # each in [0, 1]
Groups = Sequence[Hashable] | None  # of each item; None: every item is its own
Details = Mapping[str, Any] | None
_COULL = (4.0, 2.0, 2.0)  # pseudo-items: how many, their sum, their sum of squares: two right, two wrong
_MIN = (2.0, 0.0, 1.0)  # the same of differences: half a pair in each cell of right/wrong by right/wrong


@dataclass(frozen=True)
class Change:
    """A score minus its base, in the score's unit, with an interval [low, high] at the level asked for.

    `stderr`, `low` and `high` are None when unknown. `n` counts items, `paired` says whether they were compared
    one by one. The interval of shares lies around a value drawn slightly to 0, so it is not symmetric.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    paired: bool


def accuracy_score(
    right: Answers, *, task: str, side: Side, groups: Groups = None, metric: str = "accuracy", details: Details = None
) -> Score:
    """Share of right answers, each in [0, 1].

    The standard error is Agresti and Coull's (1998), from (k + 2) / (n + 4), so that a share of 0 or 1 among few
    items does not claim to be certain; with many items it is the usual √(p(1-p)/n). With `groups`, n is the
    effective n: n over the design effect (Cochran §9A; Korn and Graubard 1998), which is never taken below 1;
    where all items agree and it is undefined, the number of groups. That Agresti and Coull's formula is applied at
    the effective n is our choice. Items between 0 and 1 contribute their own variance instead of p(1-p).

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
    plain = _score(items, groups, found, task=task, side=side, **known)
    if plain.stderr is None:
        return plain
    scale = _effective_n(items, plain.clusters) / n
    variances = (_smoothed(mine, scale, _COULL)[1] for mine in by_class.values())
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


def paired_change(score: Score, base: Score, *, level: float = 0.95) -> Change:
    """`score` minus `base`, item by item where both have as many items in the same groups, else from their errors.

    Paired: the cluster-robust error of the mean difference and Student's t with G - 1 degrees of freedom. Items of
    0 and 1 (and their averages over seeds) get Agresti and Min's (2005) half a pair in each of the four cells, at the
    effective n, so that no discordant pair is not taken for certainty; balanced accuracy has a floor of one
    discordant pair a class (ours). Unpaired: √(se_a² + se_b²). Degrees of freedom of several parts, between-seed
    variance among them, are Satterthwaite's (1946).

    Nothing tells whether two scores with as many items are on the *same* items: that is the caller's to know.
    Raises `ValueError` where the scores' keys differ, or `level` is not within (0, 1).

    >>> a, b = (accuracy_score(r, task="t", side="domain") for r in ([1, 1, 1, 0], [1, 0, 0, 0]))
    >>> change = paired_change(a, b)
    >>> change.value, round(change.stderr, 4), change.paired
    (0.5, 0.2546, True)
    """
    return _interval([_difference(score, base)], level)


def mean_change(pairs: Sequence[tuple[Score, Score]], *, level: float = 0.95) -> Change:
    """Mean of the changes of k tasks, each a (score, base), with √Σse²/k: the tasks are taken as independent.

    `paired` where all are, `n` the total. Raises `ValueError` on no pairs and as `paired_change` does.
    """
    if not pairs:
        raise ValueError("no tasks to average")
    return _interval([_difference(score, base) for score, base in pairs], level)


def over_seeds(scores: Sequence[Score]) -> Score:
    """One score of runs that differ in the training seed only, measured on the same items.

    The items are averaged over the S seeds; se² = V(averaged items) + between-seed variance / S, the sum over two
    crossed samples, items and seeds (Cameron, Gelbach and Miller 2011). Conservative: what is neither item nor seed
    but both is in each term. Without items the first term is the mean of the squared errors. `details` keeps what
    all seeds agree on, `seeds` and `between_seed_sd` (n - 1). One seed is returned as it is.
    Raises `ValueError` on no scores, unlike keys, items or groups, and scores that are over seeds already.
    """
    if not scores:
        raise ValueError("no seeds to average")
    first, seeds = scores[0], len(scores)
    if seeds == 1:
        return first
    if len({(s.key, s.n, s.clusters, len(s.items)) for s in scores}) > 1:
        raise ValueError(f"scores named '{first.key}' are not all on the same items")
    if any("seeds" in s.details for s in scores):
        raise ValueError(f"a score named '{first.key}' is over several seeds already")
    values = [s.value for s in scores]
    value = math.fsum(values) / seeds
    between = math.fsum((v - value) ** 2 for v in values) / (seeds - 1)
    agreed = {k: v for k, v in first.details.items() if all(s.details.get(k) == v for s in scores)}
    details = agreed | {"seeds": seeds, "between_seed_sd": math.sqrt(between)}
    items = tuple(math.fsum(column) / seeds for column in zip(*(s.items for s in scores), strict=True))
    draft = first.model_copy(update={"value": value, "items": items, "details": details})
    if items:
        within = _share_variance(items, first.clusters) if _is_share(draft) else _variance(items, first.clusters)
        within = within if within is None else max(within, _floor(draft))
    else:
        errors = [s.stderr for s in scores if s.stderr is not None]
        within = math.fsum(e * e for e in errors) / seeds if len(errors) == seeds else None
    return draft.model_copy(update={"stderr": None if within is None else math.sqrt(within + between / seeds)})


def mean_over_tasks(scores: Sequence[Score], *, task: str, side: Side, metric: str = "accuracy") -> Score:
    """Unweighted mean of k tasks' scores with √Σse²/k: the tasks are taken as independent. `n` is the total.

    Over several seeds, average the tasks first, then `over_seeds`: one seed moves all tasks at once.
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
    )


@lru_cache(maxsize=1024)
def t_quantile(level: float, df: int) -> float:
    """The t with P(|T| ≤ t) = level under Student's distribution with `df` degrees of freedom.

    Exact by bisection on the finite series in θ = atan(t/√df) up to 60 degrees of freedom, beyond by the expansion
    around the normal quantile, right to 1e-5 of t at 95 % (Abramowitz and Stegun 26.7.3, 26.7.4, 26.7.5).
    Raises `ValueError` on a level outside (0, 1) or no degrees of freedom.

    >>> round(t_quantile(0.95, 1), 3), round(t_quantile(0.95, 10), 3), round(t_quantile(0.95, 10**6), 3)
    (12.706, 2.228, 1.96)
    """
    if not 0 < level < 1 or df < 1:
        raise ValueError(f"no t quantile at level {level} with {df} degrees of freedom")
    if df > 60:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _t_mass(theta: float, df: int) -> float:
    cos, odd = math.cos(theta), df % 2
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for j in range(2 + odd, df + 1, 2):
        total += term
        term *= cos * cos * (j - 1) / j
    return (theta + math.sin(theta) * total) * 2 / math.pi if odd else math.sin(theta) * total


@dataclass(frozen=True)
class _Difference:
    value: float
    centre: float  # where the interval lies: the value, drawn to 0 for shares
    parts: tuple[tuple[float, int], ...] | None  # variances, each with its degrees of freedom
    n: int
    paired: bool
    share: bool


def _difference(score: Score, base: Score) -> _Difference:
    if score.key != base.key:
        raise ValueError(f"'{score.key}' and '{base.key}' are not the same score")
    value, n = score.value - base.value, min(score.n, base.n)
    if not score.items or len(score.items) != len(base.items) or score.clusters != base.clusters:
        if score.stderr is None or base.stderr is None:
            return _Difference(value, value, None, n, False, False)
        parts = []
        for one, stderr in ((score, score.stderr), (base, base.stderr)):
            seed = _seed_parts(one)
            parts += [(max(stderr**2 - math.fsum(v for v, _ in seed), 0.0), max(one.units - 1, 1)), *seed]
        return _Difference(value, value, tuple(parts), n, False, False)
    items, share = [a - b for a, b in zip(score.items, base.items, strict=True)], _is_share(score) and _is_share(base)
    variance, centre = _variance(items, score.clusters), value
    if variance is None:
        return _Difference(value, value, None, n, True, share)
    if share:
        centre, variance = _smoothed(items, _effective_n(items, score.clusters) / n, _MIN)
    variance = max(variance, _floor(score))
    parts = [(variance, score.units - 1), *_seed_parts(score), *_seed_parts(base)]
    return _Difference(value, centre, tuple(parts), n, True, share)


def _interval(found: Sequence[_Difference], level: float) -> Change:
    if not 0 < level < 1:
        raise ValueError(f"level must lie within (0, 1), got {level}")
    k, parts = len(found), [part for d in found for part in d.parts or ()]
    value, n, paired = math.fsum(d.value for d in found) / k, sum(d.n for d in found), all(d.paired for d in found)
    if any(d.parts is None for d in found):
        return Change(value, None, None, None, n, paired)
    total, spread = math.fsum(v for v, _ in parts), math.fsum(v * v / df for v, df in parts)
    stderr = math.sqrt(total) / k
    half = stderr * t_quantile(level, max(int(total**2 / spread + 1e-9), 1)) if spread else 0.0
    centre, bound = math.fsum(d.centre for d in found) / k, 1.0 if all(d.share for d in found) else math.inf
    return Change(value, stderr, max(centre - half, -bound), min(centre + half, bound), n, paired)


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
    variance = _share_variance(items, clusters) if share else _variance(items, clusters)
    fields = {"value": math.fsum(items) / n, "details": dict(details or {})} | fields
    stderr = None if variance is None else math.sqrt(variance)
    return Score(task=task, stderr=stderr, n=n, items=items, clusters=clusters, **fields)


def _variance(items: Sequence[float], clusters: Sequence[int]) -> float | None:
    n, mean = len(items), math.fsum(items) / len(items)
    if not clusters:
        return math.fsum((z - mean) ** 2 for z in items) / (n * (n - 1)) if n > 1 else None
    sums: dict[int, list[float]] = {}
    for z, cluster in zip(items, clusters, strict=True):
        sums.setdefault(cluster, []).append(z - mean)
    g = len(sums)
    return g / (g - 1) * math.fsum(math.fsum(s) ** 2 for s in sums.values()) / n**2 if g > 1 else None


def _effective_n(items: Sequence[float], clusters: Sequence[int]) -> float:
    robust = _variance(items, clusters)
    if not clusters or robust is None:
        return len(items)
    if max(items) - min(items) < 1e-12:  # all agree, up to rounding: nothing to see the design effect by
        return len(set(clusters))
    return len(items) / max(robust / (_variance(items, ()) or robust), 1.0)


def _share_variance(items: Sequence[float], clusters: Sequence[int]) -> float | None:
    if clusters and len(set(clusters)) < 2:
        return None
    return _smoothed(items, _effective_n(items, clusters) / len(items), _COULL)[1]


def _smoothed(items: Sequence[float], scale: float, extra: tuple[float, float, float]) -> tuple[float, float]:
    """Mean of the items and the pseudo-items, and its variance, each item counted `scale` times."""
    n = len(items) * scale + extra[0]
    mean, square = (math.fsum(items) * scale + extra[1]) / n, math.fsum(z * z for z in items) * scale + extra[2]
    return mean, max(square / n - mean**2, 0.0) / n


def _floor(score: Score) -> float:
    """Least variance of a balanced accuracy: one discordant pair in each class, at the number of groups."""
    counts, scale = score.details.get("class_counts", {}).values(), score.units / score.n
    return math.fsum((m * scale + 2) ** -2 for m in counts) / len(counts) ** 2 if counts else 0.0


def _shares(right: Answers, task: str) -> tuple[float, ...]:
    shares = tuple(float(r) for r in right)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"an answer scored outside [0, 1] for task '{task}'")
    return shares


def _is_share(score: Score) -> bool:
    """Whether the items are 0s and 1s, or averages of such over the seeds."""
    counts = [item * score.details.get("seeds", 1) for item in score.items]
    return all(0 <= item <= 1 for item in score.items) and all(abs(c - round(c)) < 1e-9 for c in counts)


def _seed_parts(score: Score) -> list[tuple[float, int]]:
    seeds = score.details.get("seeds", 1)
    return [(score.details["between_seed_sd"] ** 2 / seeds, seeds - 1)] if seeds > 1 else []
