"""Scores and changes worked out by hand."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import pytest

from gentletune import statistics
from gentletune.core.records import Score
from gentletune.statistics import (
    Change,
    accuracy_score,
    breakdown,
    mean_change,
    mean_over_tasks,
    over_seeds,
    paired_change,
    t_quantile,
)
from tests.stats.statistics_scores import accuracy, balanced, bare, mean, ratio


def parts(change: Change) -> tuple[float | None, ...]:
    return (change.value, change.stderr, change.low, change.high)


def test_examples() -> None:
    result = doctest.testmod(statistics)
    assert result.attempted > 0
    assert result.failed == 0


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
    # R = 6/4; residuals -0.5, -1 | 1.5, over mean(b) = 4/3: V = 2/1 · (1.5² + 1.5²)/(4/3)²/3² = 9/16
    score = ratio([1, 2, 3], [1, 2, 1], "xxy")
    assert score.items == pytest.approx((1.125, 0.75, 2.625))
    assert score.stderr == pytest.approx(0.75)


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


# Changes


def test_a_change_of_shares_is_agresti_and_mins() -> None:
    # 2 pairs better, 0 worse of 4: centre 2/6, V = (2 + 1 - 2²/6)/6²; t(3) = 3.18245; high is cut at 1
    change = paired_change(accuracy([1, 1, 1, 0]), accuracy([1, 0, 0, 0]))
    stderr = math.sqrt(7 / 3) / 6
    assert parts(change) == pytest.approx((0.5, stderr, 1 / 3 - 3.18245 * stderr, 1.0), abs=1e-5)
    assert (change.n, change.paired) == (4, True)
    # No discordant pair among 10: V = 1/12²; t(9) = 2.26216
    same = paired_change(accuracy([1] * 10), accuracy([1] * 10))
    assert parts(same) == pytest.approx((0, 1 / 12, -2.26216 / 12, 2.26216 / 12), abs=1e-6)
    # In 2 groups of 5: effective n is 2, V = 1/4²; t(1) = 12.7062, cut at ±1
    grouped = paired_change(accuracy([1] * 10, [0, 1] * 5), accuracy([1] * 10, [0, 1] * 5))
    assert parts(grouped) == (0, 0.25, -1, 1)
    # Differences 1, 1 | 0, 0 | 0, 0: V = 3/2 · (16 + 4 + 4)/9/36 = 1/9, ungrouped (8/9 + 4/9)/30 = 2/45: deff 5/2,
    # effective n 2.4 with 0.8 better: centre 0.8/4.4, V = (1.8 - 0.64/4.4)/4.4²; t(2) = 0.81650 at 50 %
    change = paired_change(accuracy([1] * 6, "aabbcc"), accuracy([0, 0, 1, 1, 1, 1], "aabbcc"), level=0.5)
    stderr = math.sqrt(1.8 - 0.64 / 4.4) / 4.4
    half = 0.816497 * stderr
    assert parts(change) == pytest.approx((1 / 3, stderr, 0.8 / 4.4 - half, 0.8 / 4.4 + half), abs=1e-5)


def test_a_change_of_means_by_hand() -> None:
    # Differences 0.5, 1.5, 3: V = 3.1667/6 = 0.52778; t(2) = 4.30265 at 95 %, 2.91999 at 90 %
    score, base = mean([1.5, 2.5, 4]), mean([1, 1, 1])
    half = 4.302653 * math.sqrt(19 / 36)
    assert parts(paired_change(score, base)) == pytest.approx((5 / 3, math.sqrt(19 / 36), 5 / 3 - half, 5 / 3 + half))
    assert paired_change(score, base, level=0.9).high == pytest.approx(5 / 3 + 2.919986 * math.sqrt(19 / 36))
    # In groups of 2 and 1: residuals -7/6 - 1/6 | 4/3: V = 2 · 2 · (4/3)²/9
    assert paired_change(mean([1.5, 2.5, 4], "aab"), mean([1, 1, 1], "aab")).stderr == pytest.approx(8 / 9)


def test_unlike_items_are_compared_by_their_errors() -> None:
    # se √(0.09 + 0.16); df = 0.25²/(0.09²/2 + 0.16²/4) = 5.98, so 5: t = 2.570582
    change = paired_change(bare(0.9, 0.3, 3), bare(0.4, 0.4, 5))
    assert parts(change) == pytest.approx((0.5, 0.5, 0.5 - 2.570582 / 2, 0.5 + 2.570582 / 2))
    assert (change.n, change.paired) == (3, False)
    for other in (accuracy([1, 0]), accuracy([1, 0, 1], "aab"), bare(0.5, 0.1, 3)):
        change = paired_change(accuracy([1, 0, 1]), other)
        assert not change.paired
        assert change.stderr == pytest.approx(math.hypot(accuracy([1, 0, 1]).stderr or 0, other.stderr or 0))
    assert paired_change(bare(0.5, 0.0, 0), bare(0.5, 0.0, 0)) == Change(0.0, 0.0, 0.0, 0.0, 0, False)


def test_an_unknown_error_stays_unknown() -> None:
    assert paired_change(bare(0.5, None), bare(0.25, 0.1)) == Change(0.25, None, None, None, 10, False)
    assert paired_change(mean([2]), mean([1])) == Change(1.0, None, None, None, 1, True)
    assert paired_change(accuracy([1, 1], "aa"), accuracy([0, 0], "aa")) == Change(1.0, None, None, None, 2, True)
    found = mean_change([(accuracy([1, 0]), accuracy([1, 0])), (mean([2]), mean([1]))])
    assert found == Change(0.5, None, None, None, 3, True)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="'t/accuracy' and 'u/accuracy' are not the same score"):
        paired_change(accuracy([1, 0]), accuracy([1, 0], task="u"))
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level must lie within .*{level}"):
            paired_change(accuracy([1, 0]), accuracy([1, 0]), level=level)
    with pytest.raises(ValueError, match="no tasks to average"):
        mean_change([])


def test_two_constant_classifiers_are_not_known_to_be_equal() -> None:
    # One discordant pair a class: √(1/(3+2)² + 1/(1+2)²)/2; in two groups half as many of each class
    constant = balanced([1, 1, 1, 0], "aaab")
    assert paired_change(constant, constant).stderr == pytest.approx(math.sqrt(1 / 25 + 1 / 9) / 2)
    grouped = balanced([1, 1, 1, 0], "aaab", "xxyy")
    assert paired_change(grouped, grouped).stderr == pytest.approx(math.sqrt(1 / 3.5**2 + 1 / 2.5**2) / 2)
    assert over_seeds([constant, constant]).stderr == pytest.approx(math.sqrt(1 / 25 + 1 / 9) / 2)


def test_changes_of_tasks_average_by_hand() -> None:
    pairs = [(accuracy([1, 1, 1, 0]), accuracy([1, 0, 0, 0])), (bare(0.9, 0.3, 3), bare(0.4, 0.4, 5))]
    change, each = mean_change(pairs), [paired_change(*pair) for pair in pairs]
    assert change.value == 0.5
    assert change.stderr == pytest.approx(math.hypot(*(c.stderr or 0 for c in each)) / 2)
    # V 7/108 with 3, 0.09 with 2, 0.16 with 4 degrees: 8.35, so 8: t = 2.306004; centre (1/3 + 1/2)/2
    assert change.high == pytest.approx(5 / 12 + 2.306004 * (change.stderr or 0))
    assert (change.n, change.paired) == (7, False)
    assert mean_change(pairs[:1]) == each[0]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99])
def test_t_quantiles(level: float) -> None:
    # Closed forms with 1 and 2 degrees of freedom; the normal in the limit
    assert t_quantile(level, 1) == pytest.approx(math.tan(math.pi * level / 2))
    assert t_quantile(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)))
    assert t_quantile(level, 10**9) == pytest.approx(
        {0.5: 0.67449, 0.8: 1.281552, 0.95: 1.959964, 0.99: 2.575829}[level], abs=1e-6
    )
    # The exact branch meets the expansion, and t falls as the degrees rise
    found = [t_quantile(level, df) for df in (1, 2, 3, 10, 59, 60, 61, 62, 500)]
    assert found == sorted(found, reverse=True)
    assert found[5] - found[6] == pytest.approx(found[6] - found[7], rel=0.1)


def test_t_quantiles_of_the_tables() -> None:
    table = {3: 3.182446, 5: 2.570582, 9: 2.262157, 30: 2.042272, 60: 2.000298, 120: 1.979930}
    assert {df: t_quantile(0.95, df) for df in table} == pytest.approx(table, rel=1e-5)
    for level, df in ((0.95, 0), (0.0, 3), (1.0, 3)):
        with pytest.raises(ValueError, match="no t quantile"):
            t_quantile(level, df)


# Over seeds and tasks


def test_seeds_add_their_own_variance() -> None:
    # Items 2, 2, 5: V = 6/6; values 2 and 4: between-seed variance 2, over 2 seeds 1
    scores = [mean([1, 2, 3]), mean([3, 2, 7])]
    score = over_seeds(scores)
    assert (score.value, score.items, score.n, score.key) == (3, (2, 2, 5), 3, "t/m")
    assert score.stderr == pytest.approx(math.sqrt(2))
    assert score.details == {"seeds": 2, "between_seed_sd": pytest.approx(math.sqrt(2))}
    # In groups ab, b is 2, 5: residuals -1 | 1: V = 2 · 2/9
    grouped = over_seeds([mean([1, 2, 3], "abb"), mean([3, 2, 7], "abb")])
    assert grouped.stderr == pytest.approx(math.sqrt(4 / 9 + 1))
    # Against one base: V 1 with 2 degrees, 1 with 1: df = 4/(1/2 + 1) = 2.67, so 2
    change = paired_change(score, mean([1, 1, 1]))
    assert parts(change)[:2] == pytest.approx((2, math.sqrt(2)))
    assert change.high == pytest.approx(2 + 4.302653 * math.sqrt(2))
    # Either way round; and against itself the seeds count twice: V 0 + 1 + 1
    assert paired_change(mean([1, 1, 1]), score).stderr == change.stderr
    assert paired_change(score, score).stderr == pytest.approx(math.sqrt(2))
    # Unpaired with another n, the same two variances and the other's own
    other = paired_change(score, mean([1, 2, 3, 6]))
    assert other.stderr == pytest.approx(math.sqrt(2 + 14 / 12))


def test_seeds_of_shares_by_hand() -> None:
    # Items 1, 1/2, 1, 0 and two right, two wrong: mean 4.5/8, squares 4.25/8, V = (0.53125 - 0.5625²)/8;
    # values 1/2 and 3/4: between-seed variance 1/32, over 2
    score = over_seeds([accuracy([1, 0, 1, 0]), accuracy([1, 1, 1, 0])])
    assert (score.value, score.items) == (0.625, (1, 0.5, 1, 0))
    assert score.stderr == pytest.approx(math.sqrt(0.02685546875 + 1 / 64))
    # Differences of averages over seeds are shares too: 0, 1/2, 0, 0: centre 0.5/6, V = (1.25/6 - (0.5/6)²)/6
    change = paired_change(score, accuracy([1, 0, 1, 0]))
    assert change.stderr == pytest.approx(math.sqrt((1.25 / 6 - 0.25 / 36) / 6 + 1 / 64))
    certain = over_seeds([accuracy([1] * 6)] * 3)
    assert certain.stderr == pytest.approx(accuracy([1] * 6).stderr)


def test_seeds_without_items_and_one_seed() -> None:
    # (0.09 + 0.16)/2 + 2/2
    score = over_seeds([bare(1, 0.3), bare(3, 0.4)])
    assert (score.value, score.stderr) == (2, pytest.approx(math.sqrt(1.125)))
    assert over_seeds([bare(1, None), bare(3, 0.4)]).stderr is None
    assert over_seeds([mean([1, 3], "aa"), mean([1, 5], "aa")]).stderr is None
    alone = accuracy([1, 0])
    assert over_seeds([alone]) is alone


def test_seeds_keep_what_they_agree_on() -> None:
    details = [{"template": "x", "by_kind": {"a": 1}}, {"template": "x", "by_kind": {"a": 2}}]
    scores = [accuracy_score([1, 0], task="t", side="domain", details=d) for d in details]
    assert over_seeds(scores).details == {
        "template": "x",
        "seeds": 2,
        "between_seed_sd": 0.0,
    }


def test_unlike_seeds_are_refused() -> None:
    base = accuracy([1, 0, 1])
    for other in (accuracy([1, 0]), accuracy([1, 0, 1], "aab"), bare(0.5, 0.1, 3), accuracy([1, 0, 1], task="u")):
        with pytest.raises(ValueError, match="'t/accuracy' are not all on the same items"):
            over_seeds([base, other])
    with pytest.raises(ValueError, match="over several seeds already"):
        over_seeds([over_seeds([base, base]), base])
    with pytest.raises(ValueError, match="no seeds"):
        over_seeds([])


def test_tasks_average_by_hand() -> None:
    score = mean_over_tasks([bare(0.5, 0.3, 10, "a"), bare(0.9, 0.4, 30, "b")], task="general", side="general")
    assert (score.key, score.side, score.n, score.details) == ("general/accuracy", "general", 40, {"tasks": ["a", "b"]})
    assert (score.value, score.stderr) == (pytest.approx(0.7), pytest.approx(0.25))
    assert mean_over_tasks([bare(0.5, 0.3), bare(0.9, None)], task="g", side="general").stderr is None
    for bad in ([], [bare(0.5, 0.1), ratio([1, 2], [1, 1])]):
        with pytest.raises(ValueError, match="no scores to average for 'g'"):
            mean_over_tasks(bad, task="g", side="general")
