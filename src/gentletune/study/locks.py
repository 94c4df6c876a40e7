"""Locks between processes that end with whoever holds them, also by kill -9."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gentletune.errors import UserError


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of the file `path`; without `wait`, gives False where someone else holds it.

    The kernel lets go of it when the process ends, however it ends. The file itself stays: to delete it would let a
    second process lock a new one beside a first that still holds the old.

    Raises:
        UserError: the file cannot be made.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "lock"
    >>> with locked(file) as mine, locked(file, wait=False) as again:
    ...     print(mine, again)
    True False
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({type(error).__name__}); give another --output") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
