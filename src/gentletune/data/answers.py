"""How answers to the rows of a user's own file are scored: told by the answers themselves, or by the recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, cast

from gentletune.core.errors import UserError
from gentletune.core.recipe import DomainMetric
from gentletune.data.example import Answer, Place

T = TypeVar("T")

CHOICES, NUMBERS, CHOICE_LENGTH, CHOICE_ROWS = 20, 5, 40, 3
"""Answers are choices where there are at most so many distinct ones (numbers: grades), so short, so many rows each."""
LINE_LENGTH = 100
"""Nine answers of ten are at most so long, where they are scored as answers of one line."""
TOLERANCE = 0.01
"""Decimals are right within this share of the value; whole numbers exactly."""

ENDS = " .,:;!?*\"'`()[]"
"""Punctuation that does not count at the ends of an answer."""

_NUMBER = re.compile(
    r"(?P<before>[^\w\s.,+/÷^−–-]{0,2} ?)"
    r"(?P<number>[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?)"
    r"(?P<after> ?(?:(?![xX] ?\d)[^\W\d]|[%°])[^\s,;]{0,11}|)\.?"
)
_CODE = re.compile(r"\D*0\d|(?:[^\d.]*\d){16}(?!.*\.\d)")  # 007, 4012345678901234: names made of digits
_UNITS = 3  # as many ways to write a unit as answers that are numbers may have
# Behind a marker the rest of `**Answer:**` goes, too.
_ANSWER = re.compile(r"\banswer[\"'*_`]{0,4} ?[:：](?:[*_`]{1,3}(?=\s))?|\\boxed ?\{", re.IGNORECASE)
_HASHES = re.compile(r"####")
_MARKS: dict[Place, tuple[re.Pattern[str], ...]] = {"marker": (_ANSWER,), "hashes": (_HASHES, _ANSWER)}
_WHERE: dict[Place, str] = {"marker": "behind 'Answer:' or in \\boxed{}", "hashes": "behind ####"}
_LONGEST_BOX = 4000
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_IN_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_WRAPPED = re.compile(r"(\*{1,3}|`{1,3}|\${1,2}|_)((?:(?!\1).)+)\1(\.?)")


class Stated(NamedTuple):
    """The text that a row or a response states its answer in, and whether a mark says so."""

    text: str
    marked: bool

    @property
    def line(self) -> str:
        """What is stated, or the last line of a text without a mark."""
        return self.text if self.marked or not self.text else _unwrapped(self.text.splitlines()[-1].strip())


@dataclass(frozen=True)
class Scoring:
    """What the answers of a data set are: `metric` is never `auto`, `described` says it in a line for the user."""

    metric: Literal["choice", "numeric", "exact", "text", "loss"]
    described: str
    place: Place = "first_line"
    choices: tuple[str, ...] = ()

    def answer(self, completion: str) -> Answer:
        """The right answer to a row with this completion."""
        value = stated(completion, self.place).text
        if self.metric == "numeric":
            number = _number(value)
            assert number is not None
            slack = 0.0 if number.is_integer() and "." not in value else abs(number) * TOLERANCE
            return Answer("decimal", f"{number:.15g}", number - slack, number + slack, place=self.place)
        if self.metric == "choice":
            mine = next(choice for choice in self.choices if plain(choice) == plain(value))
            return Answer("choice", mine, choices=self.choices, place=self.place)
        return Answer("exact" if self.metric == "exact" else "text", value, place=self.place)


def choose_scoring(answers: Sequence[str | None], wanted: DomainMetric, where: str) -> Scoring:
    """How to score a data set with these answers; None stands for a row that has none, such as a call of a tool.

    Raises:
        UserError: the metric wanted does not go with the answers.

    >>> choose_scoring(["yes", "no", "no", "yes", "no", "no"], "auto", "a.csv").choices
    ('no', 'yes')
    >>> choose_scoring(["Half is 2.\\n#### 2", "It is 1,5.\\n#### 1,500"], "auto", "a.csv").metric
    'numeric'
    """
    lacking = next((at for at, answer in enumerate(answers, 1) if answer is None), None)
    if wanted == "loss" or (wanted == "auto" and lacking):
        why = "" if wanted == "loss" else "not every row ends in an answer of text, so "
        return Scoring("loss", f"{where}: {why}scored by bits per token alone")
    if lacking:
        raise UserError(f"{where}: row {lacking} ends in no answer of text, so domain_metric must be auto or loss")
    known = cast("Sequence[str]", answers)
    place = _place(known)
    stands = f" ({_WHERE[place]})" if place in _WHERE else ""
    values = _Values(known, place)
    metric = _metric(values) if wanted == "auto" else wanted
    if metric == "choice":
        spelt = dict(sorted({(plain(value), value) for value in values}))
        choices, listed = (
            tuple(map(choice_name, spelt.values())),
            ", ".join([*spelt.values()][:6]) + ", …" * (len(spelt) > 6),
        )
        said = f"{len(choices)} choices ({listed}): scored by accuracy, also balanced over the choices"
    elif metric == "numeric":
        choices, said = (), f"numbers: scored by accuracy, decimals within {TOLERANCE:.0%}, whole numbers exactly"
        if odd := next((value for value in values if _number(value) is None), None):
            raise UserError(f"{where}: the answer '{odd[:40]}' is no number, so domain_metric cannot be numeric")
    elif metric == "exact":
        choices, said = (), "one line: scored by accuracy, the same words but for case, spaces and closing punctuation"
    else:
        choices, said, place = (), "longer text: scored by bits per token and by chrF, the characters in common", "all"
    return Scoring(metric, f"{where}: answers{stands} are {said}", place, choices)


def stated(text: str, place: Place) -> Stated:
    r"""The answer that a row's completion, or a response, states.

    Behind the last mark it is the first line that says something, or what the box holds. Without a mark where one
    belongs, it is somewhere in the whole text, the end first.

    >>> stated("3 + 4 = 7\nAnswer: 7", "marker").text, stated("Three.\n#### 3\n", "hashes").text
    ('7', '3')
    >>> stated("So \\boxed{\\frac{1}{2}} is {right}.", "marker").text
    '\\frac{1}{2}'
    """
    if place == "all":
        return Stated(text.strip(), True)  # all of it is the answer
    if place == "first_line":
        text = _first_line(text)
    for mark in _MARKS.get(place, (_ANSWER,)):
        if found := [*mark.finditer(text)]:
            rest = text[found[-1].end() :]
            boxed = found[-1][0].endswith("{")
            said = _unwrapped(_IN_LATEX.sub(r"\1", _braced(rest)).strip() if boxed else _first_line(rest))
            if said or place != "first_line":
                return Stated(said, True)
    return Stated(_unwrapped(text.strip()), False)


def _first_line(text: str) -> str:
    """The first line that says something, else the first that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if line.strip(" \t*_`$[]\\#")), lines[0] if lines else "")
    if line.count("**") % 2:  # the rest of **Answer: 5**
        line = line.removeprefix("**").removesuffix("**").strip() or line
    return line


