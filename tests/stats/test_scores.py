"""Scores worked out by hand, their errors over many samples, and what must hold of any."""

from __future__ import annotations

import doctest
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import gentletune.stats.change
import gentletune.stats.family
import gentletune.stats.items
import gentletune.stats.scores
from gentletune.core.records import Score
from gentletune.stats import breakdown, mean_over_tasks
from tests.stats.made_scores import accuracy, balanced, bare, mean, ratio

RUNS = 1000
quick = settings(max_examples=60, deadline=None, derandomize=True)
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@pytest.mark.parametrize("name", ["change", "family", "items", "scores"])
def test_examples(name: str) -> None:
    module: Any = getattr(gentletune.stats, name)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def t(df: float) -> float:
    return float(special.stdtrit(df, 0.975))


# Single scores


@pytest.mark.parametrize(
    ("right", "value", "stderr"),
    [
        ([0] * 4, 0.0, math.sqrt(0.25 * 0.75 / 8)),
        ([1] * 4, 1.0, math.sqrt(0.75 * 0.25 / 8)),
        ([True, False], 0.5, math.sqrt(0.25 / 6)),
        ([1.0, 0.0, 0.0, 0.0], 0.25, math.sqrt(0.375 * 0.625 / 8)),
        ([1] * 500 + [0] * 500, 0.5, math.sqrt(0.25 / 1004)),
        ([1], 1.0, math.sqrt(0.6 * 0.4 / 5)),
        # Part marks have a spread of their own: (1 + 2)/8 on average, squares (0.5 + 2)/8 - (3/8)² = 0.171875
        ([0.5, 0.5, 0, 0], 0.25, math.sqrt(0.171875 / 8)),
    ],
)
def test_accuracy_is_never_certain(right: list[float], value: float, stderr: float) -> None:
    score = accuracy(right)
    assert (score.value, score.n, score.key) == (value, len(right), "t/accuracy")
    assert score.stderr == pytest.approx(stderr, rel=1e-12)
    assert score.items == tuple(map(float, right))
    assert stderr > 0


@pytest.mark.parametrize(
    ("right", "groups", "effective"),
    [
        # Sums of residuals by group 1, 0, -1: V = 3/2 · 2/36 = 1/12; ungrouped 1.5/(6·5) = 1/20; deff 5/3; 6/deff
        ([1, 1, 1, 0, 0, 0], "aabbcc", 3.6),
        ([1, 0, 1, 0], "aabb", 4),  # the groups' sums are alike: deff 0, taken as 1
        ([1, 1, 1, 1], "aabb", 2),  # undefined: the number of groups
        ([0, 0, 0, 0, 0], "aabbc", 3),
        ([1, 0, 0], "abc", 3),
    ],
)
def test_grouped_accuracy_is_agresti_and_coull_at_the_effective_n(
    right: list[int], groups: str, effective: float
) -> None:
    score = accuracy(right, groups)
    share = (score.value * effective + 2) / (effective + 4)
    assert score.stderr == pytest.approx(math.sqrt(share * (1 - share) / (effective + 4)), rel=1e-12)
    assert score.n == len(right)


def test_grouped_mean_and_ratio_by_hand() -> None:
    # Residuals -2, -1 | 0, 3: V = 2/1 · (9 + 9)/4² = 2.25
    assert (mean([1, 2, 3, 6], "aabb").value, mean([1, 2, 3, 6], "aabb").stderr) == (3, 1.5)
    assert mean([1, 2, 3, 6], "aabb").clusters == (0, 0, 1, 1)
    # Ungrouped: (4 + 1 + 0 + 9)/(4·3)
    assert mean([1, 2, 3, 6]).stderr == pytest.approx(math.sqrt(14 / 12))
    # R = 6/4; residuals -0.5, -1 | 1.5, over mean(b) = 4/3: V = (1.5²/(1 - 2/3) + 1.5²/(1 - 1/3))/(4/3)²/3²
    score = ratio([1, 2, 3], [1, 2, 1], "xxy")
    assert score.items == pytest.approx((1.125, 0.75, 2.625))
    assert score.stderr == pytest.approx(math.sqrt(10.125 / 16))


