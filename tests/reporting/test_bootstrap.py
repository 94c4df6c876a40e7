from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from gentletune.core.records import RunRecord, Score
from gentletune.reporting import pareto, report
from gentletune.reporting.axes import Axis, both_axes
from gentletune.reporting.pareto import Draws, candidates, draw, hypervolume, interval, pareto_front
from gentletune.reporting.recommend import recommend
from gentletune.reporting.scene import build_scene, looks_of, volumes
from gentletune.stats import accuracy_score, mean_score

from .made_study import made_study
from .report_records import pair, run

GENERAL = mean_score([0.1, 0.4, 0.2, 0.3], task="arithmetic", side="general", metric="accuracy", higher_is_better=True)


def setting(label: str, *scores: Score, **fields: Any) -> RunRecord:
    return run(label, 1e-5, {}, base={}).model_copy(update={"scores": list(scores), **fields})


def drawn(records: Sequence[RunRecord], **how: Any) -> tuple[Draws, tuple[Axis, Axis]]:
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    return draw(candidates(records, domain, general), domain, general, **how), (domain, general)


def answers(seed: int, share: float, n: int = 60) -> list[bool]:
    luck = random.Random(seed)
    return [luck.random() < share for _ in range(n)]


def domain_score(right: Sequence[float], groups: Sequence[int] | None = None) -> Score:
    return accuracy_score(right, task="clinic", side="domain", groups=groups)


def test_the_same_items_move_together_and_others_apart() -> None:
    right = answers(0, 0.5)
    same = [setting(name, domain_score(right), GENERAL) for name in ("sft", "talr")]
    found, _ = drawn(same)
    assert np.allclose(found.xs[:, 0], found.xs[:, 1])
    assert found.xs[:, 0].std() > 0.03
    other = setting("talr", domain_score(right), GENERAL, hashes={"test": "another"})
    apart, _ = drawn([same[0], other])
    assert abs(np.corrcoef(apart.xs.T)[0, 1]) < 0.15


