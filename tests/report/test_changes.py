from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from gentletune.records import RunRecord, Score
from gentletune.report.axes import Axis, single_axis
from gentletune.report.changes import from_initial, from_plain, of_run
from gentletune.report.settings import Setting, plain_twin, settings_of
from gentletune.statistics import accuracy_score, over_seeds, paired_change

from .report_records import pair, run

HARD = [0] * 30 + [1] * 30


def record(label: str, flips: int, seed: int = 0, rate: float = 1e-5, **recipe: object) -> RunRecord:
    """A run whose first `flips` wrong answers became right."""
    right = [1] * flips + HARD[flips:]
    return run(label, rate, {}, initial={}, seed=seed, recipe={"method": label, "seed": seed, **recipe}).model_copy(
        update={"scores": [clinic(right)], "initial_scores": [clinic(HARD)]}
    )


def clinic(right: Sequence[float]) -> Score:
    return accuracy_score(right, task="clinic", side="domain")


def settled(records: Sequence[RunRecord]) -> tuple[list[Setting], Axis]:
    axis = single_axis(records, "clinic/accuracy")
    return settings_of(records, axis), axis


def test_a_run_against_its_initial_model_is_paired_by_item() -> None:
    one = record("sft", 6)
    _, axis = settled([one])
    change = of_run(one, axis)
    assert change == paired_change(one.scores[0], one.initial_scores[0])
    assert change is not None
    assert change.paired
    assert change.stderr is not None
    unpaired = math.hypot(one.scores[0].stderr or 0, one.initial_scores[0].stderr or 0)
    assert change.stderr < 0.6 * unpaired
    assert of_run(one.model_copy(update={"initial_scores": []}), axis) is None


def test_against_plain_sft_at_the_same_rate_and_recipe() -> None:
    records = [
        record("sft", 2),
        record("sft", 9, rate=1e-4),
        record("sft", 20, max_steps=5),
        record("talr", 5),
        record("talr", 8, rate=1e-3),
    ]
    settings, axis = settled(records)
    change = from_plain(settings[3], settings, axis)
    assert change is not None
    assert change.value == pytest.approx(3 / 60)
    assert change.paired
    assert from_plain(settings[0], settings, axis) is None  # itself
    assert from_plain(settings[4], settings, axis) is None  # no such rate


def test_over_the_seeds_that_both_have() -> None:
    records = [
        record("sft", 2, 0),
        record("sft", 4, 1),
        record("talr", 7, 1),
        record("talr", 9, 2),
        record("talr", 1, 3),
    ]
    settings, axis = settled(records)
    change = from_plain(settings[1], settings, axis)
    assert change is not None
    assert change.value == pytest.approx(3 / 60)  # seed 1 alone
    assert change.paired
    # Between-seed variance of one seed on each side, pooled over both settings.
    talr = over_seeds([r.scores[0] for r in records[2:]])
    sft = over_seeds([r.scores[0] for r in records[:2]])
    between = (2 * talr.details["between_seed_sd"] ** 2 + sft.details["between_seed_sd"] ** 2) / 3
    items = paired_change(records[2].scores[0], records[1].scores[0]).stderr
    assert items is not None
    assert change.stderr is not None
    assert change.stderr**2 >= items**2 + 2 * between - 1e-12


def test_without_a_seed_in_common_all_seeds_count() -> None:
    settings, axis = settled([record("sft", 2, 0), record("talr", 7, 1), record("talr", 9, 2)])
    change = from_plain(settings[1], settings, axis)
    assert change is not None
    assert change.value == pytest.approx(6 / 60)


def test_without_items_from_the_errors() -> None:
    records = [pair("sft", 1e-6, 0.7, 0.5), pair("talr", 1e-6, 0.8, 0.5)]
    settings, axis = settled(records)
    change = from_plain(settings[1], settings, axis)
    assert change is not None
    assert not change.paired
    assert change.stderr == pytest.approx(math.hypot(0.01, 0.01))
    start = from_initial(settings[1], settings, axis)
    assert start is not None
    assert start.value == pytest.approx(0.4)


def test_a_field_younger_than_a_record_counts_with_its_default() -> None:
    old, new, other = (
        record("sft", 6),
        record("sft", 9, seed=1, optimizer="adamw"),
        record("talr", 9, optimizer="adamw"),
    )
    settings, _ = settled([old, new, other])
    assert [s.seeds for s in settings] == [2, 1]
    assert plain_twin(settings[1], settings) == 0
    apart, _ = settled([old, record("sft", 9, seed=1, optimizer="sgd")])
    assert [s.seeds for s in apart] == [1, 1]
