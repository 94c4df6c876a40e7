"""Whatever is written in a supported way reads back, and no text breaks or stops the reader."""

from __future__ import annotations

from datetime import date
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.data.example import Answer, AnswerKind
from gentletune.evaluation.reading import answer_text, read_answer, read_number
from gentletune.evaluation.scoring import is_right, said

STYLES = [
    "{}",
    "**{}**",
    "$\\boxed{{{}}}$",
    "`{}`",
    "{}.",
    "({})",
    "{} kg/m^2",
    "{} mL/min/1.73 m²",
    "{}%",
    "x = {} mg",
]
numbers = st.decimals(min_value="-1e9", max_value="1e9", places=3).map(float)


@given(numbers, st.sampled_from(["{:.3f}", "{:,.3f}", "{:+.3f}", "{:.15e}"]), st.sampled_from(STYLES))
def test_a_number_written_in_any_way_reads_back(number: float, digits: str, style: str) -> None:
    written = style.format(digits.format(number))
    for text in (written, written.replace("-", "−")):
        assert read_number(f"Since 1 + 1 = 2:\nAnswer: {text}\n3") == pytest.approx(number, abs=1e-9)
        assert read_number(text) == pytest.approx(number, abs=1e-9)


@given(st.integers(0, 999), st.integers(1, 999), st.integers(2, 999), st.booleans())
def test_a_fraction_reads_back(whole: int, top: int, bottom: int, negative: bool) -> None:
    sign = "-" if negative else ""
    value = -top / bottom if negative else top / bottom
    assert read_number(f"Answer: {sign}{top}/{bottom}") == pytest.approx(value)
    assert read_number(f"Answer: {sign}\\frac{{{top}}}{{{bottom}}}") == pytest.approx(value)
    if top < bottom:
        mixed = -(whole + top / bottom) if negative else whole + top / bottom
        assert read_number(f"Answer: {sign}{whole} {top}/{bottom} mg") == pytest.approx(mixed)


Sum = tuple[str, float]


def joined(pair: tuple[Sum, Sum], sign: str) -> Sum:
    (a, x), (b, y) = pair
    return f"({a} {sign} {b})", {"+": x + y, "-": x - y, "*": x * y}[sign]


leaves = st.integers(0, 99).map(lambda n: (str(n), float(n))) | st.integers(1, 99).map(lambda n: (f"(-{n})", float(-n)))
sums = st.recursive(leaves, lambda s: st.builds(joined, st.tuples(s, s), st.sampled_from("+-*")), max_leaves=12)


@given(sums)
def test_a_sum_is_worked_out(written: Sum) -> None:
    text, value = written
    assert read_number(f"Answer: {text}") == pytest.approx(value)
    assert read_number(f"Answer: {text.replace(' ', '')} points") == pytest.approx(value)


@given(st.dates(min_value=date(1000, 1, 1)))
def test_a_date_reads_back(day: date) -> None:
    written = [day.strftime("%m/%d/%Y"), f"{day.month}/{day.day}/{day.year}", day.isoformat(), day.strftime("%m-%d-%Y")]
    for text in written:
        assert read_answer(f"From 01/02/2003.\nAnswer: {text}.", "date") == day
        assert read_answer(f"It is 280 days after 01/02/2003, so **{text}**", "date") == day


@given(st.integers(0, 45), st.integers(0, 6))
def test_an_age_reads_back(weeks: int, days: int) -> None:
    for text in ("({} weeks, {} days)", "{} weeks and {} days", "('{} weeks', '{} days')", "({}, {})", "{}w{}d"):
        assert read_answer(f"Answer: {text.format(weeks, days)}", "weeks_days") == (weeks, days)


ODD = st.text(alphabet="0123456789.,/-+*^()=eE ESCIxX\n\\{}$%'\"−×²½٣", max_size=60)


@given(
    st.text() | ODD | ODD.map("Answer: {}".format) | ODD.map("\\boxed{{{}".format),
    st.sampled_from(get_args(AnswerKind)),
)
def test_no_text_breaks_the_reader(text: str, kind: AnswerKind) -> None:
    wanted = Answer(kind, "5" if kind in ("decimal", "integer") else "E", domain="esci")
    assert (read_answer(text, kind, "esci") is not None) == (said(text, wanted) is not None)
    is_right(text, wanted)
    answer_text(text)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "(",
            "5+",
            "(5+",
            "-(",
            "1,111",
            "9",
            "1 1/",
            "1**",
            "=",
            "10^",
            "5 out of ",
            "12 weeks ",
            "3/5/2021",
            " ",
            "\n",
        ),
        *("answer:", "\\boxed{", "\\frac{", "**a ", "I ", "E or ", "not "),
    ],
)
def test_no_long_text_stops_the_reader(piece: str) -> None:
    for text in (piece * (100_000 // len(piece)), "Answer: " + piece * (100_000 // len(piece))):
        for kind in get_args(AnswerKind):
            read_answer(text, kind, "esci")


def test_only_the_end_of_a_response_and_the_start_of_an_answer_line_are_searched() -> None:
    """What bounds the time: the searched text has at most 4000 characters."""
    assert read_answer("5" + " " * 9000, "decimal") == 5
    assert read_answer("5" + " x" * 2500, "decimal") is None
    assert read_answer("Answer: 5" + " 6" * 9000, "decimal") == 5
    assert read_answer("Answer:" + " x" * 2500 + "5", "decimal") is None
