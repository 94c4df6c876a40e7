"""What rows share that must not stand on both sides of a split, and the split by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from gentletune.core.cache import digest
from gentletune.core.errors import UserError
from gentletune.data.forms import Row

T = TypeVar("T")
_HASH = 64  # digits of one


def asked(row: Row) -> tuple[list[Row], str | None]:
    """The messages up to a row's last answer, and the answer; None where that is no text."""
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}], row["completion"]
    messages, silent = row["messages"], row.get("silent", ())
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    last = max([i for i in answers if i not in silent] or answers)
    answer = None if messages[last].get("tool_calls") else messages[last]["content"]
    return messages[:last], answer


def said_before(row: Row) -> tuple[str, str, str]:
    """What `groups_of` goes by, as hashes of 64 digits.

    The first is of the row's context, else of all up to the first message of a user; the second is so without regard
    to a context. The third is one hash behind the other: for each message up to the row's answer, of all that was said
    up to it.
    """
    said = _said(row)
    users = (i for i, message in enumerate(row.get("messages", ())[: len(said)]) if message["role"] == "user")
    opened = said[next(users, -1)]
    context = row.get("context")
    return digest(["context", _folded(context)]) if context else opened, opened, "".join(said)


def groups_of(opened: Sequence[str], said: Sequence[str]) -> Sequence[str]:
    """What rows share that must not stand on both sides of a split: a context, the opening of a chat, a prompt.

    A context or an opening that more than half of the rows have (a manual, "Hello") tells nothing; those go by what is
    asked in the end, with what goes on from it. Case and spaces do not count. `opened` and `said` are those of
    `said_before` of each row.
    """
    _, places, counts = np.unique(_hashes(opened), return_index=True, return_counts=True)
    if 2 * counts.max() <= len(opened):
        return opened
    whole, common = {chain[-_HASH:] for chain in said}, opened[places[counts.argmax()]]
    return [_begun(chain, whole) if own == common else own for own, chain in zip(opened, said, strict=True)]


def _begun(chain: str, whole: set[str]) -> str:
    """The hash of the first beginning of a chat that is the whole of one."""
    hashes = (chain[i : i + _HASH] for i in range(0, len(chain), _HASH))
    return next(one for one in hashes if one in whole)


def _said(row: Row) -> list[str]:
    """For each message up to a row's answer the hash of all that was said up to it."""
    before = [row["text"]] if "text" in row else asked(row)[0] or row["messages"]
    found, last = list[str](), ""
    for message in before:
        last = digest([last, _folded(message)])
        found.append(last)
    return found


def _folded(value: Any) -> Any:
    """Texts without what does not change what is asked: case, and the number of spaces."""
    if isinstance(value, dict):
        return {key: _folded(part) for key, part in value.items()}
    return " ".join(value.split()).casefold() if isinstance(value, str) else value


def _hashes(texts: Iterable[str]) -> Any:
    """SHA-256 of each text: 32 bytes a text are held, and no text."""
    found = bytearray()
    for text in texts:
        found += hashlib.sha256(text.encode()).digest()
    return np.frombuffer(found, "S32")


def split_by_group(items: Sequence[T], test_rows: int, groups: Iterable[str], where: str) -> tuple[list[T], list[T]]:
    """Hold out whole groups, in the order of their hash, up to `test_rows` rows and a fifth of all rows.

    A group that would go beyond is passed over; where each would, a smallest one is held out. The split depends on
    the groups alone, not on the order of rows or a seed. Raises `UserError` where there are fewer than two groups.
    """
    hashes = _hashes(f"held-out/{group}" for group in groups)
    order, mine, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    if len(order) < 2:
        raise UserError(f"{where}: {len(items)} row(s) in one group cannot be split; give more rows or a test_path")
    wanted = max(1, min(test_rows, len(items) // 5))
    held, count = np.zeros(len(order), dtype=bool), 0
    for number, size in enumerate(sizes):
        if count + size <= wanted:
            held[number] = True
            count += size
    if not count:
        held[np.argmin(sizes)] = True
    sides = held[mine]
    train, test = ([items[i] for i in np.flatnonzero(side).tolist()] for side in (~sides, sides))
    return train, test


@overload
def draw(items: list[T], limit: int | None) -> list[T]: ...
@overload
def draw(items: Sequence[T], limit: int | None) -> Sequence[T]: ...
def draw(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """`limit` items in their order, spread by hash over the whole list, so that a sorted file is sampled fairly."""
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"draw/{i}".encode()).digest())[:limit]
    return [items[i] for i in sorted(chosen)]