def test_a_ratio_by_hand() -> None:
    # R = 6/4; residuals 1 - 1.5·1, 2 - 1.5·2, 3 - 1.5·1 = -0.5, -1, 1.5; se = √(3/2 · 3.5) / 4
    score = ratio([1, 2, 3], [1, 2, 1])
    assert score.value == 1.5
    assert score.stderr == pytest.approx(math.sqrt(1.5 * 3.5) / 4)
    assert score.n == 3


def test_balanced_accuracy_by_hand() -> None:
    # Recalls 1/2 and 1/4. Items value + 6/(2·2)·(±1/2), value + 6/(2·4)·(3/4 or -1/4)
    score = balanced([1, 0, 1, 0, 0, 0], "aabbbb")
    assert score.value == 0.375
    assert score.items == pytest.approx((1.125, -0.375, 0.9375, 0.1875, 0.1875, 0.1875))
    assert score.details == {"recall": {"a": 0.5, "b": 0.25}, "class_counts": {"a": 2, "b": 4}}
    # Agresti and Coull in each class: 3/6 with 6, 3/8 with 8
    assert score.stderr == pytest.approx(math.sqrt(0.25 / 6 + 0.375 * 0.625 / 8) / 2)
    # A model that always says a: all linearised items are 1/2, yet it is not certain: 5/7 with 7, 2/5 with 5
    constant = balanced([1, 1, 1, 0], "aaab")
    assert constant.items == (0.5,) * 4
    assert constant.stderr == pytest.approx(math.sqrt(5 / 7 * 2 / 7 / 7 + 0.4 * 0.6 / 5) / 2)
    # The same in two groups: half as many of each class, 3.5/5.5 with 5.5, 2/4.5 with 4.5
    grouped = balanced([1, 1, 1, 0], "aaab", "xxyy")
    assert grouped.stderr == pytest.approx(math.sqrt(3.5 * 2 / 5.5**3 + 2 * 2.5 / 4.5**3) / 2)


def test_breakdown_by_hand() -> None:
    found = breakdown([1, 1, 0, 1], ["b", "a", "b", "a"], groups=[1, 2, 1, 3])
    assert list(found) == ["a", "b"]
    assert found["a"] == {"value": 1.0, "stderr": pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 6)), "n": 2}
    assert found["b"] == {"value": 0.5, "stderr": None, "n": 2}  # one group
    assert breakdown([], []) == {}
    assert breakdown([1, 0], ["a", "a"])["a"]["stderr"] == accuracy([1, 0]).stderr


def test_too_few_have_no_error_and_none_no_value() -> None:
    assert mean([2]).stderr is None
    assert ratio([2], [4]).stderr is None
    for score in (
        mean([1, 2], "aa"),
        accuracy([1, 0], "aa"),
        ratio([1, 2], [1, 1], "aa"),
        balanced([1, 0], "ab", "xx"),
    ):
        assert score.stderr is None
    empty: list[Callable[[], Score]] = [lambda: accuracy([]), lambda: mean([]), lambda: balanced([], [])]
    for make in empty:
        with pytest.raises(ValueError, match="no items to score for task 't'"):
            make()
    for a, b in (([], []), ([1.0], [0.0])):
        with pytest.raises(ValueError, match="no tokens to score for task 't'"):
            ratio(a, b)
    for make in (lambda: ratio([1, 2], [1]), lambda: balanced([1, 0], "a"), lambda: breakdown([1], "ab")):
        with pytest.raises(ValueError, match=r"longer|shorter"):
            make()
    with pytest.raises(ValueError, match="1 groups for 2 items of task 't'"):
        accuracy([1, 0], "a")
    for bad in (2, -1, math.nan):
        with pytest.raises(ValueError, match=r"outside \[0, 1\] for task 't'"):
            accuracy([bad])


