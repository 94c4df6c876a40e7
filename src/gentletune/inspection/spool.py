"""Tokens on disk: what waits for TALR's τ, and the CSV and Parquet files of one row a token.

τ is known only once every sequence was seen. So one pass over the rows writes each token to a temporary Parquet file,
and a second one, over that file and without the model, adds the weights. Memory holds one row group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gentletune.core.records import whole_file
from gentletune.inspection.weights import PLAIN, Tokens, method_columns

Write = Callable[[Tokens], None]

_GROUP = 2**15  # tokens of a row group

_FOUND = pa.schema(
    [
        *(("row", pa.int64()), ("position", pa.int32()), ("token_id", pa.int32()), ("text", pa.string())),
        *(("class", pa.string()), ("nll", pa.float64()), ("probability", pa.float64()), ("entropy", pa.float64())),
        *(("top_token_id", pa.int32()), ("top_text", pa.string()), ("top_probability", pa.float64())),
        ("topk_entropy", pa.float64()),
    ]
)


def file_columns() -> Any:
    """Columns of the files, an Arrow schema; NLL and entropy in nats, weights as the methods give them."""
    plain = [("set", pa.string()), *_FOUND.remove(_FOUND.get_field_index("topk_entropy"))]
    return pa.schema([*plain, *((f"weight_{name}", pa.float64()) for name in method_columns() if name != PLAIN)])


class Spool(AbstractContextManager["Spool"]):
    """A temporary file of tokens, written once and then read once; it goes with the context."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="gentletune-inspect-")
        self._path = Path(self._scratch.name) / "tokens.parquet"
        self._writer: Any = pa.parquet.ParquetWriter(self._path, _FOUND)
        self._waiting: list[Tokens] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._scratch.cleanup()

    def add(self, tokens: Tokens) -> None:
        """Keep tokens."""
        self._waiting.append(tokens)
        self._count += len(tokens["nll"])
        if self._count >= _GROUP:
            self._flush()

    def batches(self) -> Iterator[Tokens]:
        """All tokens in the order they came, some thousand at a time; ends the writing."""
        if self._waiting:
            self._flush()
        self._writer.close()
        with pa.parquet.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=_GROUP):
                columns = zip(batch.schema.names, batch.columns, strict=True)
                yield {name: column.to_numpy(zero_copy_only=False) for name, column in columns}

    def _flush(self) -> None:
        whole = {name: np.concatenate([tokens[name] for tokens in self._waiting]) for name in _FOUND.names}
        self._writer.write_table(pa.table(whole, _FOUND))
        self._waiting, self._count = [], 0


@contextmanager
def token_files(csv: Path | None, parquet: Path | None) -> Iterator[Write]:
    """Writes tokens, in the columns of `file_columns`, to files that are there, whole, once the context ends well.

    Otherwise what stood there stays. Raises `OSError` where they cannot be written.
    """
    with ExitStack() as stack:
        writers, columns = [], file_columns()
        for path, kind in ((csv, pa.csv.CSVWriter), (parquet, pa.parquet.ParquetWriter)):
            if path is not None:
                # Entered in this order, the writer is closed before the file is renamed.
                scratch = stack.enter_context(whole_file(path))
                writers.append(stack.enter_context(kind(scratch, columns)))

        def write(tokens: Tokens) -> None:
            table = pa.table(tokens, columns) if writers else None
            for writer in writers:
                writer.write_table(table)

        yield write
