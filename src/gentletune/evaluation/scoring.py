"""Does a response hold the right answer?"""

from __future__ import annotations

from datetime import date

from gentletune.data.example import Answer
from gentletune.evaluation.reading import Read, answer_text, read_answer, read_number

__all__ = ["answer_text", "is_readable", "is_right", "read_answer", "read_number", "said"]


def is_right(response: str, answer: Answer) -> bool:
    """Whether the response gives the answer; a response that cannot be read is wrong.

    Decimals are right within [lower, upper] (exactly the value where there are no limits); integers, dates
    (month/day/year), weeks-and-days and choices must match exactly.

    >>> is_right("Answer: 22.9", Answer("decimal", "22.86", 21.7, 24.0))
    True
    """
    read = _read(response, answer)
    if read is None:
        return False
    if isinstance(read, float):
        if answer.kind == "decimal" and answer.lower is not None and answer.upper is not None:
            return answer.lower <= read <= answer.upper
        return abs(read - float(answer.value)) < 1e-9
    return read == _read(answer.value, answer)


def is_readable(response: str, answer: Answer) -> bool:
    """Whether an answer of the kind asked for can be read at all."""
    return _read(response, answer) is not None


def said(response: str, answer: Answer) -> str | None:
    """What the response answers, in one spelling for each kind; None where it cannot be read.

    >>> said("Answer: 3/5/2014.", Answer("date", "03/05/2014"))
    '03/05/2014'
    """
    read = _read(response, answer)
    if isinstance(read, float):
        return f"{read:.12g}"
    if isinstance(read, date):
        return f"{read.month:02}/{read.day:02}/{read.year:04}"
    return f"({read[0]} weeks, {read[1]} days)" if isinstance(read, tuple) else read


def _read(response: str, answer: Answer) -> Read | None:
    return read_answer(response, answer.kind, answer.domain)
