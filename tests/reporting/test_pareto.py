from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gentletune.reporting.axes import Point, both_axes
from gentletune.reporting.pareto import bases_differ, candidates, front_of, pareto_front

from .report_records import failed, pair, run

GOLDEN = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 4.0), (5.0, 1.0), (3.0, 4.0), (5.0, 0.0), (4.0, 1.0)]


def test_golden_front_with_ties() -> None:
    assert pareto_front(GOLDEN) == [0, 3, 5, 4]


def test_golden_front_with_directions_flipped() -> None:
    assert pareto_front([(x, -y) for x, y in GOLDEN], y_higher=False) == [0, 3, 5, 4]
    assert pareto_front([(-x, y) for x, y in GOLDEN], x_higher=False) == [0, 3, 5, 4]
    assert pareto_front(GOLDEN, x_higher=False, y_higher=False) == [6, 7, 2, 0]


def test_of_nothing_and_of_one() -> None:
    assert pareto_front([]) == []
    assert pareto_front([(0.0, 0.0)]) == [0]


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a != b


# Few distinct values, so that ties are common.
plane = st.lists(st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float)), max_size=12)


@given(plane, st.booleans(), st.booleans())
def test_front_is_exactly_what_nothing_beats(points: list[tuple[float, float]], up: bool, right: bool) -> None:
    front = pareto_front(points, x_higher=right, y_higher=up)
    turned = [(x if right else -x, y if up else -y) for x, y in points]
    assert len(set(front)) == len(front)
    for i, point in enumerate(turned):
        beaters = [j for j in front if beats(turned[j], point)]
        assert (i in front) == (not beaters)
        assert i not in front or not any(beats(other, point) for other in turned)
    assert [turned[i][0] for i in front] == sorted(turned[i][0] for i in front)


def test_the_base_model_is_an_option_and_failed_runs_are_none() -> None:
    records = [
        pair("sft", 1e-6, 0.8, 0.5),
        failed(),
        pair("sft", 1e-5, 0.7, 0.4),
        run("talr", 1e-6, {"clinic/accuracy": 0.9}),
    ]
    domain, general = both_axes(records, "clinic/accuracy", "arithmetic/accuracy")
    assert domain is not None
    assert general is not None
    options = candidates(records, domain, general)
    assert [c.indices for c in options] == [(), (0,), (2,)]
    assert options[0].setting is None
    assert options[0].x == Point(0.4, 0.01, 100)
    assert options[1].name == "sft 1e-6"
    assert front_of(options, domain, general) == [0, 1]


def test_seeds_are_one_point_with_the_spread_between_them_in_its_error() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5), pair("sft", 1e-6, 0.8, 0.5, seed=1), pair("talr", 1e-6, 0.7, 0.5)]
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    _, sft, talr = candidates(records, domain, general)
    assert (sft.indices, sft.seeds, talr.seeds) == ((0, 1), 2, 1)
    assert math.isclose(sft.x.value, 0.75)
    # Items: 0.01 for each seed, no items to average; seeds: variance 0.005, which talr's one seed has, too.
    assert sft.x.stderr == pytest.approx(math.sqrt(0.01**2 + 0.005 / 2))
    assert talr.x.stderr == pytest.approx(math.sqrt(0.01**2 + 0.005))


def test_options_come_by_method_plain_sft_first_and_rate() -> None:
    records = [pair("flow", 1e-4, 0.7, 0.5), pair("flow", 1e-5, 0.7, 0.5), pair("sft", 3e-5, 0.7, 0.5)]
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    names = [c.name for c in candidates(records, domain, general)]
    assert names == ["base model", "sft 3e-5", "flow 1e-5", "flow 1e-4"]


def test_settings_of_one_method_and_rate_are_told_apart() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5, recipe={"max_steps": steps}) for steps in (20, 40)]
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    assert [c.name for c in candidates(records, domain, general)[1:]] == [
        "sft 1e-6 (max_steps=20)",
        "sft 1e-6 (max_steps=40)",
    ]


def test_unlike_base_models_are_noticed() -> None:
    same = [pair("sft", 1e-6, 0.8, 0.5), pair("sft", 1e-5, 0.7, 0.4)]
    other = pair("sft", 1e-5, 0.7, 0.4, base={"clinic/accuracy": 0.3, "arithmetic/accuracy": 0.6})
    domain, _ = both_axes(same, None, None)
    assert domain is not None
    assert not bases_differ(same, domain)
    assert bases_differ([*same, other], domain)
