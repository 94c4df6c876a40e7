"""Does a response hold the right answer?"""

from __future__ import annotations

from datetime import date

from gentletune.data.answers import ENDS, plain, stated
from gentletune.data.example import Answer
from gentletune.evaluation.reading import Read, read_choice, read_stated, read_text


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
    if answer.choices or answer.kind in ("exact", "text"):
        return read == (answer.value if answer.choices else plain(answer.value))
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

    return float(sentence_chrf(stated(response, answer.place).text, [answer.value]).score) / 100


def _read(response: str, answer: Answer) -> Read | None:
    found = stated(response, answer.place)
    if answer.choices:
        return read_choice(found.text, answer.choices, first=found.marked or answer.place == "first_line")
    if answer.kind in ("exact", "text"):
        return read_text(found, of_punctuation=not answer.value.strip(ENDS))
    return read_stated(found, answer.kind, answer.domain)
