"""The one error a user is meant to read, and what of others' errors becomes one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# How torch and its back ends word it, beside the classes they have for it.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
# What pydantic says of a value of another kind, by its name for the error.
_PLAIN = {
    "string_type": "must be one text",
    "tuple_type": "must be a list, such as [a, b]",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_too_short": "must not be empty",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "finite_number": "must be a finite number",
}
_SMALLER = (
    "lower batch_size or eval_batch_tokens, set gradient_checkpointing: true, train adapters (+lora), or take a "
    "smaller model"
)


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and the mend. The CLI exits with 2 on it."""


class RunFailedError(UserError):
    """What this run or this machine could not do, its input being right: a sweep records it and goes on."""


class OutOfMemoryError(RunFailedError):
    """The device's or the machine's memory is full."""


class NotFiniteError(UserError):
    """A model's probabilities, or a score, are no finite numbers."""


@contextmanager
def memory_errors(what: str, mend: str | Callable[[], str] = _SMALLER) -> Iterator[None]:
    """Turn a full memory, of a GPU or of the machine, into one line: that it was full `what`, and the `mend`.

    A `mend` that is called is called when it is needed.

    Raises:
        OutOfMemoryError: instead of torch's own, or `MemoryError`.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
        asked = f" (another {size[1]} was asked for)" if size else ""
        raise OutOfMemoryError(f"out of memory {what}{asked}; {mend() if callable(mend) else mend}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error that is not yet one line says that memory is full; torch need not be there to ask.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("no"))
    (True, False)
    """
    if isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def check_text(value: Any, where: str) -> None:
    r"""Check that every text in `value`, at any depth, can be written as UTF-8.

    JSON's escapes can name half a surrogate pair, such as `"\ud800"`, which no tokenizer and no file takes.

    Raises:
        UserError: one cannot, with `where` and the character.

    >>> check_text({"prompt": ["naïve", "\U0001f600"]}, "row 1")
    >>> check_text("a\ud800", "row 2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    gentletune.core.errors.UserError: row 2: '\ud800' (character 2) is half of a surrogate pair, ...
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"{value[error.start]!a} (character {error.start + 1})"
            raise UserError(f"{where}: {half} is half of a surrogate pair, no text; mend it, or drop it") from error
    elif isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            check_text(part, where)
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_text(part, where)


def refusal(error: OSError) -> str:
    """What the file system says, for the middle of a line.

    >>> refusal(PermissionError(13, "Permission denied"))
    'permission denied'
    """
    return (error.strerror or type(error).__name__).lower()


def check_pattern(name: str, pattern: str) -> None:
    """Raises `ValueError` where `pattern`, the value of `name`, is no regular expression.

    >>> check_pattern("targets", "[qv]_proj")
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} is no regular expression: {error}") from error


def plainly(error: Mapping[str, Any]) -> str:
    """One of pydantic's `errors()` in plain words, to stand behind the key.

    >>> plainly({"type": "int_from_float", "msg": "Input should be a valid integer, got a number with a …"})
    'must be a whole number'
    """
    message: str = _PLAIN.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not known, with the nearest right one, be it in capitals or not.

    >>> str(unknown("method", "TARL", ["talr", "sft"]))
    "unknown method 'TARL'; did you mean 'talr'? Known: sft, talr"
    """
    names = sorted(known)
    small = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), small, n=1, cutoff=0.5)
    hint = f"; did you mean '{small[near[0]]}'?" if near else "."
    return UserError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}")
