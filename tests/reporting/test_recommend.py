"""The safe choice and the most domain gain, from records on disk by the command, and from records by the function."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune import recommend
from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord, Score, write_record
from gentletune.reporting import Findings, report
from gentletune.reporting.axes import both_axes
from gentletune.reporting.choice import Choice
from gentletune.reporting.settings import settings_of
from gentletune.reporting.words import answer, warnings
from gentletune.stats import accuracy_score, ratio_score
from tests.helpers import run_cli

from .report_records import failed, pair, run, score


def names(found: Findings) -> tuple[str | None, str | None]:
    """The safe choice and the most domain gain, by method and rate."""
    return tuple(None if p is None else p.name.replace("at learning rate ", "") for p in (found.safe, found.most_gain))


def reasons(found: Findings) -> dict[int, str]:
    return {out.index: out.reason for out in found.excluded}


def items(
    method: str, lr: float, domain: tuple[int, int], general: tuple[int, int], *, n: int = 300, base: int = 120,
    skills: dict[str, tuple[str, ...]] | None = None, **fields: Any,
) -> RunRecord:  # fmt: skip
    """A run on n paired items a task: so many wrong answers turned right, and right ones wrong; the base has `base`."""

    def both(task: str, side: Any, turned: tuple[int, int]) -> tuple[Score, Score]:
        gained, lost = turned
        start = [1] * base + [0] * (n - base)
        end = [1] * (base - lost) + [0] * lost + [1] * gained + [0] * (n - base - gained)
        made = (accuracy_score(right, task=task, side=side) for right in (end, start))
        return tuple(s.model_copy(update={"skills": (skills or {}).get(task, ())}) for s in made)

    pairs = both("clinic", "domain", domain), both("facts", "general", general)
    known = {"scores": [end for end, _ in pairs], "base_scores": [start for _, start in pairs]}
    return run(method, lr, {}, base={}).model_copy(update=known | fields)


# --- what is named


def test_the_demo_names_the_small_rate_as_safe_and_the_large_one_with_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """80 general items, one seed: SFT at 3e-5 is better on both sides, at 3e-4 it falls from 0.237 to 0.100."""

    def trained(method: str, lr: float, loss: float, right: int, lost: int) -> RunRecord:
        record = items(method, lr, (0, 0), (right, lost), n=80, base=19)
        bits = run(method, lr, {"clinic/bits_per_token": (loss, 0.08)}, base={"clinic/bits_per_token": (2.468, 0.08)})
        floor = accuracy_score([0] * 40, task="clinic", side="domain")
        start = [*bits.base_scores, floor, record.base_scores[1]]
        return bits.model_copy(update={"scores": [*bits.scores, floor, record.scores[1]], "base_scores": start})

    records = [
        trained("sft", 3e-5, 1.189, 3, 1), trained("talr", 3e-5, 1.845, 2, 2),
        trained("sft", 3e-4, 0.641, 1, 12), trained("talr", 3e-4, 1.890, 1, 13),
    ]  # fmt: skip
    found = recommend(records)
    assert found.safe is not None
    assert found.most_gain is not None
    assert names(found) == ("sft 3e-5", "sft 3e-4")
    assert (found.safe.index, found.safe.claim, found.most_gain.claim) == (0, "no_loss_seen", "loss")
    assert found.most_gain.general is not None
    assert found.most_gain.general.value == pytest.approx(-0.1375)
    assert reasons(found)[2] == "loss"
    assert found.domain_at_chance == ("clinic/accuracy",)

    out = told(records, tmp_path, monkeypatch, capsys)
    safe, most = (next(line for line in out if line.startswith(head)) for head in ("Safe choice", "Most domain gain"))
    assert safe.startswith(
        "Safe choice: sft at learning rate 3e-5: domain 2.47 → 1.19 (−1.28 [−1.50, −1.06]), general +0.025"
    )
    assert "no loss seen; about" in safe
    assert most.startswith("Most domain gain: sft at learning rate 3e-4: domain 2.47 → 0.641 ")
    assert "at a price: general −0.137" in most
    assert most.endswith("a significant loss.")
    assert any(line.startswith("No model is shown to be above guessing in clinic/accuracy") for line in out)
    assert any(line.startswith("  sft at learning rate 3e-5 → sft at learning rate 3e-4: domain −0.55") for line in out)


def test_safe_is_proven_within_the_margin_and_said_so() -> None:
    found = recommend([items("sft", 1e-5, (90, 0), (1, 1), timings={"train": 90.0})])
    assert found.safe is not None
    assert found.most_gain == found.safe
    assert (found.safe.claim, found.safe.more_items, found.safe.minutes) == ("safe", None, 1.5)
    assert (found.safe.before, found.safe.after) == pytest.approx((0.4, 0.7))
    assert (found.margin, found.reason) == (0.02, "found")


def test_a_significant_loss_shown_to_be_within_the_margin_is_safe_and_called_a_small_loss() -> None:
    found = recommend([items("sft", 1e-5, (900, 0), (0, 20), n=3000, base=1200)])
    assert found.safe is not None
    assert found.safe.claim == "safe"
    assert found.safe.general is not None
    assert found.safe.general.high is not None
    assert found.safe.general.high < 0
    assert found.safe.small_loss
    assert "general −0.0067 [−0.0096, −0.0037], a small loss, within the margin of 0.02" in answer(found)[0]


def test_a_significant_loss_that_may_be_larger_than_the_margin_is_never_safe() -> None:
    found = recommend([items("sft", 1e-5, (900, 0), (0, 50), n=3000, base=1200)])
    assert found.most_gain is not None
    assert found.most_gain.general is not None
    assert found.most_gain.general.low is not None
    assert found.most_gain.general.low < -0.02 < found.most_gain.general.value
    assert (found.safe, found.most_gain.claim, found.reason) == (None, "loss", "nothing_safe")
    assert found.least_harmful == found.most_gain
    assert found.excluded[0].text.startswith("A significant loss: general −0.0167")


def test_so_many_more_items_as_it_says_show_that_it_is_safe() -> None:
    found = recommend([items("sft", 1e-5, (90, 0), (4, 6))])
    assert found.safe is not None
    assert found.safe.claim == "no_loss_seen"
    assert found.safe.more_items is not None

    def claim(more: float) -> str | None:
        times = (300 + more) / 300
        n, base, right, lost, gain = (round(times * count) for count in (300, 120, 4, 6, 90))
        again = recommend([items("sft", 1e-5, (gain, 0), (right, lost), n=n, base=base)])
        return again.safe.claim if again.safe else None

    assert claim(1.15 * found.safe.more_items) == "safe"
    assert claim(0.7 * found.safe.more_items) == "no_loss_seen"


def test_where_seeds_are_what_scatters_more_items_are_no_help() -> None:
    seeds = [items("sft", 1e-5, (90, 0), turned, seed=s) for s, turned in enumerate(((6, 0), (0, 5), (0, 2)))]
    found = recommend(seeds, margin=0.03)
    assert found.safe is not None
    assert (found.safe.claim, found.safe.more_items, found.safe.seeds) == ("no_loss_seen", None, 3)


def test_few_items_do_not_make_a_setting_safe() -> None:
    """An estimate within the margin that does not leave out a loss of three margins is no safe choice."""
    found = recommend([items("sft", 1e-5, (24, 0), (6, 6), n=60, base=24)])
    assert (found.safe, reasons(found)) == (None, {0: "too_few_items"})
    assert found.least_harmful is not None
    assert any("more general items" in idea for idea in found.try_next)


def test_for_a_distance_from_the_base_model_the_margin_alone_decides() -> None:
    def far(lr: float, kl: float) -> RunRecord:
        return run("sft", lr, {"clinic/accuracy": 0.8, "kl_sampled/bits_per_token": (kl, 0.005)})

    found = recommend([far(1e-5, 0.03), far(1e-4, 0.2)])
    assert (names(found), found.margin, found.distance) == (("sft 1e-5", "sft 1e-5"), 0.05, True)
    assert found.safe is not None
    assert found.safe.claim == "safe"
    assert reasons(found) == {1: "loss"}
    assert recommend([far(1e-5, 0.03)], margin=0.02).safe is None


# --- among safe ones


def test_the_best_safe_domain_score_is_taken_where_it_is_significantly_best() -> None:
    found = recommend([items("sft", 1e-6, (40, 0), (1, 1)), items("talr", 1e-5, (120, 0), (1, 1))])
    assert names(found) == ("talr 1e-5", "talr 1e-5")
    assert reasons(found) == {0: "less_gain"}


def test_without_a_significant_difference_the_simplest_at_the_smallest_rate_is_taken() -> None:
    records = [
        items("talr", 1e-6, (92, 0), (1, 1)),
        items("sft", 2e-5, (94, 0), (1, 1)),
        items("sft", 5e-6, (90, 0), (1, 1)),
        items("sft", 5e-7, (93, 0), (1, 1), label="sft+wise_ft(alpha=0.5)"),
    ]
    found = recommend(records)
    assert names(found) == ("sft 5e-6", "sft 5e-6")
    assert reasons(found) == {0: "no_difference", 1: "no_difference", 3: "no_difference"}
    assert names(recommend([records[0], records[3]])) == ("talr 1e-6", "talr 1e-6")


def test_of_proven_rates_of_a_method_one_that_is_worse_by_its_own_interval_is_left() -> None:
    records = [
        items("sft", lr, (gained, 0), (1, 1))
        for lr, gained in zip((1e-6, 3e-6, 1e-5, 3e-5), (60, 65, 66, 66), strict=True)
    ]
    found = recommend(records)  # 60 against 66 is p = 0.02, and three times that among three
    assert names(found) == ("sft 3e-6", "sft 3e-6")
    assert reasons(found) == {0: "less_gain", 2: "no_difference", 3: "no_difference"}
    assert found.excluded[1].text.endswith("from the choice, which has a smaller learning rate.")
    assert "below that of sft at learning rate 1e-5 by the 95 % interval of the difference" in found.excluded[0].text
    other = items("talr", 1e-5, (66, 0), (1, 1))
    assert names(recommend([records[0], records[1], other]))[0] == "sft 3e-6"  # no more machinery for it
    alike = [record.model_copy(update={"method": "l2", "label": "l2"}) for record in records]
    mixed = recommend([*alike, items("talr", 2e-6, (65, 0), (1, 1))])
    assert names(mixed)[0] == "l2 3e-6"
    text = next(out.text for out in mixed.excluded if out.name.startswith("talr"))
    assert "was preferred at a smaller learning rate, and is better at this one" in text


def test_the_choice_is_one_of_the_best_where_a_weaker_claim_has_more_gain() -> None:
    """1e-6 is significantly below the best safe setting, so it does not come back for being no worse than 3e-6."""
    weaker = items("sft", 1e-4, (66, 0), (4, 6))
    found = recommend([items("sft", 1e-6, (60, 0), (1, 1)), items("sft", 3e-6, (63, 0), (1, 1)), weaker])
    assert names(found)[0] == "sft 3e-6"
    assert reasons(found)[0] == "less_gain"


def test_of_two_precisions_of_one_rate_the_one_that_kept_more_is_named_in_any_order() -> None:
    kept, less = (
        items("sft", 1e-5, (60, 0), general, recipe={"precision": precision})
        for precision, general in (("fp32", (2, 1)), ("bf16", (1, 2)))
    )
    for records in ([kept, less], [less, kept]):
        found = recommend(records)
        assert found.safe is not None
        assert "precision=fp32" in found.safe.name


def test_settings_are_screened_by_the_false_discovery_rate() -> None:
    """Seven of eight gain by p = 0.02: each by itself is lost among eight by Holm's correction."""
    records = [items("sft", lr * 1e-6, (16, 5), (1, 1)) for lr in range(1, 8)] + [items("sft", 1e-7, (1, 1), (1, 1))]
    found = recommend(records)
    assert found.safe is not None
    assert reasons(found)[7] == "no_gain"
    assert sum(reason == "no_gain" for reason in reasons(found).values()) == 1


