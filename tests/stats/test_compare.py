"""Changes worked out by hand, and what must hold of any."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from gentletune.core.records import Score
from gentletune.stats import Change, Run, average, compare, mean_of, measured
from gentletune.stats.contrast import half_width, p_value
from gentletune.stats.evidence import find
from gentletune.stats.runs import design
from tests.stats.made_scores import accuracy, balanced, bare, mean, ratio

MODEL = None  # the seed of a model that was not trained here


def parts(change: Change) -> tuple[float | None, ...]:
    return (change.value, change.stderr, change.low, change.high)


def t(df: float, level: float = 0.95) -> float:
    return float(special.stdtrit(df, (1 + level) / 2))


def over(rows: Sequence[Sequence[float]], first: int = 0) -> list[Run]:
    """A run for each row of items, of seeds from `first` on."""
    return [Run((mean(row),), first + seed) for seed, row in enumerate(rows)]


def zero(n: int) -> list[Run]:
    return [Run((mean([0.0] * n),), MODEL)]


# One seed


def test_a_change_of_shares_is_agresti_and_mins() -> None:
    # 2 pairs better, 0 worse of 4: centre 2/6, V = (2 + 1 - 2²/6)/6²; high is cut at 1
    change = compare(accuracy([1, 1, 1, 0]), accuracy([1, 0, 0, 0]))
    stderr = math.sqrt(7 / 3) / 6
    assert parts(change) == pytest.approx((0.5, stderr, 1 / 3 - t(3) * stderr, 1.0))
    assert (change.n, change.units, change.paired, change.df) == (4, 4, True, 3)
    # No discordant pair among 10: V = 1/12²
    same = compare(accuracy([1] * 10), accuracy([1] * 10))
    assert parts(same) == pytest.approx((0, 1 / 12, -t(9) / 12, t(9) / 12))
    # In 2 groups of 5: effective n is 2, V = 1/4², t of 1 degree: cut at ±1
    grouped = compare(accuracy([1] * 10, [0, 1] * 5), accuracy([1] * 10, [0, 1] * 5))
    assert parts(grouped) == (0, pytest.approx(0.25), -1, 1)
    # Differences 1, 1 | 0, 0 | 0, 0: V = 3/2 · (16 + 4 + 4)/9/36 = 1/9, ungrouped 2/45: effective n 6 · 2/5 = 2.4
    change = compare(accuracy([1] * 6, "aabbcc"), accuracy([0, 0, 1, 1, 1, 1], "aabbcc"), level=0.5)
    shrink = 2.4 / 4.4
    stderr = math.sqrt(1 / 9 * 2 / 3 * shrink**2 + (1 + 2 / 9 * shrink) / 4.4**2)
    centre, half = shrink / 3, t(2, 0.5) * stderr
    assert parts(change) == pytest.approx((1 / 3, stderr, centre - half, centre + half))


def test_a_change_of_means_by_hand() -> None:
    # Differences 0.5, 1.5, 3: V = 3.1667/6
    score, base = mean([1.5, 2.5, 4]), mean([1, 1, 1])
    stderr = math.sqrt(19 / 36)
    assert parts(compare(score, base)) == pytest.approx((5 / 3, stderr, 5 / 3 - t(2) * stderr, 5 / 3 + t(2) * stderr))
    assert compare(score, base, level=0.9).high == pytest.approx(5 / 3 + t(2, 0.9) * stderr)
    # In groups of 2 and 1: sums of residuals -4/3 | 4/3, over 1 - 2/3 and 1 - 1/3: V = 16/9 · (3 + 3/2) / 9
    assert compare(mean([1.5, 2.5, 4], "aab"), mean([1, 1, 1], "aab")).stderr == pytest.approx(math.sqrt(8 / 9))


def test_unlike_items_are_compared_by_their_errors() -> None:
    # se √(0.09 + 0.16); df = 0.25²/(0.09²/2 + 0.16²/4)
    change = compare(bare(0.9, 0.3, 3), bare(0.4, 0.4, 5))
    df = 0.25**2 / (0.09**2 / 2 + 0.16**2 / 4)
    assert parts(change) == pytest.approx((0.5, 0.5, 0.5 - t(df) / 2, 0.5 + t(df) / 2))
    assert (change.n, change.paired, change.df) == (3, False, pytest.approx(df))
    for other in (accuracy([1, 0]), accuracy([1, 0, 1], "aab"), bare(0.5, 0.1, 3)):
        change = compare(accuracy([1, 0, 1]), other)
        assert not change.paired
        assert change.stderr == pytest.approx(math.hypot(accuracy([1, 0, 1]).stderr or 0, other.stderr or 0))


def test_runs_on_other_samples_are_not_paired() -> None:
    right, wrong = accuracy([1, 1, 1, 0]), accuracy([1, 0, 0, 0])
    change = compare([Run((right,), 0, "a")], [Run((wrong,), MODEL, "b")])
    assert (change.paired, change.stderr) == (False, pytest.approx(math.hypot(right.stderr or 0, wrong.stderr or 0)))


def test_two_constant_classifiers_are_not_known_to_be_equal() -> None:
    # One discordant pair a class: √(1/(3+2)² + 1/(1+2)²)/2; in two groups half as many of each class
    constant = balanced([1, 1, 1, 0], "aaab")
    assert compare(constant, constant).stderr == pytest.approx(math.sqrt(1 / 25 + 1 / 9) / 2)
    grouped = balanced([1, 1, 1, 0], "aaab", "xxyy")
    assert compare(grouped, grouped).stderr == pytest.approx(math.sqrt(1 / 3.5**2 + 1 / 2.5**2) / 2)


def test_an_unknown_error_stays_unknown() -> None:
    for change in (
        compare(bare(0.5, None), bare(0.25, 0.1)),
        compare(mean([2]), mean([1])),
        compare(accuracy([1, 1], "aa"), accuracy([0, 0], "aa")),
    ):
        assert parts(change)[1:] == (None, None, None)
        assert (change.p, change.significant, change.excludes_zero) == (None, None, None)
    exact = compare(bare(0.5, 0.0, 5), bare(0.5, 0.0, 5))
    assert (parts(exact), exact.p, exact.significant) == ((0, 0, 0, 0), 1, False)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="'t/accuracy' and 'u/accuracy' are not the same score"):
        compare(accuracy([1, 0]), accuracy([1, 0], task="u"))
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level must lie within .*{level}"):
            compare(accuracy([1, 0]), accuracy([1, 0]), level=level)
    with pytest.raises(ValueError, match="no runs to compare"):
        compare([], accuracy([1, 0]))
    with pytest.raises(ValueError, match="no scores to compare"):
        compare([Run(())], [Run(())])
    with pytest.raises(ValueError, match="a seed is there twice"):
        compare([Run((accuracy([1, 0]),), 1)] * 2, accuracy([1, 0]))


# Several seeds


def test_seeds_and_items_are_two_samples_by_hand() -> None:
    # Seeds 0, 1, 2 | 2, 3, 7: items average to 1, 2, 4.5 with V = 6.5/6; what is left, ±(0.5, 0.5, -1), has V = 1.5/6
    # each, so N = 2 · 0.25 / (2 · 1); the seeds' means 1 and 4 have M = 4.5/2.
    change = compare(over([[0, 1, 2], [2, 3, 7]]), zero(3))
    items, seeds = 6.5 / 6 - 0.25, 4.5 / 2
    assert (change.value, change.stderr) == (2.5, pytest.approx(math.sqrt(items + seeds)))
    assert change.df == pytest.approx((items + seeds) ** 2 / (items**2 / 2 + seeds**2))
    assert (change.seeds, change.seed_effect, change.seed_share) == (2, "known", pytest.approx(seeds / (items + seeds)))
    # The same as the difference of two trained sides, seed by seed, and the other way round
    ours, base = over([[1, 3, 5], [4, 6, 11]]), over([[1, 2, 3], [2, 3, 4]])
    assert compare(ours, base) == change
    back = compare(base, ours)
    assert parts(back) == pytest.approx((-2.5, change.stderr, -(change.high or 0), -(change.low or 0)))


def test_a_shift_that_both_share_cancels_and_one_of_each_own_does_not() -> None:
    rows = [[0.0, 1.0, 2.0, 4.0], [0.1, 1.2, 2.1, 3.9], [0.0, 0.9, 2.2, 4.0]]
    moved = [[x + shift for x in row] for row, shift in zip(rows, (-3, 0, 5), strict=True)]
    base = [[shift] * 4 for shift in (-3, 0, 5)]
    assert parts(compare(over(moved), over(base))) == pytest.approx(parts(compare(over(rows), zero(4))))
    unpaired = compare(over(moved), over(base, first=10))
    assert unpaired.value == pytest.approx(compare(over(rows), zero(4)).value)
    assert (unpaired.seeds, unpaired.seed_effect) == (3, "known")
    assert (unpaired.high or 0) - (unpaired.low or 0) > 10


def test_seeds_of_shares_by_hand() -> None:
    # Differences 0, 1, 0, 0 | 0, 0, 0, 0: items average to V = (0.25 - 0.0625)/12; residuals ±(-1/8, 3/8, -1/8, -1/8)
    # have V = (12/64)/12 each; pseudo-pairs weigh 0.1 + 0.9/2 in the mean, and 0.9/2 in the noise
    ours = [Run((accuracy(row),), seed) for seed, row in enumerate(([1, 1, 0, 0], [1, 0, 0, 0]))]
    change = compare(ours, [Run((accuracy([1, 0, 0, 0]),), MODEL)])
    shrink, exact = 4 / 6, 3 / 4
    mean_v = 0.1875 / 12 * shrink**2 * exact + (0.55 + 2 * 0.125**2 * shrink) / 36
    noise = 0.1875 / 12 * shrink**2 * exact + 0.45 / 36
    seeds = (0.25**2 / 2) / 2
    assert change.value == 0.125
    assert change.stderr == pytest.approx(math.sqrt(mean_v - noise + max(seeds, noise)))


def test_seeds_that_agree_know_no_more_than_their_items() -> None:
    rows = [[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]]  # no item in common, and the same mean
    change = compare(over(rows), zero(4))
    assert change.stderr is not None
    assert change.stderr > 0.3
    assert (change.high or 0) - (change.low or 0) > 2 * change.stderr
    same = compare([Run((accuracy([1] * 20),), seed) for seed in (0, 1)], accuracy([1] * 20))
    assert (same.low or 0) < -0.03 < 0.03 < (same.high or 0)


def test_one_seed_cannot_know_what_another_would_give() -> None:
    rows = [[0.0, 1.0, 2.0, 4.0], [9.0, 10.0, 11.0, 13.0]]
    one = compare(over(rows[:1]), zero(4))
    assert (one.seeds, one.seed_effect, one.seed_effect_known, one.seed_share) == (1, "unknown", False, 0)
    assert parts(one) == pytest.approx(parts(compare(mean(rows[0]), mean([0] * 4))))
    two = compare(over(rows), zero(4))
    assert two.seed_effect_known
    assert (two.high or 0) - (two.low or 0) > 20
    assert compare(zero(4), [Run((mean([1, 2, 3, 4]),), MODEL)]).seed_effect == "none"
    # One side's single seed is not enough either
    assert compare(over(rows), over(rows[:1], first=5)).seed_effect == "unknown"


def test_pairs_are_by_seed_where_there_are_two() -> None:
    ours, base = over([[1, 2], [3, 5], [5, 6]]), over([[0, 0], [1, 1], [9, 9]], first=1)
    change = compare(ours, base)  # seeds 1 and 2: 4 - 0, 5.5 - 1
    assert (change.value, change.seeds) == (4.25, 2)
    one = compare(over([[3, 5]], first=1), base)  # the one seed that both have
    assert (one.value, one.seeds, one.paired) == (4, 1, True)
    none = compare(over([[1, 2], [3, 5]]), base)  # seed 1 alone in common, so all count
    assert (none.value, none.seeds) == (pytest.approx(2.75 - 10 / 3), 2)


def test_seeds_with_items_of_their_own() -> None:
    """Held-out rows drawn anew for each seed: nothing is shared, so the seeds' means say it all."""
    ours = [Run((mean(row),), seed, seed) for seed, row in enumerate(([1, 2, 6], [5, 6, 7], [3, 3, 9]))]
    base = [Run((mean([1, 1, 1]),), MODEL, seed) for seed in range(3)]
    change = compare(ours, base)  # 2, 5, 4
    stderr = math.sqrt((25 / 9 + 16 / 9 + 1 / 9) / 2 / 3)
    assert parts(change)[:2] == pytest.approx((11 / 3, stderr))
    assert change.high == pytest.approx(11 / 3 + t(2) * stderr, rel=1e-5)
    assert change.paired


