"""The cache computes once, mends itself, and never holds half a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gentletune.core import cache
from gentletune.core.cache import cache_root, cached_json, digest, file_digest, whole_directory


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    return []


def counted(calls: list[int]) -> Any:
    calls.append(1)
    return {"values": [1, 2.5], "note": "naïve"}


def test_a_value_is_computed_once_for_each_key(calls: list[int]) -> None:
    first = cached_json("kind", {"a": 1, "b": [2]}, lambda: counted(calls))
    assert cached_json("kind", {"b": [2], "a": 1}, lambda: counted(calls)) == first
    assert len(calls) == 1
    cached_json("kind", {"a": 2}, lambda: counted(calls))
    cached_json("other", {"a": 1, "b": [2]}, lambda: counted(calls))
    assert len(calls) == 3


@pytest.mark.parametrize("content", [b"", b'{"values": [1', b"\xff\xfe"])
def test_a_broken_file_is_computed_again(calls: list[int], content: bytes) -> None:
    value = cached_json("kind", "key", lambda: counted(calls))
    (path,) = (cache_root() / "kind").iterdir()
    whole = path.read_bytes()
    path.write_bytes(content)
    assert cached_json("kind", "key", lambda: counted(calls)) == value
    assert path.read_bytes() == whole
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_does_not_fail_the_run(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cache, "write_json_atomic", full)
    assert cached_json("kind", "key", lambda: counted(calls)) == {"values": [1, 2.5], "note": "naïve"}


def test_a_computation_that_fails_stores_nothing(calls: list[int]) -> None:
    with pytest.raises(ZeroDivisionError):
        cached_json("kind", "key", lambda: 1 / 0)
    assert not (cache_root() / "kind").exists()
    assert cached_json("kind", "key", lambda: 3) == 3


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GENTLETUNE_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/gentletune"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/gentletune"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    monkeypatch.delenv("GENTLETUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_digests_tell_values_and_files_apart(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_directory_appears_whole_and_replaces_the_old(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for content in ("old", "new"):
        with whole_directory(target) as scratch:
            (scratch / "file").write_text(content)
            (scratch / content).touch()
            assert not (target / content).exists()
        assert sorted(p.name for p in target.iterdir()) == sorted(["file", content])
        assert (target / "file").read_text() == content
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_the_target_as_it_was(tmp_path: Path, error: BaseException, old: bool) -> None:
    target = tmp_path / "model"
    if old:
        target.mkdir()
        (target / "file").write_text("old")

    def build() -> None:
        with whole_directory(target) as scratch:
            (scratch / "file").write_text("new")
            raise error

    with pytest.raises(type(error)):
        build()
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if old else [])
    assert not old or (target / "file").read_text() == "old"


def test_a_failed_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "file").write_text("old")
    rename = Path.replace

    def replace(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="disk full"), whole_directory(target) as scratch:
        (scratch / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "file").read_text() == "old"
