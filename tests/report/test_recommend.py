from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord, Score, Side
from gentletune.report.axes import both_axes
from gentletune.report.recommend import Advice, Choice, recommend
from gentletune.report.settings import settings_of, verdict
from gentletune.stats import accuracy_score

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
    assert "changes by −0.030 ± 0.014, a significant loss" in advice.sentence
    assert "significantly above" in advice.sentence


def test_of_runs_tied_on_the_domain_the_least_loss_wins() -> None:
    advice = advise(pair("sft", 2e-5, 0.90, 0.30), pair("talr", 1e-6, 0.89, 0.59), pair("sft", 1e-6, 0.70, 0.60))
    assert (advice.index, advice.reason, advice.tied) == (1, "clear", (0, 1))
    assert "no significant loss" in advice.sentence
    assert "of the 2 runs tied on the domain score it keeps significantly the most general skill" in advice.sentence


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


def test_no_significant_gain_ships_nothing() -> None:
    advice = advise(pair("sft", 1e-6, 0.42, 0.60), pair("talr", 1e-6, 0.35, 0.60))
    assert (advice.index, advice.reason) == (None, "no_gain")
    assert "No run improved the domain significantly" in advice.sentence
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
    assert "changes by +0.100 ± 0.010, a significant loss" in advice.sentence


def made(method: str, drift: tuple[float, float]) -> RunRecord:
    tuned = {"clinic/accuracy": 0.90, "arithmetic/accuracy": 0.60, "drift_sampled/bits_per_token": drift}
    return run(method, 1e-4, tuned)


def text(advice: Advice) -> str:
    assert all(line.endswith(".") and "\n" not in line for line in advice.reasons)
    return "\n".join(advice.reasons)


def test_drift_that_tells_tied_runs_apart_is_said_and_changes_nothing() -> None:
    advice = advise(made("sft", (0.80, 0.04)), made("wise_ft", (0.30, 0.03)))
    assert advice.index == 0
    assert "disagree on the choice: by drift from the initial model" in text(advice)
    assert "wise_ft at learning rate 1e-4 is significantly better (0.30 against 0.80 bits per token" in text(advice)
    alike = advise(made("sft", (0.35, 0.04)), made("wise_ft", (0.30, 0.03)))
    assert "disagree" not in text(alike)
    assert "none names a tied setting that is significantly better" in text(alike)


# --- over seeds


def test_seeds_of_a_setting_are_one_and_its_middle_run_stands_for_it() -> None:
    runs = [pair("sft", 1e-6, 0.9 + d, 0.6 + d, seed=s) for s, d in enumerate((0.02, 0.0, -0.02))]
    advice = advise(*runs, pair("sft", 1e-5, 0.90, 0.30))
    assert (advice.index, advice.tied) == (1, (1, 3))
    assert "sft at learning rate 1e-6 (mean of 3 seeds)" in advice.sentence
    assert "1 to 3 seeds" in text(advice)


def test_seeds_that_scatter_make_a_win_a_tie() -> None:
    sft = [pair("sft", 1e-6, 0.9, 0.60, seed=s) for s in (0, 1)]
    assert advise(*sft, *[pair("talr", 1e-6, 0.9, 0.68, seed=s) for s in (0, 1)]).index in (2, 3)
    scattered = [pair("talr", 1e-6, 0.9, g, seed=s) for s, g in ((0, 0.58), (1, 0.78))]
    advice = advise(*sft, *scattered)
    assert advice.index in (0, 1)
    assert "4 times the seeds halve its standard error" in text(advice)


def test_the_change_from_seed_to_seed_is_pooled_over_the_settings() -> None:
    # Each setting's two seeds lie 0.02 apart: variance 2e-4, so the error of a mean over two seeds is
    # √(0.01² / 1 + 2e-4 / 2) = 0.0141 and that of the single seed √(0.01² + 2e-4) = 0.0173.
    values = {("sft", 0): 0.60, ("sft", 1): 0.62, ("talr", 0): 0.60, ("talr", 1): 0.62, ("flow", 0): 0.61}
    records = [pair(m, 1e-6, 0.9, g, seed=s) for (m, s), g in values.items()]
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    choice = Choice(records, domain, general, settings_of(records, domain, general), None)
    errors = [choice.point(general, i).stderr for i in range(3)]
    assert errors == pytest.approx([0.0141421, 0.0141421, 0.0173205], rel=1e-5)
    change = choice.change(general, 0, 1)
    assert change is not None
    # The seeds move both alike, so their difference has the items' error alone: t of 198 degrees of freedom is 1.972.
    assert change.high == pytest.approx(1.972 * 0.0141421, rel=1e-3)


def test_the_same_seed_twice_counts_once() -> None:
    assert "One seed each" in text(advise(pair("sft", 1e-6, 0.9, 0.6), pair("sft", 1e-6, 0.5, 0.6)))


