"""Many rows of a file are shaped once and stay on disk: the same data as in memory, and a second start reads no row."""

from __future__ import annotations

import importlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.core.records import write_text_atomic
from gentletune.data import Answer, Domain, DomainData, Example, domains, encode, files, load_data, register_domain
from gentletune.data.disk import stored
from gentletune.data.disk.stored import Drawn, once_on_disk
from tests.helpers import tiny_recipe


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few rows are many here."""
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encode, "MANY_ROWS", 8)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(i: int) -> dict[str, Any]:
    said = ["Hello", "Hi.", f"And {i % 7}?", f"{i} kg"]
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}


def esci(i: int) -> dict[str, Any]:
    return {"query": f"q{i % 9}", "product_text": f"p{i}", "esci_label": "ESCI"[i % 4]}


def sources(place: Path) -> dict[str, dict[str, Any]]:
    """Recipes on files of every kind of row and every way of parting them."""
    sides = ("train", "test", "train", "other")
    context = [
        {"instruction": f"do {i}", "context": f"c{i % 5}" if i % 3 else "", "response": f"{i}"} for i in range(40)
    ]
    split = [{"prompt": f"p{i}", "completion": f"{i}.", "split": sides[i % 4], "more": i} for i in range(40)]
    tested = write(place / "t.jsonl", [{"prompt": f"p{i}", "completion": "x"} for i in range(12, 24)])
    paths = {
        "chats": write(place / "chats.jsonl", [chat(i) for i in range(40)]),
        "contexts": write(place / "contexts.jsonl", context),
        "split": write(place / "split.jsonl", split),
        "choices": write(
            place / "choices.jsonl", [{"text": f"t{i}", "label": ("yes", "no")[i % 2]} for i in range(40)]
        ),
        "texts": write(place / "texts.jsonl", [{"text": f"tall {i % 30}"} for i in range(40)]),
    }
    mixed = [{"path": path, "weight": weight} for weight, path in enumerate([*paths.values(), "clinic"], start=1)]
    return {
        **{name: {"data": path} for name, path in paths.items()},
        "drawn": {"data": paths["chats"], "train_rows": 15, "test_rows": 3},
        "tested": {"data": paths["split"], "test_path": tested},
        "domain": {"data": "esci", "data_path": write(place / "e.jsonl", [esci(i) for i in range(40)]), "cot": False},
        "mixture": {"data": mixed, "train_rows": 90},
    }


def told(data: DomainData) -> dict[str, Any]:
    """All that a run asks of its data."""
    mixture = None
    if data.mixture is not None:
        mixture = data.mixture.counts(range(len(data.train)), range(len(data.train)))
    plain = {k: v for k, v in vars(data).items() if k not in ("train", "mixture", "examples")}
    hashes = {"train": data.train_hash, "test": data.test_hash, "examples": repr(data.examples)}
    return plain | hashes | {"rows": list(data.train), "mixture": mixture}


@pytest.mark.parametrize(
    "name", ["chats", "contexts", "split", "choices", "texts", "drawn", "tested", "domain", "mixture"]
)
def test_what_lies_on_disk_is_what_would_be_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = Recipe.parse(sources(tmp_path)[name])
    first, second = load_data(recipe), load_data(recipe)
    assert isinstance(first.train, Drawn)
    assert isinstance(second.train, Drawn)
    monkeypatch.setattr(encode, "MANY_ROWS", 10**6)
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "other"))
    expected = load_data(recipe)
    assert isinstance(expected.train, list)
    assert told(first) == told(second) == told(expected)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("read or encoded again")


def test_the_second_start_reads_and_encodes_no_row(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write(tmp_path / "mine.jsonl", [chat(i) for i in range(40)])
    other = write(tmp_path / "other.jsonl", [{"prompt": f"p{i}", "completion": f"{i}"} for i in range(40)])
    quick = {"train_rows": None, "test_rows": 6, "evaluate": False, "probe_every": 0, "max_steps": 1}
    few = write(tmp_path / "few.jsonl", [chat(i) for i in range(9)])  # of which fewer are left to train on
    for name, data in (("alone", own), ("mixed", [{"path": own}, {"path": other}]), ("few", few)):
        first = train(tiny_recipe(tiny_dir, tmp_path / name, **quick, data=data))
        with monkeypatch.context() as patch:
            patch.setattr(files, "_READERS", dict.fromkeys(files._READERS, refuse))
            patch.setattr(encode, "encode_row", refuse)
            again = train(tiny_recipe(tiny_dir, tmp_path / f"{name} again", **quick, data=data, learning_rate=2e-2))
        assert again.status == "complete"
        assert again.hashes == first.hashes
        assert again.data == first.data
        assert first.data["train"]["rows"] > (30 if name != "few" else 5)


def test_another_content_is_another_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write(path, [chat(i) for i in range(40)])
    first = load_data(Recipe(data=str(path)))
    write(path, [chat(i) for i in range(1, 41)])
    second = load_data(Recipe(data=str(path)))
    assert first.train_hash != second.train_hash
    path.rename(tmp_path / "moved.jsonl")
    assert load_data(Recipe(data=str(tmp_path / "moved.jsonl"))).train_hash == second.train_hash
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


def test_what_a_domain_makes_of_a_row_by_more_than_its_code_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "_DOMAINS", dict(domains._DOMAINS))
    path = write(tmp_path / "e.jsonl", [esci(i) for i in range(40)])

    def made(mark: str) -> str:
        def example(row: Any, *, cot: bool, where: str) -> Example:
            return Example(f"{mark} {row['query']}", "yes", Answer("exact", "yes"), group=row["query"])

        register_domain(Domain("marked", example=example))
        return str(load_data(Recipe(data="marked", data_path=path)).train[0]["prompt"])

    assert made("one").startswith("one")
    assert made("two").startswith("two")


@pytest.mark.parametrize(
    ("module", "statement", "package"),
    [
        ("own_rows", "import asking", "asking"),
        ("own_rows", "import asking", "elsewhere/asking"),
        ("mine.domains.rows", "from mine import asking", "mine/asking"),
        ("mine.domains.rows", "from .. import asking", "mine/asking"),
    ],
)
def test_what_a_domain_imports_of_the_users_own_decides_its_entry(
    module: str, statement: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "_DOMAINS", dict(domains._DOMAINS))
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two writes within a second would look alike
    path = write(tmp_path / "e.jsonl", [esci(i) for i in range(40)])
    (tmp_path / package).mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("from .words import WORD\n")
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"from gentletune.data import Answer, Example\n{statement}\n\n\n"
        "def example(row, *, cot, where):\n"
        "    return Example(f\"{asking.WORD} {row['query']}\", 'yes', Answer('exact', 'yes'), group=row['query'])\n"
    )

    def made(word: str) -> str:
        (tmp_path / package / "words.py").write_text(f"WORD = {word!r}\n")
        for name in [name for name in sys.modules if name.partition(".")[0] in ("own_rows", "asking", "mine")]:
            del sys.modules[name]
        register_domain(Domain("asking", example=importlib.import_module(module).example))
        return str(load_data(Recipe(data="asking", data_path=path)).train[0]["prompt"])

    assert made("one").startswith("one")
    assert made("two").startswith("two")
    assert made("one").startswith("one")
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


def test_who_has_no_lock_leaves_alone_what_another_may_be_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(key: str) -> bool:
        """Whether what lay there beforehand, under a hidden name, still does."""
        scrap = tmp_path / "cache" / "data" / f".{key}.abc"
        scrap.mkdir(parents=True)

        def read(place: Path) -> str | None:
            return (place / "found").read_text() if place.exists() else None

        assert once_on_disk("data", key, read, lambda place: write_text_atomic(place / "found", key)) == key
        return scrap.exists()

    def refused(*_: Any) -> Any:
        raise UserError("this file system cannot lock")

    assert not made("one")  # a process that was killed left it
    monkeypatch.setattr(stored, "locked", refused)
    assert made("two")


def test_a_broken_row_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [*(chat(i) for i in range(20)), {"messages": []}])
    with pytest.raises(UserError, match=r"row 21: 'messages' must be a non-empty list"):
        load_data(Recipe(data=path))
    Path(path).write_text(Path(path).read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"line 22: broken JSON"):
        load_data(Recipe(data=path))
    assert list((tmp_path / "cache" / "data").iterdir()) == []


@pytest.mark.parametrize("file", ["rows.arrow", "about.json"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, file: str) -> None:
    recipe = Recipe(data=write(tmp_path / "mine.jsonl", [chat(i) for i in range(40)]))
    first = told(load_data(recipe))
    (entry,) = (tmp_path / "cache" / "data").iterdir()
    (entry / file).write_bytes((entry / file).read_bytes()[:10])
    assert told(load_data(recipe)) == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "file"))
    found = load_data(Recipe(data=write(tmp_path / "mine.jsonl", [chat(i) for i in range(40)])))
    assert isinstance(found.train, list)
    assert len(found.train) + len(found.test) == 40


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (500, 2500):
        rows = [{"prompt": f"{i} " + "tall " * 400, "completion": f"{i} kg"} for i in range(count)]
        recipe = Recipe(data=write(tmp_path / f"{count}.jsonl", rows), test_rows=5)
        del rows
        tracemalloc.start()
        assert len(load_data(recipe).train_hash) == 64
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1_500_000  # 2,000 rows more are 4 MB of text, and more as objects
