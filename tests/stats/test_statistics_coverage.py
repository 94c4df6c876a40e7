"""Intervals that cover the truth over many samples, and what must hold of any data."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gentletune.core.records import Score
from gentletune.statistics import breakdown, over_seeds, paired_change, t_quantile
from tests.stats.statistics_scores import accuracy, balanced, mean, ratio

RUNS = 1000
quick = settings(max_examples=60, deadline=None, derandomize=True)
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


# Intervals over many samples


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
        half = t_quantile(0.95, score.units - 1) * (score.stderr or 0)
        return score.value - half, 0.4, score.value + half

    assert 0.92 <= share_covered(lambda rng: draw(rng, True)) <= 0.98
    assert share_covered(lambda rng: draw(rng, False)) < 0.88


def test_paired_changes_of_grouped_shares_cover_and_are_tighter() -> None:
    widths: list[tuple[float, float]] = []

    def draw(rng: random.Random) -> tuple[float, float, float]:
        base, groups = clustered_right(rng)
        # A wrong answer is mended with chance 0.3 in one group of two, a right one lost with chance 0.1
        mended = [rng.choice((0.0, 0.3)) for _ in range(80)]
        tuned = [rng.random() < (0.9 if was else mended[group]) for was, group in zip(base, groups, strict=True)]
        score, other = accuracy(tuned, groups), accuracy(base, groups)
        change = paired_change(score, other)
        assert change.low is not None
        assert change.high is not None
        loose = math.hypot(score.stderr or 0, other.stderr or 0) * 2 * 1.96
        widths.append((change.high - change.low, loose))
        return change.low, 0.6 * 0.15 - 0.4 * 0.1, change.high

    assert 0.92 <= share_covered(draw) <= 0.98
    assert sum(w for w, _ in widths) < 0.75 * sum(w for _, w in widths)


def test_changes_of_few_groups_cover_thanks_to_t() -> None:
    normal_covers = 0

    def draw(rng: random.Random) -> tuple[float, float, float]:
        nonlocal normal_covers
        groups = [g for g in range(6) for _ in range(4)]
        shift = [rng.gauss(1, 1) for _ in range(6)]
        base = [rng.gauss(0, 5) for _ in groups]
        tuned = [b + shift[g] + rng.gauss(0, 1) for b, g in zip(base, groups, strict=True)]
        change = paired_change(mean(tuned, groups), mean(base, groups))
        assert change.low is not None
        assert change.high is not None
        normal_covers += abs(change.value - 1) <= 1.96 * (change.stderr or 0)
        return change.low, 1.0, change.high

    assert 0.93 <= share_covered(draw) <= 0.97
    assert normal_covers / RUNS < 0.92


def test_grouped_ratios_cover() -> None:
    def draw(rng: random.Random, grouped: bool) -> tuple[float, float, float]:
        groups = [g for g in range(40) for _ in range(3)]
        level = [rng.gauss(2, 0.5) for _ in range(40)]
        tokens = [float(rng.randint(1, 20)) for _ in groups]
        bits = [t * level[g] + rng.gauss(0, math.sqrt(t)) for t, g in zip(tokens, groups, strict=True)]
        score = ratio(bits, tokens, groups if grouped else None)
        half = t_quantile(0.95, score.units - 1) * (score.stderr or 0)
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


def test_balanced_changes_cover() -> None:
    def draw(rng: random.Random) -> tuple[float, float, float]:
        classes = rng.choices("ab", [3, 1], k=200)
        base = [rng.random() < 0.5 for _ in classes]
        tuned = [was if rng.random() < 0.8 else c == "b" for was, c in zip(base, classes, strict=True)]
        change = paired_change(balanced(tuned, classes), balanced(base, classes))
        assert change.low is not None
        assert change.high is not None
        return change.low, 0.0, change.high  # b gains 0.1, a loses 0.1

    assert 0.92 <= share_covered(draw) <= 0.98


def test_changes_over_seeds_cover_the_mean_of_all_seeds() -> None:
    items_alone = 0

    def draw(rng: random.Random) -> tuple[float, float, float]:
        nonlocal items_alone
        base = [rng.gauss(0, 2) for _ in range(60)]
        gain = [b + rng.gauss(1, 1) for b in base]
        seeds = [rng.gauss(0, 0.3) for _ in range(4)]
        runs = [mean([g + seed + rng.gauss(0, 0.5) for g in gain]) for seed in seeds]
        change = paired_change(over_seeds(runs), mean(base))
        assert change.low is not None
        assert change.high is not None
        one = paired_change(runs[0], mean(base))
        items_alone += (one.low or 0) <= 1 <= (one.high or 0)
        return change.low, 1.0, change.high

    assert 0.94 <= share_covered(draw, 600) <= 0.995
    assert items_alone / 600 < 0.8


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
def test_a_score_does_not_differ_from_itself(rows: list[tuple[bool, int, str]]) -> None:
    for score in every_score(rows):
        change = paired_change(score, score)
        assert (change.value, change.paired) == (0.0, True)
        assert (change.low is None) == (score.stderr is None)
        if change.low is not None and change.high is not None:
            assert change.low == pytest.approx(-change.high)
            assert change.high > 0 or score.metric in ("m", "bits_per_token")
        back = Score.model_validate_json(score.model_dump_json())
        assert back == score


@quick
@given(grouped_right, grouped_right)
def test_changes_are_antisymmetric(a: list[tuple[bool, int, str]], b: list[tuple[bool, int, str]]) -> None:
    rows = list(zip(a, b, strict=False))
    for score, base in zip(
        every_score([x for x, _ in rows]), every_score([(y[0], x[1], x[2]) for x, y in rows]), strict=True
    ):
        there, back = paired_change(score, base), paired_change(base, score)
        assert there.paired
        assert back.paired
        assert there.value == -back.value
        assert there.stderr == pytest.approx(back.stderr)
        if there.low is not None and there.high is not None:
            assert (there.low, there.high) == pytest.approx((-(back.high or 0), -(back.low or 0)), abs=1e-9)
            assert there.low - 1e-9 <= there.value <= there.high + 1e-9


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
