"""The lab's world: its words, its people and its formulas. It is the same for every base model, whatever its seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from random import Random

PAD, UNKNOWN, USER, ASSISTANT, END = SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = tuple("0123456789")
LETTERS = tuple("bcdfghjklmnv")
VARIABLES = tuple("pqrs")
FRAME = _words(
    "Answer: . a add and are by count delete does each explain find from give has how in is it just "
    "largest many multiply note number of only order out plus product put reply reverse say sort take "
    "tell the this times to turn what where which with work"
)
FIRST = _words(
    "ada ben carla david elif farid grace hugo ines jonas kofi lena marco nadia oscar priya rosa samir tara yuki"
)
FAMILY = _words("berg costa dubois ivanov tanaka")
KINDS = {
    "city": _words("accra bergen cairo delhi essen fukuoka geneva hanoi izmir jakarta kyiv lima"),
    "job": _words("baker cook dentist farmer guide lawyer miner nurse pilot singer tailor welder"),
    "animal": _words("badger camel eagle ferret goat heron lizard moose otter panda rabbit swan"),
    "fruit": _words("apple banana cherry date fig grape kiwi lemon mango orange peach plum"),
}
_BEGINNINGS, _ENDINGS = _words("bal cor dun fel gri hos jan kel lom mir nor pel"), _words("ax eth ium ora is")
NAMES = tuple(a + b for a, b in product(_BEGINNINGS, _ENDINGS))
FILLERS = _words("alas hence indeed maybe mind now quite really rather so then thus truly well yes yet")
KNOWN, NEW = 40, 20
"""How many formulas a base model learns, and how many the domain adds."""

MULTIPLIERS = tuple(range(2, 10))


def vocabulary() -> list[str]:
    """Every token, in the order of its number: numbers are digits, those behind the first written `##7`.

    >>> len(vocabulary()) == len(set(vocabulary()))
    True
    """
    values = [word for words in KINDS.values() for word in words]
    digits = [*DIGITS, *(f"##{digit}" for digit in DIGITS)]
    names = [*FIRST, *FAMILY, *KINDS, *values, *NAMES, *FILLERS]
    return [*SPECIAL, *digits, *LETTERS, *VARIABLES, *FRAME, *names]


@dataclass(frozen=True)
class Formula:
    """`name` is `multiplier` times one variable of a note plus another."""

    name: str
    multiplier: int
    times: str
    plus: str

    @property
    def text(self) -> str:
        """The formula in words.

        >>> Formula("balax", 3, "q", "s").text
        'balax is 3 q plus s'
        """
        return f"{self.name} is {self.multiplier} {self.times} plus {self.plus}"

    def value(self, note: dict[str, int]) -> int:
        """What it is on a note."""
        return self.multiplier * note[self.times] + note[self.plus]

    def working(self, note: dict[str, int]) -> str:
        """The chain of thought that leads to the value, without its last line."""
        times, plus = note[self.times], note[self.plus]
        part = self.multiplier * times
        found = f"{self.times} {times} {self.plus} {plus}"
        return (
            f"{self.text} . {found} . {self.multiplier} times {times} is {part} . {part} plus {plus} is {part + plus} ."
        )


def all_formulas() -> list[Formula]:
    """All formulas, no two alike; the first `KNOWN` are the base model's."""
    rng = Random("formulas")
    kinds = [(k, v, w) for k in MULTIPLIERS for v in VARIABLES for w in VARIABLES if v != w]
    names = rng.sample(NAMES, KNOWN + NEW)
    return [Formula(name, *kind) for name, kind in zip(names, rng.sample(kinds, KNOWN + NEW), strict=True)]


def facts() -> list[tuple[str, str, str]]:
    """Every person's city, job, animal and fruit: (person, kind, value)."""
    rng = Random("facts")
    people = [f"{first} {family}" for first in FIRST for family in FAMILY]
    return [(person, kind, rng.choice(words)) for person in people for kind, words in KINDS.items()]