def test_numbers_without_items_have_students_interval_over_the_seeds() -> None:
    change = compare(measured({0: 1.0, 1: 2.0, 2: 6.0}), measured({0: 0.5, 1: 0.0, 2: 1.0}))  # 0.5, 2, 5
    stderr = math.sqrt((4 + 0.25 + 6.25) / 2 / 3)
    assert parts(change)[:2] == pytest.approx((2.5, stderr))
    assert change.high == pytest.approx(2.5 + t(2) * stderr, rel=1e-5)
    assert compare(measured({0: 1.0}), measured({0: 0.5})).stderr is None
    assert compare(measured({0: 1.0, 1: 2.0}), measured({0: 0.5, 1: 1.5})).stderr is None  # no error to be seen


def test_tasks_are_averaged_and_a_seed_moves_all_at_once() -> None:
    first, second = [[0, 1, 2], [2, 3, 7]], [[1, 5], [4, 4]]
    both = [Run((mean(a), mean(b)), seed) for seed, (a, b) in enumerate(zip(first, second, strict=True))]
    base = [Run((mean([0] * 3), mean([0] * 2)), MODEL)]
    change = compare(both, base)
    one, other = (find(design(over(rows), zero(len(rows[0])))).contrast for rows in (first, second))
    assert one is not None
    assert other is not None
    seeds = ((2 - 4) ** 2 / 2) / 2  # means 1 and 3, 4 and 4: (2, 4)
    assert change.value == 3
    assert change.stderr == pytest.approx(math.sqrt((one.items + other.items) / 4 + seeds))
    assert (change.n, change.units) == (5, 5)


