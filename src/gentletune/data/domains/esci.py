"""ESCI, the Shopping Queries data set: how well a product fits a query, in four classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentletune.core.errors import UserError
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
        answer=Answer("choice", letter),
        group=str(row["query"]).strip(),
        category=CLASSES[letter],
    )