def test_an_insignificant_gain_is_not_worth_a_weaker_claim_and_a_significant_one_is() -> None:
    proven = items("talr", 1e-5, (80, 0), (1, 1))
    assert names(recommend([proven, items("sft", 1e-6, (84, 0), (4, 6))])) == ("talr 1e-5", "talr 1e-5")
    found = recommend([proven, items("sft", 1e-4, (150, 0), (4, 6))])
    assert found.safe is not None
    assert (names(found)[0], found.safe.claim, reasons(found)) == ("sft 1e-4", "no_loss_seen", {0: "less_gain"})


def test_among_as_good_gains_the_one_with_the_least_risk_is_the_most_domain_gain() -> None:
    records = [items("sft", 1e-4, (120, 0), (0, 60)), items("sft", 3e-5, (118, 0), (0, 30))]
    assert names(recommend(records)) == (None, "sft 3e-5")


# --- where nothing is safe


def test_nothing_safe_names_the_least_harmful_and_what_to_try() -> None:
    records = [items("sft", 1e-5, (60, 0), (0, 20)), items("sft", 1e-4, (150, 0), (0, 90))]
    found = recommend(records)
    assert (found.safe, found.reason) == (None, "nothing_safe")
    assert found.least_harmful is not None
    assert (found.least_harmful.name, found.least_harmful.claim) == ("sft at learning rate 1e-5", "loss")
    # It lost 0.067, so the margin of 0.02 is 0.3 of that.
    assert found.try_next == (
        "a learning rate below the smallest tried, such as 3e-6",
        "averaging with the base model, wise_ft(alpha=0.3)",
        "trust_region(budget=0.05), which keeps KL from the base model within that many bits per token",
        "general data mixed into the training rows",
    )
    quantised = [record.model_copy(update={"recipe": {**record.recipe, "quantization": "4bit"}}) for record in records]
    assert any(idea.startswith("wise_ft(alpha=auto, budget=0.05)") for idea in recommend(quantised).try_next)
    kept = items("trust_region", 1e-4, (150, 0), (0, 90), label="trust_region(budget=0.5)")
    assert not any("trust_region" in idea for idea in recommend([*records, kept]).try_next)