@pytest.mark.parametrize("groups", [None, [i // 4 for i in range(60)]])
def test_a_score_is_drawn_with_its_own_error(groups: list[int] | None) -> None:
    score = domain_score(answers(1, 0.3), groups)
    bare = score.model_copy(update={"items": (), "clusters": ()})
    none = domain_score([0.0] * 60, groups)  # items that do not vary
    few = domain_score([1.0, 0.0, 0.0, 0.0, 0.0])  # its error is a quarter above that of its bare items
    for one in (score, bare, none, few):
        found, _ = drawn([setting("sft", one, GENERAL)], count=4000)
        assert found.xs[:, 0].std() == pytest.approx(one.stderr, rel=0.08)
        assert found.xs[:, 0].mean() == pytest.approx(one.value, abs=0.015)


def test_groups_are_drawn_whole() -> None:
    # Each group all right or all wrong: drawn item by item, two runs that agree in groups would still move alike,
    # but with half the groups as many draws would be as far out.
    groups = [i // 15 for i in range(60)]
    score = domain_score([float(g % 2) for g in groups], groups)
    found, _ = drawn([setting("sft", score, GENERAL)], count=4000)
    moves = {round(float(x), 6) for x in found.xs[:, 0]}
    assert len(moves) == 5  # 0 to 4 of the 4 groups right


def test_seeds_add_to_the_draws() -> None:
    records = [pair("sft", 1e-5, 0.5, 0.5), pair("sft", 1e-5, 0.7, 0.5, seed=1)]
    found, _ = drawn(records, count=4000)
    assert found.xs[:, 1].std() == pytest.approx(math.sqrt(0.01**2 + 0.02 / 2), rel=0.08)
    assert found.xs[:, 0].std() == pytest.approx(0.01, rel=0.08)  # the base model has no seeds


def test_draws_can_be_repeated_and_blocks_change_nothing_but_the_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [setting("sft", domain_score(answers(2, 0.4)), GENERAL)]
    first, _ = drawn(records)
    again, _ = drawn(records)
    other, _ = drawn(records, seed=1)
    assert np.array_equal(first.xs, again.xs)
    assert not np.array_equal(first.xs, other.xs)
    monkeypatch.setattr(pareto, "_CHUNK", 60 * 7)
    assert drawn(records, count=4000)[0].xs.std() == pytest.approx(first.xs.std(), rel=0.1)


def test_lower_is_better_is_turned() -> None:
    record = run("sft", 1e-5, {"clinic/bits_per_token": 2.0, "kl_sampled/bits_per_token": 0.5}, base={})
    found, _ = drawn([record])
    assert found.x[0] == -2.0
    assert found.y[0] == -0.5
    assert abs(found.xs.mean() + 2) < 0.01


plane = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=7)


@given(plane, st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_the_area_is_what_counting_squares_gives(points: list[tuple[int, int]], corner: tuple[int, int]) -> None:
    squares = sum(any(x > i and y > j for x, y in points) for i in range(corner[0], 8) for j in range(corner[1], 8))
    x, y = np.array(points, dtype=float).T
    assert hypervolume(x, y, (float(corner[0]), float(corner[1]))) == squares


@given(plane)
def test_shares_and_band_of_certain_points_are_the_front_itself(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, dtype=float).T
    draws = Draws(x, y, np.tile(x, (3, 1)), np.tile(y, (3, 1)))
    assert [i for i, share in enumerate(draws.on_front()) if share == 1] == sorted(pareto_front(points))
    low, high = draws.band(range(10))
    for place in range(10):
        best = max((b for a, b in points if a >= place), default=-math.inf)
        assert low[place] == high[place] == best


def test_the_interval_is_corrected_for_the_bias_of_a_best() -> None:
    normal = np.random.default_rng(0).normal
    hits = plain = 0
    for _ in range(300):
        seen = normal(0, 1, 4)
        again = (seen + normal(0, 1, (400, 4))).max(axis=1)
        found = interval(float(seen.max()), again)
        hits += found.low <= 0 <= found.high  # the best of four that are all 0
        plain += np.quantile(again, 0.025) <= 0
    assert hits / 300 > 0.85 > 0.6 > plain / 300


def test_nothing_drawn_nothing_uncertain() -> None:
    found = interval(0.5, np.full(10, 0.5))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def scene_of(records: Sequence[RunRecord]) -> Any:
    domain, general = both_axes(records, None, None)
    scene = build_scene(records, domain, general, recommend(records), looks_of(records))
    assert scene is not None
    return scene


def test_areas_by_method(tmp_path: Path) -> None:
    # The corner is (0.4, 0.5); the box reaches to (0.8, 0.6).
    exact = {"clinic/accuracy": (0.4, 0.0), "arithmetic/accuracy": (0.6, 0.0)}
    records = [
        pair("sft", 1e-6, (0.6, 0.0), (0.55, 0.0), base=exact),
        pair("sft", 1e-5, (0.8, 0.0), (0.5, 0.0), base=exact),
        pair("talr", 1e-5, (0.8, 0.0), (0.55, 0.0), base=exact),
    ]
    scene = scene_of(records)
    talr, sft = volumes(scene)
    assert (talr.method, talr.points, sft.method, sft.points) == ("talr", 1, "sft", 2)
    assert talr.area.value == pytest.approx(0.4 * 0.05 / 0.04)
    assert sft.area.value == pytest.approx(0.2 * 0.05 / 0.04)
    assert talr.against is not None
    assert talr.against.value == pytest.approx(0.25)
    assert talr.against.low == pytest.approx(0.25)
    assert sft.against is None
    page = report(records, tmp_path / "known").html.read_text(encoding="utf-8")
    assert (
        "enclose above the base model's domain score and" in page or "enclose above the base model&#39;s domain" in page
    )
    blind = [r.model_copy(update={"base_scores": []}) for r in records]
    assert "enclose above the worst domain score seen" in report(blind, tmp_path).html.read_text(encoding="utf-8")
    assert len(volumes(scene_of(blind))) == 2
    assert volumes(scene_of(records[:1])) == [] or volumes(scene_of(records[:1]))[0].area.value >= 0


def test_the_area_of_points_on_a_line_is_none() -> None:
    assert volumes(scene_of([pair("sft", 1e-6, 0.6, 0.6), pair("sft", 1e-5, 0.7, 0.6)])) == []


def test_the_band_falls_and_holds_the_front_within_the_picture() -> None:
    scene = scene_of(made_study())
    xs, low, high = zip(*scene.band, strict=True)
    assert list(xs) == sorted(xs)
    assert all(a >= b for bound in (low, high) for a, b in pairwise(bound))
    floor, ceiling = scene.y_range
    assert all(floor <= a <= b <= ceiling for a, b in zip(low, high, strict=True))
    assert max(b - a for a, b in zip(low, high, strict=True)) > 0.05
    for i in scene.front:
        x, y = scene.options[i].x.value, scene.options[i].y.value
        _, a, b = min(scene.band, key=lambda row: abs(row[0] - x))
        assert a - 0.02 <= y <= b + 0.02
    assert 0.3 < max(scene.shares) <= 1
