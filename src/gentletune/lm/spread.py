"""Work on a model shared out over ranks that each hold the whole of it, a batch at a time.

One process would compute the same batches, so no figure hangs on how many ranks there are. Rank 0 leads: inside
`helped`, `spread` deals batches out and takes what became of them in their order. Another rank follows: `serve`
computes what it is dealt until rank 0 is done. They speak through a store of `torch.distributed`: a rank that waits
keeps no GPU busy, and one that fails leaves nobody in a collective.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import Any

from gentletune.core.errors import UserError, is_out_of_memory

Work = Callable[..., Any]
"""A function of a module, `work(model, tokenizer, batch, **how)`, that every rank can import by its name."""

_WAIT = timedelta(days=7)  # for rank 0, which has other things to do between two batches
_PAUSE = 0.02  # seconds between two looks for an answer


class Helpers:
    """The other ranks as rank 0 sees them: numbers 1 to `world` - 1.

    `call` brings them to `serve`, once there is something to deal; None: they are there. `check` raises where one of
    them has died.
    """

    def __init__(
        self, store: Any, world: int, call: Callable[[], None] | None = None, check: Callable[[], None] | None = None
    ) -> None:
        self.store, self.world, self._call, self._check = store, world, call, check
        self._sent, self._there = [0] * world, call is None

    def deal(
        self, work: Work, model: Any, tokenizer: Any, batches: Iterable[Any], how: dict[str, Any]
    ) -> Iterator[Any]:
        """What became of each batch, in their order; rank 0 has a share of its own.

        Raises:
            UserError, MemoryError, RuntimeError: what another rank raised.
        """
        left = iter(batches)
        while some := list(islice(left, self.world)):
            own, *others = some
            if others and not self._there and self._call:
                self._call()
                self._there = True
            keys = [self._send(rank, (work, batch, how)) for rank, batch in enumerate(others, start=1)]
            yield work(model, tokenizer, own, **how)
            for key in keys:
                yield self._take(key)

    def dismiss(self) -> None:
        """Nothing more is to be dealt."""
        if self._there:
            for rank in range(1, self.world):
                self._send(rank, None)

    def _send(self, rank: int, what: Any) -> str:
        key = f"{rank}/{self._sent[rank]}"
        self._sent[rank] += 1
        self.store.set(key, pickle.dumps(what))
        return f"{key}/found"

    def _take(self, key: str) -> Any:
        while not self.store.check([key]):
            if self._check:
                self._check()
            time.sleep(_PAUSE)
        found = pickle.loads(self.store.get(key))
        self.store.delete_key(key)
        if isinstance(found, Exception):
            raise found
        return found


_helpers: ContextVar[Helpers | None] = ContextVar("helpers", default=None)


@contextmanager
def helped(helpers: Helpers) -> Iterator[None]:
    """Inside, every piece of work is on the model that the helpers hold, and they share it."""
    before = _helpers.set(helpers)
    try:
        yield
    finally:
        _helpers.reset(before)
        helpers.dismiss()


def is_helped() -> bool:
    """Whether other ranks share what is spread now."""
    return _helpers.get() is not None


def spread(work: Work, model: Any, tokenizer: Any, batches: Iterable[Any], /, **how: Any) -> Iterator[Any]:
    """What `work` makes of each batch, in their order: here, or over the ranks that help.

    >>> list(spread(lambda model, tokenizer, batch, *, unit: len(batch) * unit, None, None, ["ab", "c"], unit=2))
    [4, 2]
    """
    helpers = _helpers.get()
    if helpers is None:
        return (work(model, tokenizer, batch, **how) for batch in batches)
    return helpers.deal(work, model, tokenizer, batches, how)


def serve(store: Any, rank: int, own: Callable[[], tuple[Any, Any]]) -> None:
    """What another rank than 0 does: compute what rank 0 deals it, on its `own` model and tokenizer, until that is all.

    Where it cannot get these, rank 0 hears why in the place of what it waits for.
    """
    number = 0
    while True:
        key, number = f"{rank}/{number}", number + 1
        store.wait([key], _WAIT)
        dealt = pickle.loads(store.get(key))
        store.delete_key(key)
        if dealt is None:
            return
        work, batch, how = dealt
        try:
            found = work(*own(), batch, **how)
        except Exception as error:
            found = told(error, rank)
        store.set(f"{key}/found", pickle.dumps(found))


def told(error: Exception, rank: int) -> Exception:
    """A rank's error as another is to raise it: not every class can be sent."""
    if isinstance(error, UserError):
        return error
    kind = MemoryError if is_out_of_memory(error) else RuntimeError
    return kind(f"rank {rank}: {type(error).__name__}: {error}")
