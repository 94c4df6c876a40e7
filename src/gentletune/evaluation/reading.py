"""Reading a number, a date, an age or a class out of free text; the words of its classes are a domain's.

Every pattern is linear and at most `_WINDOW` characters are searched, so no response can make reading slow.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise

from gentletune.core.errors import UserError
from gentletune.data.answers import ENDS, Stated, plain, stated
from gentletune.data.domains import domain
from gentletune.data.example import AnswerKind

Read = float | date | tuple[int, int] | str
"""What an answer is read as: a number, a date, (weeks, days) or the class chosen."""

_WINDOW, _MAX_TOKENS, _MAX_DEPTH = 4000, 100, 20
_HUGE = 1e300
"""No number from here on is read."""


def answer_text(response: str) -> str:
    """What stands behind the last `Answer:`, in its line, or in the last `\\boxed{}`; without one the last line.

    >>> answer_text("2 + 2 = 4.\\nAnswer: 4")
    '4'
    """
    return stated(response, "marker").line


def read_text(found: Stated, *, of_punctuation: bool = False) -> str | None:
    """A text answered, in one spelling; None where there is none, or only punctuation that is not asked for."""
    text = plain(found.line)
    return text if text and (of_punctuation or text.strip(ENDS)) else None


def read_number(response: str) -> float | None:
    """The number answered: the first after the last `Answer:`, else the last in the response; None if none.

    >>> read_number("BMI = 70 / 3.0625 = 22.86 kg/m^2"), read_number("Answer: 1,234 mL")
    (22.86, 1234.0)
    """
    found = _item(*_where(response))
    return None if found is None else found[1]


def read_answer(response: str, kind: AnswerKind, reader: str = "") -> Read | None:
    """The answer a response gives, read as `kind`, a choice by the domain `reader`; None where it cannot be read.

    It is read from the line behind the last `Answer:` or from the last `\\boxed{}`, where the first number, date, age
    or class counts; without either from the response, where the last counts.

    >>> read_answer("Answer: (140 - 87) * 48 / (1.4 * 72) = 25.238 mL/min", "decimal")
    25.238
    >>> read_answer("So it is 26 weeks and 3 days.", "weeks_days"), read_answer("Answer: 3 out of 9", "integer")
    ((26, 3), 3.0)
    """
    return read_stated(stated(response, "marker"), kind, reader)


def read_stated(found: Stated, kind: AnswerKind, reader: str = "") -> Read | None:
    """As `read_answer`, of what was found to be stated."""
    if kind in ("exact", "text"):
        return read_text(found)
    text, first = _cleaned(found)
    if kind in ("decimal", "integer"):
        item = _item(text, first)
        return None if item is None else _score(*item) if kind == "integer" else item[1]
    if kind == "date":
        return _read_date(text, first)
    if kind == "weeks_days":
        return _read_weeks_days(text, first)
    read = domain(reader).read
    if read is None:
        raise UserError(f"domain '{reader}' has answers to choose from and no `read`; give it one")
    return read(text, first)


_NEGATED = re.compile(r"(?:\b(?:not?|nor|never|than|instead of)|n['’]t)(?: an?| the)?\s+\Z", re.IGNORECASE)
# A lone letter is a choice where it is closed, as in `(B)`, `B.` and `B - so`; a capital, but no article or pronoun,
# also where a text opens with it.
_CLOSED = r"(?=[\"'*`)\]]*(?:[.,:;!?)\]]|\s*$|\s[-–—]\s))"


def read_choice(text: str, choices: Sequence[str], *, first: bool) -> str | None:
    """The choice that is named first in a text, or last and not denied, the longest where several begin at a place.

    A choice of one letter counts in its own case, standing alone: none is the article in "a clear case".

    >>> read_choice("Not known, I think: yes", ["yes", "not known", "known"], first=True)
    'not known'
    >>> read_choice("A clear case of B, not C.", ["A", "B", "C"], first=False)
    'B'
    """
    names = {plain(choice): choice for choice in choices}
    if (alone := plain(text)) in names:
        return names[alone]
    text = re.sub(r"(?<!\w)_+|_+(?!\w)", "", text)
    longest = sorted(choices, key=len, reverse=True)
    found = [*re.finditer("|".join(f"({_mention(choice)})" for choice in longest), text, re.MULTILINE)]
    if not first:
        found = [m for m in found[::-1] if not _NEGATED.search(text, max(0, m.start() - 24), m.start())]
    return longest[(found[0].lastindex or 1) - 1] if found else None


def _mention(choice: str) -> str:
    if len(choice) == 1 and choice.isalpha():
        opens = rf"|\A\W*{choice}\b" if choice.isupper() and choice not in "AI" else ""
        return rf"(?<![\w.+'’-]){choice}{_CLOSED}{opens}"
    words = r"\s+".join(map(re.escape, choice.split()))
    return rf"(?i:(?<![\w.+-]){words}(?!\w|[.,]\d))"


def _where(response: str) -> tuple[str, bool]:
    """The text to read and whether the first answer in it counts (else the last)."""
    return _cleaned(stated(response, "marker"))


def _cleaned(found: Stated) -> tuple[str, bool]:
    text = found.text[:_WINDOW] if found.marked else found.text[-_WINDOW:]
    return _clean(text).strip(), found.marked


_SAME = str.maketrans(
    {"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "×": "*", "·": "*", "÷": "/", "≈": "=", "→": "="}
)
_REWRITES = [
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "*"),
    (re.compile(r"\\approx(?![a-z])"), "="),
    (re.compile(r"\^\{([-+]?\w+)\}"), r"^\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;!()\[\] ]|[`$]"), ""),
    (re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]+)\*\*(?![\w(*])"), r"\1"),  # bold, not a power
    (re.compile(r"(?<=\d) ?[xX] ?(?=\d)"), "*"),
    (re.compile(r"(?:/|\bper) ?1\.73 ?m(?:\^?2|²)?"), ""),  # the unit of a filtration rate
    (re.compile(r"\b\d+ ?% (?:sure|certain|confident)\b", re.IGNORECASE), ""),
    (re.compile(r"(?<=\d) out of (?:a total of )?\d+"), ""),
]


def _clean(text: str) -> str:
    """One spelling for signs, LaTeX and bold; units and remarks that hold numbers go."""
    text = text.translate(_SAME)
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return text


# Numbers: plain, mixed (1 1/2) or a sum to work out.

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?!\d|[.,]\d|[eE][-+]?\d)"
# A number that is not part of a word (CO2, CURB-65), a power (m^2), a unit (/1.73) or a longer number.
_START = re.compile(rf"(?<![\w^.,/])(?<![A-Za-z]-)(?:[-+]?\( ?){{0,8}}(?P<number>[-+]?{_PLAIN})")
_MIXED = re.compile(r"(\d+) (\d+)/(\d+)(?![\d/.,])")
_OPERAND = re.compile(rf"[ \t]*({_PLAIN})")
_OPENING = re.compile(r"[ \t]*([-+(])")
_OPERATOR = re.compile(r"[ \t]*(\*\*|[-+*/^)])")
_REST = re.compile(r"[-+*/^()\d., \t]*")
_CLAUSE = re.compile(r"[,;.:] (?=[A-Za-z])")
_DATE = re.compile(r"(?<![\d/-])(?:(\d{1,2})([/-])(\d{1,2})\2(\d{4})|(\d{4})-(\d{1,2})-(\d{1,2}))(?![\d/-])")

Item = tuple[str, float]
"""A number as written and its value."""


def _item(text: str, first: bool) -> Item | None:
    if first:
        return _first_item(text)
    items = _items(text)
    return items[-1] if items else None


def _first_item(text: str) -> Item | None:
    """The first number of the first clause that has one, behind its last `=` where it has some.

    >>> _first_item("BMI = 70 / 3.0625 = 22.86, where 25 = overweight")
    ('22.86', 22.86)
    """
    for clause in _CLAUSE.split(text):
        for part in reversed(_sides(clause)):
            if items := _items(part):
                return items[0]
    return None


def _sides(clause: str) -> list[str]:
    """The clause split at each `=` outside brackets."""
    cuts, depth = [-1], 0
    for at, char in enumerate(clause):
        depth = max(0, depth + (char == "(") - (char == ")"))
        if char == "=" and depth == 0:
            cuts.append(at)
    return [clause[a + 1 : b] for a, b in pairwise([*cuts, len(clause)])]


def _items(text: str) -> list[Item]:
    """Every number in the text, sums worked out; what looks like a date is none."""
    items: list[Item] = []
    at = 0
    while found := _START.search(text, at):
        at = found.start("number")
        if day := _DATE.match(text, at):
            at = day.end()
            continue
        source, end = _sum_at(text, found.start())
        if source is None and end <= at:  # brackets that do not close
            source, end = _sum_at(text, at)
        value = None if source is None else _evaluate(source)
        if value is not None:
            items.append((text[found.start() : end].strip(), value))
        at = max(end, found.end())
    return items


def _sum_at(text: str, at: int) -> tuple[str | None, int]:
    """The longest sum from `at` on as a Python expression, and its end; None where none closes its brackets."""
    tokens: list[str] = []
    best, end, depth = 0, at, 0
    operand_next = True
    while len(tokens) < _MAX_TOKENS and depth <= _MAX_DEPTH:
        if not operand_next:
            found = _OPERATOR.match(text, at)
            if found is None or (found[1] == ")" and depth == 0):
                break
            tokens.append("**" if found[1] == "^" else found[1])
            operand_next = found[1] != ")"
            depth -= not operand_next
        elif found := _mixed(text, at):
            tokens.append(f"({found[1]}+{found[2]}/{found[3]})")
            operand_next = False
        elif found := _OPERAND.match(text, at):
            tokens.append(repr(min(float(found[1].replace(",", "")), _HUGE)))
            operand_next = False
        elif found := _OPENING.match(text, at):
            if found[0] in "+-" and tokens and text[at - 1] in "+-":
                break  # prose: `5 -- 3`
            tokens.append(found[1])
            depth += found[1] == "("
        else:
            break
        at = found.end()
        if not operand_next and depth == 0:
            best, end = len(tokens), at
    else:
        rest = _REST.match(text, at)  # too long to be an answer: none of it
        return None, rest.end() if rest else at
    if best == 3 and tokens[1] == "-" and _is_range(tokens[0], tokens[2]):
        best = 1
    return (" ".join(tokens[:best]) if best else None), end


def _mixed(text: str, at: int) -> re.Match[str] | None:
    found = _MIXED.match(text, at)
    return found if found and int(found[2]) < int(found[3]) else None


def _is_range(low: str, high: str) -> bool:
    """`7 - 8` is a range, read as its first number like `7 to 8`; `140 - 104` is a sum."""
    return low[0].isdigit() and high[0].isdigit() and float(low) < float(high)


_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _evaluate(source: str) -> float | None:
    """The value of a sum of floats (so no power can grow); None where it has none."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int | float)  # only numbers were written
        return float(node.value)

    try:
        number = value(ast.parse(source, mode="eval").body)
    except ArithmeticError:
        return None
    return number if isinstance(number, float) and abs(number) < _HUGE else None


