"""A quick start: libraries are imported without the garbage collector, and those that no one asks for not at all."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

# PEFT imports bitsandbytes wherever it is installed, for one function: seconds, and the half of torch's compiler.
_LATE = frozenset({"bitsandbytes"})
_USUAL = gc.get_threshold()
_SELDOM = 200_000  # new objects; imports make half a million, which stay


class _Late(MetaPathFinder):
    """Finds the packages that are executed at the first look into them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _LATE else None
        if spec is None or spec.loader is None:
            return None
        spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def quick_start() -> Iterator[None]:
    """Within, imports cost less; `collect_as_usual` ends a part of that sooner."""
    late = _Late()
    sys.meta_path.insert(0, late)
    gc.set_threshold(_SELDOM, *_USUAL[1:])
    try:
        yield
    finally:
        sys.meta_path.remove(late)
        collect_as_usual()


def collect_as_usual() -> None:
    """To call once all is imported: the garbage collector runs as often as before `quick_start`."""
    gc.set_threshold(*_USUAL)