def _braced(text: str) -> str:
    """What stands in a box from behind its opening brace on: to the brace that closes it, else to the line's end."""
    depth = 1
    for found in _BRACE.finditer(text, 0, _LONGEST_BOX):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[: found.start()]
    return text[:_LONGEST_BOX].partition("\n")[0]


def _unwrapped(text: str) -> str:
    """Text without the bold, code or dollars of a formula that are around all of it."""
    while found := _WRAPPED.fullmatch(text):
        text = found[2].strip() + found[3]
    return text


def plain(text: str) -> str:
    """Small letters, single spaces, no punctuation at the ends unless there is nothing else.

    >>> plain(' "Not  known".'), plain("?!")
    ('not known', '?!')
    """
    text = " ".join(text.lower().split())
    return text.strip(ENDS) or text


def choice_name(value: str) -> str:
    """How a choice is called: plain, but a lone letter, as of A to D, keeps its case, by which it is told from an `a`.

    >>> choice_name("Not  known."), choice_name("(B)")
    ('not known', 'B')
    """
    letter = value.strip().strip(ENDS)
    return letter if len(letter) == 1 and letter.isalpha() else plain(value)


def _place(answers: Sequence[str]) -> Place:
    def marked(place: Place) -> bool:
        mark = _MARKS[place][0]
        return all(mark.search(answer) and stated(answer, place).text for answer in answers)

    return next(
        filter(marked, _MARKS), "first_line" if all("\n" not in answer.strip() for answer in answers) else "all"
    )


class _Values(Collection[str]):
    """What each of the answers states, told anew each time it is asked for: there may be many."""

    def __init__(self, answers: Sequence[str], place: Place) -> None:
        self._answers, self._place = answers, place

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[str]:
        return (stated(answer, self._place).text for answer in self._answers)

    def __contains__(self, value: object) -> bool:
        return any(value == one for one in self)


def _metric(values: Collection[str]) -> Literal["choice", "numeric", "exact", "text"]:
    numeric = all(_number(value) is not None and not _CODE.match(value) for value in values)
    numeric = numeric and len(_first(map(_unit, values), _UNITS + 1)) <= _UNITS
    most = int(min(NUMBERS if numeric else CHOICES, len(values) / CHOICE_ROWS))
    if all(len(value) <= CHOICE_LENGTH for value in values):
        distinct = _first(map(plain, values), most + 1)
        if 2 <= len(distinct) <= most:
            return "choice"
    if numeric:
        return "numeric"
    short = sum(len(value) <= LINE_LENGTH for value in values) >= 0.9 * len(values)
    return "exact" if short and not any("\n" in value for value in values) else "text"


def _first(values: Iterable[T], count: int) -> set[T]:
    """So many different values, or all there are."""
    found = set[T]()
    for value in values:
        found.add(value)
        if len(found) >= count:
            break
    return found


def _unit(value: str) -> tuple[str, str]:
    """What stands around a number."""
    found = _NUMBER.fullmatch(value)
    return (found["before"].strip(), found["after"].strip()) if found else ("", "")


def _number(value: str) -> float | None:
    found = _NUMBER.fullmatch(value)
    number = float(found["number"].replace(",", "").replace("−", "-")) if found else math.inf
    return number if math.isfinite(number) else None
