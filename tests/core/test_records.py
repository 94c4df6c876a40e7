"""Records written whole or not at all, and read back, old ones too."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord, Score, load_records, read_record, write_json_atomic, write_record
from tests.helpers import edit_json

SCORE = Score(task="clinic", side="domain", metric="accuracy", value=0.5, stderr=None, n=2, higher_is_better=True)


def record(label: str = "sft", **fields: Any) -> RunRecord:
    values: dict[str, Any] = {
        "method": "sft",
        "learning_rate": 1e-5,
        "seed": 0,
        "recipe": {"lr": 1e-5, "note": "naïve"},
    }
    return RunRecord(status="complete", label=label, **(values | fields))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = record(scores=[SCORE], timings={"train": 1.5}, hashes={"model": "ab"}, error=None, git_commit="c0ffee")
    write_record(tmp_path / "new" / "run", whole)
    assert read_record(tmp_path / "new" / "run") == whole
    assert whole.score("clinic/accuracy") == SCORE
    assert whole.score("clinic/accuracy", base=True) is None
    assert read_record(tmp_path) is None


def test_items_groups_and_details_come_back(tmp_path: Path) -> None:
    fields = {"items": (0.0, 1.0), "clusters": (0, 0), "details": {"by_category": {"a": {"value": 0.5, "n": 2}}}}
    whole = record(scores=[SCORE.model_copy(update=fields)])
    write_record(tmp_path, whole)
    back = read_record(tmp_path)
    assert back == whole
    assert back.scores[0].model_dump() == SCORE.model_dump() | fields
    assert (SCORE.units, back.scores[0].units) == (2, 1)


@pytest.mark.parametrize("schema", [2, "3", None])
def test_a_record_of_another_schema_is_refused_in_one_line(tmp_path: Path, schema: Any) -> None:
    write_record(tmp_path, record())
    values = json.loads((tmp_path / "record.json").read_text())
    assert next(iter(values)) == "schema_version"
    values["schema_version"] = schema
    if schema is None:
        del values["schema_version"]
    (tmp_path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"record.json is not a record of this gentletune \(schema .*, not 3\); once"):
        read_record(tmp_path)


@pytest.mark.parametrize(("items", "clusters"), [((1.0,), ()), ((0.0, 1.0), (0,)), ((), (0, 1))])
def test_items_and_groups_that_do_not_match_are_refused(items: tuple[float, ...], clusters: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"score 'clinic/accuracy' has \d items?|clusters for"):
        Score.model_validate(SCORE.model_dump() | {"items": items, "clusters": clusters})


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
    with pytest.raises(UserError, match=r"a\.json: x\.1\.y is nan, which JSON has no number for"):
        write_json_atomic(tmp_path / "a.json", {"v": 1.0, "x": [0, {"y": math.nan}]})
    assert list(tmp_path.iterdir()) == []


def test_the_written_file_is_readable_by_others(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o644
    assert "naïve" in (tmp_path / "record.json").read_text(encoding="utf-8")


def test_records_are_found_at_any_depth_in_path_order(tmp_path: Path) -> None:
    for name in ("b", "a/deep/er", "c"):
        write_record(tmp_path / "study" / name, record(name))
    write_record(tmp_path / "other", record("alone"))
    (tmp_path / "study" / "empty").mkdir()
    found = load_records([tmp_path / "study", tmp_path / "other"])
    assert [r.label for r in found] == ["a/deep/er", "b", "c", "alone"]


@pytest.mark.parametrize("roots", [["a", "a"], [".", "a"], ["a", "../study"], ["a", "link"]])
def test_a_run_below_two_of_the_directories_counts_once(
    roots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_record(tmp_path / "study" / name, record(name))
    (tmp_path / "study" / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / "study")
    found = [r.label for r in load_records(map(Path, roots))]
    assert sorted(found) == sorted(set(found))
    assert "a" in found


def test_runs_behind_a_link_to_elsewhere_are_found_and_a_link_within_or_back_is_left(tmp_path: Path) -> None:
    for name in ("elsewhere/run", "study/own", "other/run"):
        write_record(tmp_path / name, record(name))
    study = tmp_path / "study"
    (study / "linked").symlink_to(tmp_path / "elsewhere")
    (study / "best").symlink_to("own")
    (study / "back").symlink_to("..")
    found = load_records([study])
    assert [r.label for r in found] == ["study/own", "elsewhere/run"]
    assert [r.directory for r in found] == [study / "own", study / "linked" / "run"]


def test_missing_and_empty_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such directory: .*none"):
        load_records([tmp_path, tmp_path / "none"])
    with pytest.raises(UserError, match=r"no record\.json under"):
        load_records([tmp_path])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give a run or study directory"):
        load_records([tmp_path / "file"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"[]", "must be|should be"),
        (b"null", "must be|should be"),
        (b'{"a": "\xff"}', "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema_version": 3, "status": "complete"}', "method: field required"),
    ],
)
def test_a_corrupt_record_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"record\.json is not a run record: .*({words})") as caught:
        load_records([tmp_path])
    assert "\n" not in str(caught.value)
    assert "once it is deleted, `gentletune train` makes it again" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": "x"}, "seed: must be a whole number"), ({"colour": 1}, "unknown key 'colour'"),
     ({"scores": [SCORE.model_dump(mode="json") | {"value": []}]}, "scores.0.value: must be a number")],
)  # fmt: skip
def test_the_field_that_a_record_fails_on_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_record(tmp_path, record())
    edit_json(tmp_path / "record.json", **changes)
    with pytest.raises(UserError, match=rf"record\.json is not a run record: {words}; it is damaged, or another"):
        load_records([tmp_path])


@pytest.mark.parametrize("why", ["directory", "denied"])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "directory":
        (tmp_path / "record.json").mkdir()
    else:  # root may read all
        write_record(tmp_path, record())
        denied = PermissionError(errno.EACCES, "Permission denied", "record.json")
        monkeypatch.setattr(Path, "read_text", Mock(side_effect=denied))
    with pytest.raises(UserError, match=r"cannot read .*record\.json \((is a directory|permission denied)\); make it"):
        load_records([tmp_path])


def test_a_record_with_a_value_that_is_no_number_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"schema_version": 3, "scores": [{"value": NaN}]}', encoding="utf-8")
    with pytest.raises(UserError, match="is not a run record: NaN is no number"):
        read_record(tmp_path)
