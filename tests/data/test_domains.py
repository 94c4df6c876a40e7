"""Official rows of MedCalc-Bench and ESCI become examples whose own completion is judged right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.errors import UserError
from gentletune.data.domains.esci import CLASSES, esci_example
from gentletune.data.domains.medcalc import COLUMNS, medcalc_example, shared_notes
from gentletune.data.example import Answer
from gentletune.data.files import read_rows
from gentletune.evaluation.scoring import is_right

MEDCALC = {
    "Row Number": "1",
    "Category": "lab",
    "Output Type": "decimal",
    "Patient Note": " A man of 80 kg. ",
    "Question": "What is his BMI?",
    "Ground Truth Answer": "22.86",
    "Lower Limit": "21.717",
    "Upper Limit": "24.003",
    "Ground Truth Explanation": "70 / 3.0625 = 22.86",
}


def medcalc(**changes: Any) -> dict[str, Any]:
    return MEDCALC | {key.replace("_", " "): value for key, value in changes.items()}


def typed(kind: str, value: str, low: str = "0", high: str = "0") -> dict[str, Any]:
    return medcalc(Output_Type=kind, Ground_Truth_Answer=value, Lower_Limit=low, Upper_Limit=high)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (typed("decimal", "22.86", "21.717", "24.003"), Answer("decimal", "22.86", 21.717, 24.003)),
        (typed("decimal", "-3.5", "-3.325", "-3.675"), Answer("decimal", "-3.5", -3.675, -3.325)),
        (typed("Decimal ", "1e-05", "1e-05", "1.1e-05"), Answer("decimal", "1e-05", 1e-05, 1.1e-05)),
        (typed("integer", "8", "8", "8"), Answer("integer", "8", 8, 8)),
        (typed("integer", "8.0", "8.0", "8.0"), Answer("integer", "8", 8, 8)),
        (typed("integer", "-2.0", "-2", "-2"), Answer("integer", "-2", -2, -2)),
        (typed("date", "03/05/2014", "03/05/2014", "03/05/2014"), Answer("date", "03/05/2014")),
        (typed("integer", "('19 weeks', '1 days')", "x", "x"), Answer("weeks_days", "(19 weeks, 1 days)")),
        (typed("date", "('1 week', '1 day')", "x", "x"), Answer("weeks_days", "(1 weeks, 1 days)")),
    ],
)
def test_a_medcalc_answer_is_read_by_its_kind(row: dict[str, Any], answer: Answer) -> None:
    worked, label = (medcalc_example(row, cot=cot, where="f") for cot in (True, False))
    assert worked.answer == label.answer == answer
    assert worked.completion == f"70 / 3.0625 = 22.86\nAnswer: {answer.value}"
    assert label.completion == answer.value
    assert is_right(worked.completion, answer)
    assert is_right(label.completion, answer)


def test_a_medcalc_prompt_holds_note_and_question_and_its_group_is_the_note() -> None:
    first = medcalc_example(medcalc(), cot=True, where="f")
    other = medcalc_example(medcalc(Patient_Note="A man of 80 kg.", Question="LDL?"), cot=False, where="f")
    assert "A man of 80 kg.\n\nQuestion: What is his BMI?\n" in first.prompt
    assert MEDCALC["Ground Truth Answer"] not in first.prompt
    assert first.category == "lab"
    assert first.group == other.group != medcalc_example(medcalc(Patient_Note="B"), cot=True, where="f").group


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_medcalc_column_is_named(column: str, value: Any) -> None:
    gone = {key: v for key, v in MEDCALC.items() if key != column}
    for row in (gone, MEDCALC | {column: value}):
        with pytest.raises(UserError, match=f"^f: row 4: .*'{column}' is missing"):
            medcalc_example(row, cot=True, where="f: row 4")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (typed("percent", "5"), "unknown Output Type 'percent'"),
        (typed("decimal", "abc"), "'abc'"),
        (typed("decimal", "1,234"), "'1,234'"),
        (typed("decimal", "5", low="low"), "'low'"),
        (typed("integer", "five"), "'five'"),
        (typed("integer", "nan"), "nan"),
        (typed("integer", "inf"), "inf"),
        (typed("decimal", "5", high="nan"), "nan"),
        (typed("date", "2014-03-05"), "2014-03-05"),
        (typed("date", "02/30/2014"), "'02/30/2014' is not a date"),
    ],
)
def test_a_medcalc_answer_that_cannot_be_read_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^f: row 4: .*{message}"):
        medcalc_example(row, cot=True, where="f: row 4")


@pytest.mark.parametrize(
    ("written", "category"),
    [("lab test", "lab"), ("dosage conversion", "dosage"), ("lab", "lab"), (" risk ", "risk"), ("", ""), (None, "")],
)
def test_a_medcalc_category_is_spelt_as_in_the_test_file(written: str | None, category: str) -> None:
    assert medcalc_example(medcalc(Category=written), cot=True, where="f").category == category


def test_notes_on_both_sides_are_found_by_the_hash_that_groups_rows() -> None:
    a, b, c = (medcalc(Patient_Note=note) for note in ("A", " B ", "C"))
    group = medcalc_example(medcalc(Patient_Note="B"), cot=True, where="f").group
    assert shared_notes([a, b], [medcalc(Patient_Note="B\n"), c]) == {group}
    assert shared_notes([a], [c]) == shared_notes([], [c]) == set()
    with pytest.raises(UserError, match=r"^test row 2: .*'Patient Note' is missing"):
        shared_notes([a], [b, medcalc(Patient_Note="")])


OFFICIAL = {
    "query": " usb c cable",
    "product_title": "Cable 2 m",
    "product_brand": None,
    "product_bullet_point": "fast",
    "product_description": "",
    "esci_label": "E",
    "split": "train",
}
JOINED = {"query": "usb c cable", "product_text": "Cable 2 m\nfast", "esci_label": "Exact"}


def test_esci_columns_and_joined_text_give_the_same_example() -> None:
    official = esci_example(OFFICIAL, cot=False, where="f")
    assert official == esci_example(JOINED, cot=False, where="f")
    assert "Query: usb c cable\nProduct: Cable 2 m\nfast\n\n" in official.prompt
    assert (official.group, official.category) == ("usb c cable", "Exact")


@pytest.mark.parametrize("letter", CLASSES)
@pytest.mark.parametrize("cot", [False, True])
def test_an_esci_label_is_a_letter_or_a_word(letter: str, cot: bool) -> None:
    for label in (letter, CLASSES[letter], CLASSES[letter].upper(), f" {CLASSES[letter].lower()} "):
        example = esci_example(JOINED | {"esci_label": label, "rationale": "It fits.\n"}, cot=cot, where="f")
        assert example.completion == (f"It fits.\nAnswer: {letter}" if cot else letter)
        assert example.answer == Answer("choice", letter, domain="esci")
        assert is_right(example.completion, Answer("choice", letter, domain="esci"))
        assert not any(
            is_right(example.completion, Answer("choice", other, domain="esci")) for other in CLASSES if other != letter
        )


@pytest.mark.parametrize(
    ("changes", "cot", "message"),
    [
        ({"esci_label": "X"}, False, "unknown esci_label 'X'; known: E, S, C, I"),
        ({"esci_label": None}, False, "needs the columns query, esci_label"),
        ({"query": ""}, False, "needs the columns query, esci_label"),
        ({"product_text": None}, False, "no product text"),
        ({}, True, "no rationale.*cot: false"),
        ({"rationale": ""}, True, "no rationale"),
    ],
)
def test_a_bad_esci_row_is_named(changes: dict[str, Any], cot: bool, message: str) -> None:
    with pytest.raises(UserError, match=f"^f: row 9: .*{message}"):
        esci_example(JOINED | changes, cot=cot, where="f: row 9")


def test_every_row_of_the_esci_sample_reads(shared_data: Path) -> None:
    rows = read_rows(str(shared_data / "esci" / "sample.csv"))
    examples = [esci_example(row, cot=False, where="sample") for row in rows]
    assert Counter(e.completion for e in examples) == {"E": 76, "I": 17, "S": 5, "C": 1}
    assert len(examples) == 99
    assert all(e.answer and is_right(e.completion, e.answer) for e in examples)