def test_where_more_is_to_be_gained_than_the_safe_choice_does_it_says_with_what() -> None:
    safe, more = items("sft", 1e-5, (40, 0), (1, 1)), items("sft", 1e-4, (150, 0), (0, 90))
    free, idea = recommend([safe, more]).try_next
    assert free == "averaging sft at 1e-4 with the base model, wise_ft(alpha=0.75), which takes no training"
    assert idea.startswith("mofo at learning rates of 2e-5 to 3e-5, where more may be gained")
    assert f"For more, try {free}; {idea}." in answer(recommend([safe, more]))
    assert recommend([safe]).try_next == ()  # nothing has gained more
    assert recommend([safe, more, items("mofo", 3e-5, (40, 0), (0, 90))]).try_next == (free,)  # the other was tried
    assert recommend([safe, more, failed("mofo")]).try_next == (free,)  # it failed
    average = items("sft", 1e-4, (100, 0), (0, 50), label="sft+wise_ft(alpha=0.75)")
    assert recommend([safe, more, average]).try_next == (idea,)
    far = items("sft", 1e-3, (150, 0), (0, 90))
    assert recommend([safe, far]).try_next == (idea,)  # too far to average
    assert recommend([items("lora", 1e-5, (40, 0), (1, 1)), more]).try_next == ()  # mofo trains no adapter


