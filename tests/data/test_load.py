"""From a recipe to rows on two sides that share nothing."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.data.domains.clinic import clinic_examples
from gentletune.data.domains.medcalc import medcalc_example
from gentletune.data.files import read_rows
from gentletune.data.forms import shaped_rows
from gentletune.data.groups import split_by_group
from gentletune.data.load import load_data
from tests.helpers import write_jsonl

SHAPES: dict[str, Any] = {
    "messages": lambda i: {
        "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
    },
    "prompt_completion": lambda i: {"prompt": f"q{i}", "completion": f"a{i}"},
    "text": lambda i: {"text": f"t{i}"},
}


def esci(query: str, **changes: Any) -> dict[str, Any]:
    return {"query": query, "product_text": "p", "esci_label": "E", **changes}


@given(
    groups=st.lists(st.integers(0, 30).map(str), min_size=2, max_size=60).filter(lambda g: len(set(g)) > 1),
    test_rows=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_a_split_holds_out_whole_groups_whatever_the_order(groups: list[str], test_rows: int, seed: int) -> None:
    train, test = split_by_group(groups, test_rows, groups, "f")
    assert Counter(train) + Counter(test) == Counter(groups)
    assert train
    assert test
    assert not set(train) & set(test)
    # A fifth at most, unless even the smallest group is more.
    smallest = min(Counter(groups).values())
    assert len(test) <= max(1, smallest, min(test_rows, len(groups) // 5))
    shuffled = random.Random(seed).sample(groups, len(groups))
    again = split_by_group(shuffled, test_rows, shuffled, "f")
    assert [set(train), set(test)] == [set(side) for side in again]


def test_a_split_fills_what_it_may_hold_out() -> None:
    groups = [str(i) for i in range(100)]
    assert [len(split_by_group(groups, n, groups, "f")[1]) for n in (1, 7, 20, 64)] == [1, 7, 20, 20]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"^f: 3 row\(s\) in one group"):
        split_by_group([1, 2, 3], 1, ["a", "a", "a"], "f")


@pytest.mark.parametrize("cot", [True, False])
def test_clinic_makes_its_rows(cot: bool) -> None:
    recipe = Recipe(data="clinic", train_rows=12, test_rows=5, cot=cot, seed=3)
    found = load_data(recipe)
    assert found.train == [e.row() for e in clinic_examples(12, seed=3, cot=cot, split="train")]
    assert found.test == [e.row() for e in found.examples]
    assert (found.name, len(found.test), found.leaked) == ("clinic", 5, 0)
    other = load_data(recipe.override({"seed": 4}))
    assert other.test_hash == found.test_hash
    assert other.train_hash != found.train_hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "clinic", "data_path": "x.csv"}, "takes no data_path"),
        ({"data": "medcalc"}, "data: medcalc needs data_path"),
        ({}, r"no data; give data \(--data\): a file such as mine.jsonl, .* or of clinic,"),
        ({"data": "a.jsonl", "data_path": "b.jsonl"}, "data: a.jsonl is a file .*, so data_path says nothing more"),
        ({"data": "clinic", "domain_metric": "exact"}, "data: clinic has its own scoring"),
        ({"data": "clinc"}, "unknown data recipe 'clinc'; did you mean 'clinic'"),
        ({"data": "medcal", "data_path": "x.csv"}, "did you mean 'medcalc'"),
        ({"data_path": "no/such/file.csv"}, "no such data file: no/such/file.csv"),
        ({"data": "no/such/file.csv"}, "no such data file: no/such/file.csv"),
        ({"data": "a.jsonl", "data_split": "test"}, "data_split is for a data set of the hub, and data names none"),
        ({"data": "clinic", "data_split": "test"}, "data_split is for a data set of the hub, and data names none"),
        ({"data": "a.jsonl", "cot": False}, r"rows of your own \(a.jsonl\) have no chain of thought .* leave cot out"),
        ({"data": "a.jsonl:1,b.jsonl:1", "cot": False}, "cot: false is for domains"),
    ],
)
def test_a_recipe_without_the_data_it_names_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(Recipe.parse(fields))


@pytest.mark.parametrize(
    "reader",
    [{"data": "a.jsonl:1,clinic:1"}, {"tasks": ("clinic",)}, {"method": 'replay(source="clinic")'}],
)
def test_beside_a_domain_a_file_of_ones_own_may_say_cot(
    reader: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [SHAPES["prompt_completion"](i) for i in range(10)])
    assert load_data(Recipe.parse({"data": "a.jsonl", "cot": False} | reader)).train


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_rows_are_split_and_limited(tmp_path: Path, shape: str) -> None:
    rows = [SHAPES[shape](i) for i in range(30)]
    path = write_jsonl(tmp_path / "notes.jsonl", [*rows, rows[0]])
    whole = load_data(Recipe(data_path=path))
    assert (whole.name, len(whole.test), whole.leaked) == ("notes", 6, 0)
    assert len(whole.examples) == (0 if shape == "text" else 6)
    assert sorted(map(str, [*whole.train, *whole.test])) == sorted(map(str, [*rows, rows[0]]))
    assert not {str(r) for r in whole.train} & {str(r) for r in whole.test}
    few = load_data(Recipe(data_path=path, train_rows=7, test_rows=3))
    assert (len(few.train), len(few.test)) == (7, 3)
    assert all(row in whole.test for row in few.test)
    assert load_data(Recipe(data_path=path, seed=5)).train_hash == whole.train_hash


def test_a_plain_test_file_takes_its_rows_out_of_training(tmp_path: Path) -> None:
    make = SHAPES["prompt_completion"]
    path = write_jsonl(tmp_path / "train.jsonl", [make(i) for i in range(10)])
    held = write_jsonl(tmp_path / "test.jsonl", [{"prompt": "q3", "completion": "said otherwise"}, make(99)])
    found = load_data(Recipe(data_path=path, test_path=held))
    assert found.leaked == 1
    assert found.train == [make(i) for i in range(10) if i != 3]
    assert len(found.test) == 2
    with pytest.raises(UserError, match="every training row shares its group with the held-out rows"):
        load_data(Recipe(data_path=path, test_path=path))
    text = write_jsonl(tmp_path / "text.jsonl", [SHAPES["text"](0)])
    with pytest.raises(UserError, match=r"text\.jsonl: 1 row of plain text \(text\), but .* has 10 rows of prompts"):
        load_data(Recipe(data_path=path, test_path=text))


def talk(*said: str, system: str = "") -> dict[str, Any]:
    roles = [*(["system"] if system else []), *("user", "assistant") * (len(said) // 2)]
    texts = [*([system] if system else []), *said]
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}


def ask(prompt: str, i: int, **more: Any) -> dict[str, Any]:
    return {"question": prompt, "answer": f"a{i}", **more}


# Rows of which those of one letter belong together.
TOGETHER: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "beginnings of chats": [
        (f"{i}", talk(*(f"{i}{turn}" for turn in range(2 * n)))) for i in range(9) for n in (1, 2, 3)
    ],
    "other ways to go on": [(f"{i}", talk(f"q{i}", f"a{n}", "Why?", f"{n}")) for i in range(9) for n in range(3)],
    "beginnings after a greeting": [
        (f"{i}", talk("Hi", "Hello", *(f"{i}{turn}" for turn in range(2 * n)))) for i in range(9) for n in (1, 2)
    ],
    "another system prompt": [(f"{i}{s}", talk(f"q{i}", "a", system=s)) for i in range(9) for s in "xy"],
    "case and spaces": [(f"{i}", ask(q, i)) for i in range(9) for q in (f"What is {i}?", f" what  is {i}?\n")],
    "a context": [(f"{i}", ask(f"q{n}", n, context=f"note {i}")) for i in range(9) for n in range(3)],
    "a context of Dolly's": [
        (f"{i}", {"instruction": f"q{n}", "response": "a", "context": f"Note {i}"}) for i in range(9) for n in range(3)
    ],
    "a context that all have": [(f"{i}", ask(f"q{i}", n, context="the manual")) for i in range(9) for n in range(3)],
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
@pytest.mark.parametrize("test_file", [False, True])
def test_what_belongs_together_is_on_one_side(tmp_path: Path, case: str, test_file: bool) -> None:
    """Held out by hash or, where a test file has a row of a group, the others are not trained on."""
    rows = TOGETHER[case]
    path = write_jsonl(tmp_path / "rows.jsonl", [row for _, row in rows])
    marks = {json.dumps(row): mark for (mark, _), row in zip(rows, load_rows(path), strict=True)}
    recipe = Recipe(data=path)
    if test_file:
        recipe = Recipe(data=path, test_path=write_jsonl(tmp_path / "held.jsonl", [rows[4][1]]))
    found = load_data(recipe)
    sides = [{marks[json.dumps(row)] for row in side} for side in (found.train, found.test)]
    assert not sides[0] & sides[1]
    assert sides[1]
    assert len(sides[0] | sides[1]) == len({mark for mark, _ in rows})
    count = sum(mark in sides[1] for mark, _ in rows)
    assert found.leaked == (count if test_file else 0)


def load_rows(path: str) -> list[dict[str, Any]]:
    """The rows as they are trained on."""
    rows = shaped_rows(read_rows(path), path).rows
    return [{key: value for key, value in row.items() if key != "context"} for row in rows]


@pytest.mark.parametrize("name", ["test", "Validation", "dev"])
def test_a_file_of_ones_own_may_bring_its_split(tmp_path: Path, name: str) -> None:
    make = SHAPES["prompt_completion"]
    sides = ["train"] * 8 + [name] * 2 + ["train", "spare"]
    rows = [{**make(i % 10), "Split": side} for i, side in enumerate(sides)]
    path = write_jsonl(tmp_path / "mine.jsonl", [*rows, {**make(8), "Split": "train"}])
    found = load_data(Recipe(data=path))
    assert found.test == [make(8), make(9)]
    assert found.train == [*map(make, range(8)), make(0)]
    assert found.leaked == 1
    assert "by its column Split 10 rows to train on, 2 held out, 1 of another split left out" in found.recognised
    assert "not used" not in found.recognised
    one = write_jsonl(tmp_path / "one.jsonl", [{**make(i), "split": "train"} for i in range(10)])
    assert len(load_data(Recipe(data=one)).test) == 2  # which parts nothing
    with pytest.raises(UserError, match=r"mine\.jsonl: row 3: the completion is empty"):
        load_data(Recipe(data=write_jsonl(tmp_path / "mine.jsonl", [*rows[:2], {**rows[9], "completion": ""}])))


@pytest.mark.parametrize("name", ["reference", "kl_sampled", "domain_mean"])
def test_a_file_called_like_a_score_is_refused(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / f"{name}.jsonl", [SHAPES["text"](i) for i in range(9)])
    with pytest.raises(UserError, match=rf"{name}\.jsonl: '{name}' is what scores of .* rename the file"):
        load_data(Recipe(data=path))


def test_columns_beyond_the_shape_do_not_matter(tmp_path: Path) -> None:
    rows = [{**SHAPES["text"](i), "seen": datetime.datetime(2024, 1, 1 + i), "raw": b"\x00"} for i in range(10)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = load_data(Recipe(data_path=str(tmp_path / "t.parquet")))
    plain = load_data(Recipe(data_path=write_jsonl(tmp_path / "t.jsonl", [SHAPES["text"](i) for i in range(10)])))
    assert (found.train_hash, found.test_hash) == (plain.train_hash, plain.test_hash)


def test_the_official_esci_file_brings_its_own_split(tmp_path: Path) -> None:
    rows = [esci(f"q{i}", split="test" if i in (2, 5) else "train") for i in range(8)] + [esci("q2", split="train")]
    found = load_data(Recipe(data="esci", cot=False, data_path=write_jsonl(tmp_path / "e.jsonl", rows)))
    assert [e.group for e in found.examples] == ["q2", "q5"]
    assert (len(found.train), found.leaked) == (6, 1)


def test_a_domain_file_whose_groups_are_all_held_out_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "e.jsonl", [esci("q1"), esci("q2")])
    with pytest.raises(UserError, match="every training row shares its group"):
        load_data(Recipe(data="esci", cot=False, data_path=path, test_path=path))


def test_a_bad_domain_row_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "e.jsonl", [esci("q1"), esci("q2", esci_label="Z")])
    with pytest.raises(UserError, match=r"e\.jsonl: row 2: unknown esci_label 'Z'"):
        load_data(Recipe(data="esci", cot=False, data_path=path))


@pytest.mark.parametrize("limits", [{}, {"test_rows": 3, "train_rows": 50}])
def test_notes_in_both_official_files_are_held_out(shared_data: Path, limits: dict[str, int]) -> None:
    train, test = (str(shared_data / "medcalc" / f"{name}.csv") for name in ("train", "test"))
    found = load_data(Recipe(data="medcalc", data_path=train, test_path=test, **{"test_rows": 10_000, **limits}))
    groups = [{medcalc_example(r, cot=True, where="f").group for r in read_rows(path)} for path in (train, test)]
    assert len(groups[0] & groups[1]) == 41  # 58 of the full test file's
    assert found.leaked == 47
    kept = {medcalc_example(r, cot=True, where="f").group: r["Patient Note"].strip() for r in read_rows(train)}
    leaked_notes = [kept[group] for group in groups[0] & groups[1]]
    prompts = [row["prompt"] for row in found.train]
    assert not any(f"Patient note:\n{note}\n\nQuestion:" in prompt for note in leaked_notes for prompt in prompts)
    if limits:
        assert (len(found.train), len(found.examples)) == (50, 3)
    else:
        assert (len(found.train) + found.leaked, len(found.examples)) == (1006, 747)


def test_one_official_file_is_split_by_note(shared_data: Path) -> None:
    found = load_data(Recipe(data="medcalc", data_path=str(shared_data / "medcalc" / "test.csv")))
    held = {e.group for e in found.examples}
    notes = {e.prompt.split("\n\nQuestion:")[0] for e in found.examples}
    assert 0 < len(found.examples) <= 64
    assert len(held) == len(notes)
    assert not notes & {row["prompt"].split("\n\nQuestion:")[0] for row in found.train}
    assert len(found.train) + len(found.test) == 747