def _score(source: str, value: float) -> float:
    """`14/15` asked for an integer is 14 out of 15."""
    found = re.fullmatch(r"(\d{1,4}) ?/ ?(\d{1,4})", source)
    return float(found[1]) if found and int(found[1]) <= int(found[2]) else value


# Dates and ages.


def _read_date(text: str, first: bool) -> date | None:
    """Month/day/year (or with hyphens) or ISO; a date that does not exist cannot be read."""
    found = list(_DATE.finditer(text))
    if not found:
        return None
    month, _, day, year, iso_year, iso_month, iso_day = found[0 if first else -1].groups()
    try:
        return date(int(year or iso_year), int(month or iso_month), int(day or iso_day))
    except ValueError:
        return None


_W, _D = r"(?<![\d.])(\d{1,4}) ?(?:weeks?|wks?|w)(?![a-z])", r"(\d{1,4}) ?(?:days?|d)(?![a-z])"
_WEEKS_AND_DAYS = re.compile(rf"{_W}[^\d\n]{{0,12}}{_D}", re.IGNORECASE)
_ONE_OF_THEM = re.compile(rf"{_W}|(?<![\d.]){_D}", re.IGNORECASE)
_PAIR = re.compile(r"[\s(\[*]{0,4}(\d{1,4})(?:, ?| )(\d{1,4})[\s)\]*.]{0,4}")


def _read_weeks_days(text: str, first: bool) -> tuple[int, int] | None:
    """`26 weeks, 3 days`, `(26, 3)`, or one of the two, the other being 0."""
    text = text.replace("'", "").replace('"', "")
    found = [*_WEEKS_AND_DAYS.finditer(text)] or [*_ONE_OF_THEM.finditer(text)]
    pair = found[0 if first else -1] if found else _PAIR.fullmatch(text)
    return (int(pair[1] or 0), int(pair[2] or 0)) if pair else None
