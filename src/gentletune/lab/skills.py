"""What a lab base model can do: nine skills, near to the lab domain and far from it, with no prompt in both splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from gentletune.core.errors import UserError, unknown
from gentletune.data.example import ANSWER_PREFIX, Answer, Constraint, Example
from gentletune.lab.words import DIGITS, KNOWN, LETTERS, VARIABLES, Formula, all_formulas, facts

Split = Literal["train", "test"]
TEST_SHARE = 5
"""One drawn prompt in this many, told by its hash, belongs to the test split."""

Asked = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True)
class Skill:
    """One skill: `draw(rng, split)` gives a prompt of that split and its answer.

    `title` says what is asked; `near` whether the lab domain uses it, `trained` whether it trains it, so that the skill
    may gain by it.
    """

    name: str
    title: str
    near: bool
    draw: Callable[[Random, Split], Asked]
    trained: bool = False


def drawn(make: Callable[[Random], Asked]) -> Callable[[Random, Split], Asked]:
    """Prompts made at random, which belong to a split by their hash."""

    def draw(rng: Random, split: Split) -> Asked:
        while True:
            asked = make(rng)
            if split_of(asked[0]) == split:
                return asked

    return draw


def split_of(prompt: str) -> Split:
    """The split a made prompt belongs to, told by its text alone."""
    return "test" if int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % TEST_SHARE == 0 else "train"


def worded(
    items: Callable[[], Sequence[Asked]], wordings: Sequence[str], held: int
) -> Callable[[Random, Split], Asked]:
    """Items to know by heart, each asked in several wordings, of which `held`, drawn for each item, are the test's."""

    @cache
    def of(number: int, split: Split) -> list[str]:
        tested = Random(f"wordings/{number}").sample(wordings, held)
        return tested if split == "test" else [one for one in wordings if one not in tested]

    def draw(rng: Random, split: Split) -> Asked:
        number = rng.randrange(len(items()))
        words, answer = items()[number]
        return rng.choice(of(number, split)).format(*words.split("|")), answer

    return draw


# ------------------------------------------------------------------------------------------ the nine


def _add(rng: Random) -> Asked:
    a, b = rng.randrange(100), rng.randrange(100)
    return rng.choice(("what is {} plus {}", "add {} and {}")).format(a, b), str(a + b)


@cache
def _products() -> list[Asked]:
    return [(f"{a}|{b}", str(a * b)) for a in range(2, 13) for b in range(2, 13)]


_TIMES = (
    *("what is {} times {}", "multiply {} by {}", "{} times {} is what", "find the product of {} and {}"),
    *("say {} times {}", "work out {} by {}", "tell the product of {} and {}", "how many is {} times {}"),
)


def _sort(rng: Random) -> Asked:
    digits = rng.sample(DIGITS, rng.randint(4, 6))
    return f"{rng.choice(('sort', 'put in order'))} {' '.join(digits)}", " ".join(sorted(digits))


def _reverse(rng: Random) -> Asked:
    letters = rng.choices(LETTERS, k=rng.randint(3, 6))
    return f"{rng.choice(('reverse', 'turn'))} {' '.join(letters)}", " ".join(reversed(letters))


def _delete(rng: Random) -> Asked:
    few = rng.sample(LETTERS, 4)
    letters = rng.choices(few, k=rng.randint(4, 6))
    gone = rng.choice(letters)
    kept = [letter for letter in letters if letter != gone]
    if not kept:
        return _delete(rng)
    return f"{rng.choice(('delete', 'take out'))} {gone} from {' '.join(letters)}", " ".join(kept)


def _count(rng: Random) -> Asked:
    few = rng.sample(LETTERS, 4)
    letters = rng.choices(few, k=rng.randint(4, 7))
    wanted = rng.choice(few)
    return f"{rng.choice(('count', 'how many'))} {wanted} in {' '.join(letters)}", str(letters.count(wanted))


def _largest(rng: Random) -> Asked:
    numbers = rng.sample(range(100), rng.randint(3, 4))
    return f"{rng.choice(('largest of', 'which is largest'))} {' '.join(map(str, numbers))}", str(max(numbers))


@cache
def _facts() -> list[Asked]:
    return [(f"{person}|{kind}", value) for person, kind, value in facts()]


_FACTS = ("which {1} has {0}", "tell the {1} of {0}", "what is the {1} of {0}", "say which {1} {0} has")


@cache
def formulas() -> list[Formula]:
    """Every formula, the base model's first."""
    return all_formulas()


def note(rng: Random) -> dict[str, int]:
    """A note: a number from 1 to 9 for each variable."""
    return {name: rng.randint(1, 9) for name in VARIABLES}


def ask(note: dict[str, int], formula: Formula, given: str = "", *, cot: bool = True) -> str:
    """The prompt that asks for a formula on a note."""
    numbers = " ".join(f"{name} {value}" for name, value in note.items())
    return f"note {numbers} . {given}{'explain' if cot else 'only say'} {formula.name}"


def _formula(rng: Random) -> Asked:
    values, formula = note(rng), formulas()[rng.randrange(KNOWN)]
    return ask(values, formula), f"{formula.working(values)} {ANSWER_PREFIX} {formula.value(values)}"


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("lab_add", "two-digit addition", True, drawn(_add), trained=True),
        Skill("lab_times", "the multiplication table", True, worded(_products, _TIMES, 3), trained=True),
        Skill("lab_formulas", "known formulas on a note", True, drawn(_formula)),
        Skill("lab_largest", "the largest number", False, drawn(_largest)),
        Skill("lab_count", "counting a letter", False, drawn(_count)),
        Skill("lab_sort", "sorting digits", False, drawn(_sort)),
        Skill("lab_reverse", "reversing letters", False, drawn(_reverse)),
        Skill("lab_delete", "deleting a letter", False, drawn(_delete)),
        Skill("lab_facts", "memorised facts", False, worded(_facts, _FACTS, 1)),
    )
}


def skill_examples(name: str, n: int, *, seed: int, split: Split = "test") -> list[Example]:
    """The first `n` items of a skill under `seed`, no prompt twice.

    >>> skill_examples("lab_sort", 1, seed=0)[0].prompt.startswith(("sort", "put in order"))
    True

    Raises `UserError` for an unknown skill, and where it has fewer items.
    """
    if name not in SKILLS:
        raise unknown("lab skill", name, SKILLS)
    return list(_examples(name, n, seed, split))


@cache  # every run of a study asks for the same ones, several times
def _examples(name: str, n: int, seed: int, split: Split) -> tuple[Example, ...]:
    found: dict[str, Example] = {}
    rows = skill_rows(name, seed=seed, split=split)
    for _ in range(100 * n):
        if len(found) == n:
            break
        row = next(rows)
        found.setdefault(row.prompt, row)
    if len(found) < n:
        raise UserError(f"{name} has only {len(found)} {split} items; ask for fewer")
    return tuple(found.values())


def skill_rows(name: str, *, seed: int, split: Split) -> Iterator[Example]:
    """Rows of a skill without end, drawn with replacement."""
    rng = Random(f"{name}/{seed}/{split}")
    while True:
        prompt, completion = SKILLS[name].draw(rng, split)
        value = completion.rpartition(f"{ANSWER_PREFIX} ")[2]
        if value.isdigit():
            yield Example(prompt, completion, Answer("integer", value))
        else:
            yield Example(prompt, completion, constraints=(Constraint("repeat", value),))
