"""Several sources: rows by weight, the same every time, counted, none of them held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord
from gentletune.data import load_data
from gentletune.data.domains.clinic import clinic_examples
from gentletune.reporting.repeat import command
from gentletune.sweeps.plan import plan
from tests.cli.test_cli import run
from tests.data.test_tools import TOOL, USES_TOOL
from tests.helpers import write_jsonl


def pairs(path: Path, mark: str, count: int) -> str:
    rows = [{"prompt": f"{mark}{i}?", "completion": f"{mark}{i}"} for i in range(count)]
    return write_jsonl(path, rows)


def chats(path: Path, mark: str, count: int) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"{mark}{i}?"}, {"role": "assistant", "content": f"{mark}{i}"}]}
        for i in range(count)
    ]
    return write_jsonl(path, rows)


def said(row: dict[str, Any]) -> str:
    return row["completion"] if "completion" in row else row["messages"][-1]["content"]


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {"path": pairs(tmp_path / "a.jsonl", "a", 50), "weight": 4},
        {"path": chats(tmp_path / "b.jsonl", "b", 300), "weight": 1},
    ]


def test_rows_come_by_weight_every_row_of_the_first_once(two: list[dict[str, Any]]) -> None:
    recipe = Recipe.parse({"data": two})
    found = load_data(recipe)
    alone = load_data(Recipe(data=two[0]["path"]))
    marks = Counter(said(row)[0] for row in found.train)
    assert marks == {"a": 40, "b": 10}
    assert len({said(row) for row in found.train}) == 50
    assert sorted(said(row) for row in found.train if said(row)[0] == "a") == sorted(map(said, alone.train))
    assert (found.name, found.test, found.examples, found.test_hash) == (
        "a",
        alone.test,
        alone.examples,
        alone.test_hash,
    )
    assert load_data(recipe).train == found.train
    other = load_data(recipe.override({"seed": 1}))
    assert other.test == found.test
    assert other.train_hash != found.train_hash
    assert "a mixture of 50 rows: 40 of 40 of" in found.recognised
    assert "10 of 300 of" in found.recognised
    assert found.recognised.endswith(f"held out and scored: rows of {two[0]['path']}")


def test_the_command_line_says_the_same(two: list[dict[str, Any]]) -> None:
    texts = [",".join(f"{one['path']}:{one['weight']}" for one in two), json.dumps(two)]
    for text in texts:
        assert load_data(Recipe.parse({"data": text})).train == load_data(Recipe.parse({"data": two})).train


def test_train_rows_is_the_number_of_all_and_repeats_what_is_short(two: list[dict[str, Any]]) -> None:
    found = load_data(Recipe.parse({"data": two, "train_rows": 100}))
    times = Counter(said(row) for row in found.train)
    assert Counter(name[0] for name in times.elements()) == {"a": 80, "b": 20}
    assert {times[name] for name in times if name[0] == "a"} == {2}
    assert "80 of 40 of" in found.recognised
    assert "2.0 times each" in found.recognised


def test_what_a_source_holds_decides_the_hash(two: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe = Recipe.parse({"data": two})
    before = load_data(recipe).train_hash
    chats(tmp_path / "b.jsonl", "c", 300)
    assert load_data(recipe).train_hash != before


def test_rows_that_are_held_out_come_from_no_source(two: list[dict[str, Any]], tmp_path: Path) -> None:
    held = {row["prompt"] for row in load_data(Recipe(data=two[0]["path"])).test}
    assert len(held) == 10
    chats(tmp_path / "b.jsonl", "a", 60)  # the questions of the first among them
    found = load_data(Recipe.parse({"data": two, "train_rows": 200}))
    assert found.leaked == 10
    assert not held & {said(row) + "?" for row in found.train}
    both = [two[0], {"path": chats(tmp_path / "c.jsonl", "a", 50), "weight": 1}]
    tested = Recipe.parse({"data": both, "test_path": pairs(tmp_path / "t.jsonl", "a", 45)})
    assert load_data(tested).leaked == 45 + 45


def test_domains_make_their_share(two: list[dict[str, Any]]) -> None:
    found = load_data(Recipe.parse({"data": [two[0], {"path": "clinic", "weight": 4}], "seed": 3}))
    made = [e.row() for e in clinic_examples(40, seed=3, cot=True, split="train")]
    assert sorted(map(str, made)) == sorted(str(row) for row in found.train if said(row)[0] != "a")
    first = load_data(Recipe.parse({"data": [{"path": "clinic"}, two[1]], "train_rows": 30, "test_rows": 5}))
    assert (first.name, len(first.test), len(first.train)) == ("clinic", 5, 30)
    assert sum(said(row)[0] == "b" for row in first.train) == 15


def test_a_domain_that_reads_a_file_is_named_beside_it(two: list[dict[str, Any]], tmp_path: Path) -> None:
    esci = [{"query": f"q{i}", "product_text": "p", "esci_label": "E"} for i in range(10)]
    file = tmp_path / "e.jsonl"
    write_jsonl(file, esci)
    source = {"path": str(file), "domain": "esci", "weight": 1}
    recipe = Recipe.parse({"data": [two[0], source], "cot": False})
    assert sum("q" in row.get("prompt", "") for row in load_data(recipe).train) == 10
    assert "10 rows of esci" in load_data(recipe).recognised
    with pytest.raises(UserError, match="data: esci needs a file; give"):
        load_data(Recipe.parse({"data": [two[0], {"path": "esci"}], "cot": False}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is an empty list; give each as"),
        (["a.jsonl"], "data: source 1 is 'a.jsonl'; give each as"),
        ([{"weight": 1}], "data: source 1: path: field required"),
        ([{"path": "a.jsonl", "weight": 0}], "data: source 1: weight: input should be greater than 0"),
        ([{"path": "a.jsonl", "wight": 1}], "data: source 1: unknown key 'wight'; known: path, weight"),
        ("a.jsonl:1,a.jsonl:2", "data names a.jsonl twice"),
        ("a.jsonl:0.5,b.jsonl", r"data: 'b\.jsonl' has no weight; write a.jsonl:0.7"),
        ("[{'path': 1}]", "data: a list that is no JSON"),
        ([{"path": "no.jsonl"}, {"path": "clinic"}], "no such data file: no.jsonl"),
        ([{"path": "clinic"}, {"path": "no.jsonl"}], "no such data file: no.jsonl"),
        ([{"path": "clinic"}, {"path": "clinc"}], "unknown data recipe 'clinc'"),
        (
            [{"path": "clinic", "weight": 1e6}, {"path": "lab", "weight": 1e-6}],
            "none is drawn from lab; raise its weight",
        ),
        ([{"path": "clinic", "config": "x"}], "data_config is for a data set of the hub"),
        ([{"path": "clinic"}, {"path": "lab", "split": "x"}], "data_split is for a data set of the hub"),
    ],
)
def test_what_is_no_mixture_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_data(Recipe.parse({"data": data}))
    assert "\n" not in str(caught.value)


def test_a_mixture_takes_no_other_path_and_another_data_takes_its_place(two: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="data names its sources itself; leave out data_path"):
        Recipe.parse({"data": two, "data_path": "c.jsonl"})
    with pytest.raises(UserError, match="data names its sources itself; leave out data_split"):
        Recipe.parse({"data": two, "data_split": "test"})
    assert Recipe(data="owner/name", data_split="test").override({"data": two}).data_split == "train"
    with pytest.raises(UserError, match="data is an empty list"):
        Recipe().override({"data": []})
    with pytest.raises(UserError, match="mixture is what data becomes"):
        Recipe.parse({"data": "clinic", "mixture": "lab:1,clinic:1"})
    recipe = Recipe.parse({"data": two})
    assert recipe.override({"lr": 1e-3}).sources == recipe.sources
    assert recipe.override({"data": "clinic"}).mixture is None
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe


def test_a_study_sets_mixtures_beside_each_other(two: list[dict[str, Any]]) -> None:
    half = [one | {"weight": 1} for one in two]
    found = plan({"base": {"lr": 1e-5}, "axes": {"data": [two[0]["path"], two, half]}}, Path("runs"))
    assert [trial.name.rpartition("-data")[2] for trial in found[1:]] == ["-a4+b1", "-a1+b1"]
    assert [len(trial.recipe.sources) for trial in found] == [0, 2, 2]


def test_a_run_on_a_mixture_of_forms_counts_each_source(
    tiny_dir: Path, two: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tools = tmp_path / "tools.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n} kg?"}, *USES_TOOL[1:]], "tools": [TOOL]} for n in range(4)]
    write_jsonl(tools, rows)
    config = json.loads((tiny_dir / "config.json").read_text())
    sources = [*two, {"path": str(tools), "weight": 0.4}]
    study = tmp_path / "recipe.yaml"
    study.write_text(json.dumps({"data": sources, "chat_template": "qwen3", "model": str(tiny_dir)}), encoding="utf-8")
    output = tmp_path / "run"
    quick = ["--max-steps", "1", "--batch-size", "2", "--no-evaluate", "--probe-every", "0", "--test-rows", "4"]
    call = ["train", "-c", str(study), *quick, "--output", str(output)]
    assert run(monkeypatch, *call) == 0
    told = capfd.readouterr().err
    assert "a mixture of 62 rows: 46 of 46 of" in told.replace("\n", " ")
    record = RunRecord.model_validate_json((output / "record.json").read_text())
    counted = record.data["sources"]
    assert [(one["path"], one["weight"], one["drawn"]) for one in counted] == [
        (two[0]["path"], 4.0, 46), (two[1]["path"], 1.0, 11), (str(tools), 0.4, 5)
    ]  # fmt: skip
    assert [one["available"] for one in counted] == [46, 300, 4]
    assert sum(one["rows"] for one in counted) == record.data["train"]["rows"]
    assert sum(one["label_tokens"] for one in counted) == record.data["label_tokens"]
    assert counted[2]["rows"] == (0 if config["max_position_embeddings"] < 1000 else 4)
    assert Recipe.parse(record.recipe).sources == Recipe.parse({"data": sources}).sources
    assert f"--data {two[0]['path']}:4,{two[1]['path']}:1,{tools}:0.4 --method" in command(record)
    moved = tmp_path / "moved.jsonl"
    Path(two[1]["path"]).rename(moved)  # the same rows elsewhere are the same run
    sources[1]["path"] = str(moved)
    study.write_text(json.dumps({"data": sources, "chat_template": "qwen3", "model": str(tiny_dir)}), encoding="utf-8")
    assert run(monkeypatch, *call) == 0
    sources[1]["weight"] = 3
    study.write_text(json.dumps({"data": sources, "chat_template": "qwen3", "model": str(tiny_dir)}), encoding="utf-8")
    assert run(monkeypatch, *call) == 2
    assert "another recipe" in capfd.readouterr().err.strip().splitlines()[-1]
