"""The lab domain: new formulas on notes, with knobs for what makes its tokens hard, noisy or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from random import Random
from typing import Any

from gentletune.core.errors import UserError
from gentletune.data.domains import Domain, register_domain
from gentletune.data.example import ANSWER_PREFIX, Answer, Example
from gentletune.data.general import Use
from gentletune.lab.skills import SKILLS, Split, ask, formulas, note, skill_examples, split_of
from gentletune.lab.words import FILLERS, KNOWN, MULTIPLIERS, VARIABLES, Formula


@dataclass(frozen=True)
class Knobs:
    """What the domain is like.

    Attributes:
        formulas: how many new formulas there are, up to 20.
        hard: share of them that have to be learned by heart, tokens that are hard and learnable. The others stand in
            their notes, so that the score does not hang on the hardest tokens alone.
        noise: share of a completion's words that are drawn at random, which nothing can learn.
        wrong: share of the training rows that are worked out with a wrong formula.
    """

    formulas: int = 20
    hard: float = 0.5
    noise: float = 0.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        most = len(formulas()) - KNOWN
        if isinstance(self.formulas, bool) or not isinstance(self.formulas, int) or not 1 <= self.formulas <= most:
            raise ValueError(f"formulas must be a whole number from 1 to {most}, got {self.formulas!r}")
        for name, high in (("hard", 1.0), ("noise", 0.9), ("wrong", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
                raise ValueError(f"{name} must be a number from 0 to {high:g}, got {value!r}")

    @property
    def label(self) -> str:
        """What the domain is called: `lab`, with the knobs that are not as they come."""
        changed = [f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"lab({', '.join(changed)})" if changed else "lab"

    @property
    def by_heart(self) -> int:
        """How many formulas have to be learned by heart."""
        return round(self.hard * self.formulas)


def lab_domain(**knobs: Any) -> Domain:
    """The domain with these knobs.

    >>> lab_domain(noise=0.3).name
    'lab(noise=0.3)'

    Raises `UserError` for a knob that is not known or a value out of its range.
    """
    if strange := next((name for name in knobs if name not in Knobs.__dataclass_fields__), None):
        raise UserError(f"data: lab has no knob '{strange}'; known: {', '.join(Knobs.__dataclass_fields__)}")
    try:
        chosen = Knobs(**knobs)
    except ValueError as error:
        raise UserError(f"data: lab: {error}") from error
    return Domain(
        chosen.label,
        generate=partial(lab_examples, chosen),
        both_completions=True,
        skills=("arithmetic", *(skill.name for skill in SKILLS.values() if skill.trained)),
        knobs=lab_domain,
        prompts=general_prompts,
    )


def lab_examples(knobs: Knobs, n: int, *, seed: int, cot: bool, split: Split) -> list[Example]:
    """The first `n` rows; row i is the same whatever `n` is, and no prompt is in both splits.

    `category` is `by heart` or `given`.

    >>> [row.category for row in lab_examples(Knobs(hard=0), 2, seed=0, cot=True, split="test")]
    ['given', 'given']
    """
    return [_example(Random(f"lab/{seed}/{split}/{i}"), knobs, cot=cot, split=split) for i in range(n)]


def _example(rng: Random, knobs: Knobs, *, cot: bool, split: Split) -> Example:
    number = rng.randrange(knobs.formulas)
    formula = formulas()[KNOWN + number]
    by_heart = number < knobs.by_heart
    given = "" if by_heart else f"{formula.text} . "
    while True:
        values = note(rng)
        if split_of(ask(values, formula)) == split:
            break
    if split == "train" and rng.random() < knobs.wrong:
        formula = _other(rng, formula)
    value = str(formula.value(values))
    working = [*formula.working(values).split(), ANSWER_PREFIX, value] if cot else [value]
    return Example(
        ask(values, formula, given, cot=cot),
        " ".join(_noisy(rng, working, knobs.noise)),
        Answer("integer", value),
        category="by heart" if by_heart else "given",
    )


def _other(rng: Random, formula: Formula) -> Formula:
    """A formula of the same name that is another one."""
    while True:
        times, plus = rng.sample(VARIABLES, 2)
        other = Formula(formula.name, rng.choice(MULTIPLIERS), times, plus)
        if other != formula:
            return other


def _noisy(rng: Random, words: Sequence[str], share: float) -> list[str]:
    """The words with fillers before any of them but the last, as many as make up the share."""
    found = list(words)
    for _ in range(int(share / (1 - share) * len(words) + rng.random())):
        found.insert(rng.randrange(len(found) - 1) if len(words) > 1 else 0, rng.choice(FILLERS))
    return found


_MEASURED, _USED = 50, 60
"""Prompts of a skill that KL from base may be measured on, and those of either other use."""


def general_prompts(n: int, use: Use = "measure") -> list[str]:
    """`n` prompts of the base model's skills in turns, at most 50 of a skill (60 to replay or to steer by).

    None is of two uses, and none is of the skills' tests.
    """
    columns = [_of_skill(name, -(-n // len(SKILLS)), use) for name in SKILLS]
    return [prompt for prompts in zip(*columns, strict=True) for prompt in prompts][:n]


def _of_skill(name: str, n: int, use: Use) -> list[str]:
    measured = [row.prompt for row in skill_examples(name, _MEASURED, seed=1, split="train")]
    if use == "measure":
        return measured[:n]
    drawn = [row.prompt for row in skill_examples(name, _MEASURED + 2 * _USED, seed=2, split="train")]
    others = [prompt for prompt in drawn if prompt not in set(measured)]
    return (others[:_USED] if use == "replay" else others[_USED : 2 * _USED])[:n]


register_domain(lab_domain())
