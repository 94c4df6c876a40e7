"""Classes of label tokens, by rules on the text and what stands around them. The rules are ours (docs/inspect.md)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gentletune.data.example import ANSWER_PREFIX

CLASSES = ("first", "number", "unit", "name", "word", "punctuation", "special")
"""`first` is the first token of an answer; `punctuation` is also what is neither letter nor digit, and space."""

_FIRST, _NUMBER, _UNIT, _NAME, _WORD, _PUNCTUATION, _SPECIAL = range(len(CLASSES))

_ALWAYS = """
    kg mg mcg µg μg ng pg dL dl mL ml µL μL fL mmol µmol μmol nmol pmol mol mEq meq mOsm mmHg cmH2O kPa kcal kJ cm mm km
    nm bpm IU Hz kHz °C °F ° ms lb lbs oz ft % ‰ percent
    year years month months week weeks day days hour hours minute minutes inch inches pound pounds ounce ounces
    gram grams kilogram kilograms milligram milligrams microgram micrograms
    meter meters metre metres centimeter centimeters centimetre centimetres millimeter millimeters
    liter liters litre litres deciliter deciliters milliliter milliliters
"""
# These also mean something else: a unit only behind a number, or beside another unit.
_BEHIND_NUMBER = """
    g m L l s h d U K N J V W C F in min mins hr hrs yr yrs sec secs second seconds feet foot mo wk
"""


def _either(words: str) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True)) + ")"


_LETTER = r"[^\W\d_]"
_POWER = r"(?:\^?-?[23]|[²³])?"
_ANY = _either(_ALWAYS + _BEHIND_NUMBER)
_SCANNER = re.compile(
    r"(?P<number>\d+(?:[.,:/]\d+)*(?:[eE][+-]?\d+)?)"
    rf"|(?P<unit>(?<!{_LETTER})(?:{_either(_ALWAYS)}|(?:(?<=\d)|(?<=\d[ \u00a0-])){_either(_BEHIND_NUMBER)}"
    rf"|{_either(_BEHIND_NUMBER)}(?=[/·]{_ANY})){_POWER}(?:[/·]{_ANY}{_POWER})*(?![^\W_]))"
    rf"|(?P<word>{_LETTER}[^\W_]*(?:['’]{_LETTER}+)*)"
    r"|(?P<space>\s+)|(?P<other>.)"
)
_ANSWER_LINE = re.compile(rf"^{re.escape(ANSWER_PREFIX)}", re.MULTILINE)


def classify(pieces: Sequence[str], special: Sequence[bool], *, answer: bool = True) -> list[int]:
    """The class of each token of one answer, as an index into `CLASSES`.

    Args:
        pieces: the text each token adds.
        special: whether it is a special token, such as the end of the turn.
        answer: whether the text answers something; of a plain text no token is `first`.

    A token has the class of the word or number that its first character other than space is in. The first
    such token is `first`, and so is the first one behind the last line that begins with `Answer:`.

    >>> names = classify(["BMI", " is", " 2", "7.1", " kg", "/m", "²", "<end>"], [False] * 7 + [True])
    >>> [CLASSES[i] for i in names]
    ['first', 'word', 'number', 'number', 'unit', 'unit', 'unit', 'special']
    """
    shown = ["\n" if mark else piece for piece, mark in zip(pieces, special, strict=True)]
    text = "".join(shown)
    kinds = _kinds(text)
    found: list[int] = []
    seen: list[int | None] = []  # where each token's first character other than space is
    start = 0
    for piece, mark in zip(shown, special, strict=True):
        place = start + len(piece) - len(piece.lstrip())
        blank = not piece.strip()
        if not piece and not mark:  # part of a character that a later token completes
            place, blank = start, start >= len(text) or text[start].isspace()
        found.append(_SPECIAL if mark else _PUNCTUATION if blank else kinds[place])
        seen.append(None if mark or blank else place)
        start += len(piece)
    if answer:
        lines = list(_ANSWER_LINE.finditer(text))
        for begin in [0, *(line.end() for line in lines[-1:])]:
            first = next((i for i, place in enumerate(seen) if place is not None and place >= begin), None)
            if first is not None:
                found[first] = _FIRST
    return found


def _kinds(text: str) -> list[int]:
    """The class of each character, as an index into `CLASSES`."""
    kinds: list[int] = []
    begins = True  # a sentence
    for match in _SCANNER.finditer(text):
        group, piece = match.lastgroup, match[0]
        kind = {"number": _NUMBER, "unit": _UNIT, "word": _WORD}.get(group or "", _PUNCTUATION)
        if group == "word" and piece[0].isupper() and piece != "I" and not begins:
            kind = _NAME
        if group in ("number", "unit", "word"):
            begins = False
        elif "\n" in piece or piece in ".!?":
            begins = True
        kinds += [kind] * len(piece)
    return kinds
