from __future__ import annotations

import math

import pytest

from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord, Score
from gentletune.reporting.axes import Point, Side, axis_keys, both_axes, choose_axis, score_keys

from .report_records import failed, pair, run, scores

TUNED = {"clinic/accuracy": 0.8, "arithmetic/accuracy": 0.6, "instructions/accuracy": 0.4}


def chosen(records: list[RunRecord], side: Side, key: str | None = None) -> str | None:
    axis = choose_axis(records, side, key)
    return axis.key if axis else None


def test_accuracy_leads_where_the_model_has_any() -> None:
    record = run("sft", 1e-6, TUNED | {"kl_sampled/bits_per_token": 0.1, "clinic/bits_per_token": 1.0})
    assert chosen([record], "domain") == "clinic/accuracy"
    assert chosen([record], "general") == "general_mean/accuracy"


def test_accuracy_on_the_floor_gives_way_to_bits_per_token() -> None:
    floor = {"clinic/accuracy": (0.01, 0.01), "arithmetic/accuracy": (0.0, 0.0)}
    tuned = floor | {
        "clinic/bits_per_token": 1.0,
        "nll_greedy/bits_per_token": 0.2,
        "kl_sampled/bits_per_token": 0.1,
    }
    record = run("sft", 1e-6, tuned, base=floor | {"clinic/bits_per_token": 2.0})
    assert chosen([record], "domain") == "clinic/bits_per_token"
    assert chosen([record], "general") == "kl_sampled/bits_per_token"


def test_a_base_model_off_the_floor_is_enough() -> None:
    record = pair("sft", 1e-6, 0.9, (0.0, 0.0), base={"clinic/accuracy": 0.4, "arithmetic/accuracy": 0.6})
    assert chosen([record], "general") == "arithmetic/accuracy"


def test_a_gain_of_the_tuned_model_gives_general_skill_nothing_to_lose() -> None:
    gained = {"arithmetic/accuracy": 0.6, "kl_sampled/bits_per_token": 0.1}
    record = run("sft", 1e-6, gained, base={"arithmetic/accuracy": (0.01, 0.01)})
    assert chosen([record], "general") == "kl_sampled/bits_per_token"
    assert chosen([record.model_copy(update={"base_scores": []})], "general") == "arithmetic/accuracy"  # not known


def test_only_accuracies_in_every_complete_run_are_averaged() -> None:
    records = [run("sft", 1e-6, TUNED), pair("talr", 1e-6, 0.8, 0.5), failed()]
    assert chosen(records, "general") == "arithmetic/accuracy"


def test_mean_and_its_standard_error() -> None:
    axis = choose_axis([run("sft", 1e-6, TUNED)], "general")
    record = run("sft", 1e-6, {"arithmetic/accuracy": (0.6, 0.03), "instructions/accuracy": (0.4, 0.04)})
    assert axis is not None
    point = axis.point(record)
    assert point is not None
    assert point.stderr is not None
    assert math.isclose(point.value, 0.5)
    assert math.isclose(point.stderr, 0.025)
    assert point.n == 200
    assert axis.label == "mean accuracy over arithmetic and instructions"
    assert axis.point(run("sft", 1e-6, {"arithmetic/accuracy": 0.6})) is None
    blind = run("sft", 1e-6, {"arithmetic/accuracy": (0.6, None), "instructions/accuracy": 0.4})
    assert axis.point(blind) == Point(0.5, None, 200)


def test_three_tasks_are_listed_with_commas() -> None:
    axis = choose_axis([run("sft", 1e-6, TUNED | {"code/accuracy": 0.5})], "general")
    assert axis is not None
    assert axis.label == "mean accuracy over arithmetic, instructions and code"
    many = choose_axis([run("sft", 1e-6, TUNED | {f"task{k}/accuracy": 0.5 for k in range(3)})], "general")
    assert many is not None
    assert many.label == "mean accuracy over 5 general tasks"  # as an axis title a list would be cut off


def test_the_user_chooses_by_key() -> None:
    record = run("sft", 1e-6, TUNED | {"reference/bits_per_token": 3.0})
    assert chosen([record], "general", "reference/bits_per_token") == "reference/bits_per_token"
    assert chosen([record], "general", "general_mean/accuracy") == "general_mean/accuracy"


def test_an_unknown_key_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown score 'clinic/acuracy'; did you mean 'clinic/accuracy'"):
        both_axes([run("sft", 1e-6, TUNED)], "clinic/acuracy", None)


def test_one_key_for_both_axes_is_refused() -> None:
    with pytest.raises(UserError, match="both axes"):
        both_axes([run("sft", 1e-6, TUNED)], "clinic/accuracy", "clinic/accuracy")


def test_no_scores_no_axis() -> None:
    assert both_axes([], None, None) == (None, None)
    assert both_axes([failed()], "clinic/accuracy", None) == (None, None)


def test_the_base_model_is_at_no_distance_from_itself() -> None:
    record = run("sft", 1e-6, {"kl_sampled/bits_per_token": 0.1})
    axis = choose_axis([record], "general", "kl_sampled/bits_per_token")
    assert axis is not None
    assert axis.point(record, base=True) == Point(0.0, 0.0, 0)


def test_score_keys_keep_order_and_side() -> None:
    records = [run("sft", 1e-6, {"b/accuracy": 0.1}, base={"clinic/accuracy": 0.1, "a/accuracy": 0.1})]
    assert score_keys(records) == ["b/accuracy", "clinic/accuracy", "a/accuracy"]
    assert score_keys(records, "general") == ["b/accuracy", "a/accuracy"]
    assert scores({"b/accuracy": 0.1})[0].key == "b/accuracy"


def test_the_keys_of_means_are_keys_too() -> None:
    assert axis_keys([run("sft", 1e-6, TUNED)])[-1] == "general_mean/accuracy"


def test_a_training_without_measurement_changes_no_axis() -> None:
    unmeasured = run("sft", 3e-6, {}, base={})
    assert chosen([unmeasured, run("sft", 1e-6, TUNED)], "general") == "general_mean/accuracy"


def test_the_three_calibration_figures_are_named_apart() -> None:
    keys = [f"own_answers/{metric}" for metric in ("entropy", "ece", "overconfidence")]
    found = [Score(task="own_answers", side="general", metric=k.partition("/")[2], value=0.1, stderr=0.01, n=9,
                   higher_is_better=False) for k in keys]  # fmt: skip
    record = run("sft", 1e-6, TUNED).model_copy(update={"scores": [*scores(TUNED), *found]})
    axes = [choose_axis([record], "general", key) for key in keys]
    assert [(a.label, a.unit) for a in axes if a] == [
        ("entropy of the predictions on own answers", "bits per token"),
        ("calibration error (ECE) on own answers", "share"),
        ("confidence minus share right on own answers", "share"),
    ]
    assert chosen([record], "general") == "general_mean/accuracy"
