"""Mechanical checks of a response against the constraints that a prompt set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from gentletune.data.example import Constraint

Argument = str | int | None
Checker = Callable[[str, Argument], bool]

BULLET = re.compile(r"(?m)^[ \t]*[-*•] +\S")
NUMBERED = re.compile(r"(?m)^[ \t]*(\d+)[.)] +\S")


def satisfied(response: str, constraints: Sequence[Constraint]) -> bool:
    """Whether `response`, less the white space around it, keeps every one of `constraints`.

    An empty response satisfies nothing, not even no constraints. Raises ValueError for an unknown kind
    or an argument of the wrong sort.

    >>> satisfied("- red\\n- blue", [Constraint("bullets", 2), Constraint("lowercase")])
    True
    """
    for constraint in constraints:
        if constraint.kind not in CHECKERS:
            raise ValueError(f"unknown constraint '{constraint.kind}'. Known: {', '.join(sorted(CHECKERS))}")
    text = response.strip()
    return bool(text) and all(CHECKERS[one.kind](text, one.argument) for one in constraints)


def _count(argument: Argument) -> int:
    if not isinstance(argument, int) or isinstance(argument, bool) or argument < 1:
        raise ValueError(f"this constraint takes a whole number of at least 1, not {argument!r}")
    return argument


def _text(argument: Argument) -> str:
    if not isinstance(argument, str) or not argument.strip():
        raise ValueError(f"this constraint takes a text, not {argument!r}")
    return argument


def _lowercase(text: str, _: Argument) -> bool:
    """There is a letter and no capital."""
    return text.islower()


def _uppercase(text: str, _: Argument) -> bool:
    """There is a letter and no small one."""
    return text.isupper()


def _bullets(text: str, argument: Argument) -> bool:
    """Exactly this many lines begin, indented or not, with `- `, `* ` or `• ` and go on; other lines are free."""
    return len(BULLET.findall(text)) == _count(argument)


def _numbered(text: str, argument: Argument) -> bool:
    """The lines that begin with `N. ` or `N) ` and go on run from 1 to exactly this number."""
    return [int(number) for number in NUMBERED.findall(text)] == list(range(1, _count(argument) + 1))


def _contains(text: str, argument: Argument) -> bool:
    """The word or phrase stands in it as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(_text(argument))}(?!\w)", text, re.IGNORECASE) is not None


def _not_contains(text: str, argument: Argument) -> bool:
    """The word or phrase does not stand in it as whole words, in any case."""
    return not _contains(text, argument)


def _starts_with(text: str, argument: Argument) -> bool:
    """It begins with these exact words, in this case, and the last of them is not the start of a longer one."""
    return re.match(rf"{re.escape(_text(argument))}(?!\w)", text) is not None


def _ends_with(text: str, argument: Argument) -> bool:
    """It ends with this exact text, in this case, and the text's first word is not the end of a longer one."""
    return re.search(rf"(?<!\w){re.escape(_text(argument))}\Z", text) is not None


def _max_words(text: str, argument: Argument) -> bool:
    """At most this many words, split at white space."""
    return len(text.split()) <= _count(argument)


def _min_words(text: str, argument: Argument) -> bool:
    """At least this many words, split at white space."""
    return len(text.split()) >= _count(argument)


def _no_commas(text: str, _: Argument) -> bool:
    """No comma anywhere."""
    return "," not in text


def _json(text: str, argument: Argument) -> bool:
    """The whole of it, with no fence around, is one strict JSON object; with an argument, one that has this key."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return isinstance(value, dict) and (argument is None or _text(argument) in value)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _repeat(text: str, argument: Argument) -> bool:
    """It is this text, character by character."""
    return text == _text(argument).strip()


def _one_word(text: str, _: Argument) -> bool:
    """One word with a letter in it and no white space; punctuation is allowed."""
    return len(text.split()) == 1 and any(character.isalpha() for character in text)


def _question(text: str, _: Argument) -> bool:
    """It ends with a question mark and has a letter before it."""
    return text.endswith("?") and any(character.isalpha() for character in text)


CHECKERS: dict[str, Checker] = {
    "lowercase": _lowercase,
    "uppercase": _uppercase,
    "bullets": _bullets,
    "numbered": _numbered,
    "contains": _contains,
    "not_contains": _not_contains,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "max_words": _max_words,
    "min_words": _min_words,
    "no_commas": _no_commas,
    "json": _json,
    "repeat": _repeat,
    "one_word": _one_word,
    "question": _question,
}
"""The check of each constraint kind, on a response that is stripped and not empty; its docstring is its rule."""
