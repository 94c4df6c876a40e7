"""What a response is read as, kind by kind; what cannot be read is wrong."""

from __future__ import annotations

from typing import get_args

import pytest

from gentletune.data.example import Answer, AnswerKind
from gentletune.evaluation.reading import answer_text, read_number
from gentletune.evaluation.scoring import is_right, said

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
    ("Answer: 1.2 mL/min/1.73 m²", 1.2),
    ("1.2 mL/min per 1.73 m^2", 1.2),
    ("55 mL/min/1.73m^{2}", 55),
    ("Answer: CURB-65 score: 3", 3),
    ("CHA2DS2-VASc, FIB-4", None),
    # Fractions, mixed numbers, sums; the last `=` of a sum; a range is read by its first number.
    ("Answer: 3/4", 0.75),
    ("3/4", 0.75),
    ("Answer: 1 1/2", 1.5),
    ("Answer: -1 1/2 mg", -1.5),
    ("Answer: 1,234/5", 246.8),
    ("Answer: 3e2/4", 75),
    ("Answer: (140-87)*48/(1.4*72)", 53 * 48 / (1.4 * 72)),
    ("(140 - 87) × 48 ÷ (1.4 · 72) mL/min", 53 * 48 / (1.4 * 72)),
    ("Answer: 140 - 104 - 24", 12),
    ("Answer: 5 - -3", 8),
    ("Answer: 5 -- 3", 5),
    ("Answer: 2^3 + 2**3", 16),
    ("Answer: -(1 + 2)", -3),
    ("Answer: (1 + 2", 3),
    ("Answer: ((((((((((5))))))))))", 5),
    ("Answer: 7-8", 7),
    ("Answer: 7 – 8 points", 7),
    ("Answer: 22.9 – overweight", 22.9),
    ("Answer: 1.2 × 10^3", 1200),
    ("Answer: 1.2 x 10^-3", 0.0012),
    ("Answer: BMI = 70 / 1.75^2 ≈ 22.9 kg/m^2", 22.9),
    ("Answer: 1 + 7 = 8", 8),
    ("Answer: 22.9 = BMI", 22.9),
    ("Answer: 22.9 (normal = 18.5 to 25)", 22.9),
    ("Answer: 22.9, where 25 = overweight", 22.9),
    ("Answer: (x = 22.9)", 22.9),
    ("Answer: 3 out of 9", 3),
    ("the score is 3 out of a total of 9", 3),
    # No value, or none that a float holds.
    ("Answer: 1/0", None),
    ("Answer: 0^-1", None),
    ("Answer: (-8)^0.5", None),
    ("Answer: 9**9**9**9", None),
    ("Answer: 1e999", None),
    ("Answer: 1e200 * 1e200", None),
    ("Answer: 1" + " + 1" * 200, None),
    ("Answer: " + "(1 + " * 30 + "1" + ")" * 30, None),
    # Markdown, LaTeX, JSON.
    ("**Answer:** 22.9", 22.9),
    ("**Answer: 22.9**", 22.9),
    ("**Answer**: **x = 22.9** kg", 22.9),
    ("**Final answer:**\n\n`22.9`", 22.9),
    ("Answer:\n\\[\nx = 22.9\n\\]", 22.9),
    ("Answer: $\\dfrac{70}{1.75^{2}} \\approx 22.9$", 22.9),
    ("Answer: \\frac{1}{4}", 0.25),
    ("Answer: $1{,}234 \\times 2$", 2468),
    ("Answer: 2**3+4**2", 24),
    ("So \\boxed{22.9 \\text{ kg/m}^{2}}, not 25.", 22.9),
    ("\\boxed{1} or \\boxed{22.9", 22.9),
    ("Answer: \\(\\boxed{\\mathrm{BMI} = 22.9}\\)", 22.9),
    ('{"answer": "22.9 kg"}', 22.9),
    # Dates and numbers with odd separators are not read by halves.
    ("Answer: 01/02/2020", None),
    ("Answer: 2020-01-02", None),
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
    [
        ("a\nAnswer: b\nc", "b"),
        ("Answer: a Answer: b", "b"),
        (" a\nb ", "b"),  # no mark: the end
        ("Answer:  \n", ""),
        ("**Answer:** b", "b"),
        ("Answer:\n\n**b**\nc", "b"),
        ("So \\boxed{\\{1, 2\\}} is it", "\\{1, 2\\}"),
        ("Answer: a\nor \\boxed{\\frac{1}{2}}$ for $x\\in\\{1,2\\}$", "\\frac{1}{2}"),
        ("\\boxed{\\text{yes}}", "yes"),
        ("Answer: >", ">"),
        ("Answers: a, b", "Answers: a, b"),
    ],
)
def test_the_answer_is_what_follows_the_last_prefix(response: str, text: str) -> None:
    assert answer_text(response) == text


