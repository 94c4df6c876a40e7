"""Does a response hold the right answer? Exact reading of numbers, dates and choices."""

from __future__ import annotations

import re
from datetime import date

from gentletune.data.example import ANSWER_PREFIX, Answer

# A number that is not part of a word, a power (m^2), a fraction or a longer number; thousands separators allowed.
_NUMBER = re.compile(
    r"(?<![\w^.,/])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?![\d/]|[.,]\d|[eE][-+]?\d)"
)
_DATE = re.compile(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b")
_WEEKS_DAYS = re.compile(r"(\d+)\s*weeks?\D{1,12}(\d+)\s*days?", re.IGNORECASE)


def answer_text(response: str) -> str:
    """What follows the last `Answer:`, up to the end of its line; the whole response where there is none.

    >>> answer_text("2 + 2 = 4.\\nAnswer: 4")
    '4'
    """
    _, found, after = response.rpartition(ANSWER_PREFIX)
    return after.strip().split("\n", 1)[0].strip() if found else response.strip()


def read_number(response: str) -> float | None:
    """The number answered: the first after the last `Answer:`, else the last in the response; None if none.

    >>> read_number("BMI = 70 / 3.0625 = 22.86 kg/m^2"), read_number("Answer: 1,234 mL")
    (22.86, 1234.0)
    """
    found = _NUMBER.findall(answer_text(response))
    if not found:
        return None
    text = found[0] if ANSWER_PREFIX in response else found[-1]
    return float(text.replace(",", "").replace("−", "-"))


def is_right(response: str, answer: Answer) -> bool:
    """Whether the response gives the answer; a response that cannot be read is wrong.

    Decimals are right within [lower, upper] (exactly the value where there are no limits); integers, dates
    (month/day/year), weeks-and-days and choices must match exactly.

    >>> is_right("Answer: 22.9", Answer("decimal", "22.86", 21.7, 24.0))
    True
    """
    if answer.kind in ("decimal", "integer"):
        number = read_number(response)
        if number is None:
            return False
        if answer.kind == "decimal" and answer.lower is not None and answer.upper is not None:
            return answer.lower <= number <= answer.upper
        return abs(number - float(answer.value)) < 1e-9
    text = answer_text(response)
    if answer.kind == "choice":
        return _choice(text) == answer.value.upper()
    read = _read_date if answer.kind == "date" else _read_weeks_days
    wanted = read(answer.value)
    return wanted is not None and read(text) == wanted


def _choice(text: str) -> str:
    """The first word, without punctuation: `E`, `(E)` and `e.` are E; so is `Exact`, by its first letter."""
    word = re.search(r"[A-Za-z]+", text)
    if word is None:
        return ""
    known = {"EXACT": "E", "SUBSTITUTE": "S", "COMPLEMENT": "C", "IRRELEVANT": "I"}
    return known.get(word[0].upper(), word[0].upper())


def _read_date(text: str) -> date | None:
    found = _DATE.search(text)
    if found is None:
        return None
    month, day, year = map(int, found.groups())
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _read_weeks_days(text: str) -> tuple[int, int] | None:
    found = _WEEKS_DAYS.search(text)
    return (int(found[1]), int(found[2])) if found else None
