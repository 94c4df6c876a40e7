"""What a response is read as, kind by kind; what cannot be read is wrong."""

from __future__ import annotations

import pytest

from gentletune.data.example import Answer, AnswerKind
from gentletune.evaluation.scoring import answer_text, is_right, read_number

NUMBERS: list[tuple[str, float | None]] = [
    ("Answer: 5", 5),
    ("Answer: 5.", 5),
    ("Answer: .5", 0.5),
    ("Answer:\n  5\nmore 6", 5),
    ("Answer: **5.25**", 5.25),
    ("Answer: $1,000.", 1000),
    ("Answer: 1,234,567.5 mL", 1234567.5),
    ("1,234 mL", 1234),
    ("Answer: -3.5", -3.5),
    ("Answer: −3.5", -3.5),
    ("Answer: +4", 4),
    ("Answer: 1.5e-3", 0.0015),
    ("Answer: 2E5", 200000),
    ("Answer: 50%", 50),
    ("Answer: about 7 to 8", 7),
    # Units are no numbers.
    ("22.86 kg/m^2", 22.86),
    ("22.86 kg/m2", 22.86),
    ("22.86 kg/m²", 22.86),
    ("55 mL/min/1.73 m^2", 55),
    ("1.73m2", 1.73),
    ("CO2", None),
    # Fractions, dates and numbers with odd separators are not read by halves.
    ("Answer: 1/2", None),
    ("Answer: 12/25", None),
    ("Answer: 1.5/2", None),
    ("Answer: 1,234/5", None),
    ("Answer: 3e2/4", None),
    ("Answer: 01/02/2020", None),
    ("Answer: 12,34", None),
    ("Answer: 1,2345", None),
    ("Answer: 1.2.3", None),
    # The last answer line, and its first number; else the last number.
    ("Answer: 1\nNo.\nAnswer: 2, not 3", 2),
    ("2 + 2 = 4", 4),
    ("70 / 3.0625 = 22.86", 22.86),
    ("5\nAnswer: none", None),
    ("5\nAnswer:", None),
    ("answer: 5", 5),
    ("", None),
    ("no number", None),
    ("- . , e5", None),
]


@pytest.mark.parametrize(("response", "number"), NUMBERS)
def test_a_number_is_read(response: str, number: float | None) -> None:
    assert read_number(response) == number


@pytest.mark.parametrize(
    ("response", "text"),
    [("a\nAnswer: b\nc", "b"), ("Answer: a Answer: b", "b"), (" a\nb ", "a\nb"), ("Answer:  \n", "")],
)
def test_the_answer_is_what_follows_the_last_prefix(response: str, text: str) -> None:
    assert answer_text(response) == text


def answer(kind: AnswerKind, value: str, *limits: float) -> Answer:
    return Answer(kind, value, *limits)


BMI, LOW = answer("decimal", "22.86", 21.717, 24.003), answer("decimal", "-3.5", -3.675, -3.325)
EXACT, SCORE, CHANGE = answer("decimal", "0.1"), answer("integer", "8", 8, 8), answer("integer", "-2")
DAY, AGE = answer("date", "03/05/2014"), answer("weeks_days", "(19 weeks, 1 days)")
FITS = answer("choice", "E")

CASES: list[tuple[Answer, list[str], list[str]]] = [
    (
        BMI,
        ["22.86", "Answer: 21.717", "Answer: 24.003 kg/m^2", "It is 30.\nAnswer: 22"],
        ["21.7169", "24.0031", "-22.86", "Answer: 30\nIt is 22.86", "about right", "", "22.86/1"],
    ),
    (LOW, ["-3.5", "−3.4", "Answer: -3.675"], ["3.5", "-3.3", "-3.7"]),
    (EXACT, ["0.1", ".1", "0.10", "1e-1"], ["0.1001", "0.11", "1"]),
    (SCORE, ["8", "8.0", "Answer: 8 points", "1 + 7 = 8"], ["8.5", "7", "8.001", "eight", "Answer: 1 + 7 = 8"]),
    (CHANGE, ["-2", "−2", "Answer: -2.0"], ["2", "-3", "- two"]),
    (
        DAY,
        ["03/05/2014", "3/5/2014", "Answer: 03/5/2014.", "Due on 3/05/2014"],
        ["05/03/2014", "03/05/14", "03/06/2014", "2014-03-05", "13/45/2014", "2/30/2014", "0/0/0000", "3 May"],
    ),
    (
        AGE,
        ["(19 weeks, 1 days)", "19 weeks and 1 day", "Answer: ('19 weeks', '1 days')", "19 Weeks 1 Day"],
        ["19 weeks", "1 days", "(19 weeks, 2 days)", "(1 weeks, 19 days)", "134 days", "19, 1"],
    ),
    (
        FITS,
        ["E", "(E)", "e.", "Exact", "Answer: exact match", "**E**", "Nothing.\nAnswer: E"],
        ["S", "I", "", "(?)", "5", "Elephant", "The answer is E", "Answer: S\nnot E", "Answer:"],
    ),
    (answer("choice", "s"), ["Substitute", "S"], ["E", "Complement"]),
]


@pytest.mark.parametrize(("wanted", "right", "wrong"), CASES, ids=[f"{c[0].kind} {c[0].value}" for c in CASES])
def test_right_is_told_from_wrong(wanted: Answer, right: list[str], wrong: list[str]) -> None:
    assert [response for response in right if not is_right(response, wanted)] == []
    assert [response for response in wrong if is_right(response, wanted)] == []


@pytest.mark.parametrize("value", ["30/30/2020", "soon"])
def test_a_reference_that_cannot_be_read_makes_nothing_right(value: str) -> None:
    assert not is_right(value, answer("date", value))
    assert not is_right(value, answer("weeks_days", value))
