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


def _json(text: str, argument: Argument) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    if not isinstance(value, dict) or argument is None:
        return isinstance(value, dict)
    wanted = _text(argument)
    return json.loads(wanted).items() <= value.items() if wanted.startswith("{") else wanted in value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _only(text: str, kind: Argument) -> bool:
    item = {"bullets": BULLET, "numbered": NUMBERED}[_text(kind)]
    return all(item.match(line) for line in text.splitlines() if line.strip())


def _contains(text: str, argument: Argument) -> bool:
    return re.search(rf"(?<!\w){re.escape(_text(argument))}(?!\w)", text, re.IGNORECASE) is not None


def _letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


CHECKERS: dict[str, Checker] = {
    # There is a letter, and no capital; no small one.
    "lowercase": lambda text, _: text.islower(),
    "uppercase": lambda text, _: text.isupper(),
    # Exactly this many lines begin, indented or not, with `- `, `* ` or `• ` and go on; other lines are free.
    "bullets": lambda text, n: len(BULLET.findall(text)) == _count(n),
    # The lines that begin with `N. ` or `N) ` and go on run from 1 to exactly this number.
    "numbered": lambda text, n: [int(i) for i in NUMBERED.findall(text)] == list(range(1, _count(n) + 1)),
    # There is nothing beside the items of such a list, `bullets` or `numbered`.
    "only": _only,
    # The word or phrase stands in it as whole words, in any case.
    "contains": _contains,
    "not_contains": lambda text, words: not _contains(text, words),
    # These exact words, in this case, and no longer word.
    "starts_with": lambda text, words: re.match(rf"{re.escape(_text(words))}(?!\w)", text) is not None,
    "ends_with": lambda text, words: re.search(rf"(?<!\w){re.escape(_text(words))}\Z", text) is not None,
    # Words are split at white space.
    "max_words": lambda text, n: len(text.split()) <= _count(n),
    "min_words": lambda text, n: len(text.split()) >= _count(n),
    "no_commas": lambda text, _: "," not in text,
    # The whole of it, with no fence around, is one strict JSON object; with an argument, one that has this key, or
    # all of this JSON object.
    "json": _json,
    # It is this text, character by character.
    "repeat": lambda text, words: text == _text(words).strip(),
    # One word with a letter in it; punctuation is allowed.
    "one_word": lambda text, _: len(text.split()) == 1 and _letter(text),
    "question": lambda text, _: text.endswith("?") and _letter(text),
}
"""The check of each kind of constraint, on a response that is stripped and not empty."""
