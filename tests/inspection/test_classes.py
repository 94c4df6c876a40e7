"""Token classes: rules on the decoded text and what stands around a token."""

from __future__ import annotations

import doctest
import importlib

import pytest

from gentletune.inspection.classes import CLASSES, classify


def names(pieces: list[str], *, special: int = 0, answer: bool = False) -> list[str]:
    """Class names of tokens, of which the last `special` are special."""
    marks = [False] * (len(pieces) - special) + [True] * special
    return [CLASSES[i] for i in classify(pieces, marks, answer=answer)]


def split(text: str) -> dict[str, str]:
    """The class of each word between spaces, each a token with its space; words are told apart by their text."""
    pieces = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
    return dict(zip((p.strip() for p in pieces), names(pieces), strict=True))


def test_a_number_keeps_its_inner_marks() -> None:
    assert names(["1", ",", "2", "34", ".", "5"]) == ["number"] * 6
    assert names(["03", "/", "12", "/", "2020"]) == ["number"] * 5
    assert names(["8", ".", " "]) == ["number", "punctuation", "punctuation"]
    assert names(["1", "e-", "5"]) == ["number"] * 3
    assert names(["-", "3"]) == ["punctuation", "number"]


@pytest.mark.parametrize(
    "unit", ["mg", "mg/dL", "mmol/L", "kg/m²", "mmHg", "years", "%", "mL/min", "µmol/L", "g/dL", "IU/L", "°C", "kg/m^2"]
)
def test_units_with_and_without_a_space(unit: str) -> None:
    assert names(["is", " 4", f" {unit}"]) == ["word", "number", "unit"]
    assert names(["4", unit]) == ["number", "unit"]
    assert names(["the", f" {unit}", " of"])[1] == "unit"


def test_a_unit_split_over_tokens_counts_by_the_word_it_is_in() -> None:
    assert names(["7", " m", "mol", "/", "L"]) == ["number", "unit", "unit", "unit", "unit"]
    assert names(["45", "-", "year", "-", "old"]) == ["number", "punctuation", "unit", "punctuation", "word"]


def test_letters_that_mean_a_unit_only_behind_a_number() -> None:
    assert split("sum in 5 in")["in"] == "unit"  # the last of the two
    assert names(["put", " in", " a", " m"]) == ["word"] * 4
    assert names(["70", " g"]) == ["number", "unit"]
    assert names(["mgs", " kilo"]) == ["word", "word"]  # a unit ends where its word ends


def test_names_are_capitalised_words_inside_a_sentence() -> None:
    found = split("Then Cockcroft-Gault and I agree. The eGFR of LDL is HbA1c")
    assert found["Cockcroft-Gault"] == "name"
    assert found["LDL"] == "name"
    assert found["HbA1c"] == "name"
    assert [found[word] for word in ("Then", "I", "The", "eGFR", "agree.")] == ["word"] * 5
    assert names(["a", " Mac", "lean", " b"]) == ["word", "name", "name", "word"]
    assert names(["end", "\n", "- ", "Next"]) == ["word", "punctuation", "punctuation", "word"]
    assert names(["so", ": ", "Bold"]) == ["word", "punctuation", "name"]  # a colon ends no sentence


def test_the_first_token_of_the_answer_and_behind_the_answer_prefix() -> None:
    pieces = ["BMI", " is", " 2", "7", "\n", "Answer", ":", " ", "2", "7", "<end>"]
    found = names(pieces, special=1, answer=True)
    assert found == [
        "first", "word", "number", "number", "punctuation", "word", "punctuation", "punctuation", "first", "number",
        "special",
    ]  # fmt: skip
    assert names(["7", "8", "<end>"], special=1, answer=True) == ["first", "number", "special"]
    assert names(["\n", " 7", "8"], answer=True) == ["punctuation", "first", "number"]


def test_only_the_last_answer_line_counts_and_only_at_the_start_of_a_line() -> None:
    lines = ["a", "\n", "Answer:", " 1", "\n", "Answer:", " 2"]
    assert names(lines, answer=True) == ["first", "punctuation", "word", "number", "punctuation", "word", "first"]
    assert names(["a", " Answer:", " 1"], answer=True) == ["first", "name", "number"]


def test_a_text_has_no_first_token_and_an_answer_may_have_no_other() -> None:
    assert names(["7", "8"]) == ["number", "number"]
    assert names(["<end>"], special=1, answer=True) == ["special"]
    assert names([], answer=True) == []
    assert names([" ", "\n"], answer=True) == ["punctuation", "punctuation"]
    assert names(["x", "Answer:"], answer=True)[1:] == ["word"]


def test_part_of_a_character_has_the_class_of_the_character() -> None:
    assert names(["na", "", "ï", "ve"]) == ["word"] * 4
    assert names(["a", ""]) == ["word", "punctuation"]  # nothing follows


@pytest.mark.parametrize("name", ["classes", "stream", "tables", "page"])
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"gentletune.inspection.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
