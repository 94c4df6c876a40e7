"""What rows share that must not stand on both sides of a split, and the split by it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from gentletune.core.cache import digest
from gentletune.core.errors import UserError
from gentletune.data.forms import Row

T = TypeVar("T")


def asked(row: Row) -> tuple[list[Row], str | None]:
    """The messages up to a row's last answer, and the answer; None where that is no text."""
    if "messages" not in row:
        return [{"role": "user", "content": row["prompt"]}], row["completion"]
    messages, silent = row["messages"], row.get("silent", ())
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    last = max([i for i in answers if i not in silent] or answers)
    answer = None if messages[last].get("tool_calls") else messages[last]["content"]
    return messages[:last], answer


def groups_of(rows: Sequence[Row]) -> list[str]:
    """What rows share that must not stand on both sides of a split: a context, the opening of a chat, a prompt.

    A context or an opening that more than half of the rows have (a manual, "Hello") tells nothing; those go by what is
    asked in the end, with what goes on from it. Case and spaces do not count.
    """
    chains = [_said(row) for row in rows]
    opened = [_opening(row, said) for row, said in zip(rows, chains, strict=True)]
    common = {one for one, count in Counter(opened).items() if 2 * count > len(rows)}
    whole = {said[-1] for said in chains}
    begun = [next(beginning for beginning in said if beginning in whole) for said in chains]
    return [own if one in common else one for one, own in zip(opened, begun, strict=True)]


def _said(row: Row) -> list[str]:
    """For each message up to a row's answer the hash of all that was said up to it."""
    before = [row["text"]] if "text" in row else asked(row)[0] or row["messages"]
    found, last = list[str](), ""
    for message in before:
        last = digest([last, _folded(message)])
        found.append(last)
    return found


def _opening(row: Row, said: Sequence[str]) -> str:
    """The hash of a row's context, or of all up to its first message of a user."""
    if context := row.get("context"):
        return digest(["context", _folded(context)])
    users = (i for i, message in enumerate(row.get("messages", ())[: len(said)]) if message["role"] == "user")
    return said[next(users, -1)]


def _folded(value: Any) -> Any:
    """Texts without what does not change what is asked: case, and the number of spaces."""
    if isinstance(value, dict):
        return {key: _folded(part) for key, part in value.items()}
    return " ".join(value.split()).casefold() if isinstance(value, str) else value


def split_by_group(items: Sequence[T], test_rows: int, groups: Sequence[str], where: str) -> tuple[list[T], list[T]]:
    """Hold out whole groups, in the order of their hash, up to `test_rows` rows and a fifth of all rows.

    A group that would go beyond is passed over; where each would, a smallest one is held out. The split depends on
    the groups alone, not on the order of rows or a seed. Raises `UserError` where there are fewer than two groups.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda g: hashlib.sha256(f"held-out/{g}".encode()).hexdigest())
    if len(order) < 2:
        raise UserError(f"{where}: {len(items)} row(s) in one group cannot be split; give more rows or a test_path")
    wanted = max(1, min(test_rows, len(items) // 5))
    held: set[str] = set()
    count = 0
    for group in order:
        if count + sizes[group] <= wanted:
            held.add(group)
            count += sizes[group]
    if not held:
        held.add(min(order, key=sizes.__getitem__))
    train = [item for item, group in zip(items, groups, strict=True) if group not in held]
    test = [item for item, group in zip(items, groups, strict=True) if group in held]
    return train, test


def draw(items: list[T], limit: int | None) -> list[T]:
    """`limit` items in their order, spread by hash over the whole list, so that a sorted file is sampled fairly."""
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"draw/{i}".encode()).digest())[:limit]
    return [items[i] for i in sorted(chosen)]
