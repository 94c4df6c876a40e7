from __future__ import annotations

import re

from gentletune.records import RunRecord
from gentletune.report.axes import both_axes
from gentletune.report.recommend import Advice, recommend

from .report_records import failed, pair, run


def advise(*records: RunRecord) -> Advice:
    advice = recommend(records, *both_axes(records, None, None))
    # One sentence: a single full stop, at its end.
    assert re.fullmatch(r"[^\n]*[^.]\.", advice.sentence)
    assert not re.search(r"\. [A-Z]", advice.sentence)
    return advice


def test_clear_winner_on_the_domain() -> None:
    advice = advise(pair("sft", 1e-6, 0.6, 0.58), pair("talr", 5e-6, 0.9, 0.57))
    assert (advice.index, advice.reason, advice.rivals) == (1, "clear", ())
    assert advice.sentence.startswith("Ship talr at learning rate 5e-6: ")
    assert "from 0.400 ± 0.010 to 0.900 ± 0.010" in advice.sentence
    assert "changes by −0.030 ± 0.014, a measurable loss" in advice.sentence
    assert "measurably above" in advice.sentence


def test_of_runs_tied_on_the_domain_the_least_loss_wins() -> None:
    advice = advise(pair("sft", 2e-5, 0.90, 0.30), pair("talr", 1e-6, 0.89, 0.59), pair("sft", 1e-6, 0.70, 0.60))
    assert (advice.index, advice.reason, advice.tied) == (1, "clear", (0, 1))
    assert "no measurable loss" in advice.sentence
    assert "of the 2 runs tied on the domain score it measurably keeps the most general skill" in advice.sentence


def test_a_tie_on_both_goes_to_plain_sft_with_the_small_learning_rate() -> None:
    records = [
        pair("talr", 1e-6, 0.90, 0.60),
        pair("sft", 5e-6, 0.90, 0.59),
        pair("sft", 1e-6, 0.89, 0.585),
        pair("sft", 1e-7, 0.89, 0.585, label="sft+wise_ft(alpha=0.5)"),
        pair("sft", 2e-5, 0.91, 0.30),
    ]
    advice = advise(*records)
    assert (advice.index, advice.reason, advice.rivals) == (2, "tied", (0, 1, 3))
    assert "cannot tell it apart from talr at 1e-6, sft at 5e-6, sft+wise_ft(alpha=0.5) at 1e-7" in advice.sentence
    assert "plain sft" in advice.sentence


def test_a_tie_without_sft_is_a_best_guess() -> None:
    advice = advise(pair("talr", 1e-6, 0.90, 0.59), pair("flow", 1e-6, 0.90, 0.60))
    assert (advice.index, advice.reason) == (1, "tied")
    assert "best guess" in advice.sentence


def test_talr_worse_than_sft_is_not_recommended() -> None:
    assert advise(pair("talr", 1e-6, 0.90, 0.40), pair("sft", 1e-6, 0.90, 0.60)).index == 1
    assert advise(pair("talr", 1e-6, 0.70, 0.60), pair("sft", 1e-6, 0.90, 0.60)).index == 1
    assert advise(pair("talr", 1e-6, 0.895, 0.595), pair("sft", 1e-6, 0.90, 0.60)).index == 1


def test_no_measurable_gain_ships_nothing() -> None:
    advice = advise(pair("sft", 1e-6, 0.42, 0.60), pair("talr", 1e-6, 0.35, 0.60))
    assert (advice.index, advice.reason) == (None, "no_gain")
    assert "No run improved the domain measurably" in advice.sentence
    assert "train longer" in advice.sentence


def test_a_run_that_barely_moved_does_not_ride_on_a_wide_tie() -> None:
    wide = {"clinic/accuracy": (0.50, 0.04), "arithmetic/accuracy": (0.60, 0.01)}
    advice = advise(
        pair("sft", 1e-5, (0.65, 0.04), 0.50, initial=wide), pair("sft", 1e-8, (0.56, 0.04), 0.60, initial=wide)
    )
    assert (advice.index, advice.tied) == (0, (0,))


