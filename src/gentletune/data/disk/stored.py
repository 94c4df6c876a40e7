"""Rows that lie in the cache as Arrow: what is held of them is where they stand."""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from gentletune.core.cache import cache_root, cached_json, digest, rows_digest, whole_directory
from gentletune.core.errors import UserError
from gentletune.core.locks import locked

T = TypeVar("T")
_BATCH = 500


class _OneByOne(Sequence[T]):
    """A sequence whose values are got one at a time; a slice of it is a list."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(index)

    @abstractmethod
    def _at(self, index: int) -> T: ...


class Column(_OneByOne[T]):
    """A column of an Arrow file, one value read when it is asked for; `decode` makes it of the text there.

    `key` names what is in it, by content.
    """

    def __init__(self, chunks: Any, key: str, decode: Callable[[Any], T] | None = None) -> None:
        self._chunks, self._decode, self.key = chunks, decode, key

    def __len__(self) -> int:
        return len(self._chunks)

    def text(self, index: int) -> Any:
        """What stands in the file."""
        return self._chunks[index].as_py()

    def _at(self, index: int) -> T:
        return self._made(self.text(index))

    def __iter__(self) -> Iterator[T]:
        for chunk in self._chunks.chunks:
            yield from map(self._made, chunk.to_pylist())

    def _made(self, value: Any) -> T:
        found: T = value if self._decode is None or value is None else self._decode(value)
        return found


class Drawn(_OneByOne[T]):
    """Values of several sequences, in any order: `places` count through the sequences, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[T]], places: Sequence[int]) -> None:
        self._parts, self._places = parts, np.asarray(places, dtype=np.int64)
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()

    @property
    def key(self) -> str:
        """What is in it, by content."""
        parts = [part.key if isinstance(part, Column | Drawn) else rows_digest(part) for part in self._parts]
        return digest([parts, digest(self._places.tobytes().hex())])

    def __len__(self) -> int:
        return len(self._places)

    def text(self, index: int) -> Any:
        """What stands in the file."""
        part, place = self._find(index)
        return row_text(part, place)

    def _at(self, index: int) -> T:
        part, place = self._find(index)
        return part[place]

    def __iter__(self) -> Iterator[T]:
        if np.array_equal(self._places, np.arange(self._starts[-1])):  # all there are, which parts give faster
            return chain.from_iterable(self._parts)
        return (self[i] for i in range(len(self)))

    def _find(self, index: int) -> tuple[Sequence[T], int]:
        place = int(self._places[index])
        part = bisect_right(self._starts, place) - 1
        return self._parts[part], place - self._starts[part]


def drawn(parts: Sequence[Sequence[T]], places: Sequence[int]) -> Sequence[T]:
    """The values at these places, which count through the parts, one behind the other; a list where all are lists."""
    found = Drawn(parts, places)
    return list(found) if all(isinstance(part, list) for part in parts) else found


def row_text(rows: Sequence[Any], index: int) -> Any:
    """A row as JSON, as it lies on disk where it does."""
    return rows.text(index) if isinstance(rows, Column | Drawn) else json.dumps(rows[index], ensure_ascii=False)


def hash_of_rows(rows: Sequence[Any]) -> str:
    """`digest` of the rows as a list; of rows on disk it is worked out once."""
    if not isinstance(rows, Column | Drawn):
        return rows_digest(rows)
    found: str = cached_json("row_hashes", rows.key, lambda: rows_digest(rows))
    return found


def write_columns(file: Path, columns: Mapping[str, str], records: Iterable[Sequence[Any]]) -> None:
    """An Arrow file of records, a batch at a time; `columns` are their names and types."""
    import pyarrow as pa

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
    left = iter(records)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(left, _BATCH)):
            made = zip(zip(*batch, strict=True), schema, strict=True)
            writer.write_batch(pa.record_batch([pa.array(values, field.type) for values, field in made], schema=schema))


def read_columns(file: Path) -> Any:
    """The file's columns by name, mapped into memory; None where it is not there or broken."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except (OSError, ValueError):  # Arrow's own errors are either
        return None


def once_on_disk(kind: str, key: str, read: Callable[[Path], T | None], make: Callable[[Path], None]) -> T | None:
    """What `read` finds in the cache's directory of this kind and key, where `make` puts it first if it is not there.

    None where the cache cannot be written: it may never be the reason that a run fails. Processes that ask for the same
    at once wait for the one that makes it; one that is killed leaves nothing that would be taken for whole.
    """
    place = cache_root() / kind / key
    with ExitStack() as stack, suppress(OSError):
        if (known := read(place)) is None:
            with suppress(UserError):
                stack.enter_context(locked(cache_root() / "locks" / f"{kind}-{key[:16]}"))
                for scrap in place.parent.glob(f".{place.name}.*"):  # whoever is at work here holds the lock
                    shutil.rmtree(scrap, ignore_errors=True)
            known = read(place)
        if known is None:
            with whole_directory(place) as scratch:
                make(scratch)
            known = read(place)
        return known
    return None
