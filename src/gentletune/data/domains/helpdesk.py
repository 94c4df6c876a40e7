"""The helpdesk domain: short made-up messages to a company's helpdesk that go to one of eight queues.

Rows of some fifty tokens with answers of one word, so that a model of 135M parameters learns it by accuracy in a
minute or two on two cores.
"""

from __future__ import annotations

import re
from random import Random
from typing import Literal

from gentletune.core.errors import unknown
from gentletune.data.domains import Domain, register_domain
from gentletune.data.example import Answer, Example

INSTRUCTION = "Queue: billing, login, hardware, network, software, security, delivery or staff?"

# For each queue the sentences of training and those of the test, which never meet: {} is filled from SLOTS by its name.
MESSAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "billing": (  # money
        (
            "I was charged twice for the {month} invoice.",
            "The total on my {month} bill is wrong.",
            "Please refund the {amount} euros I paid by mistake.",
            "Can I pay the {month} invoice by card?",
            "Why did the price go up by {amount} euros?",
            "My payment of {amount} euros was declined.",
            "I need a receipt for my {month} payment.",
            "The discount is missing from our invoice.",
            "Our tax number on the bill is out of date.",
            "You took {amount} euros from my account in {month}.",
            "The amount on the {month} invoice does not match our contract.",
            "We paid in {month} but got a reminder.",
            "Please send the {month} bill to {name} as well.",
            "Can we get {amount} euros back for the days without service?",
            "The currency on the invoice is wrong.",
            "I want to cancel the subscription and be paid back.",
        ),
        (
            "The {month} invoice shows a fee nobody can explain.",
            "I paid {amount} euros too much, please send it back.",
            "My card was billed again in {month}.",
            "When is the {month} payment due?",
            "Why is there a late fee of {amount} euros?",
            "Please correct the address on the {month} invoice.",
            "The refund of {amount} euros has not come.",
            "We were billed for {amount} euros in {month}, but for what?",
        ),
    ),
    "login": (  # getting in
        (
            "I forgot my password.",
            "My account is locked after three tries.",
            "The login page does not accept my password.",
            "{name} needs an account on the {system}.",
            "The code for signing in never arrives on my phone.",
            "I cannot log in to the {system}.",
            "Please reset the password of {name}.",
            "My user name changed and now I cannot sign in.",
            "The {system} says that my user name does not exist.",
            "The {system} says that I have no permission.",
            "My password expired and I cannot change it.",
            "How do I get into the {system} without my phone?",
            "{name} cannot open the {system}, access denied.",
            "The {system} asks for my password again and again.",
            "I never got the mail to set my password.",
            "Please unlock the account of {name}.",
        ),
        (
            "The {system} rejects my user name and password.",
            "Please give {name} access to the {system}.",
            "I am locked out of my account.",
            "Signing in to the {system} fails every time.",
            "I do not remember my password for the {system}.",
            "Please create a user for {name} on the {system}.",
            "The reset link for my password has expired.",
            "The {system} does not take the code I sign in with.",
        ),
    ),
    "hardware": (  # things that break
        (
            "The screen of my {screen} is cracked.",
            "My {device} does not turn on any more.",
            "The battery of the {portable} is empty after an hour.",
            "A key on my keyboard is stuck.",
            "I spilled coffee over the {device}.",
            "The fan of my laptop is very loud.",
            "The printer in room {room} eats the paper.",
            "My {portable} gets hot and shuts down.",
            "The mouse in room {room} is broken.",
            "I need a new charger for my {portable}.",
            "The {device} makes a clicking noise.",
            "The hinge of my laptop broke off.",
            "Half of the screen of the {screen} is dark.",
            "The projector in room {room} has no picture.",
            "The camera of my {portable} is dead.",
            "The cable of my headset is torn.",
        ),
        (
            "My {screen} fell down and the screen is black.",
            "The printer in room {room} is out of toner.",
            "The charger of my {portable} smells burnt.",
            "The battery of my {portable} does not charge.",
            "My {device} will not start, not even a light.",
            "Coffee got into my keyboard.",
            "The lamp of the projector in room {room} burnt out.",
            "There is a crack in the glass of the {screen}.",
        ),
    ),
    "network": (  # the network
        (
            "The wireless in room {room} is very slow.",
            "There is no internet on the second floor.",
            "My {portable} does not find the office network.",
            "The wireless goes off every few minutes.",
            "The connection drops whenever I leave room {room}.",
            "There is no network on the third floor.",
            "Pages take a minute to load since {month}.",
            "The guests in room {room} cannot get online.",
            "I am at home and the tunnel to the office will not connect.",
            "The wireless for guests has been down since {month}.",
            "The internet on our floor is slow in the evening.",
            "Only my {portable} is offline, the others are fine.",
            "Since {month} the wireless is gone in the cellar.",
            "The connection to the branch office is down.",
            "Downloads take hours in room {room}.",
            "The internet in room {room} breaks off all day.",
        ),
        (
            "No internet in room {room} since this morning.",
            "The wireless drops my {portable} all the time.",
            "The office network is slow today.",
            "The internet connection in room {room} is bad.",
            "The wireless signal in room {room} is weak.",
            "My {portable} is connected but no page opens.",
            "The tunnel from home to the office breaks off.",
            "The whole floor is offline.",
        ),
    ),
    "software": (  # programs
        (
            "The {program} crashes when I open a file.",
            "Please install the {program} on my {portable}.",
            "The {program} does not print in colour.",
            "After the update the {program} does not start.",
            "The {program} shows an error when I save.",
            "Which version of the {program} should we use?",
            "The {program} prints the wrong characters.",
            "I cannot find the export button in the {program}.",
            "The {program} freezes with large files.",
            "My macros in the {program} stopped working.",
            "The {program} lost my settings.",
            "Can you remove the {program} from my {portable}?",
            "The {program} is in the wrong language.",
            "The {program} cannot open last year's files.",
            "The {program} wants an update every day.",
            "The spell check of the {program} is off.",
        ),
        (
            "The {program} closes by itself when I save.",
            "I would like the newest version of the {program}.",
            "The update broke the {program}.",
            "The {program} gives an error with every file.",
            "Please put the {program} on the new {portable}.",
            "The {program} cannot save in the old format.",
            "The {program} hangs when it starts.",
            "A button is missing in the {program} since the update.",
        ),
    ),
    "security": (  # attacks
        (
            "I clicked on a strange link in an email.",
            "Someone is sending mails in the name of {name}.",
            "My virus scanner shows a warning.",
            "I got a mail that asks for my bank details.",
            "I lost a stick with customer data.",
            "A stranger called and asked for my password.",
            "Someone broke into room {room} and took a {device}.",
            "A pop-up says that my files are encrypted.",
            "I opened an attachment and it looked like a virus.",
            "There is an unknown person in room {room}.",
            "A mail pretends to be from our bank.",
            "I think that my {portable} was hacked.",
            "I typed my password into a fake page.",
            "Somebody used my badge to enter room {room}.",
            "A program that I do not know sends mails from my {portable}.",
            "I found a stick on the parking lot, may I plug it in?",
        ),
        (
            "I received a suspicious email from {name}.",
            "My {portable} may have a virus.",
            "Thieves broke into our office and took a {device}.",
            "A strange attachment asks for my bank details.",
            "A fake mail from {name} asks me to buy gift cards.",
            "The scanner found a virus on my {portable}.",
            "I may have opened a dangerous attachment.",
            "A caller wanted to know my password.",
        ),
    ),
    "delivery": (  # parcels
        (
            "My parcel has not arrived yet.",
            "The {device} we ordered in {month} was never delivered.",
            "The box came, but half of the order is missing.",
            "Please change the delivery address to room {room}.",
            "The courier left the parcel in the rain.",
            "Where is the order that {name} placed in {month}?",
            "The parcel with the {device} went to our old address.",
            "The tracking number does not exist.",
            "The delivery came to the wrong building.",
            "Can the order be delivered before {month}?",
            "The parcel is damaged.",
            "Please send the {device} to room {room}.",
            "We got the parcel of another company.",
            "The courier says that nobody was in.",
            "The order from {month} is still in customs.",
            "Who signed for the parcel of {name}?",
        ),
        (
            "The parcel for {name} is late.",
            "Our order arrived without the {device}.",
            "The delivery went to the wrong address.",
            "How do I track the order from {month}?",
            "The parcel was opened before it arrived.",
            "Has the {device} for {name} been shipped?",
            "The courier cannot find our address.",
            "Our order from {month} is still not here.",
        ),
    ),
    "staff": (  # people
        (
            "How many days of holiday do I have left?",
            "I am ill and will not come in today.",
            "{name} starts with us in {month}, what must be done?",
            "I would like to work part time from {month}.",
            "When is the training for new colleagues?",
            "I need a letter that says I am employed here.",
            "My last name changes after the wedding.",
            "Can I take parental leave in {month}?",
            "Who approves the holiday of {name}?",
            "I want to hand in my notice.",
            "{name} leaves the company in {month}.",
            "Where do I send my sick note?",
            "Can I move two days of holiday to {month}?",
            "My working hours in the contract are wrong.",
            "May I work from abroad in {month}?",
            "I would like to see my personnel file.",
        ),
        (
            "I would like to take holiday in {month}.",
            "{name} is ill and stays at home this week.",
            "A new colleague starts in {month}.",
            "Can I take a day of leave for the wedding?",
            "How much leave does {name} have left?",
            "I will be away on parental leave from {month}.",
            "I want to change my working hours.",
            "Whom do I tell that I am sick?",
        ),
    ),
}
SLOTS: dict[str, tuple[str, ...]] = {
    "month": ("January", "March", "April", "May", "July", "August", "October", "December"),
    "amount": ("15", "40", "89", "120", "260", "700"),
    "name": ("Anna Berg", "Tom Okafor", "Lena Fuchs", "Ravi Nair", "Maria Costa", "Jack Wood", "Sven Lind", "Aya Mori"),
    "system": ("payroll system", "customer portal", "mail server", "wiki", "time sheet", "project board"),
    "device": ("laptop", "phone", "tablet", "monitor", "headset"),
    "portable": ("laptop", "phone", "tablet"),
    "screen": ("laptop", "phone", "tablet", "monitor"),
    "room": ("12", "104", "207", "315", "B4", "C22"),
    "program": ("spreadsheet program", "mail program", "drawing program", "browser", "text editor", "calendar program"),
}
_QUEUE = re.compile(rf"\b(?:{'|'.join(MESSAGES)})\b", re.IGNORECASE)