def answer(kind: AnswerKind, value: str, *limits: float) -> Answer:
    return Answer(kind, value, *limits, domain="esci" if kind == "choice" else "")


BMI, LOW = answer("decimal", "22.86", 21.717, 24.003), answer("decimal", "-3.5", -3.675, -3.325)
EXACT, SCORE, CHANGE = answer("decimal", "0.1"), answer("integer", "8", 8, 8), answer("integer", "-2")
DAY, AGE = answer("date", "03/05/2014"), answer("weeks_days", "(19 weeks, 1 days)")
FITS = answer("choice", "E")

CASES: list[tuple[Answer, list[str], list[str]]] = [
    (
        BMI,
        ["22.86", "Answer: 21.717", "Answer: 24.003 kg/m^2", "It is 30.\nAnswer: 22"],
        ["21.7169", "24.0031", "-22.86", "Answer: 30\nIt is 22.86", "about right", "", "22.86/2"],
    ),
    (LOW, ["-3.5", "−3.4", "Answer: -3.675"], ["3.5", "-3.3", "-3.7"]),
    (EXACT, ["0.1", ".1", "0.10", "1e-1"], ["0.1001", "0.11", "1"]),
    (
        SCORE,
        ["8", "8.0", "Answer: 8 points", "Answer: 1 + 7 = 8", "Answer: 8/15", "8 / 8", "Answer: 16/2", "8 out of 15"],
        ["8.5", "7", "8.001", "eight", "15/8", "Answer: 7 = 8 - 1", "Answer: 7, 8"],
    ),
    (CHANGE, ["-2", "−2", "Answer: -2.0"], ["2", "-3", "- two"]),
    (
        DAY,
        ["03/05/2014", "3/5/2014", "Answer: 03/5/2014.", "Due on 3/05/2014", "03-05-2014", "2014-03-05"],
        ["05/03/2014", "03/05/14", "03/06/2014", "2014-05-03", "13/45/2014", "2/30/2014", "0/0/0000", "3 May"],
    ),
    (
        DAY,
        ["After 2 weeks from 02/19/2014 it is 3/5/2014.", "Answer: **03/05/2014** (from 02/19/2014)"],
        ["March 5, 2014", "03/05-2014", "Answer: 02/30/2014, or 03/05/2014"],
    ),
    (
        AGE,
        ["(19 weeks, 1 days)", "19 weeks and 1 day", "Answer: ('19 weeks', '1 days')", "19 Weeks 1 Day"],
        ["19 weeks", "1 days", "(19 weeks, 2 days)", "(1 weeks, 19 days)", "134 days", "19.1", "19/1", "19.1 weeks"],
    ),
    (
        AGE,
        [
            "19, 1",
            "Answer: (19, 1)",
            "19w1d",
            "Answer: 19 wks, 1 d",
            "Not 20 weeks 1 day but 19 weeks 1 day (134 days)",
        ],
        ["20 weeks, 1 day", "191", "Answer: 20 weeks 1 day, not 19 weeks 1 day"],
    ),
    (answer("weeks_days", "(37 weeks, 0 days)"), ["37 weeks.", "Answer: 37 weeks"], ["37", "37 days", "3, 7"]),
    (answer("weeks_days", "(0 weeks, 6 days)"), ["It is 6 days.", "(0, 6)"], ["6", "6 weeks"]),
    (
        FITS,
        [
            "E",
            "(E)",
            "e.",
            "Exact",
            "Answer: exact match",
            "**E**",
            "Nothing.\nAnswer: E",
            "'E'",
            "\\boxed{E}",
            "E, exact",
        ],
        ["S", "I", "", "(?)", "5", "Elephant", "Answer: S\nnot E", "Answer:", "i", "Essential", "exactly"],
    ),
    (
        FITS,
        ["The answer is E", "Answer: The answer is (E).", "E - exact match", "E-exact", "E because it fits"],
        ["E-cigarette", "E bike", "E's", "Answer: E's", "It is an E bike"],
    ),
    (
        FITS,
        ["I think E", "I'd say it is exact.", "Answer: I think it is E", "An AI: I choose E.", "Answer: E\nI hope so"],
        [
            "I think so",
            "I'm sure",
            "Answer: I as a buyer would not",
            "Answer: not E",
            "not exact",
            "It is no exact match",
        ],
    ),
    (
        FITS,
        [
            "Answer: E, not S",
            "Answer: E rather than S",
            "E - exact match, no substitute",
            "It isn't a substitute, so E.",
        ],
        ["Answer: This is not an exact match.", "Answer: neither exact nor substitute", "Answer: S instead of E"],
    ),
    (
        FITS,
        [
            "Vitamin C serum is exact",
            "A USB-C cable, an S hook: exact",
            "Answer: E it fits the query",
            "E.\nIt has no C",
        ],
        [
            "E or S",
            "E/S",
            "Answer: E, S",
            "Answer: E (exact) or S (substitute)",
            "It is S or E",
            "E exact | C",
            "I or E",
        ],
    ),
    (FITS, ["I would not say S.\nE"], ["E (exact match), S (substitute), C (complement) or I (irrelevant)"]),
    (
        answer("choice", "I"),
        ["I", "i", "I.", "Answer: I", "(I)", "I - irrelevant", "It is I."],
        ["I think", "I'm not sure"],
    ),
    (answer("choice", "s"), ["Substitute", "S", "A substitute", "not exact but a substitute"], ["E", "Complement"]),
    (answer("choice", "C"), ["a complement", "Complementary", "C"], ["C-clamp", "Vitamin C serum"]),
]