# Tasks


def test_tasks_average_by_hand() -> None:
    score = mean_over_tasks([bare(0.5, 0.3, 10, "a"), bare(0.9, 0.4, 30, "b")], task="general", side="general")
    assert (score.key, score.side, score.n, score.details) == ("general/accuracy", "general", 40, {"tasks": ["a", "b"]})
    assert (score.value, score.stderr) == (pytest.approx(0.7), pytest.approx(0.25))
    assert mean_over_tasks([bare(0.5, 0.3), bare(0.9, None)], task="g", side="general").stderr is None
    for bad in ([], [bare(0.5, 0.1), ratio([1, 2], [1, 1])]):
        with pytest.raises(ValueError, match="no scores to average for 'g'"):
            mean_over_tasks(bad, task="g", side="general")


# Errors over many samples


def share_covered(draw: Callable[[random.Random], tuple[float, float, float]], runs: int = RUNS) -> float:
    """How often low ≤ truth ≤ high of (low, truth, high)."""
    rng = random.Random(20250920)
    triples = [draw(rng) for _ in range(runs)]
    return sum(low <= truth <= high for low, truth, high in triples) / runs


def clustered_right(rng: random.Random, groups: int = 80, p: float = 0.4) -> tuple[list[bool], list[int]]:
    """Answers in groups of 1 to 6, each group with a chance of its own (intraclass correlation 0.3)."""
    right, clusters = [], []
    for group in range(groups):
        chance = rng.betavariate(p * 7 / 3, (1 - p) * 7 / 3)
        for _ in range(rng.randint(1, 6)):
            right.append(rng.random() < chance)
            clusters.append(group)
    return right, clusters


def test_grouped_accuracy_covers_and_ungrouped_does_not() -> None:
    def draw(rng: random.Random, grouped: bool) -> tuple[float, float, float]:
        right, groups = clustered_right(rng)
        score = accuracy(right, groups if grouped else None)
        half = t(score.units - 1) * (score.stderr or 0)
        return score.value - half, 0.4, score.value + half

    assert 0.92 <= share_covered(lambda rng: draw(rng, True)) <= 0.98
    assert share_covered(lambda rng: draw(rng, False)) < 0.88


def test_grouped_ratios_cover() -> None:
    def draw(rng: random.Random, grouped: bool) -> tuple[float, float, float]:
        groups = [g for g in range(40) for _ in range(3)]
        level = [rng.gauss(2, 0.5) for _ in range(40)]
        tokens = [float(rng.randint(1, 20)) for _ in groups]
        bits = [t * level[g] + rng.gauss(0, math.sqrt(t)) for t, g in zip(tokens, groups, strict=True)]
        score = ratio(bits, tokens, groups if grouped else None)
        half = t(score.units - 1) * (score.stderr or 0)
        return score.value - half, 2.0, score.value + half

    assert 0.92 <= share_covered(lambda rng: draw(rng, True)) <= 0.98
    assert share_covered(lambda rng: draw(rng, False)) < 0.9


def test_the_error_of_a_ratio_is_its_spread_over_samples() -> None:
    draw = random.Random(1)

    def sample() -> Score:
        tokens = [float(draw.randint(1, 20)) for _ in range(80)]
        return ratio([2 * t + draw.gauss(0, math.sqrt(t)) for t in tokens], tokens)

    scores = [sample() for _ in range(400)]
    centre = sum(s.value for s in scores) / 400
    spread = math.sqrt(sum((s.value - centre) ** 2 for s in scores) / 399)
    assert sum(s.stderr or 0 for s in scores) / 400 == pytest.approx(spread, rel=0.1)
    assert centre == pytest.approx(2, abs=0.01)


