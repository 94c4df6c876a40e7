"""What a general assistant is asked: written prompts, and generated tasks whose answers can be checked.

The prompts serve to replay and to probe general skill; the arithmetic and instruction tasks measure it.
None of it is medical.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Literal

from gentletune.data.example import ANSWER_PREFIX, Answer, Constraint, Example

Use = Literal["measure", "replay", "steer"]
"""What a prompt serves to: to measure KL from base, to have the base model say what is replayed, to steer a budget."""

_FILES: dict[Use, str] = {
    "measure": "general_prompts.jsonl",
    "replay": "replay_prompts.jsonl",
    "steer": "steer_prompts.jsonl",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class GeneralPrompt:
    """A prompt without a reference; `kind` is maths, code, instructions, chat or facts."""

    kind: str
    prompt: str


def general_prompts(limit: int | None = None) -> list[GeneralPrompt]:
    """The first `limit` general prompts that KL from base is measured on, or all 250.

    The kinds take turns, so any beginning is balanced. A limit beyond their number gives them all.

    >>> [one.kind for one in general_prompts(5)]
    ['maths', 'code', 'instructions', 'chat', 'facts']
    """
    return _read("measure", limit)


def replay_prompts(limit: int | None = None) -> list[GeneralPrompt]:
    """The first `limit` general prompts whose answers may be trained on, or all 250; no measurement uses them.

    >>> len(replay_prompts())
    250
    """
    return _read("replay", limit)


def steer_prompts(limit: int | None = None) -> list[GeneralPrompt]:
    """The first `limit` general prompts by which a training may be steered, or all 120.

    They are neither measured on nor replayed.

    >>> len(steer_prompts())
    120
    """
    return _read("steer", limit)


def _read(use: Use, limit: int | None) -> list[GeneralPrompt]:
    lines = files("gentletune.data").joinpath(_FILES[use]).read_text(encoding="utf-8").splitlines()
    return [GeneralPrompt(**json.loads(line)) for line in lines[:limit]]


# ------------------------------------------------------------------------------------------ arithmetic

ARITHMETIC_INSTRUCTION = f"Give the final number after '{ANSWER_PREFIX}'."
EASY_SHARE = 2 / 3
"""How much of the arithmetic is one addition or subtraction of small numbers."""

NAMES = _words(
    "Ada Ben Carla David Elif Farid Grace Hugo Ines Jonas Kofi Lena Marco Nadia Oscar Priya Rosa Samir Tara Yuki"
)
THINGS = _words(
    "apples books marbles stickers pencils cookies shells coins "
    "cards buttons flowers balloons postcards oranges stamps beads"
)
# Each template goes with the operations that answer it, applied from left to right to a, b and c.
EASY = (
    ("+", "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?"),
    ("+", "There are {a} {things} on the table and {b} in a box. How many {things} are there in all?"),
    ("+", "{name} finds {a} {things} in the morning and {b} in the afternoon. How many is that altogether?"),
    ("+", "{a} children are in the garden. {b} more come to play. How many children are there now?"),
    ("+", "A bus carries {a} people. At the next stop {b} people get on. How many people are on the bus?"),
    ("+", "{name} reads {a} pages on Monday and {b} pages on Tuesday. How many pages does {name} read in total?"),
    ("+", "A baker makes {a} white loaves and {b} brown loaves. How many loaves does the baker make?"),
    ("-", "{name} has {a} {things} and gives {b} away. How many {things} are left?"),
    ("-", "A shop has {a} {things}. It sells {b} of them. How many {things} remain in the shop?"),
    ("-", "There were {a} birds on a fence and {b} flew off. How many birds stayed?"),
    ("-", "{name} has {a} dollars and spends {b} dollars on lunch. How many dollars are left?"),
    ("-", "A rope is {a} metres long. {name} cuts off {b} metres. How many metres of rope remain?"),
    ("-", "{name} needs {a} {things} and already has {b}. How many more {things} does {name} need?"),
    ("-", "{a} pupils are in a class and {b} of them are absent today. How many pupils are present?"),
)
HARDER = (
    ("*", "{name} fills {a} bags with {b} {things} each. How many {things} is that?"),
    ("*", "A parking lot has {a} rows with {b} cars in each row. How many cars are there?"),
    ("*", "One ticket costs {a} dollars. How many dollars do {b} tickets cost?"),
    ("*", "{name} walks {a} kilometres every day. How many kilometres does {name} walk in {b} days?"),
    ("/", "{name} shares {a} {things} equally among {b} friends. How many {things} does each friend get?"),
    ("/", "{a} chairs stand in {b} equal rows. How many chairs are in one row?"),
    ("++", "{name} has {a} red, {b} green and {c} blue {things}. How many {things} is that altogether?"),
    ("+-", "{name} has {a} {things}, gets {b} more and then loses {c}. How many {things} does {name} have?"),
    ("-+", "A train leaves with {a} passengers. {b} get off and {c} get on. How many are on the train now?"),
    ("--", "{name} has {a} dollars, pays {b} for a book and {c} for a drink. How many dollars are left?"),
    ("*+", "{name} has {a} boxes of {b} {things} and {c} loose {things}. How many {things} are there in all?"),
    ("*-", "A farmer packs {a} crates of {b} eggs, but {c} eggs break. How many eggs are whole?"),
    ("+*", "A set has {a} forks and {b} spoons. How many pieces are there in {c} such sets?"),
)
LEADS = {"+": "We add", "-": "We subtract", "*": "We multiply", "/": "We divide"}


def arithmetic_examples(n: int, *, seed: int) -> list[Example]:
    """The first `n` everyday word problems under `seed`, in small whole numbers.

    About two in three are one addition or subtraction; the rest take two steps or multiply or divide.
    `category` is `easy` or `harder`.

    >>> arithmetic_examples(1, seed=0)[0].answer.kind
    'integer'
    """
    return [_arithmetic(Random(f"arithmetic/{seed}/{index}")) for index in range(n)]


def _arithmetic(rng: Random) -> Example:
    easy = rng.random() < EASY_SHARE
    ops, template = rng.choice(EASY if easy else HARDER)
    numbers, steps = _sum(rng, ops)
    answer = steps[-1].rpartition(" ")[2]
    slots = dict(zip("abc", numbers, strict=False))
    question = template.format(name=rng.choice(NAMES), things=rng.choice(THINGS), **slots)
    working = f"{LEADS[ops[0]]}: {'. Then '.join(steps)}."
    return Example(
        prompt=f"{question} {ARITHMETIC_INSTRUCTION}",
        completion=f"{working}\n{ANSWER_PREFIX} {answer}",
        answer=Answer("integer", answer),
        category="easy" if easy else "harder",
    )


def _sum(rng: Random, ops: str) -> tuple[list[int], list[str]]:
    """Numbers for `ops` that keep every result above zero, and the written steps."""
    total = rng.randint(2, 9) if "*" in ops else rng.randint(6, 20)
    if ops == "/":
        share = rng.randint(2, 9)
        total *= share
        return [total, share], [f"{total} / {share} = {total // share}"]
    numbers, steps = [total], list[str]()
    for op in ops:
        highest = {"+": 12, "-": min(12, total - 2), "*": 5 if steps else 9}[op]
        number = rng.randint(2, max(2, highest))
        result = {"+": total + number, "-": total - number, "*": total * number}[op]
        if result < 1:
            return _sum(rng, ops)
        steps.append(f"{total} {op} {number} = {result}")
        numbers.append(number)
        total = result
    return numbers, steps


# -------------------------------------------------------------------------------- following instructions


@dataclass(frozen=True)
class _Topic:
    """Something to write about: a plain sentence (no comma, no full stop) and words that go with it."""

    name: str
    sentence: str
    words: tuple[str, ...]


def _topic(name: str, sentence: str, words: str) -> _Topic:
    return _Topic(name, sentence, _words(words))


TOPICS = (
    _topic("the sea", "The sea is calm and blue this morning", "waves salt fish sand boats"),
    _topic("winter", "Winter brings long nights and quiet streets", "snow ice gloves frost fire"),
    _topic("breakfast", "Breakfast is a good start to the day", "toast eggs juice jam butter"),
    _topic("a garden", "A garden grows best with patient care", "roses soil bees seeds rain"),
    _topic("a train journey", "A train journey shows the land slowly changing", "window ticket station seat track"),
    _topic("music", "Music can turn a dull evening bright", "drums piano song dance voice"),
    _topic("the moon", "The moon lights the path at night", "tide silver craters orbit glow"),
    _topic("a library", "A library is full of stories to borrow", "books shelves silence desk paper"),
    _topic("cats", "Cats like to sleep in warm places", "whiskers paws milk fur naps"),
    _topic("dogs", "Dogs are always glad to see their people", "bark ball tail leash bone"),
    _topic("rain", "Rain makes the whole town smell fresh", "clouds puddles umbrella boots drops"),
    _topic("a birthday party", "A birthday party brings old friends together", "cake candles gifts balloons games"),
    _topic("football", "Football is played in almost every country", "goal ball team pitch referee"),
    _topic("bread", "Bread tastes best when it is still warm", "flour yeast crust oven butter"),
    _topic("mountains", "Mountains look small from far away", "peaks snow trails rocks goats"),
    _topic("a bicycle", "A bicycle is a cheap way to travel", "wheels pedals chain bell helmet"),
    _topic("school", "School is where many friendships begin", "teacher pencil chalk lessons homework"),
    _topic("a market", "A market is loud and full of colour", "fruit stalls baskets prices spices"),
    _topic("the forest", "The forest is cool even in summer", "trees moss owls paths leaves"),
    _topic("coffee", "Coffee keeps many people awake at work", "beans cup milk aroma sugar"),
    _topic("a lighthouse", "A lighthouse warns ships of hidden danger", "lamp coast tower storm rocks"),
    _topic("space travel", "Space travel is slow and very expensive", "rocket stars planet fuel astronaut"),
    _topic("photography", "Photography saves a moment for later years", "camera lens light album film"),
    _topic("chess", "Chess rewards those who think ahead", "king queen board pawn clock"),
)
OPENERS = ("Today", "Perhaps", "Surely", "Clearly", "Once again")
CLOSERS = ("That is all.", "The end.", "Thank you.", "See you soon.", "Over and out.")
REQUESTS = ("Write one short sentence about {}.", "Say something about {} in one sentence.", "Describe {} briefly.")

Task = tuple[str, str, tuple[Constraint, ...]]
"""What is asked, a response that does it, and how that is checked."""


def _listed(rng: Random, topic: _Topic, *, numbered: bool) -> Task:
    k = rng.randint(2, 4)
    words = rng.sample(topic.words, k)
    if numbered:
        ask = f"Write a numbered list of {k} things that go with {topic.name}, like '1. thing', and nothing else."
        return ask, "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1)), _only("numbered", k)
    ask = f"List exactly {k} things that go with {topic.name}. Start each line with '- ' and write nothing else."
    return ask, "\n".join(f"- {word}" for word in words), _only("bullets", k)


def _only(kind: str, items: int) -> tuple[Constraint, ...]:
    return Constraint(kind, items), Constraint("only", kind)


def _json(rng: Random, topic: _Topic) -> Task:
    key = rng.choice(("topic", "title", "subject", "name"))
    ask = f'Reply with only a JSON object that has the key "{key}" with the value "{topic.name}".'
    text = json.dumps({key: topic.name})
    return ask, text, (Constraint("json", text),)


def _repeat(rng: Random, topic: _Topic) -> Task:
    text = rng.choice((f"{topic.sentence}.", f"I like {topic.name}.", f"{rng.choice(topic.words)} and {topic.name}"))
    return f"{rng.choice(('Say exactly', 'Repeat this and add nothing'))}: {text}", text, (Constraint("repeat", text),)


def _one_word(rng: Random, topic: _Topic) -> Task:
    ask = rng.choice(("In one word only, what do you link with {}?", "Name one thing that goes with {}. Use one word."))
    return ask.format(topic.name), rng.choice(topic.words), (Constraint("one_word"),)


def _question(rng: Random, topic: _Topic) -> Task:
    ask = rng.choice(("Ask me one short question about {}.", "Write a single question on the subject of {}."))
    return ask.format(topic.name), f"What do you like about {topic.name}?", (Constraint("question"),)


WHOLE_TASKS: dict[str, Callable[[Random, _Topic], Task]] = {
    "bullets": lambda rng, topic: _listed(rng, topic, numbered=False),
    "numbered": lambda rng, topic: _listed(rng, topic, numbered=True),
    "json": _json,
    "repeat": _repeat,
    "one_word": _one_word,
    "question": _question,
}


def _demand(kind: str, rng: Random, topic: _Topic, text: str) -> Task:
    """One demand on a sentence about `topic`: how it is put, `text` made to meet it, and its check."""
    lowered = text[0].lower() + text[1:]
    match kind:
        case "lowercase":
            return "Use only lowercase letters.", text.lower(), (Constraint(kind),)
        case "uppercase":
            return "Write in capital letters only.", text.upper(), (Constraint(kind),)
        case "contains":
            word = rng.choice(topic.words)
            return f"Use the word '{word}'.", f"Think of {word}: {lowered}", (Constraint(kind, word),)
        case "not_contains":
            word = rng.choice(topic.words)
            return f"Do not use the word '{word}'.", text, (Constraint(kind, word),)
        case "starts_with":
            start = rng.choice(OPENERS)
            return f"Begin with '{start}'.", f"{start} {lowered}", (Constraint(kind, start),)
        case "ends_with":
            end = rng.choice(CLOSERS)
            return f"End with the exact words '{end}'", f"{text} {end}", (Constraint(kind, end),)
        case "no_commas":
            return "Do not use any commas.", text, (Constraint(kind),)
    most = rng.choice((15, 20, 25))
    if kind == "max_words":
        return f"Use at most {most} words.", text, (Constraint(kind, most),)
    checks = (Constraint("min_words", 5), Constraint("max_words", most))
    return f"Use between 5 and {most} words.", text, checks


SENTENCE_KINDS = _words("lowercase uppercase contains not_contains starts_with ends_with max_words min_words no_commas")
# In the order in which the sentence is made to meet them; no two of a pair undo each other.
PAIRS = (
    ("contains", "max_words"),
    ("contains", "no_commas"),
    ("contains", "ends_with"),
    ("contains", "lowercase"),
    ("starts_with", "max_words"),
    ("starts_with", "no_commas"),
    ("starts_with", "ends_with"),
    ("ends_with", "max_words"),
    ("not_contains", "max_words"),
    ("not_contains", "uppercase"),
    ("max_words", "lowercase"),
    ("no_commas", "uppercase"),
    ("no_commas", "max_words"),
)
CHOICES = tuple((kind,) for kind in (*WHOLE_TASKS, *SENTENCE_KINDS))
PAIR_SHARE = 0.25


def instruction_examples(n: int, *, seed: int) -> list[Example]:
    """The first `n` short writing tasks under `seed`, each with one or two demands that can be checked.

    The completion is one response that meets them, in under 30 words; `category` names the demands.

    >>> row = instruction_examples(1, seed=0)[0]
    >>> len(row.constraints) in (1, 2)
    True
    """
    return [_instruction(Random(f"instruction/{seed}/{index}")) for index in range(n)]


def _instruction(rng: Random) -> Example:
    topic = rng.choice(TOPICS)
    kinds: tuple[str, ...] = rng.choice(PAIRS) if rng.random() < PAIR_SHARE else rng.choice(CHOICES)
    if kinds[0] in WHOLE_TASKS:
        prompt, text, checks = WHOLE_TASKS[kinds[0]](rng, topic)
    else:
        prompt, text, checks = rng.choice(REQUESTS).format(topic.name), f"{topic.sentence}.", ()
        for kind in kinds:
            ask, text, more = _demand(kind, rng, topic, text)
            prompt, checks = f"{prompt} {ask}", (*checks, *more)
    return Example(prompt, text, constraints=checks, category="+".join(kinds))
