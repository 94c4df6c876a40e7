"""Locks between processes that end with whoever holds them, also by kill -9; that of a run directory says who does."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from gentletune.core.errors import UserError
from gentletune.core.records import write_json_atomic

LOCK_FILE, HOLDER_FILE = ".gentletune.lock", ".gentletune.holder.json"  # in a run directory while a process is at it
# Whose being there is the lock, on a file system that cannot lock; the library leaves LOCK_FILE there, of no meaning.
SOFT_LOCK_FILE = f"{LOCK_FILE}.soft"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_COMMAND_LENGTH = 100
_ATTEMPTS = 100


@dataclass(frozen=True)
class Holder:
    """The process that holds a run directory; `since` is a UTC time, to the second."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        """As it stands in an error.

        >>> str(Holder(4242, "node7", "gentletune train -c a.yaml", "2026-01-05T10:00:00+00:00"))
        'process 4242 on node7 since 2026-01-05T10:00:00+00:00 (gentletune train -c a.yaml)'
        """
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


class RunHeldError(UserError):
    """Another process is at the run directory; nothing in it was touched. `who` names it, where it is known."""

    def __init__(self, run: Path) -> None:
        self.who = str(holder(run) or "another process")
        ways = f"wait for it to end, or give another --output{if_dead(run)}"
        super().__init__(f"{run} is in use by {self.who}; {ways}")


@contextmanager
def locked(path: Path, *, wait: bool | float = True, keep: bool = True) -> Iterator[bool]:
    """Hold the lock of the file `path`; without `wait`, or after so many seconds, gives False where someone else does.

    The kernel lets go of it when the process ends, however it ends. On a file system without such locks a file beside
    it, `path` with `.soft`, is the lock: one of a process that died is taken over on the same host, and no other.
    Without `keep` the file is deleted at the end.

    Raises:
        UserError: the file cannot be made.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "lock"
    >>> with locked(file) as mine, locked(file, wait=False) as again:
    ...     print(mine, again)
    True False
    """
    try:
        lock = _acquired(path, wait)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({type(error).__name__}); give another --output") from error
    try:
        yield True
    finally:
        # Deleted while it is held: whoever gets the lock of the deleted file sees that, and makes a new one.
        if not keep and not (isinstance(lock, SoftFileLock) and Path(lock.lock_file) == path):
            with suppress(OSError):
                path.unlink()
        lock.release()


def _acquired(path: Path, wait: bool | float) -> BaseFileLock:
    """Raises `Timeout` where someone else holds it, `OSError` where the file cannot be made."""
    lock: BaseFileLock = FileLock(path)
    try:
        _acquire(lock, path, wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.soft"))
        _acquire(lock, path, wait)
    return lock


def _acquire(lock: BaseFileLock, path: Path, wait: bool | float) -> None:
    """Raises `Timeout` where someone else holds it, `OSError` where the file cannot be made."""
    for attempt in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait is True else float(wait))
            return
        except FileNotFoundError:  # whoever held it has just taken the directory away
            if attempt == _ATTEMPTS - 1:
                raise


@contextmanager
def holding(run: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a run directory. One that this made, and that nothing was put into, is gone at the end.

    Raises:
        RunHeldError: another process holds it, and this should not `wait`.
        UserError: it cannot be written.
    """
    with ExitStack() as stack:
        if not run.is_dir():
            stack.callback(_remove_empty, run)
        if not stack.enter_context(locked(run / LOCK_FILE, wait=wait, keep=False)):
            raise RunHeldError(run)
        with suppress(OSError):  # the lock is held all the same; others are told less
            write_json_atomic(run / HOLDER_FILE, asdict(_me()))
        stack.callback((run / HOLDER_FILE).unlink, missing_ok=True)
        yield


def check_free(run: Path) -> None:
    """Raises `RunHeldError` where a process holds the run directory at this moment; makes no file."""
    if (run / LOCK_FILE).exists() or (run / SOFT_LOCK_FILE).exists():
        with locked(run / LOCK_FILE, wait=False) as mine:
            if not mine:
                raise RunHeldError(run)


def if_dead(run: Path) -> str:
    """What to add to the name of a run directory's holder where only the user can know that it died; mostly empty.

    That is where a file is the lock, and its process is on another host.
    """
    marker = next((p for p in (run / SOFT_LOCK_FILE, run / LOCK_FILE) if p.exists() and p.stat().st_size), None)
    found = holder(run)
    if marker is None or (found is not None and found.host == socket.gethostname()):
        return ""
    return f"; if that process has died, delete {marker}"


def holder(run: Path) -> Holder | None:
    """Who holds the run directory, or was killed while it did; None where nobody says so."""
    try:
        return Holder(**json.loads((run / HOLDER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _me() -> Holder:
    command = " ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())
    if len(command) > _COMMAND_LENGTH:
        command = f"{command[: _COMMAND_LENGTH - 1]}…"
    return Holder(os.getpid(), socket.gethostname(), command, datetime.now(UTC).isoformat(timespec="seconds"))


def _remove_empty(run: Path) -> None:
    with suppress(OSError):
        run.rmdir()