def test_a_merge_that_was_tried_is_halved_and_a_rate_that_did_not_gain_is_a_bound() -> None:
    merged = items("sft", 1e-5, (50, 0), (0, 15), label="sft+wise_ft(alpha=0.5)")
    found = recommend([items("sft", 1e-6, (1, 1), (1, 1)), items("sft", 1e-5, (60, 0), (0, 20)), merged])
    assert found.try_next[:2] == (
        "a learning rate between 1e-6 and 1e-5",
        "averaging with the base model, wise_ft(alpha=0.2)",
    )


def test_where_seeds_disagree_on_a_gain_that_items_show_it_asks_for_more_of_them() -> None:
    apart = [items("sft", 1e-5, (gained, 0), (1, 1), seed=seed) for seed, gained in enumerate((20, 80))]
    found = recommend(apart)
    assert found.reason == "no_gain"
    assert found.try_next[0].startswith("more seeds, since the items show a gain and so few seeds")
    assert "longer training" in found.try_next
    nothing = [items("sft", 1e-5, (gained, 5), (1, 1), seed=seed) for seed, gained in enumerate((3, 8))]
    assert not any("more seeds" in idea for idea in recommend(nothing).try_next)


def test_where_training_made_the_domain_worse_no_larger_rate_is_proposed() -> None:
    found = recommend([items("sft", rate, (0, 40), (0, 90)) for rate in (1e-3, 3e-3)])
    assert found.reason == "no_gain"
    assert found.try_next == ("a learning rate below the smallest tried, such as 3e-4", "more test rows")
    costly = recommend([items("sft", rate, (3, 3), (0, 90)) for rate in (1e-5, 1e-4)])
    assert costly.try_next[0].startswith("longer training at the smallest learning rate tried")


def test_what_the_choice_has_before_a_setting_as_good_is_true() -> None:
    found = recommend([items("talr", 1e-5, (90, 0), (1, 2)), items("l2", 1e-5, (90, 0), (2, 1))])
    assert found.safe is not None
    assert found.safe.name.startswith("l2")
    assert "which kept more general skill by the estimate" in found.excluded[0].text


def test_runs_on_another_configuration_of_the_data_are_not_compared() -> None:
    runs = [
        items("sft", 1e-5, (90, 0), (1, 1), recipe={"data_path": "owner/name", "data_config": name}) for name in "ab"
    ]
    with pytest.raises(UserError, match=r"owner/name a; .*owner/name b"):
        recommend(runs)


def test_no_significant_gain_names_nothing() -> None:
    found = recommend([items("sft", 1e-6, (3, 1), (1, 1)), items("talr", 1e-6, (0, 9), (1, 1))])
    assert (found.safe, found.most_gain, found.least_harmful, found.reason) == (None, None, None, "no_gain")
    assert reasons(found) == {0: "no_gain", 1: "no_gain"}
    assert found.try_next == (
        "a learning rate above the largest tried, such as 3e-6",
        "longer training",
        "more test rows",
    )


def test_missing_errors_and_base_scores_are_no_claim() -> None:
    blind = recommend([pair("sft", 1e-6, (0.9, None), 0.6)], domain="clinic/accuracy")
    assert (blind.safe, blind.reason, reasons(blind)) == (None, "unknown", {0: "no_error"})
    baseless = recommend([pair("sft", 1e-6, 0.9, 0.6, base={"clinic/accuracy": 0.4})])
    assert (baseless.safe, baseless.reason, reasons(baseless)) == (None, "nothing_safe", {0: "no_base"})
    bare = recommend([pair("talr", 1e-6, (1.0, None), 0.6), pair("sft", 1e-6, 0.9, 0.605)])
    assert (names(bare)[0], reasons(bare)) == ("sft 1e-6", {0: "no_error"})


def test_nothing_to_go_on() -> None:
    assert recommend([]).reason == "no_complete_runs"
    found = recommend([failed(error="out of\nmemory")])
    assert (found.reason, [out.text for out in found.excluded]) == (
        "no_complete_runs",
        ["The run failed: out of memory."],
    )
    apart = [run("sft", 1e-6, {"clinic/accuracy": 0.9}), run("sft", 1e-6, {"arithmetic/accuracy": 0.6})]
    assert (recommend(apart).reason, reasons(recommend(apart))) == ("no_scores", {0: "no_score", 1: "no_score"})


def test_failed_runs_are_no_choice() -> None:
    lucky = items("talr", 1e-6, (150, 0), (5, 0), status="failed", error="died late")
    found = recommend([lucky, items("sft", 1e-6, (60, 0), (1, 1))])
    assert (found.index, reasons(found)) == (1, {0: "failed"})


# --- the exchange


def test_the_exchange_has_the_price_of_each_further_step() -> None:
    records = [
        items("sft", 1e-4, (120, 0), (0, 60)),
        items("sft", 1e-5, (60, 0), (1, 1)),
        items("talr", 1e-4, (50, 0), (0, 9)),
    ]
    first, second = recommend(records).exchange
    assert (first.start, first.start_index, first.end, first.end_index) == (
        "base model", None, "sft at learning rate 1e-5", 1,
    )  # fmt: skip
    assert (second.start_index, second.end_index) == (1, 0)
    for step, domain, general in ((first, 60, 0), (second, 60, -60)):
        assert step.domain is not None
        assert step.general is not None
        assert (step.domain.value, step.general.value) == pytest.approx((domain / 300, general / 300))


