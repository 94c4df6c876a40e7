"""Rows as tokens, made once by all cores and kept on disk, where they stay: what is read is mapped into memory.

`encode_rows` comes here with many rows; `datasets` (Arrow) does the work.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pyarrow as pa

from gentletune.core.cache import digest, file_digest
from gentletune.core.errors import UserError
from gentletune.data.disk.stored import hash_of_rows, once_on_disk, row_text, write_columns
from gentletune.data.encode import IGNORE, Encoded, EncodedRows, Fate, encode_within
from gentletune.data.forms import Row

ROWS_A_PROCESS = 1000  # fewer are not worth a process of their own
_MOST_PROCESSES = 16
_BATCH = 500
_FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "label_count": datasets.Value("int32"),
        "fate": datasets.Value("int8"),
        "problem": datasets.Value("string"),
    }
)
_NOTHING = Encoded([], [])
# What the labels of a row follow from, beside the row, the tokenizer and the settings.
_CODE = ("chat.py", "encode.py", "disk/encoded.py", "forms.py", "templates.py", "turns.py")
_LIBRARIES = ("tokenizers", "transformers", "trl")


class DiskRows(Sequence[Encoded]):
    """Encoded rows that lie on disk; one is read when it is asked for.

    `dataset` has the columns `input_ids`, `labels`, `length` and `label_count`.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        found = self.dataset[index]
        if isinstance(index, slice):
            return [Encoded(*pair) for pair in zip(found["input_ids"], found["labels"], strict=True)]
        return Encoded(found["input_ids"], found["labels"])

    def __iter__(self) -> Iterator[Encoded]:
        for start in range(0, len(self), _BATCH):
            yield from self[start : start + _BATCH]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return list(map(int, _numbers(self.dataset, "length")))

    @cached_property
    def label_counts(self) -> list[int]:
        """Label tokens of each row, as `Encoded.label_count`."""
        return list(map(int, _numbers(self.dataset, "label_count")))


def rows_on_disk(
    rows: Sequence[Row], tokenizer: Any, *, where: str, rows_hash: str | None = None, **how: Any
) -> EncodedRows | None:
    """What `encode_rows` finds of the rows, from the cache where it is known; `how` is passed on to `encode_within`.

    None where the cache cannot be written. Processes that ask for the same at once wait for the one that makes it; one
    that is killed leaves nothing that would be taken for whole. `rows_hash` is `digest(rows)` where that is known.

    Raises:
        UserError: of the first row that cannot be encoded.
    """
    key = digest([rows_hash or hash_of_rows(rows), _tokenizer_key(tokenizer), how, _code_key()])

    def make(scratch: Path) -> None:
        _check(_encode(rows, scratch, tokenizer, how), where)

    known = once_on_disk("rows", key, _read, make)
    return None if known is None else _found(known)


def _found(dataset: datasets.Dataset) -> EncodedRows:
    fates = _numbers(dataset, "fate")
    kept = np.flatnonzero(fates <= Fate.CUT).tolist()
    rows = dataset.select_columns(["input_ids", "labels", "length", "label_count"])
    too_long, no_label, cut = (int((fates == fate).sum()) for fate in (Fate.TOO_LONG, Fate.NO_LABEL, Fate.CUT))
    return EncodedRows(DiskRows(rows if len(kept) == len(fates) else rows.select(kept)), kept, too_long, no_label, cut)


def _encode(rows: Sequence[Row], scratch: Path, tokenizer: Any, how: Mapping[str, Any]) -> datasets.Dataset:
    """The rows encoded, by all cores, into Arrow files of the directory."""
    source = scratch / "source.arrow"
    write_columns(source, {"row": "string"}, ((row_text(rows, i),) for i in range(len(rows))))
    with no_bars():
        encoded = datasets.Dataset.from_file(str(source)).map(
            _encode_batch, batched=True, batch_size=_BATCH, writer_batch_size=_BATCH, remove_columns=["row"],
            features=_FEATURES, num_proc=_processes(len(rows)), cache_file_name=str(scratch / "rows.arrow"),
            new_fingerprint=scratch.name[1:33], with_indices=True, desc="Tokenizing",
            fn_kwargs={"tokenizer": tokenizer, "how": dict(how), "failed": []},
        )  # fmt: skip
    source.unlink()
    return encoded


def _encode_batch(
    batch: Mapping[str, list[str]], numbers: list[int], tokenizer: Any, how: Mapping[str, Any], failed: list[int]
) -> pa.Table:
    """Some rows, in a process of its own. After a row that `failed` the rest is passed over: it will not be used."""
    rows, fates, problems = list[Encoded](), list[int](), list[str | None]()
    for number, text in zip(numbers, batch["row"], strict=True):
        row, fate, problem = _NOTHING, Fate.NO_LABEL, None
        if not failed:
            try:
                row, fate = encode_within(json.loads(text), tokenizer, **how)
            except UserError as error:
                problem = str(error)
                failed.append(number)
        rows.append(row if fate <= Fate.CUT else _NOTHING)
        fates.append(int(fate))
        problems.append(problem)
    labels = [np.array(row.labels, np.int32) for row in rows]
    columns = [
        _lists([np.array(row.input_ids, np.int32) for row in rows]), _lists(labels), list(map(len, labels)),
        [int((row[1:] != IGNORE).sum()) for row in labels], fates, problems,
    ]  # fmt: skip
    schema = _FEATURES.arrow_schema
    made = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(made, schema=schema)


def _lists(rows: Sequence[Any]) -> Any:
    """Arrays of numbers as a column of lists: from Python's lists, Arrow would take a third of the time of encoding."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _check(encoded: datasets.Dataset, where: str) -> None:
    """Raises `UserError` of the first row that could not be encoded."""
    problems = encoded.data.column("problem")
    if problems.null_count < len(problems):
        number = int(np.flatnonzero(problems.is_valid().to_numpy())[0])
        raise UserError(f"{where}: row {number + 1} of {len(problems)}: {problems[number].as_py()}")


def _read(place: Path) -> datasets.Dataset | None:
    """The rows of a directory of the cache; None where there is none, or what is there cannot be read."""
    try:
        parts = [datasets.Dataset.from_file(str(file)) for file in sorted(place.glob("rows*.arrow"))]
    except (OSError, ValueError):  # Arrow's own errors are either
        return None
    return datasets.concatenate_datasets(parts) if parts else None


def _numbers(dataset: datasets.Dataset, column: str) -> Any:
    return np.asarray(dataset.select_columns([column]).with_format("numpy")[:][column])


def _processes(rows: int) -> int | None:
    """How many processes so many rows are worth; None: this one alone."""
    if multiprocessing.current_process().daemon:  # which may have no children
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, rows // ROWS_A_PROCESS, _MOST_PROCESSES)
    return count if count > 1 else None


def _tokenizer_key(tokenizer: Any) -> list[Any]:
    """What the tokenizer makes of a text and of a chat. How it was last asked to pad and cut does not count."""
    text = tokenizer.backend_tokenizer.to_str()
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [type(tokenizer).__name__, text[text.index('"added_tokens"') :], named, tokenizer.chat_template]


def _code_key() -> list[str]:
    here = Path(__file__).parent.parent
    return [*(file_digest(here / name) for name in _CODE), *map(version, _LIBRARIES)]


@contextmanager
def no_bars() -> Iterator[None]:
    """The library's bar, on a terminal alone."""
    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()