def test_balanced_accuracy_covers() -> None:
    recall = {"a": 0.9, "b": 0.5, "c": 0.1}

    def draw(rng: random.Random) -> tuple[float, float, float]:
        classes = rng.choices("abc", [6, 3, 1], k=150)
        score = balanced([rng.random() < recall[c] for c in classes], classes)
        half = 1.96 * (score.stderr or 0)
        return score.value - half, 0.5, score.value + half

    assert 0.93 <= share_covered(draw) <= 0.98


# What holds of any data

grouped_values = st.lists(st.tuples(numbers, st.integers(0, 4)), min_size=2, max_size=30)
grouped_right = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from("abc")), min_size=2, max_size=30)


def every_score(rows: list[tuple[bool, int, str]]) -> list[Score]:
    right, groups, classes = (list(column) for column in zip(*rows, strict=True))
    tokens = [float(1 + ord(c) - ord("a") + g) for c, g in zip(classes, groups, strict=True)]
    bits = [t * (2.5 if r else 0.7) for t, r in zip(tokens, right, strict=True)]
    return [accuracy(right, groups), mean(bits, groups), ratio(bits, tokens, groups), balanced(right, classes, groups)]


@quick
@given(grouped_right, st.randoms(use_true_random=False))
def test_items_average_to_the_value_in_any_order(rows: list[tuple[bool, int, str]], rng: random.Random) -> None:
    shuffled = list(rows)
    rng.shuffle(shuffled)
    for score, other in zip(every_score(rows), every_score(shuffled), strict=True):
        assert math.fsum(score.items) / score.n == pytest.approx(score.value, abs=1e-12)
        assert len(score.items) == score.n == len(rows)
        assert other.value == pytest.approx(score.value, abs=1e-12)
        assert (other.stderr is None) == (score.stderr is None)
        assert (other.stderr or 0) == pytest.approx(score.stderr or 0, rel=1e-6, abs=1e-9)


@quick
@given(grouped_right)
def test_groups_of_one_are_no_groups(rows: list[tuple[bool, int, str]]) -> None:
    right, _, classes = (list(column) for column in zip(*rows, strict=True))
    values, own = [float(r) + i % 3 for i, r in enumerate(right)], [f"note {i}" for i in range(len(rows))]
    assert accuracy(right, own) == accuracy(right)
    assert mean(values, own) == mean(values)
    assert ratio(values, [1 + v for v in values], own) == ratio(values, [1 + v for v in values])
    assert balanced(right, classes, own) == balanced(right, classes)
    assert breakdown(right, classes, groups=own) == breakdown(right, classes)


@quick
@given(grouped_values)
def test_groups_are_summed_like_single_items(rows: list[tuple[float, int]]) -> None:
    # With as many items in each group, the grouped error is that of the plain mean of the groups' means
    values = [v for v, _ in rows]
    doubled, groups = [x for v in values for x in (v - 1, v + 1)], [i for i in range(len(values)) for _ in range(2)]
    assert mean(doubled, groups).stderr == pytest.approx(mean(values).stderr, abs=1e-9)


@quick
@given(st.lists(numbers, min_size=2, max_size=30))
def test_a_ratio_over_equal_denominators_is_a_mean(values: list[float]) -> None:
    score, plain = ratio(values, [4.0] * len(values)), mean(values)
    assert score.value == pytest.approx(plain.value / 4, abs=1e-9)
    assert score.stderr == pytest.approx((plain.stderr or 0) / 4, abs=1e-9)


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_balanced_accuracy_is_scikit_learns(rows: list[tuple[str, str]]) -> None:
    truth, said = [t for t, _ in rows], [s for _, s in rows]
    score = balanced([t == s for t, s in rows], truth)
    recalls = [sum(t == s == c for t, s in rows) / truth.count(c) for c in set(truth)]
    assert score.value == pytest.approx(sum(recalls) / len(recalls))
    metrics = pytest.importorskip("sklearn.metrics")
    with warnings.catch_warnings(action="ignore"):  # of classes that the model never met, or never said
        assert score.value == pytest.approx(metrics.balanced_accuracy_score(truth, said))
