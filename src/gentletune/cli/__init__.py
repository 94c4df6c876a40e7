"""The command line: parsing and printing; each command is one call."""

from __future__ import annotations

import errno
import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from gentletune.cli import export, inspect, lab, research, runs, texts  # noqa: F401 (importing a module adds its commands)
from gentletune.cli.common import app, stderr
from gentletune.core.errors import UserError, memory_errors

__all__ = ["app", "main"]

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
    """Entry point: a `UserError` or a usage error is one line on stderr and exit code 2."""
    try:
        with memory_errors("in this command"):
            code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again")
    except UnicodeEncodeError as error:
        _fail(
            f"{error.object[error.start]!a} is half of a surrogate pair, no text; it is in a name or in what was read"
        )
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("gentletune: interrupted; run the same command again to go on")
        sys.exit(130)
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    print(f"gentletune: {line}", file=sys.stderr)
    sys.exit(2)
