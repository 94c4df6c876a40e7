"""Does a response hold the right answer?"""

from __future__ import annotations

from datetime import date

from gentletune.data.answers import stated
from gentletune.data.example import Answer
from gentletune.evaluation.reading import Read, answer_text, first_choice, read_answer, read_number

__all__ = ["answer_text", "first_choice", "is_right", "likeness", "read_answer", "read_number", "said"]


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


def likeness(response: str, answer: Answer) -> float:
    """How much a response has in common with an answer of `text`: chrF in [0, 1] (Popović 2015), in any language.

    >>> likeness("Take it with food.", Answer("text", "Take it with food."))
    1.0
    """
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(stated(response, answer.place), [answer.value]).score) / 100


def _read(response: str, answer: Answer) -> Read | None:
    text = response if answer.place == "marker" else stated(response, answer.place)
    if answer.choices:
        return first_choice(answer_text(text), answer.choices)
    return read_answer(text, answer.kind, answer.domain)
