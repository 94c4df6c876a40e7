"""How answers to the rows of a user's own file are scored: told by the answers themselves, or by the recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gentletune.core.errors import UserError
from gentletune.core.recipe import DomainMetric
from gentletune.data.example import Answer, Place

CHOICES, NUMBERS, CHOICE_LENGTH, CHOICE_ROWS = 20, 5, 40, 3
"""Answers are choices where there are at most so many distinct ones (numbers: grades), so short, so many rows each."""
LINE_LENGTH = 100
"""Nine answers of ten are at most so long, where they are scored as answers of one line."""
TOLERANCE = 0.01
"""Decimals are right within this share of the value; whole numbers exactly."""

_NUMBER = re.compile(
    r"(?P<before>[^\w\s.+-]{0,2} ?)(?P<number>[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?)"
    r"(?P<after> ?(?:[^\W\d]|[%°])[^\s,;]{0,11}|)\.?"
)
_UNITS = 3  # as many ways to write a unit as answers that are numbers may have
_MARKS: dict[Place, re.Pattern[str]] = {
    "marker": re.compile(r"\banswer[\"'*_`]{0,4} ?[:：]|\\boxed\{", re.IGNORECASE),
    "hashes": re.compile(r"####"),
}
_WHERE: dict[Place, str] = {"marker": "behind 'Answer:' or in \\boxed{}", "hashes": "behind ####"}


@dataclass(frozen=True)
class Scoring:
    """What the answers of a data set are: `metric` is never `auto`, `described` says it in a line for the user."""

    metric: Literal["choice", "numeric", "exact", "text", "loss"]
    described: str
    place: Place = "first_line"
    choices: tuple[str, ...] = ()

    def answer(self, completion: str) -> Answer:
        """The right answer to a row with this completion."""
        value = stated(completion, self.place)
        if self.metric == "numeric":
            number = _number(value)
            assert number is not None
            slack = 0.0 if number.is_integer() and "." not in value else abs(number) * TOLERANCE
            return Answer("decimal", f"{number:.15g}", number - slack, number + slack, place=self.place)
        if self.metric == "choice":
            return Answer("choice", plain(value), choices=self.choices, place=self.place)
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
    known = [answer for answer in answers if answer is not None]
    if wanted == "loss" or (wanted == "auto" and len(known) < len(answers)):
        why = "" if wanted == "loss" else "not every row ends in an answer of text, so "
        return Scoring("loss", f"{where}: {why}scored by bits per token alone")
    if len(known) < len(answers):
        at = next(i for i, answer in enumerate(answers, 1) if answer is None)
        raise UserError(f"{where}: row {at} ends in no answer of text, so domain_metric must be auto or loss")
    place = _place(known)
    stands = f" ({_WHERE[place]})" if place in _WHERE else ""
    values = [stated(answer, place) for answer in known]
    metric = _metric(values) if wanted == "auto" else wanted
    if metric == "choice":
        spelt = dict(sorted((plain(value), value) for value in values))
        choices, listed = tuple(spelt), ", ".join([*spelt.values()][:6]) + ", …" * (len(spelt) > 6)
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


def stated(completion: str, place: Place) -> str:
    """The answer that a completion states.

    >>> stated("3 + 4 = 7\\nAnswer: 7", "marker"), stated("Three.\\n#### 3\\n", "hashes")
    ('7', '3')
    """
    if place == "all":
        return completion.strip()
    marks = list(_MARKS[place].finditer(completion)) if place in _MARKS else []
    text = completion[marks[-1].end() :] if marks else completion
    line = next((line for line in text.splitlines() if line.strip(" *_`$")), "").strip()
    if marks and marks[-1][0].endswith("{"):
        return line.rpartition("}")[0] or line
    return line.strip("*_`$ ") if marks else line


def plain(text: str) -> str:
    """Small letters, single spaces, no punctuation at the ends.

    >>> plain(' "Not  known".')
    'not known'
    """
    return " ".join(text.lower().split()).strip(" .,:;!?*\"'`()[]")


def _place(answers: Sequence[str]) -> Place:
    marked = (place for place, mark in _MARKS.items() if all(mark.search(answer) for answer in answers))
    return next(marked, "first_line" if all("\n" not in answer.strip() for answer in answers) else "all")


def _metric(values: Sequence[str]) -> Literal["choice", "numeric", "exact", "text"]:
    distinct = {plain(value) for value in values} if max(map(len, values)) <= CHOICE_LENGTH else set()
    numbers = [_NUMBER.fullmatch(value) for value in values]
    numeric = all(numbers) and len({(n["before"].strip(), n["after"].strip()) for n in numbers if n}) <= _UNITS
    most = min(NUMBERS if numeric else CHOICES, len(values) / CHOICE_ROWS)
    if 2 <= len(distinct) <= most:
        return "choice"
    if numeric:
        return "numeric"
    short = sum(len(value) <= LINE_LENGTH for value in values) >= 0.9 * len(values)
    return "exact" if short and not any("\n" in value for value in values) else "text"


def _number(value: str) -> float | None:
    found = _NUMBER.fullmatch(value)
    return float(found["number"].replace(",", "").replace("−", "-")) if found else None