@pytest.mark.parametrize(("wanted", "right", "wrong"), CASES, ids=[f"{c[0].kind} {c[0].value}" for c in CASES])
def test_right_is_told_from_wrong(wanted: Answer, right: list[str], wrong: list[str]) -> None:
    assert [response for response in right if not is_right(response, wanted)] == []
    assert [response for response in wrong if is_right(response, wanted)] == []


@pytest.mark.parametrize("value", ["30/30/2020", "soon"])
def test_a_reference_that_cannot_be_read_makes_nothing_right(value: str) -> None:
    assert not is_right(value, answer("date", value))
    assert not is_right(value, answer("weeks_days", value))


UNREADABLE = {
    "decimal": ["", "Answer:", "Answer: none", "about right", "01/02/2020"],
    "integer": ["", "eight", "Answer: 1/0"],
    "date": ["", "soon", "March 5, 2014", "13/45/2014", "5"],
    "weeks_days": ["", "soon", "26.4 weeks", "5"],
    "choice": ["", "A", "I think so", "E or S", "not exact"],
    "exact": ["", "\n .", "Answer:"],
    "text": ["", " \n", "..."],
}


@pytest.mark.parametrize("kind", get_args(AnswerKind))
def test_what_cannot_be_read_is_told_from_what_is_wrong(kind: AnswerKind) -> None:
    values = {"decimal": "5", "integer": "5", "date": "03/05/2014", "weeks_days": "(1 weeks, 2 days)", "choice": "C"}
    values |= {"exact": "new york", "text": "take it with food"}
    other = {"decimal": "6", "integer": "6", "date": "3/6/2014", "weeks_days": "1 week", "choice": "Exact"}
    other |= {"exact": "York", "text": "do not"}
    wanted = answer(kind, values[kind])
    for response in UNREADABLE[kind]:
        assert said(response, wanted) is None
        assert not is_right(response, wanted)
        assert said(response, wanted) is None
    assert said(values[kind], wanted) == values[kind]
    assert said(other[kind], wanted) is not None
    assert not is_right(other[kind], wanted)
    assert said(other[kind], wanted) != values[kind]
