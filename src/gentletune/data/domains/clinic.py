"""The clinic domain: short made-up patient notes, each with one clinical formula to work out.

A stand-in for calculator benchmarks on real notes: made from a seed, without limit, with no one's data in it.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from random import Random
from typing import Literal

from gentletune.core.errors import unknown
from gentletune.data.domains import Domain, register_domain
from gentletune.data.domains.clinic_formulas import FORMULAS, Case, Fact, Formula, Patient
from gentletune.data.example import ANSWER_PREFIX, Answer, Example

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TEST_SHARE = 5
"""One note in this many, told by its hash, belongs to the test split."""

TOLERANCE = Decimal("0.05")
"""Decimal answers are right within this share of the value."""

COT_INSTRUCTION = f'Explain briefly, then end with a line "{ANSWER_PREFIX} number".'
LABEL_INSTRUCTION = "Reply with the number only."

COMPLAINTS = (
    "knee pain", "a dry cough", "headache", "tiredness", "back pain", "a sore throat", "dizziness", "nausea",
    "abdominal pain", "a skin rash", "fever", "poor appetite", "a twisted ankle", "poor sleep", "ear pain",
    "leg cramps", "hay fever", "a routine check", "shoulder pain", "a burning feeling on passing urine",
)  # fmt: skip
ADULT_EXTRAS = (
    "Takes no regular medicines.", "Sings in a choir.", "Lives alone.", "Walks to work daily.",
    "Keeps a vegetable garden.", "Drinks two coffees a day.", "Likes to cook.", "Had the appendix removed years ago.",
)  # fmt: skip
CHILD_EXTRAS = (
    "Attends the local school.", "Vaccinations are complete.", "Came with a parent.", "Plays outside daily.",
)  # fmt: skip
ANY_EXTRAS = ("No known allergies.", "No recent travel.", "Slept poorly last night.", "Eats a mixed diet.")
OPENINGS = (
    "{A} {age}-year-old {noun} presents with {complaint}.", "Clinic note: {age}-year-old {noun} with {complaint}.",
    "{Noun}, {age} years old, seen today for {complaint}.",
    "{A} {age}-year-old {noun} came in because of {complaint}.",
    "Patient: {noun}, {age} years. Reason for visit: {complaint}.",
)  # fmt: skip
QUESTIONS = (
    "What is the {thing}{unit}?", "Calculate the {thing}{unit}.", "Work out the {thing}{unit} for this patient.",
    "Using the note, find the {thing}{unit}.", "Please give the {thing}{unit}.",
)  # fmt: skip
ROUNDING = ("Give a whole number.", "Round to one decimal place.", "Round to two decimal places.")


def clinic_examples(n: int, *, seed: int, cot: bool, split: Split) -> list[Example]:
    """The first `n` rows of the clinic domain under `seed`; row i is the same whatever `n` is.

    With `cot` a completion explains and ends with a line `Answer: VALUE`; without, it is the value alone,
    for the same notes. No note is in both splits. `group` is the note's id and `category` the formula's name.
    Raises UserError for an unknown split.

    >>> row = clinic_examples(1, seed=0, cot=False, split="train")[0]
    >>> row.answer is not None and row.completion == row.answer.value
    True
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return [_example(f"{seed}/{split}/{index}", cot=cot, split=split) for index in range(n)]


def limits(value: Decimal) -> tuple[float, float]:
    """The lowest and highest number that counts as right for a decimal answer, also below zero.

    >>> limits(Decimal("-10"))
    (-10.5, -9.5)
    """
    slack = abs(value) * TOLERANCE
    return float(value - slack), float(value + slack)


def split_of(note: str) -> Split:
    """The split a note belongs to, told by its text alone."""
    return "test" if int(_digest(note), 16) % TEST_SHARE == 0 else "train"


def _digest(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()


def _example(key: str, *, cot: bool, split: Split) -> Example:
    rng = Random(key)
    formula = rng.choices(FORMULAS, weights=[formula.weight for formula in FORMULAS])[0]
    while True:
        patient = Patient(rng.randint(4, 12) if formula.for_child else rng.randint(20, 84), _sex(rng))
        case = formula.case(rng, patient)
        note = _note(rng, patient, case)
        if split_of(note) == split:
            break
    value = case.working.result.shown
    instruction = COT_INSTRUCTION if cot else LABEL_INSTRUCTION
    return Example(
        prompt=f"{note}\n{_question(rng, formula)} {instruction}",
        completion=_explanation(rng, case) if cot else str(value),
        answer=Answer("decimal", str(value), *limits(value)) if formula.places else Answer("integer", str(value)),
        group=_digest(note)[:12],
        category=formula.name,
    )


def _sex(rng: Random) -> Literal["male", "female"]:
    return "male" if rng.random() < 0.5 else "female"


def _note(rng: Random, patient: Patient, case: Case) -> str:
    nouns = ("boy", "girl") if patient.child else ("man", "woman")
    noun = nouns[patient.sex == "female"]
    article = "An" if patient.age in (8, 11, 18) or 80 <= patient.age < 90 else "A"
    opening = rng.choice(OPENINGS).format(
        A=article, age=patient.age, noun=noun, Noun=noun.capitalize(), complaint=rng.choice(COMPLAINTS)
    )
    extra = rng.choice((CHILD_EXTRAS if patient.child else ADULT_EXTRAS) + ANY_EXTRAS)
    middle = [_findings(rng, case), extra]
    rng.shuffle(middle)
    return " ".join([opening, *middle])


def _findings(rng: Random, case: Case) -> str:
    """The note's findings: those the formula needs, with one or two that it does not, in any order."""
    facts = [fact for fact in case.facts if fact.label != "age"]  # the opening gives the age
    facts += rng.sample(_distractors(rng), k=2 if len(facts) < 3 else 1)
    rng.shuffle(facts)
    between, after = rng.choice(((" ", ", "), (" ", "; "), (": ", ", ")))
    listed = after.join(f"{fact.label}{between}{fact.value} {fact.unit}".rstrip() for fact in facts)
    return f"{listed[0].upper()}{listed[1:]}."


def _distractors(rng: Random) -> list[Fact]:
    """Findings that no formula reads."""
    return [
        Fact("temperature", f"36.{rng.randint(2, 9)}", "C"),
        Fact("breathing rate", str(rng.randint(12, 22)), "/min"),
        Fact("oxygen saturation", f"{rng.randint(93, 99)}%"),
        Fact("pain score", f"{rng.randint(0, 8)}/10"),
        Fact("hemoglobin", f"{rng.randint(11, 15)}.{rng.randint(0, 9)}", "g/dL"),
        Fact("potassium", f"{rng.randint(3, 4)}.{rng.randint(5, 9)}", "mmol/L"),
    ]


def _question(rng: Random, formula: Formula) -> str:
    unit = f" in {formula.unit}" if formula.unit else ""
    return f"{rng.choice(QUESTIONS).format(thing=formula.thing, unit=unit)} {ROUNDING[formula.places]}"


def _explanation(rng: Random, case: Case) -> str:
    """Formula, numbers, arithmetic, answer; a long working shows the numbers only where it uses them."""
    steps = ". ".join(case.working.lines)
    if len(case.working.lines) <= 2:
        given = ", ".join(f"{fact.label} {fact.value}" for fact in case.facts)
        steps = f"{rng.choice(('With', 'Given'))} {given}: {steps}"
    return f"{case.rule}. {steps}.\n{ANSWER_PREFIX} {case.working.result.shown}"


register_domain(Domain("clinic", generate=clinic_examples, both_completions=True, skills=("arithmetic",)))
