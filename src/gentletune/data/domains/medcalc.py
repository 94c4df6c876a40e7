"""MedCalc-Bench: patient notes, a clinical calculation, an exact answer (the official CSV columns)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from gentletune.core.errors import UserError
from gentletune.data.domains import Domain, register_domain
from gentletune.data.example import ANSWER_PREFIX, Answer, AnswerKind, Example

COLUMNS = (
    *("Patient Note", "Question", "Ground Truth Answer", "Lower Limit", "Upper Limit"),
    *("Ground Truth Explanation", "Output Type"),
)
_WEEKS_DAYS = re.compile(r"(\d+)\s*weeks?\D+(\d+)\s*days?")
# The training file's names for what the test file calls otherwise.
_CATEGORIES = {"lab test": "lab", "dosage conversion": "dosage"}


def medcalc_example(row: Mapping[str, Any], *, cot: bool, where: str) -> Example:
    """One official row. Raises `UserError` on a missing column or an answer that cannot be read.

    Chain of thought is the official explanation with a closing `Answer:` line; label-only is the answer alone.
    The prompt's closing instruction is ours; the category is spelt as in the official test file.
    """
    missing = [column for column in COLUMNS if row.get(column) in (None, "")]
    if missing:
        raise UserError(f"{where}: MedCalc column '{missing[0]}' is missing or empty; needs {', '.join(COLUMNS)}")
    answer = _answer(row, where)
    note, question = str(row["Patient Note"]).strip(), str(row["Question"]).strip()
    category = str(row.get("Category") or "").strip()
    if cot:
        instruction = f"Explain your calculation and end with a line '{ANSWER_PREFIX} VALUE'."
        completion = f"{str(row['Ground Truth Explanation']).strip()}\n{ANSWER_PREFIX} {answer.value}"
    else:
        instruction, completion = "Reply with the answer only.", answer.value
    return Example(
        prompt=f"Patient note:\n{note}\n\nQuestion: {question}\n{instruction}",
        completion=completion,
        answer=answer,
        group=_note_hash(note),
        category=_CATEGORIES.get(category, category),
    )


def shared_notes(train_rows: Iterable[Mapping[str, Any]], test_rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The hashes (as in `Example.group`) of patient notes that stand in both. Raises `UserError` on a row without."""
    train = {_row_hash(row, f"training row {i}") for i, row in enumerate(train_rows, 1)}
    test = {_row_hash(row, f"test row {i}") for i, row in enumerate(test_rows, 1)}
    return train & test


def _row_hash(row: Mapping[str, Any], where: str) -> str:
    note = row.get("Patient Note")
    if note in (None, ""):
        raise UserError(f"{where}: MedCalc column 'Patient Note' is missing or empty")
    return _note_hash(str(note).strip())


def _note_hash(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()[:12]


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    kind, value = str(row["Output Type"]).strip().lower(), str(row["Ground Truth Answer"]).strip()
    if found := _WEEKS_DAYS.search(value):  # the official files call some of these integers
        return Answer("weeks_days", f"({found[1]} weeks, {found[2]} days)")
    if kind == "date":
        try:
            datetime.strptime(value, "%m/%d/%Y")
        except ValueError as error:
            raise UserError(f"{where}: the answer '{value}' is not a date month/day/year") from error
        return Answer("date", value)
    if kind not in ("decimal", "integer"):
        raise UserError(f"{where}: unknown Output Type '{kind}'; known: decimal, integer, date")
    try:
        number, low, high = (float(str(row[c])) for c in ("Ground Truth Answer", "Lower Limit", "Upper Limit"))
    except ValueError as error:
        raise UserError(f"{where}: the answer or a limit is not a number: {error}") from error
    if not all(map(math.isfinite, (number, low, high))):
        raise UserError(f"{where}: the answer or a limit is not finite: {number}, {low}, {high}")
    if kind == "integer" and number == int(number):
        value = str(int(number))
    known: AnswerKind = "decimal" if kind == "decimal" else "integer"
    return Answer(known, value, min(low, high), max(low, high))


register_domain(
    Domain(
        "medcalc",
        example=medcalc_example,
        files={"train": ("medcalc/train.csv",), "test": ("medcalc/test.csv", "medcalc/test.parquet")},
        shared=shared_notes,
        both_completions=True,
        skills=("arithmetic",),
    )
)