def test_the_interval_of_a_large_change_over_several_tasks_holds_the_change() -> None:
    """The tasks' mean is drawn to 0 by two pseudo-pairs in all: with two in each task it left the change out."""
    tasks, items = [f"t{i}" for i in range(6)], 100
    base = Run(tuple(accuracy([1] * items, task=task) for task in tasks), seed=None)
    few = [[float(i % 25 == seed) for i in range(items)] for seed in range(3)]
    ours = [Run(tuple(accuracy(row, task=task) for task in tasks), seed=seed) for seed, row in enumerate(few)]
    change = compare(ours, [base])
    assert change.low is not None
    assert change.high is not None
    assert change.value == pytest.approx(-0.96)
    assert change.low <= -0.96 <= change.high < -0.93


def test_means_of_runs_and_averages() -> None:
    found = mean_of(over([[0, 1, 2], [2, 3, 7]]))
    assert (found.value, found.n, found.seeds) == (2.5, 3, 2)
    assert found.stderr == pytest.approx(math.sqrt(6.5 / 6 - 0.25 + 2.25))
    alone = accuracy([1, 0, 1])
    assert mean_of([Run((alone,))]).stderr == alone.stderr
    # Without items the squared errors are averaged, as if the seeds erred alike
    bares = [Run((bare(1, 0.3),), 0), Run((bare(3, 0.4),), 1)]
    assert mean_of(bares).stderr == pytest.approx(math.sqrt(0.125 + 1))
    assert mean_of([Run((bare(1, None),), 0), Run((bare(3, 0.4),), 1)]).stderr is None
    one = average([mean([1, 2, 3], "abb"), mean([3, 2, 7], "abb")])
    assert (one.value, one.items, one.stderr) == (3, (2, 2, 5), mean([2, 2, 5], "abb").stderr)
    assert average([alone]) is alone
    mixed = average([mean([1, 2, 3]), mean([3, 5])])
    assert (mixed.value, mixed.items, mixed.n) == (3, (), 2)
    constant = balanced([1, 1, 1, 0], "aaab")
    assert average([constant, constant]).stderr == pytest.approx(math.sqrt(1 / 25 + 1 / 9) / 2)
    for bad in ([], [alone, accuracy([1, 0, 1], task="u")]):
        with pytest.raises(ValueError, match="no scores to average"):
            average(bad)