# --- what general skill is


def skilled(domain: tuple[str, ...], facts: tuple[str, ...]) -> list[RunRecord]:
    """A study in which the task `facts` gains by the domain, and `reading` falls."""
    tagged = {"clinic": domain, "facts": facts}
    one = items("sft", 1e-5, (90, 0), (30, 0), skills=tagged)
    other = items("sft", 1e-5, (0, 0), (0, 60))
    reading = [r.scores[1].model_copy(update={"task": "reading"}) for r in (other,)]
    start = [r.base_scores[1].model_copy(update={"task": "reading"}) for r in (other,)]
    return [one.model_copy(update={"scores": [*one.scores, *reading], "base_scores": [*one.base_scores, *start]})]


def test_a_task_of_the_domains_own_skill_is_no_general_skill() -> None:
    apart = recommend(skilled(("arithmetic",), ("arithmetic", "words")))
    assert (apart.general_axis, apart.overlapping) == ("reading/accuracy", ("facts/accuracy",))
    assert (apart.safe, apart.reason) == (None, "nothing_safe")
    together = recommend(skilled(("arithmetic",), ("words",)))
    assert (together.general_axis, together.overlapping) == ("general_mean/accuracy", ())
    asked = recommend(skilled(("arithmetic",), ("arithmetic",)), general="facts/accuracy")
    assert (asked.general_axis, asked.index, asked.blind) == ("facts/accuracy", 0, False)


def test_where_there_is_no_other_general_score_nothing_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = items("sft", 1e-5, (90, 0), (30, 0), skills={"clinic": ("facts",), "facts": ("facts",)})
    found = recommend([record])
    assert (found.safe, found.blind, reasons(found)) == (None, True, {0: "own_skill"})
    assert found.try_next == ("a general task of another skill than the domain's",)
    out = told([record], tmp_path, monkeypatch, capsys)
    assert "facts/accuracy trains a skill of the domain's own data, so it is not counted as general skill." in out
    assert any("add a general task" in line for line in out)


# --- accuracies that guessing has, too


def guessable(record: RunRecord, chance: float, *more: tuple[Score, Score]) -> RunRecord:
    """The run with this chance to guess its general answers, and more general scores, tuned and of the base model."""

    def of(scores: list[Score], place: int) -> list[Score]:
        told = [s.model_copy(update={"chance": chance}) if s.side == "general" else s for s in scores]
        return [*told, *(pair[place] for pair in more)]

    return record.model_copy(update={"scores": of(record.scores, 0), "base_scores": of(record.base_scores, 1)})


FAR = score("kl_sampled/bits_per_token", 0.8, 0.05), score("kl_sampled/bits_per_token", 0.0, 0.0)
WEAK = score("reading/accuracy", 0.27, 0.03).model_copy(update={"chance": 0.25})


def test_general_accuracy_at_chance_vouches_for_nothing() -> None:
    record = guessable(items("sft", 1e-3, (90, 0), (3, 3)), 0.4, FAR)
    assert recommend([guessable(record, 0.0)]).general_axis == "facts/accuracy"
    found = recommend([record])
    assert (found.general_axis, found.general_left_out) == ("kl_sampled/bits_per_token", ("facts/accuracy",))
    assert (found.safe, found.reason, reasons(found)) == (None, "nothing_safe", {0: "loss"})
    assert found.headroom is None
    assert warnings(found) == [
        "The base model is not shown to be above guessing in facts/accuracy, so no loss could be seen there, and "
        "kl_sampled/bits_per_token stands for general skill. An easier task, or more questions, would show more.",
    ]


def test_records_made_before_chance_was_known_do_not_hide_it() -> None:
    new = guessable(items("sft", 1e-3, (90, 0), (3, 3)), 0.4, FAR)
    old = guessable(items("sft", 1e-4, (90, 0), (3, 3)), 0.0, FAR)
    assert recommend([old, new]).general_axis == "kl_sampled/bits_per_token"


@pytest.mark.parametrize("others", [(), FAR], ids=["asked for", "no other score"])
def test_where_only_accuracy_at_chance_is_read_only_a_gain_is_safe(others: tuple[Score, ...]) -> None:
    key = {"general": "facts/accuracy"} if others else {}
    more = (others,) if others else ()
    record = guessable(items("sft", 1e-3, (90, 0), (0, 0)), 0.4, *more)  # no answer changed
    found = recommend([record], **key)
    assert (found.general_axis, found.margin, found.headroom) == ("facts/accuracy", 0, 0)
    assert found.safe is None
    assert found.try_next[0] == "an easier general task, in which the base model is well above guessing"
    assert "so nothing but a gain can be shown to be safe" in " ".join(warnings(found))
    gained = recommend([guessable(items("sft", 1e-3, (90, 0), (60, 0)), 0.4, *more)], **key)
    assert (gained.index, gained.general_axis) == (0, "facts/accuracy")


