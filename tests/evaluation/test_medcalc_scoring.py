"""The official MedCalc-Bench files by our reader: answers, explanations, completions, notes on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gentletune.data.domains.medcalc import medcalc_example, shared_notes
from gentletune.data.example import Answer, Example
from gentletune.data.files import read_rows
from gentletune.evaluation.scoring import is_right, said

ROWS = {"train": 1006, "test": 747}
INTEGER = {4, 15, 16, 17, 18, 20, 21, 25, 27, 28, 29, 32, 33, 36, 43, 45, 48, 51}
"""The calculators whose answers the official scorer reads as integers; all but these and `KINDS` are decimals."""
KINDS = {13: "date", 68: "date", 69: "weeks_days"}

Judged = tuple[dict[str, Any], Example, Answer]


def judged(shared_data: Path, file: str) -> list[Judged]:
    found = []
    for row in read_rows(str(shared_data / "medcalc" / f"{file}.csv")):
        example = medcalc_example(row, cot=True, where=file)
        assert example.answer is not None
        found.append((row, example, example.answer))
    assert len(found) == ROWS[file]
    return found


@pytest.mark.parametrize("file", ROWS)
def test_every_official_answer_is_right(shared_data: Path, file: str) -> None:
    for row, example, answer in judged(shared_data, file):
        official = str(row["Ground Truth Answer"])
        label = medcalc_example(row, cot=False, where=file).completion
        for response in (official, f"Answer: {official}", f"**Answer:** {official}.", example.completion, label):
            assert is_right(response, answer), (row["Row Number"], response)


@pytest.mark.parametrize("file", ROWS)
def test_every_official_explanation_is_read_and_right_without_an_answer_line(shared_data: Path, file: str) -> None:
    rows = [(str(row["Ground Truth Explanation"]), answer) for row, _, answer in judged(shared_data, file)]
    assert [text for text, answer in rows if said(text, answer) is None] == []
    assert [text for text, answer in rows if not is_right(text, answer)] == []


@pytest.mark.parametrize("file", ROWS)
def test_an_answer_that_is_another_rows_is_mostly_wrong(shared_data: Path, file: str) -> None:
    """Guards against a reader that finds everything right."""
    rows = judged(shared_data, file)
    answers = [answer for _, _, answer in rows]
    right = sum(is_right(f"Answer: {a.value}", b) for a, b in zip(answers, answers[1:] + answers[:1], strict=True))
    assert right < 0.2 * len(rows)


@pytest.mark.parametrize("file", ROWS)
def test_an_answer_is_of_the_kind_the_official_scorer_takes_it_for(shared_data: Path, file: str) -> None:
    for row, _, answer in judged(shared_data, file):
        calculator = int(row["Calculator ID"])
        assert answer.kind == KINDS.get(calculator, "integer" if calculator in INTEGER else "decimal")


def test_both_files_use_the_same_categories(shared_data: Path) -> None:
    counts = {file: Counter(e.category for _, e, _ in judged(shared_data, file)) for file in ROWS}
    names = {"lab", "physical", "risk", "severity", "date", "diagnosis", "dosage"}
    assert set(counts["train"]) == set(counts["test"]) == names
    assert (counts["train"]["lab"], counts["train"]["dosage"]) == (310, 19)


def test_the_notes_that_stand_in_both_files_are_counted(shared_data: Path) -> None:
    """The full files share 58 notes; 747 of the 1047 test questions are here."""
    rows = {file: read_rows(str(shared_data / "medcalc" / f"{file}.csv")) for file in ROWS}
    groups = {file: Counter(e.group for _, e, _ in judged(shared_data, file)) for file in ROWS}
    shared = shared_notes(rows["train"], rows["test"])
    assert len(shared) == 41
    assert sum(groups["test"][note] for note in shared) == 46
    assert sum(groups["train"][note] for note in shared) == 47
