"""The device a run uses, and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def device() -> torch.device:
    """The device a run uses: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def index_here() -> int | str:
    """The device by the number that libraries which spread models over devices want to hear."""
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def settle_memory() -> None:
    """Spare a process that is about to work what it need not do again and again; to call once all is imported.

    glibc keeps freed memory for the next step instead of giving it back to the system: activations are hundreds of
    megabytes that come and go with every step, and touching fresh pages for them took up to a third of an
    evaluation's time on a CPU. Elsewhere than on Linux with glibc that does nothing. And Python's garbage collector no
    longer walks the hundreds of thousands of objects of the imported libraries, a third of a short training's time
    (docs/log.md). Imports leave hardly any garbage, so that it looks for some only where it was called before.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if gc.get_freeze_count():
        gc.collect()
    gc.freeze()


@contextlib.contextmanager
def collections_spared() -> Iterator[None]:
    """Within, Python's garbage collector walks nothing that was there before: for a process that is not ours.

    transformers' Trainer collects three times a training, each time through all that was ever imported.
    """
    if gc.get_freeze_count():  # by whoever owns the process
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back_memory() -> None:
    """Collect what is unreachable and return freed memory to the device and the system, also after the above."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
