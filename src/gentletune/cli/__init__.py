"""The command line: parsing and printing; each command is one call."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from gentletune.cli.common import app, prepare, stderr
from gentletune.cli.start import quick_start
from gentletune.core.devices import launched, leave, rank
from gentletune.core.errors import UserError, memory_errors, refusal

__all__ = ["app", "main"]

# What a file system refuses of a path.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_INTERRUPTED = 130  # what Typer makes of Ctrl-C
_UsageError: Any = typer.BadParameter.__base__  # typer exports only this child of it


def _version(asked: bool) -> None:
    if asked:
        print(f"gentletune {version('gentletune')}")
        raise typer.Exit


@app.callback()
def _about(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Fine-tune a language model on a domain without losing what it could already do."""


def main() -> None:
    """Entry point: a `UserError` or a usage error is one line on stderr and exit code 2.

    Under torchrun or accelerate rank 0 does what was asked, and the other ranks what rank 0 says.
    """
    if launched() == 1:
        _run()
    try:
        _run()
    except SystemExit as stop:
        if rank() == 0:
            from gentletune.runs.ranks import dismiss

            with suppress(UserError):  # which was told, if there are no other ranks
                dismiss()
        leave(stop.code if isinstance(stop.code, int) else 1)


def _follow() -> int:
    """A rank other than 0: its share of what rank 0 does, without a word; its exit code."""
    from gentletune.runs.ranks import ToldError
    from gentletune.runs.run import follow

    prepare()
    with suppress(ToldError):
        follow()
    return 0


def _lead() -> Any:
    """The command, in the one process or in rank 0 of a launcher; its exit code."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "train")
    if launched() > 1 and command != "train":
        raise UserError(f"a launcher is for train alone; call {command} without it")
    return app(standalone_mode=False)


def _run() -> NoReturn:
    try:
        with quick_start(), memory_errors("in this command"):
            code = _lead() if rank() == 0 else _follow()
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except UserError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again")
        path = error.filename  # none of the network's, and of a program that is missing no path
        if error.errno not in _REFUSED and not (error.errno == errno.ENOENT and os.sep in str(path or "")):
            raise
        _fail(f"cannot read or write {error.filename} ({refusal(error)}); give another path, or mend this one")
    except UnicodeEncodeError as error:
        _fail(
            f"{error.object[error.start]!a} is half of a surrogate pair, no text; it is in a name or in what was read"
        )
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("gentletune: interrupted; run the same command again to go on")
        sys.exit(_INTERRUPTED)
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    print(f"gentletune: {line}", file=sys.stderr)
    sys.exit(2)