def test_the_six_records_of_the_old_answers() -> None:
    """Three seeds of two methods that each seed moves alike: +0.117 [0.100, 0.134] or [-0.459, 0.693] it was.

    The first paired the seeds, the second did not (docs/statistics.md).
    """
    noise = random.Random(3)
    hard, taste = ([noise.gauss(0, spread) for _ in range(60)] for spread in (0.3, 0.06))
    runs: dict[str, list[Run]] = {}
    for method, gain in (("sft", 0.0), ("talr", 1.0)):
        for seed, shift in enumerate((-0.242, -0.021, 0.263)):
            items = [
                2 + h + shift + gain * (0.1156 + x - math.fsum(taste) / 60) + noise.gauss(0, 0.02)
                for h, x in zip(hard, taste, strict=True)
            ]
            runs.setdefault(method, []).append(Run((mean(items),), seed))
    change = compare(runs["talr"], runs["sft"])
    assert (change.paired, change.seeds, change.seed_effect_known, change.significant) == (True, 3, True, True)
    assert parts(change) == pytest.approx((0.117, 0.0084, 0.101, 0.133), abs=5e-4)


# What holds of any

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
rows_of_seeds = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(st.lists(numbers, min_size=seeds, max_size=seeds), min_size=2, max_size=12)
)
answers = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from("abc")), min_size=2, max_size=30)