def test_runs_that_differ_in_another_field_are_two_settings_and_named_by_it() -> None:
    advice = advise(
        pair("sft", 1e-6, 0.9, 0.3, recipe={"epochs": 3, "seed": 0}), pair("sft", 1e-6, 0.9, 0.6, recipe={"epochs": 1})
    )
    assert advice.index == 1
    assert "sft at learning rate 1e-6 (epochs=1)" in advice.sentence


# --- on items


def on_items(method: str, lr: float, right: list[list[int]], **fields: Any) -> RunRecord:
    """Domain and general answers item by item; the initial model has 2 of 10 and 8 of 10 right."""

    def both(answers: list[list[int]]) -> list[Score]:
        sides: tuple[Side, Side] = ("domain", "general")
        return [
            accuracy_score(a * 10, task=task, side=side)
            for a, task, side in zip(answers, ("clinic", "arithmetic"), sides, strict=True)
        ]

    record = run(method, lr, {}, initial={}, **fields)
    start = both([[1, 1] + [0] * 8, [1] * 8 + [0] * 2])
    return record.model_copy(update={"scores": both(right), "initial_scores": start})


def test_the_same_items_tell_apart_what_their_errors_cannot() -> None:
    # 100 general items: 70 right against 60, all of the 60 among them. Unpaired 0.10 ± 0.067, paired 0.10 ± 0.031.
    domain = [1] * 9 + [0]
    sft, talr = [1] * 6 + [0] * 4, [1] * 7 + [0] * 3
    paired = advise(on_items("sft", 1e-5, [domain, sft]), on_items("talr", 1e-5, [domain, talr]))
    assert (paired.index, paired.reason) == (1, "clear")
    assert "talr at learning rate 1e-5 is worth it" in text(paired)
    assert "At the same rate, 1e-5, talr against plain sft: +0.000" in text(paired)
    other = on_items("talr", 1e-5, [domain, talr], hashes={"model": "another"})
    assert advise(on_items("sft", 1e-5, [domain, sft]), other).index == 0


# --- guideline 2, and when it does not hold


def test_the_pilot_case_speaks_against_talr() -> None:
    """docs/log.md's first demo: code length and sampled drift, one seed."""
    floor = {"clinic/bits_per_token": (2.468, 0.08)}
    table = [("sft", 3e-5, 1.189, 0.069), ("talr", 3e-5, 1.845, 0.162), ("sft", 3e-4, 0.641, 0.820)]
    table += [("talr", 3e-4, 1.89, 0.974)]
    records = [
        run(m, lr, {"clinic/bits_per_token": (x, 0.08), "drift_sampled/bits_per_token": (y, 0.03)}, initial=floor)
        for m, lr, x, y in table
    ]
    advice = advise(*records)
    assert (advice.index, advice.tied) == (2, (2,))
    for rate in ("3e-5", "3e-4"):
        assert f"At the same rate, {rate}, talr against plain sft: " in text(advice)
    assert text(advice).count("so the evidence is against it at this rate") == 2
    within = recommend(records, *both_axes(records, None, None), budget=0.2)
    assert (within.index, within.reason) == (0, "clear")
    assert "upper 95 % bound of the loss, 0.129, is too" in text(within)


def test_small_rate_sft_suffices_where_no_method_beats_it() -> None:
    advice = advise(pair("sft", 1e-6, 0.89, 0.60), pair("sft", 1e-5, 0.90, 0.40), pair("talr", 1e-5, 0.90, 0.59))
    assert advice.index == 0
    assert "Plain sft with a small learning rate suffices: of the other methods tied" in text(advice)
    assert "differs by −0.010 ± 0.014" in text(advice)


def test_a_win_among_many_must_be_a_larger_one() -> None:
    # 0.03 ± 0.0141 is beyond 1.96 standard errors, but not beyond the 2.9 that ten comparisons ask for.
    few = [pair("sft", 1e-6, 0.9, 0.60), pair("talr", 1e-6, 0.9, 0.63)]
    assert advise(*few).index == 1
    many = [*few, *(pair("flow", r * 1e-6, 0.9, 0.60) for r in range(1, 10))]
    advice = advise(*many)
    assert (advice.index, advice.reason) == (0, "tied")
    assert "Picked among 11 settings" in text(advice)


def test_without_plain_sft_the_worth_of_a_method_is_open() -> None:
    assert "No plain sft run is there to compare with" in text(advise(pair("talr", 1e-6, 0.9, 0.6)))


def test_plain_sft_that_falls_short_on_the_domain_is_named() -> None:
    advice = advise(pair("sft", 1e-6, 0.7, 0.6), pair("talr", 1e-6, 0.9, 0.6))
    assert advice.index == 1
    assert "Plain sft does not reach the best domain score" in text(advice)
    assert "is +0.200 ± 0.014 share correct on the domain" in text(advice)


def test_what_would_tell_is_said_in_items() -> None:
    # 0.02 ± 0.0141 on 100 items: (2.8 · 0.0141 / 0.02)² = 3.92 times as many.
    advice = advise(pair("sft", 1e-6, 0.9, 0.60), pair("talr", 1e-6, 0.9, 0.62))
    assert "4 times the items (400 in place of 100) halve its standard error" in text(advice)
    assert "about 3.92 times the items (392) to be found in 4 of 5 tries" in text(advice)


