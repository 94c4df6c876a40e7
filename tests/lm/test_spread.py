"""Work that ranks share: in order, by whom it may be, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
from torch.distributed import HashStore

from gentletune.core.errors import NotFiniteError
from gentletune.lm.spread import Helpers, helped, is_helped, serve, spread


def named(model: str, _tokenizer: Any, batch: int) -> str:
    return f"{model}{batch}"


def refused(_model: str, _tokenizer: Any, batch: int, *, kind: type[Exception], of: int) -> int:
    if batch == of:
        raise kind(f"batch {batch}")
    return batch


@contextmanager
def two_helpers() -> Iterator[None]:
    """Two threads that hold models `b` and `c`; they must have ended at the end."""
    store = HashStore()
    own = {1: lambda: ("b", None), 2: lambda: ("c", None)}
    threads = [Thread(target=serve, args=(store, rank, own[rank])) for rank in own]
    for thread in threads:
        thread.start()
    with helped(Helpers(store, 3)):
        yield
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_each_has_its_turn_and_the_order_stays() -> None:
    with two_helpers():
        assert is_helped()
        assert list(spread(named, "a", None, range(7))) == ["a0", "b1", "c2", "a3", "b4", "c5", "a6"]
    assert not is_helped()
    assert list(spread(named, "a", None, range(2))) == ["a0", "a1"]


@pytest.mark.parametrize(
    ("kind", "raised", "told"),
    [
        (NotFiniteError, NotFiniteError, "batch"),
        (MemoryError, MemoryError, "rank [12]: MemoryError: batch"),
        (KeyError, RuntimeError, "rank [12]: KeyError: 'batch"),
    ],
)
def test_who_fails_is_heard_and_the_others_go_on(kind: Any, raised: Any, told: str) -> None:
    with two_helpers():
        for of in (1, 2):
            with pytest.raises(raised, match=told):
                list(spread(refused, "a", None, range(9), kind=kind, of=of))
        with pytest.raises(kind):  # rank 0 itself
            list(spread(refused, "a", None, range(9), kind=kind, of=3))
        assert list(spread(named, "a", None, range(4))) == ["a0", "b1", "c2", "a3"]


def test_nobody_is_called_for_a_single_batch() -> None:
    called = []
    with helped(Helpers(HashStore(), 3, lambda: called.append(1))):
        assert list(spread(named, "a", None, [5])) == ["a5"]
    assert not called
