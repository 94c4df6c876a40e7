"""Scores worked out by hand, and records written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gentletune.errors import UserError
from gentletune.records import (
    RunRecord,
    Score,
    accuracy_score,
    load_records,
    ratio_score,
    read_record,
    write_json_atomic,
    write_record,
)

SCORE = Score(task="clinic", side="domain", metric="accuracy", value=0.5, stderr=None, n=2, higher_is_better=True)


def record(label: str = "sft", **fields: Any) -> RunRecord:
    values: dict[str, Any] = {
        "method": "sft",
        "learning_rate": 1e-5,
        "seed": 0,
        "recipe": {"lr": 1e-5, "note": "naïve"},
    }
    return RunRecord(status="complete", label=label, **(values | fields))


def ratio(a: list[float], b: list[float]) -> Score:
    return ratio_score(a, b, task="t", side="general", metric="bits_per_token", higher_is_better=False)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = record(scores=[SCORE], timings={"train": 1.5}, hashes={"model": "ab"}, error=None, git_commit="c0ffee")
    write_record(tmp_path / "new" / "run", whole)
    assert read_record(tmp_path / "new" / "run") == whole
    assert whole.score("clinic/accuracy") == SCORE
    assert whole.score("clinic/accuracy", initial=True) is None
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("broken", ["dumps", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_record(tmp_path, record("old"))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(*{"dumps": (json, "dumps"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[broken], fail)
        with pytest.raises(OSError, match="disk full"):
            write_record(tmp_path, record("new"))
    assert read_record(tmp_path) == record("old")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "a.json", {"x": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_the_written_file_is_readable_by_others(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o644
    assert "naïve" in (tmp_path / "record.json").read_text(encoding="utf-8")


def test_a_ratio_by_hand() -> None:
    # R = 6/4; residuals 1 - 1.5·1, 2 - 1.5·2, 3 - 1.5·1 = -0.5, -1, 1.5; se = √(3/2 · 3.5) / 4
    score = ratio([1, 2, 3], [1, 2, 1])
    assert score.value == 1.5
    assert score.stderr == pytest.approx(math.sqrt(1.5 * 3.5) / 4)
    assert score.n == 3


def test_a_ratio_over_equal_denominators_is_a_mean() -> None:
    values = [random.Random(0).gauss(3, 2) for _ in range(50)]
    mean = sum(values) / 50
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 49)
    score = ratio(values, [4.0] * 50)
    assert score.value == pytest.approx(mean / 4)
    assert score.stderr == pytest.approx(spread / math.sqrt(50) / 4)


def test_the_error_of_a_ratio_is_its_spread_over_samples() -> None:
    draw = random.Random(1)

    def sample() -> Score:
        tokens = [float(draw.randint(1, 20)) for _ in range(80)]
        return ratio([2 * t + draw.gauss(0, math.sqrt(t)) for t in tokens], tokens)

    scores = [sample() for _ in range(400)]
    mean = sum(s.value for s in scores) / 400
    spread = math.sqrt(sum((s.value - mean) ** 2 for s in scores) / 399)
    assert sum(s.stderr or 0 for s in scores) / 400 == pytest.approx(spread, rel=0.1)
    assert mean == pytest.approx(2, abs=0.01)


def test_a_ratio_of_one_item_has_no_error_and_of_none_no_value() -> None:
    assert ratio([2], [4]).stderr is None
    for a, b in (([], []), ([1.0], [0.0])):
        with pytest.raises(ValueError, match="no tokens to score for task 't'"):
            ratio(a, b)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        ratio([1, 2], [1])


@pytest.mark.parametrize(
    ("right", "value", "stderr"),
    [
        ([0] * 4, 0.0, math.sqrt(0.25 * 0.75 / 8)),
        ([1] * 4, 1.0, math.sqrt(0.75 * 0.25 / 8)),
        ([True, False], 0.5, math.sqrt(0.25 / 6)),
        ([1.0, 0.0, 0.0, 0.0], 0.25, math.sqrt(0.375 * 0.625 / 8)),
        ([1] * 500 + [0] * 500, 0.5, math.sqrt(0.25 / 1004)),
    ],
)
def test_accuracy_is_never_certain(right: list[float], value: float, stderr: float) -> None:
    score = accuracy_score(right, task="t", side="domain")
    assert (score.value, score.n, score.key) == (value, len(right), "t/accuracy")
    assert score.stderr == pytest.approx(stderr)
    assert stderr > 0


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no items to score for task 't'"):
        accuracy_score([], task="t", side="domain")


def test_records_are_found_at_any_depth_in_path_order(tmp_path: Path) -> None:
    for name in ("b", "a/deep/er", "c"):
        write_record(tmp_path / "study" / name, record(name))
    write_record(tmp_path / "other", record("alone"))
    (tmp_path / "study" / "empty").mkdir()
    found = load_records([tmp_path / "study", tmp_path / "other"])
    assert [r.label for r in found] == ["a/deep/er", "b", "c", "alone"]


def test_missing_and_empty_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such directory: .*none"):
        load_records([tmp_path, tmp_path / "none"])
    with pytest.raises(UserError, match=r"no record\.json under"):
        load_records([tmp_path])


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"status": "complete"}', b'{"a": "\xff"}', b"null"])
def test_a_corrupt_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=r"record\.json is not a run record") as caught:
        load_records([tmp_path])
    assert "\n" not in str(caught.value)
