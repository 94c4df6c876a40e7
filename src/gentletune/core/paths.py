"""A path that a user wrote."""

from __future__ import annotations

from pathlib import Path

from gentletune.core.errors import UserError, refusal


def user_path(text: str) -> Path:
    """The path, its `~` filled in; there need be nothing at it.

    Raises:
        UserError: a home that nobody has, a name too long, a folder that may not be looked into.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError as error:
        raise UserError(
            f"{text[:80]}: nobody here has the home '{text.split('/')[0]}'; write the folder out"
        ) from error
    except OSError as error:
        raise UserError(f"{text[:80]}: {refusal(error)}; give another path") from error
    return path
