"""Many rows are encoded once, by several processes, and stay on disk: the same rows as in memory, all or none."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.errors import UserError
from gentletune.data import encode
from gentletune.data.disk import encoded as on_disk
from gentletune.data.disk.encoded import DiskRows
from gentletune.data.encode import EncodedRows, encode_rows, label_counts, row_lengths
from gentletune.lm.label_tokens import label_nll
from gentletune.runs.inputs import Inputs
from gentletune.training.packing import training_set
from tests.cli.test_cli import run as run_command
from tests.helpers import tiny_recipe

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"BMI {i}?"}, {"role": "assistant", "content": "ab " * (i % 9)}]}
    for i in range(24)
]
ROWS[5] = {"text": "tall " * 40}  # too long
LIMIT = 60


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few rows are many here, and two processes share them."""
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encode, "MANY_ROWS", 8)
    monkeypatch.setattr(on_disk, "_processes", lambda rows: 2)
    monkeypatch.setattr(on_disk, "_BATCH", 4)


def encoded(tokenizer: Any, rows: list[dict[str, Any]] = ROWS, **how: Any) -> EncodedRows:
    return encode_rows(rows, tokenizer, **{"max_length": LIMIT, "where": "mine.jsonl", **how})


def entries(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "rows").glob("*") if path.is_dir())


def test_rows_on_disk_are_those_in_memory(
    tokenizer: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = encoded(tokenizer)
    monkeypatch.setattr(encode, "MANY_ROWS", 10**6)
    expected = encoded(tokenizer)
    assert isinstance(found.rows, DiskRows)
    assert isinstance(expected.rows, list)
    assert list(found.rows) == expected.rows
    assert (found.kept, found.counts) == (expected.kept, expected.counts)
    assert found.counts["dropped_too_long"] == 1
    assert (found.rows[3], found.rows[-1], found.rows[2:5]) == (expected.rows[3], expected.rows[-1], expected.rows[2:5])
    assert (row_lengths(found.rows), label_counts(found.rows)) == (
        row_lengths(expected.rows), label_counts(expected.rows)
    )  # fmt: skip
    own, other = (label_nll(tiny_model, rows, pad_id=2) for rows in (found.rows, expected.rows))
    assert all(a.equal(b) for a, b in zip(own, other, strict=True))
    assert len(entries(tmp_path)) == 1


def test_the_second_start_encodes_nothing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(tokenizer)

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(on_disk, "_encode", refuse)
    again = encoded(tokenizer)
    assert list(again.rows) == list(first.rows)
    assert (again.kept, again.counts) == (first.kept, first.counts)
    tokenizer(["a", "bcd e"], padding=True)  # leaves its mark on the tokenizer, not on what it makes of a row
    assert encoded(tokenizer).counts == first.counts


def test_what_decides_labels_decides_the_entry(tokenizer: Any, tmp_path: Path) -> None:
    first = encoded(tokenizer)
    half = sorted(row_lengths(first.rows))[12]
    changes: list[dict[str, Any]] = [{"max_length": half}, {"max_length": half, "truncate": "left"}, {"labels": "all"}]
    for number, change in enumerate([*changes, {"rows": ROWS[1:]}], start=2):
        assert list(encoded(tokenizer, **change).rows) != list(first.rows)
        assert len(entries(tmp_path)) == number
    assert encoded(tokenizer, max_length=half, truncate="left").counts["truncated"] > 0
    assert encoded(tokenizer, max_length=half).counts["dropped_too_long"] > 1


def test_the_first_bad_row_is_named_and_nothing_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    broken = {"messages": [{"role": "user", "content": "a", "tool_calls": None}], "given": 1}
    rows = [*ROWS[:9], {"messages": []}, *ROWS[9:20], {"messages": []}]
    rows[9] = rows[21] = {"messages": [{"role": "assistant", "content": [{"type": "image"}]}], "tools": [broken]}
    with pytest.raises(UserError, match=r"^mine\.jsonl: row 10 of 22: ") as caught:
        encoded(tokenizer, rows)
    assert "\n" not in str(caught.value)
    assert entries(tmp_path) == []


def test_one_that_is_killed_halfway_leaves_nothing_that_is_used(tokenizer: Any, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:  # killed with all rows written, before the directory gets its name
        on_disk._check = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        encoded(tokenizer)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [path.name[0] for path in entries(tmp_path)] == ["."]
    assert len(encoded(tokenizer).rows) == len(ROWS) - 1
    assert [path.name[0] != "." for path in entries(tmp_path)] == [True]


def test_a_damaged_entry_is_made_again(tokenizer: Any, tmp_path: Path) -> None:
    first = list(encoded(tokenizer).rows)
    (entry,) = entries(tmp_path)
    for file in entry.glob("rows*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    assert list(encoded(tokenizer).rows) == first


def test_a_cache_that_cannot_be_written_is_done_without(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "file"))
    assert isinstance(encoded(tokenizer).rows, list)


@pytest.mark.parametrize("pack", [None, LIMIT])
def test_a_trainer_draws_from_both_alike(tokenizer: Any, pack: int | None) -> None:
    found = encoded(tokenizer)
    weights = [i / 10 for i in range(len(found.rows))]
    drawn = [training_set(rows, weights, pack=pack) for rows in (found.rows, list(found.rows))]
    assert drawn[0][:] == drawn[1][:]
    assert drawn[0].cache_files


def test_training_takes_the_rows_from_disk(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"BMI {i}?", "completion": f"{i} kg"}) + "\n" for i in range(40)))
    weights = []
    for name, least in (("disk", 8), ("memory", 10**6)):
        monkeypatch.setattr(encode, "MANY_ROWS", least)
        run = tmp_path / name
        code = run_command(
            monkeypatch, "train", "--model", str(tiny_dir), "--data", str(data), "--method", "flow", "--max-steps", "2",
            "--batch-size", "3", "--test-rows", "4", "--probe-every", "0", "--no-evaluate", "--max-length", "64",
            "--packing", "--output", str(run),
        )  # fmt: skip
        assert code == 0
        weights.append((run / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_rows_on_disk_are_weighed_by_what_is_in_them(tiny_dir: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("tall", "heavy"):
        rows = [{"prompt": f"{name} {i}?", "completion": f"{name} " * (i % 5 + 1)} for i in range(40)]
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = tiny_recipe(tiny_dir, tmp_path / name, data=str(data), train_rows=None, method="flow", evaluate=False)
        inputs = Inputs(recipe)
        assert isinstance(inputs.train.rows, DiskRows)
        weights.append(inputs.sequence_weights())
    assert weights[0] != weights[1]