def test_the_margin_is_at_most_half_of_what_there_is_to_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model has 40 %, guessing 35 %: with a margin of 3 points most of the skill could be gone."""
    record = guessable(items("sft", 1e-5, (900, 0), (0, 60), n=3000, base=1200), 0.35)
    assert recommend([guessable(record, 0.0)], margin=0.03).index == 0
    found = recommend([record], margin=0.03)
    assert (found.safe, reasons(found)) == (None, {0: "loss"})
    assert found.headroom == pytest.approx(0.05 - 2 * 0.00894, abs=1e-4)
    assert (found.margin, found.margin_asked) == (pytest.approx(found.headroom / 2), 0.03)
    still = guessable(items("sft", 1e-5, (900, 0), (2, 2), n=3000, base=1200), 0.35)
    assert recommend([still], margin=0.03).index == 0
    out = told([record], tmp_path, monkeypatch, capsys, "--margin", "0.03")
    assert "The margin is 0.0161 instead of 0.03: half of what the base model is shown to have above guessing." in out
    assert any("(share correct, higher is better; by guessing 0.35)" in line for line in out)


def test_a_general_task_of_the_domain_side_has_only_the_base_models_headroom() -> None:
    """Another run's gain there gives the base model nothing to lose."""
    other = score("reading/accuracy", 0.5, 0.03).model_copy(update={"side": "domain", "chance": 0.5})
    better = other.model_copy(update={"value": 0.8})
    bits = score("clinic/bits_per_token", 1.0), score("clinic/bits_per_token", 2.0)
    runs = (1e-5, other), (1e-3, better)
    records = [guessable(items("sft", r, (90, 0), (3, 3)), 0, (tuned, other), bits) for r, tuned in runs]
    found = recommend(records, domain="clinic/accuracy", general="reading/accuracy")
    assert (found.margin, found.headroom) == (0, 0)
    assert "guessing in reading/accuracy, so nothing but a gain can be shown to be safe" in " ".join(warnings(found))


def test_a_page_with_nothing_to_lose_and_nothing_lost_is_written(tmp_path: Path) -> None:
    nought = score("sums/accuracy", 0.0, 0.0)
    record = run("sft", 1e-3, {"clinic/accuracy": 0.8}, base={"clinic/accuracy": 0.4})
    record = record.model_copy(
        update={"scores": [*record.scores, nought], "base_scores": [*record.base_scores, nought]}
    )
    assert recommend([record]).safe is None
    assert report([record], tmp_path).html.exists()


def test_a_task_at_chance_within_the_mean_is_named() -> None:
    found = recommend([guessable(items("sft", 1e-5, (90, 0), (3, 3)), 0.0, (WEAK, WEAK))])
    assert (found.general_axis, found.general_diluting) == ("general_mean/accuracy", ("reading/accuracy",))
    assert "leave it out of tasks" in " ".join(answer(found))
    assert "by guessing 0.125" in found.general_label


def test_where_the_mean_shows_nothing_a_task_that_can_lose_is_read() -> None:
    """One task at 0.40 ± 0.03 where guessing has 0.30, and three at chance: their mean is not above it."""
    weak = [WEAK.model_copy(update={"task": name, "stderr": 0.07}) for name in ("one", "two", "three")]
    lost = guessable(items("sft", 1e-3, (90, 0), (0, 36)), 0.30, *((one, one) for one in weak), FAR)
    found = recommend([lost])
    assert (found.general_axis, reasons(found)) == ("facts/accuracy", {0: "loss"})
    assert found.general_left_out == ("one/accuracy", "two/accuracy", "three/accuracy")
    assert "and facts/accuracy stands for general skill" in " ".join(warnings(found))


def test_warnings_are_a_line_each() -> None:
    record = guessable(items("sft", 1e-5, (90, 0), (3, 3)), 0.0, (WEAK, WEAK))
    assert all(line.count(". ") == 0 and line.endswith(".") for line in warnings(recommend([record])))


# --- settings


def test_seeds_of_a_setting_are_one_and_its_middle_run_stands_for_it() -> None:
    runs = [items("sft", 1e-6, (90 + d, 0), (1, 1), seed=s) for s, d in enumerate((5, 0, -4))]
    found = recommend([*runs, items("sft", 1e-4, (90, 0), (0, 60))])
    assert found.safe is not None
    assert (found.safe.index, found.safe.seeds, found.safe.indices) == (1, 3, (0, 1, 2))
    assert "sft at learning rate 1e-6" in found.safe.name


def test_the_same_seed_twice_counts_once() -> None:
    found = recommend([items("sft", 1e-6, (90, 0), (1, 1)), items("sft", 1e-6, (10, 0), (0, 60))])
    assert found.safe is not None
    assert (found.safe.seeds, found.settings) == (1, 1)


def test_seeds_that_scatter_make_a_win_no_win() -> None:
    steady = [items("talr", 1e-5, (80, 0), (1, 1), seed=s) for s in (0, 1, 2)]
    better = [items("sft", 1e-4, (gain, 0), (1, 1), seed=s) for s, gain in enumerate((110, 112, 111))]
    scattered = [items("sft", 1e-4, (gain, 0), (1, 1), seed=s) for s, gain in enumerate((40, 180, 113))]
    plain = [items("sft", 1e-5, (80, 0), (1, 1), seed=s) for s in (0, 1, 2)]
    assert names(recommend([*steady, *plain, *better]))[0] == "sft 1e-4"
    assert names(recommend([*steady, *plain, *scattered]))[0] == "sft 1e-5"


