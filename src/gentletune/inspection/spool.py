"""Tokens on disk: what waits for TALR's τ, and the CSV and Parquet files of one row a token.

τ is known only once every sequence was seen. So one pass over the rows writes each token to a temporary Parquet file,
and a second one, over that file and without the model, adds the weight. Memory holds one row group.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gentletune.inspection.classes import CLASSES
from gentletune.inspection.stream import RowTokens
from gentletune.inspection.weights import PLAIN, method_columns

_GROUP = 2**15  # tokens of a row group

_FOUND = pa.schema(
    [
        *(("row", pa.int64()), ("position", pa.int32()), ("token_id", pa.int32()), ("text", pa.string())),
        *(("class", pa.string()), ("nll", pa.float64()), ("probability", pa.float64()), ("entropy", pa.float64())),
        *(("top_token_id", pa.int32()), ("top_text", pa.string()), ("top_probability", pa.float64())),
        ("eaft_weight", pa.float64()),
    ]
)


def file_columns() -> Any:
    """Columns of the files, an Arrow schema; NLL and entropy in nats, weights as the methods give them."""
    plain = [("set", pa.string()), *_FOUND.remove(_FOUND.get_field_index("eaft_weight"))]
    return pa.schema(
        [*plain, *(pa.field(f"weight_{name}", pa.float64()) for name in method_columns() if name != PLAIN)]
    )


class Spool(AbstractContextManager["Spool"]):
    """A temporary file of tokens, written once and then read once; it goes with the context."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="gentletune-inspect-")
        self._path = Path(self._scratch.name) / "tokens.parquet"
        self._writer: Any = pa.parquet.ParquetWriter(self._path, _FOUND)
        self._waiting: list[Any] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._scratch.cleanup()

    def add(self, row: RowTokens) -> None:
        """Keep a row's tokens."""
        self._waiting.append(_table(row))
        self._count += len(row.pieces)
        if self._count >= _GROUP:
            self._flush()

    def batches(self) -> Iterator[Any]:
        """All tokens, as record batches in the order they came; ends the writing."""
        if self._waiting:
            self._flush()
        self._writer.close()
        with pa.parquet.ParquetFile(self._path) as file:
            yield from file.iter_batches(batch_size=_GROUP)

    def _flush(self) -> None:
        self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._count = [], 0


def _table(row: RowTokens) -> Any:
    columns = [
        [row.row] * len(row.pieces),
        row.position,
        row.token,
        row.pieces,
        [CLASSES[kind] for kind in row.kind],
        row.nll,
        row.probability,
        row.entropy,
        row.top,
        row.top_text,
        row.top_probability,
        row.eaft,
    ]
    return pa.table(
        [pa.array(values, type=kind.type) for values, kind in zip(columns, _FOUND, strict=True)], schema=_FOUND
    )


class TokenFiles:
    """The files a user asked for; both get every batch."""

    def __init__(self, writers: list[Any], columns: Any) -> None:
        self._writers, self._columns = writers, columns

    def write(self, name: str, batch: Any, weights: dict[str, Any]) -> None:
        """Write tokens (a batch of the spool) of the set `name` with each method's weights."""
        if not self._writers:
            return
        plain = [batch.column(field) for field in self._columns.names if field in _FOUND.names]
        given = [pa.array(values) for method, values in weights.items() if method != PLAIN]
        table = pa.table([pa.array([name] * batch.num_rows), *plain, *given], schema=self._columns)
        for writer in self._writers:
            writer.write_table(table)


@contextmanager
def token_files(csv: Path | None, parquet: Path | None) -> Iterator[TokenFiles]:
    """Files that are there, whole, once the context ends well; otherwise what stood there stays.

    Raises `OSError` where they cannot be written.
    """
    with ExitStack() as stack:
        writers, columns = [], file_columns()
        for path, kind in ((csv, pa.csv.CSVWriter), (parquet, pa.parquet.ParquetWriter)):
            if path is not None:
                # Entered in this order, the writer is closed before the file is renamed.
                scratch = stack.enter_context(_renamed(path))
                writers.append(stack.enter_context(kind(scratch, columns)))
        yield TokenFiles(writers, columns)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
