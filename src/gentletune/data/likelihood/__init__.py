"""General skill by likelihood: texts of our own that a model should find likelier than their near-misses.

`grammar.txt` and `facts.txt` hold pairs of sentences, a line each with the right wording first (`The keys {are|is} on
the table.`), under headings that name their category; `reading` makes short passages with a question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

from gentletune.data.likelihood.reading import passages

_SEED = 20250920  # the items are the same in every run
_PAIR = re.compile(r"(?P<before>[^{|}]*)\{(?P<right>[^{|}]+)\|(?P<wrong>[^{|}]+)\}(?P<after>[^{|}]*)")


@dataclass(frozen=True)
class ChoiceItem:
    """A text to go on with, and ways to do so, of which `choices[right]` is the right one."""

    context: str
    choices: tuple[str, ...]
    right: int
    category: str


@cache
def _pairs(name: str) -> list[ChoiceItem]:
    """The pairs of a file. What both sentences begin with is context: it is as likely in the one as in the other."""
    items, category = list[ChoiceItem](), ""
    for number, line in enumerate(_lines(name), start=1):
        if line.startswith("# "):
            category = line[2:]
            continue
        found = _PAIR.fullmatch(line)
        if found is None:
            raise ValueError(f"{name}.txt, line {number}: no {{right|wrong}} in '{line}'")
        before, after = found["before"].rstrip(), found["after"] if found["after"] != "." else ""
        space = found["before"][len(before) :]
        right, wrong = (f"{space}{found[key]}{after}" for key in ("right", "wrong"))
        items.append(_item(before, right, [wrong], category, Random(f"{_SEED}/{name}/{number}")))
    return items


def _lines(name: str) -> list[str]:
    return files("gentletune.data.likelihood").joinpath(f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _item(context: str, right: str, wrong: list[str], category: str, rng: Random) -> ChoiceItem:
    """The right one at a place of chance, so that a tie gains nothing."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return ChoiceItem(context, tuple(choices), choices.index(right), category)


@cache
def _reading() -> list[ChoiceItem]:
    items = list[ChoiceItem]()
    for number, one in enumerate(passages(_SEED)):
        context = f"{one.passage}\n\nQuestion: {one.question}\n\nAnswer: {one.lead}".rstrip()
        right, *wrong = (f" {answer}" for answer in (one.answer, *one.others))
        items.append(_item(context, right, wrong, one.category, Random(f"{_SEED}/reading/{number}")))
    return items


LIKELIHOOD_TASKS: Mapping[str, Callable[[], list[ChoiceItem]]] = {
    "grammar": lambda: _pairs("grammar"),
    "facts": lambda: _pairs("facts"),
    "reading": _reading,
}
"""The items of each task by its name, which is also the skill that it asks for."""