def test_the_change_from_seed_to_seed_is_pooled_over_the_settings() -> None:
    # Each setting's two seeds lie 0.02 apart: variance 2e-4, so the error of a mean over two seeds is
    # √(0.01² / 1 + 2e-4 / 2) = 0.0141 and that of the single seed √(0.01² + 2e-4) = 0.0173.
    values = {("sft", 0): 0.60, ("sft", 1): 0.62, ("talr", 0): 0.60, ("talr", 1): 0.62, ("flow", 0): 0.61}
    records = [pair(m, 1e-6, 0.9, g, seed=s) for (m, s), g in values.items()]
    domain, general = both_axes(records, None, None)
    assert domain is not None
    assert general is not None
    choice = Choice(records, domain, general, settings_of(records, domain, general), 0.02)
    errors = [r and r.point.stderr for r in choice.readings(general)]
    assert errors == pytest.approx([0.0141421, 0.0141421, 0.0173205], rel=1e-5)


def test_settings_that_a_field_alone_tells_apart_are_named_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        items("sft", 1e-5, (90 + 60 * (p == "bf16"), 0), (1, 1), recipe={"precision": p, "seed": 0, "output": p})
        for p in ("fp32", "bf16")
    ]
    found = recommend(records)
    assert found.safe is not None
    assert (found.apart, found.safe.name) == (("precision",), "sft at learning rate 1e-5 (precision=bf16)")
    assert "Settings that differ in precision alone are kept apart." in told(records, tmp_path, monkeypatch, capsys)


def test_how_a_step_is_spread_over_processes_makes_no_setting_and_its_rows_do() -> None:
    def spread(seed: int, batch: int, ranks: float) -> RunRecord:
        recipe = {
            "batch_size": batch,
            "gradient_accumulation": 1,
            "processes": "auto",
            "gradient_checkpointing": seed == 1,
        }
        return items("sft", 1e-5, (90, 0), (1, 1), seed=seed, recipe=recipe, training={"processes": ranks})

    together = recommend([spread(0, 8, 1), spread(1, 2, 4)])
    assert (together.settings, together.apart) == (1, ())
    apart = recommend([spread(0, 8, 1), spread(1, 8, 4)])
    assert (apart.settings, apart.apart) == (2, ("rows_per_step",))
    assert apart.safe is not None
    assert apart.safe.name == "sft at learning rate 1e-5 (rows_per_step=8)"


def test_a_win_among_many_must_be_a_larger_one() -> None:
    few = [items("sft", 1e-6, (60, 0), (1, 1)), items("talr", 1e-6, (72, 4), (1, 1))]
    assert names(recommend([items("sft", 1e-6, (8, 0), (1, 1))]))[0] == "sft 1e-6"
    many = [items("sft", r * 1e-7, (8 if r == 1 else 0, 0), (1, 1)) for r in range(1, 24)]
    assert recommend(many).reason == "no_gain"
    assert names(recommend(few))[0] == "sft 1e-6"


# --- through the door


def told(
    records: list[RunRecord], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    *flags: str,
) -> list[str]:  # fmt: skip
    """What `gentletune recommend` prints of these records."""
    for place, record in enumerate(records):
        write_record(folder / "runs" / f"{place:02}", record)
    code, captured = run_cli(monkeypatch, "recommend", str(folder / "runs"), *flags), capsys.readouterr()
    assert code == 0, captured.err
    return captured.out.splitlines()


def test_the_command_prints_the_same_findings_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [items("sft", 1e-5, (90, 0), (1, 1)), items("sft", 1e-4, (150, 0), (0, 90)), failed()]
    said = json.loads("\n".join(told(records, tmp_path, monkeypatch, capsys, "--margin", "0.01", "--json")))
    assert said == recommend(records, margin=0.01).as_dict()
    assert said["margin"] == 0.01
    assert (said["safe"]["index"], said["safe"]["claim"]) == (0, "no_loss_seen")
    assert said["most_gain"]["general"]["value"] == pytest.approx(-0.3)
    assert [out["reason"] for out in said["excluded"]] == ["loss", "failed"]


def test_the_model_to_ship_is_named_where_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [items("sft", 1e-5, (90, 0), (1, 1)), items("sft", 1e-4, (150, 0), (0, 90))]
    assert not any(line.startswith("Its model") for line in told(records, tmp_path, monkeypatch, capsys))  # no recipe
    records[0] = records[0].model_copy(update={"recipe": {"learning_rate": 1e-5}})
    (again,) = [line for line in told(records, tmp_path, monkeypatch, capsys) if line.startswith("Its model")]
    assert again.startswith("Its model was not kept; to train it again: gentletune train --model ")
    assert "--lr 1e-05" in again
    model = tmp_path / "runs" / "00" / "model"
    model.mkdir()
    assert again in told(records, tmp_path, monkeypatch, capsys)  # an empty directory
    (model / "config.json").write_text("{}")
    assert f"Its model: {model}" in told(records, tmp_path, monkeypatch, capsys)
    said = json.loads("\n".join(told(records, tmp_path, monkeypatch, capsys, "--json")))
    assert (said["safe"]["model"], said["most_gain"]["model"]) == (str(model), None)


