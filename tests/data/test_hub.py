"""Data sets of the hub: which names are theirs, what the library is asked, and one line where it does not give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.data import load_data, read_rows
from gentletune.data.hub import data_name
from tests.helpers import run_cli

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(10)]
NAMES = ("teknium/OpenHermes-2.5", "squad", "owner/name", "owner/name.v2")


class Hub:
    """What `datasets.load_dataset` is asked; it answers with `rows`, or raises `error`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str]] = []
        self.rows, self.error = ROWS, None  # type: tuple[list[dict[str, Any]], Exception | None]
        self.offline: list[bool] = []

    def load_dataset(self, path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        self.asked.append((path, name, split))
        self.offline.append(datasets.config.HF_HUB_OFFLINE)
        if self.error is not None:
            raise self.error
        return self.rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub that answers, seen from an empty directory."""
    made = Hub()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", made.load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: None)
    return made


def complaint(path: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_hub_is_asked_for_its_split_and_configuration(hub: Hub, name: str) -> None:
    assert read_rows(name, split="dev") == ROWS
    assert read_rows(name, config="main") == ROWS
    assert hub.asked == [(name, None, "dev"), (name, "main", "train")]


@pytest.mark.parametrize(
    "path", ["train.jsonl", "data/train.JSON", "t.csv", "a/t.parquet", "notes.txt", "a/b/c", "./squad", "/squad", "~/s"]
)
def test_what_looks_like_a_file_is_never_asked_of_the_hub(hub: Hub, path: str) -> None:
    assert complaint(path) == f"no such data file: {path}"
    assert hub.asked == []


def test_what_exists_here_is_a_file_or_a_directory(hub: Hub) -> None:
    Path("squad").mkdir()
    Path("teknium").mkdir()
    Path("teknium/OpenHermes-2.5").write_text("{}")
    assert "squad is a directory" in complaint("squad")
    assert "unknown data format '.5'" in complaint("teknium/OpenHermes-2.5")
    assert hub.asked == []


def test_a_recipe_trains_and_tests_on_a_configuration(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_data(Recipe(data_path="openai/gsm8k-0.1", data_config="main", data_split="train[:50%]"))
    assert found.name == "gsm8k-0.1"
    assert hub.asked == [("openai/gsm8k-0.1", "main", "train[:50%]")]
    hub.asked.clear()
    with pytest.raises(UserError, match="every training row shares its group"):
        load_data(Recipe(data_path="openai/gsm8k", test_path="openai/gsm8k", data_config="main"))
    assert hub.asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


def test_a_configuration_of_a_file_is_refused(hub: Hub) -> None:
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("squad").write_text("")
    for fields in ({"data_path": "t.jsonl"}, {"data_path": "squad"}, {"data": "clinic"}, {}):
        with pytest.raises(UserError, match="data_config is for a data set of the hub"):
            load_data(Recipe.parse({**fields, "data_config": "main"}))


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ConnectionError("Couldn't reach\nit"), ("no data file here", "cannot be reached", "give a file")),
        (datasets.exceptions.DatasetNotFoundError("x"), ("no data file here", "the hub has no such data set")),
        (ValueError("odd\nlines"), ("cannot be loaded (ValueError: odd lines)", "data_config")),
        (RuntimeError(), ("cannot be loaded (RuntimeError: )",)),
    ],
)
def test_a_hub_that_fails_gives_one_line(hub: Hub, error: Exception, parts: tuple[str, ...]) -> None:
    hub.error = error
    message = complaint("squad")
    assert "'squad'" in message
    assert all(part in message for part in parts), message


def test_the_library_says_which_configurations_and_splits_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The real library, on a data set in a directory in the hub's form.
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    configs = "".join(f"- config_name: {name}\n  data_files: a.jsonl\n" for name in ("main", "socratic"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    real = datasets.load_dataset

    def load(path: str, name: str | None, *, split: str) -> Any:
        assert path == "openai/gsm8k"
        return real(str(folder), name, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: None)
    assert read_rows("openai/gsm8k", config="socratic") == ROWS
    for options in ({}, {"config": "other"}):
        message = complaint("openai/gsm8k", **options)
        assert "'main', 'socratic'" in message
        assert "give data_config" in message
    assert "data_split" in complaint("openai/gsm8k", config="main", split="dev")


def test_a_class_is_called_by_its_name(hub: Hub) -> None:
    made = datasets.Dataset.from_list([{"text": f"t{i}", "label": i % 3 - 1} for i in range(3)])
    hub.rows = made.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    assert [row["label"] for row in read_rows("owner/reviews")] == [None, "neg", "pos"]


def test_where_the_hub_does_not_answer_the_library_is_told_that_it_is_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route")

    read_rows("squad")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", silent)
    read_rows("squad")  # loaded before, so the library has it
    assert hub.offline == [False, True]
    assert not datasets.config.HF_HUB_OFFLINE


def test_the_command_line_takes_the_names_and_tells_of_a_silent_hub_in_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.error = ConnectionError("no")
    call = ["train", "--data-path", "teknium/OpenHermes-2.5", "--data-config", "main", "--output", "o"]
    assert run_cli(monkeypatch, *call) == 2
    error = capfd.readouterr().err.strip().splitlines()
    said = "is no data file here, and the hub cannot be reached for a data set of that name; connect, or give a file"
    assert error == [f"gentletune: 'teknium/OpenHermes-2.5' {said}"]
    assert hub.asked == [("teknium/OpenHermes-2.5", "main", "train")]
    assert not Path("o").exists()


def test_a_name_keeps_its_dots_and_a_file_loses_its_suffix() -> None:
    assert [data_name(path) for path in ("teknium/OpenHermes-2.5", "squad", "a/t.jsonl", "notes.TXT")] == [
        "OpenHermes-2.5", "squad", "t", "notes",
    ]  # fmt: skip
