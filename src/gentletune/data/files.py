"""Rows from JSONL, JSON, CSV, Parquet and text files or a hub data set."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, time
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from gentletune.core.cache import file_digest
from gentletune.core.errors import UserError, check_text, refusal
from gentletune.core.paths import user_path
from gentletune.data.forms import Row, fits_a_form, without_nulls
from gentletune.data.hub import hub_rows, is_hub_name

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_WHOLE = (".json", ".txt")  # of which no part can be read alone
_DEPTH = 100
_CHATS = ("messages", "conversations")  # columns whose cells hold a list as JSON, where a format has text alone


class RowFile:
    """The rows of a file, or of a hub data set's `split` and `config` where `path` is no file but a name of the hub.

    They are read anew each time they are iterated; JSONL, CSV and Parquet a few at a time. With `first` only so many,
    and the rest is not read. `content` is the SHA-256 of what is read, None where it is not read whole.

    Raises:
        UserError: a file that is missing, empty or not to be read, unknown format, broken JSON (with its line), half a
            surrogate pair (with its row), a hub that does not answer.
    """

    def __init__(self, path: str, *, split: str = "train", config: str | None = None, first: int | None = None) -> None:
        self.path, self.first, self._checked = path, first, False
        self._hub_hash: str | None = None
        file = user_path(path)
        self.kind = file.suffix.lower() if file.is_file() else "hub"
        if file.is_file():
            kind = self.kind
            if kind not in _READERS:
                raise UserError(f"{path}: unknown data format '{file.suffix}'; known: {', '.join(SUFFIXES)}")
            if first is not None and kind in _WHOLE:
                mend = "leave out streaming, or give JSONL, CSV or Parquet"
                raise UserError(f"{path}: a {kind} file is read whole; {mend}")
            self._read: Callable[[], Iterable[Row]] = lambda: _READERS[kind](file)
        elif file.is_dir():
            raise UserError(f"{path} is a directory; give one data file ({', '.join(SUFFIXES)})")
        elif is_hub_name(path):
            rows, self._hub_hash = hub_rows(path, split, config, first)
            self._read = lambda: map(_unpadded, rows)
        else:
            raise UserError(f"no such data file: {path}")

    @cached_property
    def content(self) -> str | None:
        if self.first is not None:
            return None
        with _readable(self.path):
            return self._hub_hash if self.kind == "hub" else file_digest(user_path(self.path))

    def __iter__(self) -> Iterator[Row]:
        number = 0
        with _readable(self.path):
            for number, row in enumerate(islice(self._read(), self.first), start=1):
                if not self._checked:
                    for column, value in row.items():
                        check_text(value, f"{self.path}: row {number}, {column!a}")
                yield row
        if number == 0:
            raise UserError(f"{self.path}: no rows; give a file with at least one")
        self._checked = True


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what the file system refuses, such as a file that may not be read, into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {refusal(error)}; give a file that can be read") from error


def read_rows(path: str, *, split: str = "train", config: str | None = None, first: int | None = None) -> list[Row]:
    """All rows of a file or of a data set of the hub, in memory. Raises `UserError` as `RowFile`."""
    return list(RowFile(path, split=split, config=config, first=first))


def read_text(path: str) -> str:
    """The whole of a UTF-8 text file, line ends as they are.

    Raises:
        UserError: missing, empty, not UTF-8, or not to be read.
    """
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"{path} is a directory; give one text file")
    if not file.is_file():
        raise UserError(f"no such data file: {path}")
    try:
        with _readable(path):
            text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give one with text in it")
    return text


def is_text(path: str) -> bool:
    """Whether a file is plain text, by its suffix."""
    return Path(path).suffix.lower() == ".txt"


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield _object(raw, f"{path}: line {number}")


def _json(raw: bytes | str, where: str) -> Any:
    """The value that JSON text writes."""
    try:
        value = json.loads(raw)
        opened = raw.count(b"[") + raw.count(b"{") if isinstance(raw, bytes) else raw.count("[") + raw.count("{")
        if opened > _DEPTH:
            _check_depth(value, _DEPTH)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        line, what = f" line {error.lineno}:" if error.lineno > 1 else "", error.msg.removesuffix(" at")
        raise UserError(f"{where}:{line} broken JSON: {what} at column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested more than {_DEPTH} deep; no row needs that") from error
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise UserError(f"{where}: a number of thousands of digits; write it as text, in quotes") from error
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RecursionError
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(part, left - 1)


def _object(raw: bytes, where: str) -> Row:
    value = _json(raw, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> Iterator[Row]:
    value = _json(path.read_bytes(), str(path))
    if isinstance(value, dict):  # {"data": [...]} is how some tools export
        lists = [v for v in value.values() if isinstance(v, list) and all(isinstance(row, dict) for row in v)]
        value = lists[0] if len(lists) == 1 and not fits_a_form(value) else [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path}: expected a list of JSON objects")
    return iter(value)


def _read_csv(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # patients' notes outgrow the default 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(list(reader.fieldnames or ()), path)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}: line {reader.line_num}: {'more' if None in row else 'fewer'} fields than the header"
                    )
                where = f"{path}: line {reader.line_num}"
                yield {
                    column: _json(value, f"{where}: {column!r}") if column.strip().lower() in _CHATS else value
                    for column, value in row.items()
                }
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: broken CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _check_header(columns: list[str], path: Path) -> None:
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise UserError(f"{path}: line 1: the column '{twice}' is there twice; rename one")
    if len(columns) == 1 and (mark := next((mark for mark in ";\t|" if mark in columns[0]), "")):
        name = "a tab" if mark == "\t" else f"'{mark}'"
        raise UserError(f"{path}: line 1: columns are parted by commas, not by {name}; save the file so")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from map(_unpadded, batch.to_pylist())
    except PermissionError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error


def _unpadded(row: Row) -> Row:
    """A row of Arrow's, its lists and objects without the nulls that pad them, and with days and times as text."""
    return {
        key: _in_text(without_nulls(value)) if isinstance(value, (list, dict)) else value for key, value in row.items()
    }


def _in_text(value: Any) -> Any:
    """Days and times in it as JSON would have them, such as those that a chat's messages were sent at."""
    if isinstance(value, list):
        return [_in_text(item) for item in value]
    if isinstance(value, dict):
        return {key: _in_text(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, (date, time)) else value


def _read_paragraphs(path: Path) -> Iterator[Row]:
    """A row for each paragraph; for each line, where no blank line parts any (a blank line is no row)."""
    parts = [part.strip("\r\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", read_text(str(path)))]
    kept = [part for part in parts if part.strip()]
    if len(kept) > 1:
        return iter([{"paragraph": part} for part in kept])
    return iter([{"line": line} for line in re.split(r"\r\n?|\n", kept[0]) if line.strip()])


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet,
            ".txt": _read_paragraphs}  # fmt: skip