# --- a budget


def spent(budget: float, *records: RunRecord) -> Advice:
    return recommend(records, *both_axes(records, None, None), budget=budget)


def test_a_budget_leaves_out_what_loses_more() -> None:
    records = [pair("sft", 1e-6, 0.70, 0.60), pair("sft", 5e-6, 0.80, 0.57), pair("sft", 2e-5, 0.90, 0.30)]
    assert advise(*records).index == 2
    assert spent(0.30, *records).index == 2
    advice = spent(0.05, *records)
    assert advice.index == 1
    assert "loses 0.03 share correct, within the budget of 0.05" in text(advice)
    assert "0.0579, is not, so the data do not rule out a larger loss" in text(advice)
    assert "Plain sft" in text(advice)
    assert spent(0.01, *records).index == 0


def test_a_budget_that_nothing_keeps_to_says_so() -> None:
    advice = spent(0.01, pair("sft", 1e-6, 0.8, 0.5), pair("talr", 1e-6, 0.9, 0.4))
    assert (advice.index, advice.reason) == (None, "over_budget")
    assert "the least loss, sft at learning rate 1e-6, changes arithmetic accuracy by −0.100 ± 0.014" in advice.sentence
    blind = pair("sft", 1e-6, 0.8, 0.5, initial={"clinic/accuracy": 0.4})
    assert "initial model's general score is missing" in spent(0.5, blind).sentence


@pytest.mark.parametrize("budget", [-0.1, math.nan, math.inf])
def test_a_budget_must_be_a_number(budget: float) -> None:
    with pytest.raises(UserError, match="budget must be a number >= 0"):
        spent(budget, pair("sft", 1e-6, 0.8, 0.5))


# --- whatever the evidence

SHARES = st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.002, 0.08))
METHODS = st.sampled_from(["sft", "talr", "flow"])


@given(
    st.lists(
        st.tuples(METHODS, st.sampled_from([1e-6, 1e-5, 1e-4]), st.integers(0, 1), SHARES), min_size=1, max_size=8
    ),
    st.sampled_from([None, 0.0, 0.1, 0.5]),
)
def test_what_is_chosen_is_never_dominated(
    drawn: list[tuple[str, float, int, tuple[float, float, float]]], budget: float | None
) -> None:
    runs = {(m, lr, seed): pair(m, lr, (x, e), (y, e), seed=seed) for m, lr, seed, (x, y, e) in drawn}
    records = list(runs.values())
    axes = both_axes(records, "clinic/accuracy", "arithmetic/accuracy")
    advice = recommend(records, *axes, budget=budget)
    if advice.index is None:
        return
    assert axes[0] is not None
    assert axes[1] is not None
    settings = settings_of(records, axes[0], axes[1])
    choice = Choice(records, axes[0], axes[1], settings, budget)
    mine = next(i for i, s in enumerate(settings) if advice.index in s.indices)
    gained = [i for i in choice.places if verdict(axes[0], choice.from_initial(axes[0], i)) == "better"]
    allowed = [i for i in gained if choice.within(i) and not choice.against(i, gained)]
    assert mine in allowed
    tied = [i for i in allowed if set(settings[i].indices) & set(advice.tied)]
    for better, worse in choice.wins(axes[0], allowed):
        assert worse != mine, "another is significantly better on the domain"
        assert worse not in tied
        assert better in allowed
    assert all(worse != mine for _, worse in choice.wins(axes[1], tied)), "another as good keeps more general skill"


@given(st.floats(0.01, 0.3), st.floats(0.0, 0.3))
def test_talr_worse_on_one_side_and_no_better_on_the_other_is_never_chosen(loss: float, gap: float) -> None:
    advice = advise(pair("talr", 1e-5, 0.90 - gap, 0.60 - loss), pair("sft", 1e-5, 0.90, 0.60))
    assert advice.index == 1


def test_what_plain_sft_beats_at_the_same_rate_is_out_even_where_a_third_beats_sft() -> None:
    """Ties are not transitive: flow puts sft out, and talr, which sft beats, ties with flow."""
    records = [
        pair("talr", 1e-4, (0.785, 0.044), (0.324, 0.049)),
        pair("flow", 1e-5, (0.83, 0.008), (0.319, 0.042)),
        pair("sft", 1e-4, (0.66, 0.046), (0.464, 0.043)),
    ]
    advice = advise(*records)
    assert advice.index == 1
    assert 0 not in advice.tied


def test_the_partner_at_the_same_rate_differs_in_nothing_else() -> None:
    records = [
        pair("sft", 1e-5, 0.9, 0.3, recipe={"epochs": 1}),
        pair("sft", 1e-5, 0.7, 0.5, recipe={"epochs": 3}),
        pair("talr", 1e-5, 0.9, 0.6, recipe={"epochs": 3}),
    ]
    advice = advise(*records)
    assert advice.index == 2
    (line,) = [reason for reason in advice.reasons if reason.startswith("At the same rate")]
    assert "+0.200" in line
    assert "+0.100" in line
