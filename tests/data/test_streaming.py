"""Sources read as far as the run needs, and no further."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.data import load_data
from gentletune.data.files import read_rows
from tests.helpers import write_jsonl

HERE: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "test_rows": 5}


def rows(count: int, mark: str = "s") -> list[dict[str, Any]]:
    return [{"prompt": f"{mark}{i}?", "completion": f"{mark}{i}"} for i in range(count)]


def write(path: Path, made: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
    else:
        write_jsonl(path, made)
    return str(path)


def streamed(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "streaming": True, **more}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_only_the_rows_that_are_needed_are_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"big.{suffix}", rows(3000))
    if suffix != "parquet":  # which ends in what tells where its rows are
        with Path(path).open("a") as file:
            file.write("{broken\n" if suffix == "jsonl" else '"broken\n')
        with pytest.raises(UserError, match="broken"):
            read_rows(path)
    found = load_data(Recipe.parse({"data": [streamed(path)], **HERE}))
    assert [row["completion"] for row in found.test] == [f"s{i}" for i in range(5)]
    assert sorted(row["completion"] for row in found.train) == sorted(f"s{i}" for i in range(5, 17))
    assert "the run needs: 5 rows that are held out, and 12 behind them" in found.recognised
    tested = {"test_path": write(tmp_path / "t.jsonl", rows(9, "t"))}
    beside = load_data(Recipe.parse({"data": [streamed(path)], **HERE, **tested}))
    assert {row["completion"] for row in beside.train} == {f"s{i}" for i in range(12)}
    assert {row["completion"][0] for row in beside.test} == {"t"}


def test_in_a_mixture_each_is_read_for_its_share(tmp_path: Path) -> None:
    path = write(tmp_path / "big.jsonl", rows(100))
    own = {"path": write(tmp_path / "own.jsonl", rows(20, "o")), "weight": 3}
    found = load_data(Recipe.parse({"data": [own, streamed(path)], **HERE, "gradient_accumulation": 2}))
    drawn = [row["completion"] for row in found.train]
    assert len(drawn) == 24
    assert {name for name in drawn if name[0] == "s"} == {f"s{i}" for i in range(6)}
    assert found.mixture is not None
    assert [len(pool.rows) for pool in found.mixture.pools] == [16, 6]


def test_under_a_launcher_the_rows_are_those_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.parse({"data": [streamed(write(tmp_path / "big.jsonl", rows(100)))], **HERE})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len({row["completion"] for row in load_data(recipe).train}) == 24


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def made() -> Iterator[dict[str, Any]]:
        for i, row in enumerate(rows(10**6)):
            taken.append(i)
            yield row

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        assert (name, config, split, streaming) == ("owner/big", None, "train", True)
        return datasets.IterableDataset.from_generator(made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    found = load_data(Recipe.parse({"data": [streamed("owner/big")], **HERE}))
    assert (len(found.train), len(found.test)) == (12, 5)
    assert max(taken) < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "a streaming source is not counted; give max_steps"),
        ({"processes": "auto"}, "give processes as a number"),
        ({"packing": True}, "how many rows of a streaming source fill packed rows is not known; give train_rows"),
        ({"test_rows": 100}, "the first 100 rows .test_rows. are held out, and there are no more; lower test_rows"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "big.jsonl", rows(60))
    with pytest.raises(UserError, match=message):
        load_data(Recipe.parse({"data": [streamed(path)], **HERE, **changes}))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(rows(60)))
    with pytest.raises(UserError, match=r"a \.json file is read whole; leave out streaming"):
        load_data(Recipe.parse({"data": [streamed(str(whole))], **HERE}))


def test_a_run_streams_and_goes_on_as_any_other(tiny_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "big.jsonl", rows(100))
    quick = {"model": str(tiny_dir), "output": str(tmp_path / "run"), "evaluate": False, "probe_every": 0}
    recipe = Recipe.parse({"data": [streamed(path)], **HERE, **quick})
    record = train(recipe)
    assert (record.status, record.data["train"]["rows"], record.training["steps"]) == ("complete", 12, 3)
    assert train(recipe) == record
