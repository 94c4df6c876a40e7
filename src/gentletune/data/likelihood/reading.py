"""Short passages with a question whose answer stands in them, made from templates, names and things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random

ROWS = 480
_CHOICES = 4


@dataclass(frozen=True)
class Passage:
    """A passage, a question, how the answer begins, the rest of it, and what is not the answer."""

    passage: str
    question: str
    lead: str
    answer: str
    others: tuple[str, ...]
    category: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Carl David Emma Frank Grace Henry Ivan Jack Kate Laura Mary Nick Oliver Paul Rose Sarah Tom Victor "
    "Alice Martin Peter Simon Helen Lucy James Maria"
)
THINGS = _words("key letter ring book watch map coin knife pen ball hat cup phone camera lamp clock")
ROOMS = _words("kitchen garden garage cellar library office bedroom attic bathroom hall barn shop")
HOLDERS = _words("drawer box bag basket cupboard bucket jar suitcase chest pocket")
COLOURS = _words("red blue green yellow black white brown pink grey purple")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April June July August October November December")
EVENTS = _words("concert meeting party match wedding lesson test market dance parade")
CITIES = _words("London Paris Rome Berlin Madrid Vienna Dublin Athens Cairo Lisbon Moscow Tokyo")
JOBS = _words("nurse teacher farmer baker pilot lawyer dentist painter singer writer driver doctor")
PETS = _words("dog cat horse goat parrot rabbit duck sheep pig turtle")
FOODS = _words("bread milk rice honey cheese butter fish tea coffee sugar eggs apples grapes onions")
TROUBLES = _words("rain snow fog heat wind storm noise traffic smoke dust")
RIDES = _words("bus train car boat plane bike taxi tram")
SOUNDS = _words("piano violin guitar flute trumpet harp organ drum")
SPORTS = _words("tennis football chess golf hockey rugby cricket")
_SORTS = (NAMES, THINGS, ROOMS, HOLDERS, COLOURS, DAYS, MONTHS, EVENTS, CITIES, JOBS, PETS, FOODS, TROUBLES, RIDES,
          SOUNDS, SPORTS)  # fmt: skip

Question = tuple[str, str, str]
"""What is asked, how the answer begins, and the answer, one word of a sort."""


def passages(seed: int, n: int = ROWS) -> list[Passage]:
    """The first `n` passages under `seed`; the kinds take turns, and nothing is asked twice.

    In half of them the passage names nothing else of the answer's sort, in the others one thing that is not the answer.
    """
    kinds, found = list(_KINDS), dict[tuple[str, str], Passage]()
    for i in range(n):
        tries = (_passage(Random(f"reading/{seed}/{i}{'+' * again}"), kinds[i % len(kinds)]) for again in count())
        one = next(one for one in tries if (one.passage, one.question) not in found)
        found[one.passage, one.question] = one
    return list(found.values())


def _passage(rng: Random, kind: str) -> Passage:
    text, *questions = _KINDS[kind](rng)
    question, lead, answer = rng.choice(questions)
    sort = next(words for words in _SORTS if answer in words)
    named = [found for _, _, found in questions if found in sort and found != answer]
    rest = [word for word in sort if word not in (answer, *named) and word not in text]
    return Passage(text, question, lead, answer, (*named, *rng.sample(rest, _CHOICES - 1 - len(named))), kind)


Made = tuple[str, *tuple[Question, ...]]


def _home(rng: Random) -> Made:
    who, city, job, pet = map(rng.choice, (NAMES, CITIES, JOBS, PETS))
    return (
        f"{who} works as a {job} in {city} and keeps a {pet} at home.",
        (f"Which animal does {who} have?", f"{who} has a", pet),
        (f"In which city does {who} work?", f"{who} works in", city),
        (f"What does {who} do for a living?", f"{who} is a", job),
    )


def _trip(rng: Random) -> Made:
    who, day, ride, city = map(rng.choice, (NAMES, DAYS, RIDES, CITIES))
    return (
        f"On {day} {who} went to {city} by {ride} to see an old friend.",
        (f"When did {who} travel?", "On", day),
        (f"How did {who} get there?", "By", ride),
        (f"Where did {who} go?", f"{who} went to", city),
    )


def _find(rng: Random) -> Made:
    who, room, colour, thing = map(rng.choice, (NAMES, ROOMS, COLOURS, THINGS))
    return (
        f"While {who} was cleaning the {room}, a {colour} {thing} fell out of an old coat.",
        (f"What was {who} cleaning?", f"{who} was cleaning the", room),
        (f"What colour was the {thing}?", f"The {thing} was", colour),
        ("What fell out of the coat?", f"A {colour}", thing),
    )


def _hobby(rng: Random) -> Made:
    who, sport, sound, food = map(rng.choice, (NAMES, SPORTS, SOUNDS, FOODS))
    return (
        f"{who} likes {sport}, practises the {sound} every evening and cannot stand {food}.",
        (f"Which instrument does {who} play?", f"{who} plays the", sound),
        (f"What does {who} hate to eat or drink?", f"{who} hates", food),
        (f"Which game does {who} enjoy?", f"{who} enjoys", sport),
    )


def _plan(rng: Random) -> Made:
    who, event, month, room = map(rng.choice, (NAMES, EVENTS, MONTHS, ROOMS))
    return (
        f"The {event} in {month} was a success, although {who} had to wait in the {room}.",
        (f"When was the {event}?", f"The {event} was in", month),
        (f"Where did {who} wait?", f"{who} waited in the", room),
        (f"Who had to wait in the {room}?", "The one who had to wait was", who),
    )


def _loss(rng: Random) -> Made:
    who, thing, trouble, day = map(rng.choice, (NAMES, THINGS, TROUBLES, DAYS))
    return (
        f"Because of the {trouble} {who} came home late on {day} and noticed that the {thing} was gone.",
        (f"Why was {who} late?", "Because of the", trouble),
        (f"What was missing when {who} came home?", "The", thing),
        (f"On which day did {who} come home late?", "On", day),
    )


def _where(rng: Random) -> Made:
    who, (one, other), (here, there) = rng.choice(NAMES), rng.sample(THINGS, 2), rng.sample(ROOMS, 2)
    return (
        f"{who} left the {one} in the {here} and the {other} in the {there}.",
        (f"Where is the {one}?", f"The {one} is in the", here),
        (f"Where is the {other}?", f"The {other} is in the", there),
    )


def _when(rng: Random) -> Made:
    (one, other), (first, then) = rng.sample(EVENTS, 2), rng.sample(DAYS, 2)
    return (
        f"The {one} is on {first}, but the {other} is on {then}.",
        (f"When is the {one}?", f"The {one} is on", first),
        (f"When is the {other}?", f"The {other} is on", then),
    )


def _moved(rng: Random) -> Made:
    who, thing, (first, last) = rng.choice(NAMES), rng.choice(THINGS), rng.sample(HOLDERS, 2)
    return (
        f"{who} took the {thing} out of the {first} and put it into the {last}.",
        (f"Where was the {thing} at first?", f"At first the {thing} was in the", first),
        (f"Where is the {thing} now?", f"Now the {thing} is in the", last),
    )


def _cities(rng: Random) -> Made:
    who, (born, home) = rng.choice(NAMES), rng.sample(CITIES, 2)
    return (
        f"{who} was born in {born}, but has lived in {home} for many years.",
        (f"Where was {who} born?", f"{who} was born in", born),
        (f"Where does {who} live?", f"{who} lives in", home),
    )


def _jobs(rng: Random) -> Made:
    (one, other), (job, work) = rng.sample(NAMES, 2), rng.sample(JOBS, 2)
    return (
        f"{one} became a {job}, while {other} works as a {work}.",
        (f"What is {one}'s job?", f"{one} is a", job),
        (f"What is {other}'s job?", f"{other} is a", work),
    )


def _gift(rng: Random) -> Made:
    (giver, taker), thing, day = rng.sample(NAMES, 2), rng.choice(THINGS), rng.choice(DAYS)
    return (
        f"On {day} {giver} gave the {thing} to {taker}, who had asked for it.",
        (f"Who gave the {thing} away?", f"The {thing} was given away by", giver),
        (f"Who has the {thing} now?", f"The {thing} now belongs to", taker),
    )


_KINDS: dict[str, Callable[[Random], Made]] = {
    "home": _home, "trip": _trip, "find": _find, "hobby": _hobby, "plan": _plan, "loss": _loss,
    "where": _where, "when": _when, "moved": _moved, "cities": _cities, "jobs": _jobs, "gift": _gift,
}  # fmt: skip