def test_missing_standard_errors_are_unknown() -> None:
    records = [pair("sft", 1e-6, (0.9, None), 0.6)]
    advice = recommend(records, *both_axes(records, "clinic/accuracy", None))
    assert (advice.index, advice.reason) == (None, "unknown")
    assert "data cannot tell" in advice.sentence
    blind = {"clinic/accuracy": (0.4, None), "arithmetic/accuracy": 0.6}
    assert advise(pair("sft", 1e-6, 0.9, 0.6, initial=blind)).reason == "unknown"


def test_a_run_without_a_domain_error_is_left_out_and_named_so() -> None:
    advice = advise(pair("talr", 1e-6, (1.0, None), 0.6), pair("sft", 1e-6, 0.9, 0.6))
    assert advice.index == 1
    assert "1 left out for want of a standard error" in advice.sentence


def test_unknown_general_error_cannot_tell_runs_apart() -> None:
    advice = advise(pair("talr", 1e-6, 0.9, (0.6, None)), pair("sft", 1e-6, 0.9, (0.5, None)))
    assert (advice.index, advice.rivals) == (1, (0,))
    assert "cannot tell whether that is a loss" in advice.sentence


def test_failed_runs_are_ignored() -> None:
    lucky = pair("talr", 1e-6, 0.99, 0.60, status="failed", error="died late")
    assert advise(lucky, failed(), pair("sft", 1e-6, 0.8, 0.6)).index == 2


def test_nothing_to_go_on() -> None:
    assert advise().reason == "no_complete_runs"
    assert advise(failed()).sentence == "No complete runs among 1, so there is nothing to recommend."
    assert advise(run("sft", 1e-6, {"clinic/accuracy": 0.9})).reason == "no_scores"
    apart = [run("sft", 1e-6, {"clinic/accuracy": 0.9}), run("sft", 1e-6, {"arithmetic/accuracy": 0.6})]
    assert advise(*apart).reason == "no_scores"


def test_lower_is_better_on_both_axes() -> None:
    floor = {"clinic/accuracy": (0.0, 0.0), "clinic/bits_per_token": (2.0, 0.01)}
    records = [
        run(m, 1e-6, floor | {"clinic/bits_per_token": x, "drift_sampled/bits_per_token": y}, initial=floor)
        for m, x, y in [("sft", 1.0, 0.5), ("talr", 1.01, 0.1), ("flow", 1.5, 0.01)]
    ]
    advice = advise(*records)
    assert (advice.index, advice.reason) == (1, "clear")
    assert "changes by +0.100 ± 0.010, a measurable loss" in advice.sentence


def test_seeds_are_told_apart() -> None:
    advice = advise(pair("sft", 1e-6, 0.9, 0.6), pair("sft", 1e-6, 0.9, 0.6, seed=1))
    assert "(seed 0)" in advice.sentence
    assert "(seed 1)" in advice.sentence


def test_drift_that_tells_tied_runs_apart_is_said_and_changes_nothing() -> None:
    def made(method: str, drift: tuple[float, float]) -> RunRecord:
        tuned = {"clinic/accuracy": 0.90, "arithmetic/accuracy": 0.60, "drift_sampled/bits_per_token": drift}
        return run(method, 1e-4, tuned)

    advice = advise(made("sft", (0.80, 0.04)), made("wise_ft", (0.30, 0.03)))
    assert advice.index == 0
    assert "wise_ft at learning rate 1e-4 moved measurably less" in advice.sentence
    assert "(0.30 against 0.80 bits per token)" in advice.sentence
    assert "by sampled drift" not in advise(made("sft", (0.35, 0.04)), made("wise_ft", (0.30, 0.03))).sentence
