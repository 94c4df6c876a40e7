"""The clinic domain: right answers, true arithmetic, and notes that stay on one side of the split."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from math import sqrt
from random import Random
from typing import Any, get_args

import pytest

from gentletune.core.errors import UserError
from gentletune.data.domains.clinic import Split, clinic_examples, limits, split_of
from gentletune.data.domains.clinic_formulas import FORMULAS, Patient, Working, half_up
from gentletune.data.example import ANSWER_PREFIX, Example

NUMBER = r"-?\d+(?:\.\d+)?"
STATEMENT = re.compile(rf"({NUMBER}) ([-+*/]) ({NUMBER}) = ({NUMBER})")
ROOT = re.compile(rf"sqrt\(({NUMBER})\) = ({NUMBER})")


@functools.cache
def rows_of(split: Split) -> list[Example]:
    return clinic_examples(3000, seed=1, cot=True, split=split)


def note_of(row: Example) -> str:
    return row.prompt.split("\n")[0]


def rounded(value: Decimal, like: str) -> Decimal:
    """`value` with the decimals that the written number `like` has."""
    return value.quantize(Decimal(like), ROUND_HALF_UP)


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    match = re.search(pattern, text, re.IGNORECASE)
    assert match, (pattern, text)
    return tuple(float(group) for group in match.groups())


def test_rows_are_the_same_each_time_and_do_not_depend_on_how_many_are_drawn() -> None:
    longer = clinic_examples(40, seed=7, cot=True, split="test")
    assert clinic_examples(40, seed=7, cot=True, split="test") == longer
    assert clinic_examples(9, seed=7, cot=True, split="test") == longer[:9]
    assert clinic_examples(9, seed=8, cot=True, split="test") != longer[:9]
    assert clinic_examples(0, seed=7, cot=True, split="test") == []


def test_labels_are_asked_on_the_same_notes_as_explanations() -> None:
    plain = clinic_examples(50, seed=1, cot=False, split="train")
    for label, explained in zip(plain, rows_of("train"), strict=False):
        assert note_of(label) == note_of(explained)
        assert label.answer == explained.answer
        assert label.answer is not None
        assert label.completion == label.answer.value
        assert label.prompt.endswith("Reply with the number only.")
        assert explained.prompt.endswith('end with a line "Answer: number".')


def test_no_note_is_in_both_splits() -> None:
    notes = {split: {note_of(row) for row in rows_of(split)} for split in get_args(Split)}
    assert not notes["train"] & notes["test"]
    assert not {row.group for row in rows_of("train")} & {row.group for row in rows_of("test")}
    for split, found in notes.items():
        assert {split_of(note) for note in found} == {split}
        assert len(found) > 2950  # nearly all differ


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match="unknown split 'tset'; did you mean 'test'"):
        clinic_examples(1, seed=0, cot=True, split="tset")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_written_step_is_true_and_the_last_one_is_the_answer(split: str) -> None:
    for row in rows_of(split):
        steps = STATEMENT.findall(row.completion)
        for left, op, right, result in steps:
            a, b = Decimal(left), Decimal(right)
            exact = a / b if op == "/" else {"+": a + b, "-": a - b, "*": a * b}[op]
            assert rounded(exact, result) == Decimal(result), row.completion
        roots = ROOT.findall(row.completion)
        for value, result in roots:
            assert rounded(Decimal(value).sqrt(), result) == Decimal(result), row.completion
        body, _, answer = row.completion.rpartition(f"\n{ANSWER_PREFIX} ")
        assert row.answer is not None
        assert answer == row.answer.value
        assert body.endswith(f" = {answer}.")
        assert len(steps) + len(roots) == body.count(" = ") - 1  # the other equals sign is the formula's


def test_limits_hold_the_value_also_at_and_below_zero() -> None:
    assert limits(Decimal("20.0")) == (19.0, 21.0)
    assert limits(Decimal(0)) == (0.0, 0.0)
    assert limits(Decimal("-3.2")) == pytest.approx((-3.36, -3.04))
    for row in rows_of("train"):
        assert row.answer is not None
        if row.answer.kind == "integer":
            assert int(row.answer.value) == float(row.answer.value)
            assert row.answer.lower is row.answer.upper is None
        else:
            assert row.answer.lower is not None
            assert row.answer.upper is not None
            assert row.answer.lower <= float(row.answer.value) <= row.answer.upper
            assert "decimal place" in row.prompt


def test_texts_are_short() -> None:
    for row in rows_of("train") + rows_of("test"):
        asked = row.prompt.split(" Explain briefly")[0]
        assert 25 <= len(asked.split()) <= 60
        assert 14 <= len(row.completion.split()) <= 45


def test_most_draws_need_only_whole_numbers_and_every_formula_is_drawn() -> None:
    drawn = Counter(row.category for row in rows_of("train"))
    assert set(drawn) == {formula.name for formula in FORMULAS}
    assert len(drawn) >= 14
    whole = sum(row.answer is not None and row.answer.kind == "integer" for row in rows_of("train"))
    assert whole / len(rows_of("train")) > 0.6


def test_rounding_is_half_away_from_zero() -> None:
    written = [str(half_up(Fraction(value), places)) for value, places in (("2.5", 0), ("-0.125", 2), ("0.04", 1))]
    assert written == ["3", "-0.13", "0.0"]


def test_a_step_that_needs_rounding_must_say_so() -> None:
    work = Working()
    with pytest.raises(ArithmeticError, match="state how to round"):
        work.step(1, "/", 3)
    assert work.step(1, "/", 3, places=2).exact == Fraction(1, 3)
    assert work.lines == ["1 / 3 = 0.33"]


class Fixed(Random):
    """Draws the given numbers, so that a formula can be worked by hand."""

    def __init__(self, *values: int) -> None:
        super().__init__(0)
        self.values = list(values)

    def randint(self, a: int, b: int) -> int:
        value = self.values.pop(0)
        assert a <= value <= b
        return value

    def choice(self, seq: Sequence[Any]) -> Any:
        value = self.values.pop(0)
        assert value in seq
        return value


@pytest.mark.parametrize(
    ("name", "draws", "patient", "answer"),
    [
        ("pulse pressure", (80, 40), Patient(50, "male"), "40"),
        ("mean arterial pressure", (80, 15), Patient(50, "male"), "95"),  # 125/80: 80 + 45 / 3
        ("maximal heart rate", (), Patient(54, "female"), "166"),
        ("heart rate reserve", (70,), Patient(54, "female"), "96"),
        ("anion gap", (104, 24, 12), Patient(50, "male"), "12"),  # 140 - 128
        ("expected pCO2", (7,), Patient(50, "male"), "29"),  # 1.5 * 14 + 8
        ("pack-years", (2, 20), Patient(50, "male"), "40"),
        ("weight-based dose", (5, 70), Patient(50, "male"), "350"),
        ("infusion rate", (25, 8), Patient(50, "male"), "125"),  # 1000 mL over 8 h
        ("fluid balance", (20, 30), Patient(50, "male"), "-500"),  # 1000 - 1500
        ("blood volume", (60,), Patient(50, "female"), "3900"),
        ("maintenance fluid", (10,), Patient(4, "male"), "56"),  # 18 kg: 40 + 2 * 8
        ("maintenance fluid", (11,), Patient(7, "male"), "65"),  # 25 kg: 40 + 20 + 5
        ("LDL cholesterol", (200, 50, 30), Patient(50, "male"), "120"),  # 200 - 50 - 150 / 5
        ("creatinine clearance", (72, 10), Patient(60, "male"), "80.0"),  # 80 * 72 / 72
        ("creatinine clearance", (72, 10), Patient(60, "female"), "68.0"),
        ("corrected calcium", (80, 30), Patient(50, "male"), "8.80"),
        ("corrected sodium", (130, 12), Patient(50, "male"), "138.0"),  # 600 mg/dL: 130 + 1.6 * 5
        ("serum osmolality", (140, 10, 2), Patient(50, "male"), "290.0"),  # 280 + 90 / 18 + 14 / 2.8
        ("ideal body weight", (70,), Patient(50, "male"), "73.0"),  # 50 + 23
        ("ideal body weight", (70,), Patient(50, "female"), "68.5"),
        ("body surface area", (180, 80), Patient(50, "male"), "2.00"),  # sqrt(14400 / 3600)
        ("shock index", (90, 120), Patient(50, "male"), "0.75"),
        ("HOMA-IR", (81, 10), Patient(50, "male"), "2.00"),  # 810 / 405
    ],
)
def test_formulas_against_values_worked_by_hand(
    name: str, draws: tuple[int, ...], patient: Patient, answer: str
) -> None:
    formula = next(one for one in FORMULAS if one.name == name)
    case = formula.case(Fixed(*draws), patient)
    assert str(case.working.result.shown) == answer


def test_answers_follow_from_the_note_alone() -> None:
    """Six formulas are worked again from the numbers that the prompt shows."""
    age = r"(\d+)(?:-year|\ year)"
    checks = {
        "pulse pressure": lambda t: (lambda s, d: s - d)(*numbers(r"blood pressure:? (\d+)/(\d+)", t)),
        "maximal heart rate": lambda t: 220 - numbers(age, t)[0],
        "anion gap": lambda t: (
            numbers(r"sodium:? (\d+)", t)[0]
            - numbers(r"chloride:? (\d+)", t)[0]
            - numbers(r"bicarbonate:? (\d+)", t)[0]
        ),
        "body mass index": lambda t: numbers(r"weight:? (\d+)", t)[0] / (numbers(r"height:? (\d+)", t)[0] / 100) ** 2,
        "body surface area": lambda t: sqrt(numbers(r"weight:? (\d+)", t)[0] * numbers(r"height:? (\d+)", t)[0] / 3600),
        "HOMA-IR": lambda t: numbers(r"glucose:? (\d+)", t)[0] * numbers(r"insulin:? (\d+)", t)[0] / 405,
    }
    seen = Counter[str]()
    for row in rows_of("train"):
        if check := checks.get(row.category):
            assert row.answer is not None
            places = len(row.answer.value.partition(".")[2])
            assert abs(check(row.prompt) - float(row.answer.value)) <= 0.5 * 10**-places + 1e-9
            seen[row.category] += 1
    assert set(seen) == set(checks)
