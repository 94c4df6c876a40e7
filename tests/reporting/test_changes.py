from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gentletune.core.records import RunRecord, Score
from gentletune.reporting.axes import Axis, single_axis
from gentletune.reporting.settings import Setting, from_base, from_plain, of_runs, plain_twin, settings_of, verdict
from gentletune.stats import accuracy_score, compare

from .report_records import pair, run

HARD = [0] * 30 + [1] * 30


def record(label: str, flips: int, seed: int = 0, rate: float = 1e-5, **recipe: object) -> RunRecord:
    """A run whose first `flips` wrong answers became right."""
    right = [1] * flips + HARD[flips:]
    return run(label, rate, {}, base={}, seed=seed, recipe={"method": label, "seed": seed, **recipe}).model_copy(
        update={"scores": [clinic(right)], "base_scores": [clinic(HARD)]}
    )


def clinic(right: Sequence[float]) -> Score:
    return accuracy_score(right, task="clinic", side="domain")


def settled(records: Sequence[RunRecord]) -> tuple[list[Setting], Axis]:
    axis = single_axis(records, "clinic/accuracy")
    return settings_of(records, axis), axis


def test_a_run_against_its_base_model_is_paired_by_item() -> None:
    one = record("sft", 6)
    _, axis = settled([one])
    (change,) = of_runs([one], axis)
    assert change is not None
    assert replace(change, p_family=None) == compare(one.scores[0], one.base_scores[0])
    assert change.paired
    assert change.stderr is not None
    unpaired = math.hypot(one.scores[0].stderr or 0, one.base_scores[0].stderr or 0)
    assert change.stderr < 0.6 * unpaired
    assert of_runs([one.model_copy(update={"base_scores": []})], axis) == [None]


def test_against_plain_sft_at_the_same_rate_and_recipe() -> None:
    records = [
        record("sft", 2),
        record("sft", 9, rate=1e-4),
        record("sft", 20, max_steps=5),
        record("talr", 5),
        record("talr", 8, rate=1e-3),
    ]
    settings, axis = settled(records)
    found = from_plain(settings, axis)
    assert [change is None for change in found] == [True, True, True, False, True]  # SFT itself, and no such rate
    assert found[3] is not None
    assert found[3].value == pytest.approx(3 / 60)
    assert found[3].paired


def test_over_the_seeds_that_both_have() -> None:
    records = [
        record("sft", 2, 0),
        record("sft", 4, 1),
        record("sft", 3, 2),
        record("talr", 7, 1),
        record("talr", 9, 2),
        record("talr", 1, 3),
    ]
    settings, axis = settled(records)
    _, change = from_plain(settings, axis)
    assert change is not None
    assert change.value == pytest.approx((3 + 6) / 2 / 60)  # seeds 1 and 2
    assert (change.paired, change.seeds) == (True, 2)


def test_without_two_seeds_in_common_all_seeds_count() -> None:
    for seeds in ((2, 3), (1, 2)):
        records = [record("sft", 2, 0), record("sft", 4, 1), *(record("talr", 9, seed) for seed in seeds)]
        settings, axis = settled(records)
        _, change = from_plain(settings, axis)
        assert change is not None
        assert change.value == pytest.approx(6 / 60)
        assert (change.paired, change.seeds, change.seed_effect_known) == (True, 2, True)


def test_of_one_seed_nothing_is_known_of_another() -> None:
    settings, axis = settled([record("sft", 2, 0), record("talr", 7, 0)])
    _, change = from_plain(settings, axis)
    assert change is not None
    assert (change.seeds, change.seed_effect) == (1, "unknown")
    several = [record(label, flips + seed, seed) for label, flips in (("sft", 2), ("flow", 5)) for seed in (0, 1, 2)]
    settings, axis = settled([*several, record("talr", 7, 0)])
    change = from_plain(settings, axis)[2]
    assert change is not None
    assert (change.seeds, change.seed_effect) == (1, "borrowed")  # from the other settings of the study


def test_a_family_is_corrected_for_its_size() -> None:
    one = [record("talr", 6)]
    many = [*one, *(record("talr", 0, rate=rate) for rate in (1e-6, 3e-6, 1e-4))]
    alone, among = (from_base(*settled(records))[0] for records in (one, many))
    assert alone is not None
    assert among is not None
    assert (alone.low, alone.p) == (among.low, among.p)  # the interval stands by itself
    assert (alone.p_family, alone.significant) == (alone.p, True)
    assert (among.p_family, among.family, among.significant) == (pytest.approx(4 * (among.p or 0)), 4, False)
    assert verdict(settled(many)[1], among) == "no_difference"


def test_without_items_from_the_errors() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5), pair("talr", 1e-6, 0.8, 0.5)]
    settings, axis = settled(records)
    _, change = from_plain(settings, axis)
    assert change is not None
    assert not change.paired
    assert change.stderr == pytest.approx(math.hypot(0.01, 0.01))
    start = from_base(settings, axis)[1]
    assert start is not None
    assert start.value == pytest.approx(0.4)


def test_each_seeds_own_held_out_rows_are_paired_with_the_base_model_on_them() -> None:
    records = [
        record("sft", 6 + seed, seed).model_copy(update={"hashes": {"test": f"rows of seed {seed}"}}) for seed in (0, 1)
    ]
    settings, axis = settled(records)
    (change,) = from_base(settings, axis)
    assert change is not None
    assert change.value == pytest.approx(6.5 / 60)
    assert (change.paired, change.seeds) == (True, 2)


def test_another_optimizer_is_another_setting() -> None:
    plain, twin = record("sft", 6, optimizer="adamw"), record("talr", 9, optimizer="adamw")
    settings, _ = settled([plain, record("sft", 9, seed=1, optimizer="adamw"), twin])
    assert [s.seeds for s in settings] == [2, 1]
    assert plain_twin(settings[1], settings) == 0
    apart, _ = settled([plain, record("sft", 9, seed=1, optimizer="sgd")])
    assert [s.seeds for s in apart] == [1, 1]
