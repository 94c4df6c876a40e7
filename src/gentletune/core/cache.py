"""Where cheap-to-keep results live, keyed by content hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from gentletune.core.records import write_json_atomic

T = TypeVar("T")


def cache_root() -> Path:
    """`$GENTLETUNE_CACHE`, else `$XDG_CACHE_HOME/gentletune`, else `~/.cache/gentletune`."""
    if own := os.environ.get("GENTLETUNE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gentletune"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def rows_digest(values: Iterable[Any]) -> str:
    """`digest` of the values as a list, taken one by one.

    >>> rows_digest(iter([{"b": 1, "a": 2}, "c"])) == digest([{"b": 1, "a": 2}, "c"])
    True
    """
    found, before = hashlib.sha256(b"["), ""
    for value in values:
        found.update((before + json.dumps(value, sort_keys=True, ensure_ascii=False)).encode())
        before = ", "
    found.update(b"]")
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_json(kind: str, key: Any, compute: Callable[[], Any]) -> Any:
    """The JSON value stored for (`kind`, `key`), computed and stored the first time.

    A broken file is computed again, a full disk keeps nothing: the cache may never be the reason that a run fails.
    """
    path = cache_root() / kind / f"{digest(key)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = compute()
        with suppress(OSError):
            write_json_atomic(path, value)
        return value


class Shared:
    """What several runs of one process have in common, made once: rows, tokenizers, hashes, tokenised rows.

    It is made for one study: files are taken not to change while it lasts.

    >>> shared = Shared()
    >>> shared.once("answer", lambda: 42), shared.once("answer", lambda: 43)
    (42, 42)
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The value of `make` at its first call for this JSON-able key."""
        name = digest(key)
        if name not in self._known:
            self._known[name] = make()
        return cast("T", self._known[name])


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` on success and vanishes on failure.

    An existing `target` is replaced only after the new one is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    old = scratch.with_name(scratch.name + ".old")
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():
            target.replace(old)
        scratch.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