def every_score(rows: list[tuple[bool, int, str]]) -> list[Score]:
    right, groups, classes = (list(column) for column in zip(*rows, strict=True))
    tokens = [float(1 + ord(c) - ord("a") + g) for c, g in zip(classes, groups, strict=True)]
    bits = [n * (2.5 if r else 0.7) for n, r in zip(tokens, right, strict=True)]
    return [accuracy(right, groups), mean(bits, groups), ratio(bits, tokens, groups), balanced(right, classes, groups)]


@given(rows_of_seeds, st.floats(0.5, 0.999))
def test_the_interval_is_where_the_p_value_exceeds_one_minus_the_level(rows: list[list[float]], level: float) -> None:
    runs = over([list(column) for column in zip(*rows, strict=True)])
    change, contrast = compare(runs, zero(len(rows)), level=level), find(design(runs, zero(len(rows)))).contrast
    if contrast is None or change.low is None or change.high is None or change.high - change.low < 1e-6:
        return
    for bound in (change.low, change.high):
        assert p_value(contrast, bound) == pytest.approx(1 - level, rel=1e-4)
    assert half_width(contrast, level) == pytest.approx((change.high - change.low) / 2)
    assert (change.p or 0) <= 1


@given(rows_of_seeds)
def test_seeds_and_items_may_come_in_any_order(rows: list[list[float]]) -> None:
    table = [list(column) for column in zip(*rows, strict=True)]
    turned = [list(column) for column in zip(*rows[::-1], strict=True)]
    there, back = compare(over(table), zero(len(rows))), compare(over(turned)[::-1], zero(len(rows)))
    assert there.value == pytest.approx(back.value)
    assert (there.stderr is None) == (back.stderr is None)
    assert there.stderr is None or there.stderr == pytest.approx(back.stderr, abs=1e-7)
    json.dumps(vars(there), allow_nan=False)


@given(answers)
def test_a_score_does_not_differ_from_itself(rows: list[tuple[bool, int, str]]) -> None:
    for score in every_score(rows):
        change = compare(score, score)
        assert (change.value, change.paired) == (0.0, True)
        assert (change.low is None) == (score.stderr is None)
        if change.low is not None and change.high is not None:
            assert change.low == pytest.approx(-change.high)
            assert change.high > 0 or score.metric in ("m", "bits_per_token")
            assert not change.significant


@given(answers, answers)
def test_changes_are_antisymmetric(a: list[tuple[bool, int, str]], b: list[tuple[bool, int, str]]) -> None:
    rows = list(zip(a, b, strict=False))
    firsts = every_score([x for x, _ in rows])
    for score, base in zip(firsts, every_score([(y[0], x[1], x[2]) for x, y in rows]), strict=True):
        there, back = compare(score, base), compare(base, score)
        assert there.paired
        assert back.paired
        assert (there.value, there.p) == (-back.value, pytest.approx(back.p))
        assert there.stderr == pytest.approx(back.stderr)
        if there.low is not None and there.high is not None:
            assert (there.low, there.high) == pytest.approx((-(back.high or 0), -(back.low or 0)), abs=1e-7)
            assert there.low - 1e-7 <= there.value <= there.high + 1e-7
            assert there.significant == there.excludes_zero


def test_groups_that_fail_together_tell_less_than_items() -> None:
    luck = random.Random(0)
    groups = [i // 5 for i in range(200)]
    good = [luck.random() < 0.3 for _ in range(40)]
    tuned = [good[g] or luck.random() < 0.4 for g in groups]
    base = [luck.random() < 0.4 for _ in groups]
    apart, together = (compare(accuracy(tuned, g), accuracy(base, g)) for g in (None, groups))
    assert (together.units, apart.units) == (40, 200)
    assert (together.stderr or 0) > 1.1 * (apart.stderr or 0)


def test_the_p_value_against_a_margin_is_one_minus_the_level_at_the_interval_s_end() -> None:
    runs = [Run((accuracy([1] * (60 + 3 * s) + [0] * (40 - 3 * s)),), seed=s) for s in range(3)]
    base = accuracy([1] * 50 + [0] * 50)
    change = compare(runs, [Run((base,), seed=None)])
    assert change.low is not None
    assert change.high is not None
    for end in (change.low, change.high):
        assert compare(runs, [Run((base,), seed=None)], null=end).p == pytest.approx(0.05, rel=1e-6)
    far = compare(runs, [Run((base,), seed=None)], null=-0.2)
    assert far.p is not None
    assert change.p is not None
    assert far.p < change.p
    assert (far.value, far.low, far.high) == (change.value, change.low, change.high)