def test_runs_of_two_data_sets_are_told_apart_and_are_no_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [items("sft", 1e-5, (90, 0), (1, 1), recipe={"model": "m", "data": data}) for data in ("clinic", "esci")]
    with pytest.raises(UserError, match="not one comparison \\(m on clinic; m on esci\\)"):
        recommend(records)
    out = told(records, tmp_path, monkeypatch, capsys)
    assert [line for line in out if line.endswith(":") and line.startswith("m ")] == ["m on clinic:", "m on esci:"]
    assert sum(line.startswith("Safe choice: sft at learning rate 1e-5") for line in out) == 2
    assert run_cli(monkeypatch, "recommend", str(tmp_path / "runs"), "--json") == 2
    assert "not one comparison" in capsys.readouterr().err


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_must_be_a_number(margin: float) -> None:
    with pytest.raises(UserError, match="margin must be a number >= 0"):
        recommend([pair("sft", 1e-6, 0.8, 0.5)], margin=margin)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--margin", "2"], "margin 2 is all of facts/accuracy or more, which goes from 0 to 1; for 2 % write 0.02"),
        (["--margin", "1", "--json"], "for 1 % write 0.01"),
        (
            ["--domain", "facts/accuracy", "--general", "clinic/accuracy"],
            "general: 'clinic/accuracy' is the domain's own score; general scores: facts/accuracy",
        ),
    ],
)
def test_a_margin_in_per_cent_and_axes_that_are_swapped_are_refused(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "run", items("sft", 1e-5, (90, 0), (1, 1)))
    assert run_cli(monkeypatch, "recommend", str(tmp_path / "run"), *flags) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_margin_in_bits_may_be_large() -> None:
    assert recommend([run("sft", 1e-6, {"clinic/accuracy": 0.8, "facts/bits_per_token": 3.0})], margin=2).margin == 2


def test_the_keys_choose_the_axes() -> None:
    record = items("sft", 1e-5, (90, 0), (1, 1))
    assert recommend([record], general="facts/accuracy").general_axis == "facts/accuracy"
    with pytest.raises(UserError, match="unknown score"):
        recommend([record], domain="medicine/accuracy")


# --- whatever the evidence

SHARES = st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.002, 0.08))
METHODS = st.sampled_from(["sft", "talr", "flow"])


@given(
    st.lists(
        st.tuples(METHODS, st.sampled_from([1e-6, 1e-5, 1e-4]), st.integers(0, 1), SHARES), min_size=1, max_size=8
    ),
    st.sampled_from([None, 0.0, 0.1, 0.5]),
)
def test_what_is_named_keeps_to_the_rules(
    drawn: list[tuple[str, float, int, tuple[float, float, float]]], margin: float | None
) -> None:
    runs = {(m, lr, seed): pair(m, lr, (x, e), (y, e), seed=seed) for m, lr, seed, (x, y, e) in drawn}
    records = list(runs.values())
    found = recommend(records, margin=margin, domain="clinic/accuracy", general="arithmetic/accuracy")
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()
    assert len(found.excluded) + (found.safe is not None) == found.settings
    assert (found.least_harmful is not None) == (found.reason == "nothing_safe")
    assert found.safe is not None or bool(found.try_next) == (found.reason in ("nothing_safe", "no_gain", "unknown"))
    if found.most_gain is None:
        assert found.safe is None
        return
    assert found.most_gain.domain is not None
    assert found.most_gain.domain.significant
    assert found.most_gain.domain.value > 0
    if found.safe is None:
        return
    safe, cost = found.safe, found.safe.general
    assert safe.domain is not None
    assert cost is not None
    assert safe.domain.significant
    assert safe.domain.value > 0
    assert safe.domain.value <= found.most_gain.domain.value + 1e-9 or safe == found.most_gain
    assert cost.low is not None
    assert cost.high is not None
    assert safe.small_loss == bool(cost.excludes_zero and cost.value < 0)
    assert cost.value >= -found.margin
    assert (safe.claim == "safe") == (cost.low >= -found.margin)


@given(st.floats(0.05, 0.3), st.floats(0.0, 0.3))
def test_talr_worse_on_one_side_and_no_better_on_the_other_is_never_safe(loss: float, gap: float) -> None:
    found = recommend([pair("talr", 1e-5, 0.90 - gap, 0.60 - loss), pair("sft", 1e-5, 0.90, 0.605)])
    assert names(found) == ("sft 1e-5", "sft 1e-5")


def test_the_score_of_a_neighbouring_domain_may_stand_for_general_skill() -> None:
    def with_near(rate: float) -> RunRecord:
        made = items("sft", rate, (90, 0), (1, 1))
        own = ratio_score(
            [8.0, 9.0], [4, 4], task="clinic", side="domain", metric="bits_per_token", higher_is_better=False
        )
        near = accuracy_score([1.0, 0.0] * 100, task="medcalc", side="domain")
        return made.model_copy(update={k: [*getattr(made, k), own, near] for k in ("scores", "base_scores")})

    records = [with_near(1e-5), with_near(1e-4)]
    assert recommend(records, domain="clinic/accuracy", general="medcalc/accuracy").general_axis == "medcalc/accuracy"
    with pytest.raises(UserError, match="is the domain's own score"):
        recommend(records, domain="medcalc/accuracy", general="clinic/accuracy")
