"""ESCI, the Shopping Queries data set: how well a product fits a query, in four classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gentletune.core.errors import UserError
from gentletune.data.domains import Domain, register_domain
from gentletune.data.example import ANSWER_PREFIX, Answer, Example

CLASSES = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
_TEXT = ("product_title", "product_brand", "product_bullet_point", "product_description")
_PROMPT = (
    "Query: {query}\nProduct: {product}\n\n"
    "How does the product fit the query? E (exact match), S (substitute), C (complement) or I (irrelevant). "
)


def esci_example(row: Mapping[str, Any], *, cot: bool, where: str) -> Example:
    """One official row (parquet columns, or `product_text` in one).

    Chain of thought needs a `rationale` column, which the official files do not have. Raises `UserError` on a
    missing column or an unknown label.
    """
    if not row.get("query") or row.get("esci_label") in (None, ""):
        raise UserError(f"{where}: ESCI needs the columns query, esci_label and product_text (or product_title …)")
    label = str(row["esci_label"]).strip()
    letter = label if label in CLASSES else next((k for k, v in CLASSES.items() if v == label.title()), None)
    if letter is None:
        raise UserError(f"{where}: unknown esci_label '{label}'; known: E, S, C, I")
    product = row.get("product_text") or "\n".join(str(row[c]) for c in _TEXT if row.get(c))
    if not product:
        raise UserError(f"{where}: no product text; ESCI needs product_text or product_title")
    prompt = _PROMPT.format(query=str(row["query"]).strip(), product=str(product).strip())
    if not cot:
        instruction, completion = "Reply with the letter only.", letter
    elif row.get("rationale"):
        instruction = f"Explain and end with a line '{ANSWER_PREFIX} LETTER'."
        completion = f"{str(row['rationale']).strip()}\n{ANSWER_PREFIX} {letter}"
    else:
        raise UserError(f"{where}: no rationale for a chain of thought; add a 'rationale' column or use cot: false")
    return Example(
        prompt=prompt + instruction,
        completion=completion,
        answer=Answer("choice", letter, domain="esci"),
        group=str(row["query"]).strip(),
        category=CLASSES[letter],
    )


# What an answer says.

_WORDS = r"exact|substitutes?|complement(?:s|ary)?|irrelevant"
# A letter is a class where it stands alone: not `I think`, `I'm`, `S hook`, `C-clamp`.
_MENTION = re.compile(
    rf"(?P<not>(?:\b(?:not?|never|neither|nor|than|instead of)|n['’]t) (?:an? |the )?)?[\"'(*]{{0,3}}"
    rf"(?:\b(?P<word>(?i:{_WORDS}))\b|(?<![\w-])(?P<letter>[ESCI])(?!\w|['’]\w)(?!-(?!(?i:{_WORDS}))\w)"
    rf"(?! +(?!(?i:{_WORDS}|because|since|as|is|match|or|and|but|not|rather|instead|here)\b)\w)(?!(?<=I) +as\b))"
)
_LEADS = re.compile(r"[\W_]*([ESC])(?![\w'’-])")
_CLOSED = re.compile(r"(?: match)? *(?:[^\w\s]|\n|$)")
_HEDGE = re.compile(r"(?: match)?[\s\"')*]*(?:/|,|\||&|\bor\b|\band\b)[\s\"'(*]*")


def read_class(text: str, first: bool) -> str | None:
    """The letter of the class named; None where none is, or two are in one breath (`E or S`).

    A lone letter may be small. A response without a marker that opens with a class is read by that.
    """
    if len(alone := re.sub(r"[\W_]+", "", text).upper()) == 1:
        return alone if alone in CLASSES else None
    named = [
        (m[kind][0].upper(), *m.span(kind)) for m in _MENTION.finditer(text) if not m["not"] and (kind := m.lastgroup)
    ]
    if first and (lead := _LEADS.match(text)) and (not named or lead.start(1) < named[0][1]):
        named.insert(0, (lead[1], *lead.span(1)))  # on an answer line whatever word may follow
    if not named:
        return None
    _, begin, end = named[0]
    opens = not re.search(r"\w", text[:begin]) and (end - begin == 1 or _CLOSED.match(text, end) is not None)
    if not first and not opens:
        letter, later = named[-1][0], named[::-1]
    else:
        letter, later = named[0][0], named
    for this, other in pairwise(later):
        if other[0] != letter:
            between = text[this[2] : other[1]] if this[1] < other[1] else text[other[2] : this[1]]
            return None if _HEDGE.fullmatch(between) else letter
    return letter


register_domain(
    Domain(
        "esci",
        example=esci_example,
        files={"test": ("esci/test.parquet", "esci/test.csv", "esci/sample.csv")},
        read=read_class,
        metric="balanced_accuracy",
    )
)