def helpdesk_examples(
    n: int,
    *,
    seed: int,
    cot: bool,
    split: Literal["train", "test"],
) -> list[Example]:
    """The first `n` rows under `seed`, the queues in turn; `category` is the queue. There is no chain of thought.

    No sentence is in both splits, only what fills it. Raises `UserError` for an unknown split.

    >>> helpdesk_examples(3, seed=0, cot=False, split="train")[1].completion
    'login'
    """
    del cot  # every domain is asked for either; here there is only the label
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    return [_example(i, f"helpdesk/{seed}/{split}", split == "test") for i in range(n)]


def read_queue(text: str, first: bool) -> str | None:
    """The queue that a text names in the first line that says something; None where that names none or several."""
    del first  # every domain is told which of several answers counts; here an answer has one queue
    line = next(filter(str.strip, text.splitlines()), "")
    found = {queue.lower() for queue in _QUEUE.findall(line)}
    return found.pop() if len(found) == 1 else None


def _example(place: int, key: str, test: bool) -> Example:
    turn, queue = divmod(place, len(MESSAGES))
    name = list(MESSAGES)[queue]
    sentences = MESSAGES[name][test]
    # All sentences of a queue in an order of the seed's own, then all again with other words in them.
    sentence = Random(f"{key}/{name}").sample(sentences, len(sentences))[turn % len(sentences)]
    rng = Random(f"{key}/{place}")
    message = re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]]), sentence)
    answer = Answer("choice", name, domain="helpdesk")
    return Example(f"{message}\n{INSTRUCTION}", name, answer, group=sentence, category=name)


register_domain(Domain("helpdesk", generate=helpdesk_examples, read=read_queue))
