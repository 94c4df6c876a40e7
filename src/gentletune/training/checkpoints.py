"""The checkpoints of a run: the newest, and what a damaged one says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from gentletune.core.errors import UserError, is_out_of_memory
from gentletune.training.arguments import CHECKPOINTS


@contextmanager
def reading(checkpoint: str | Path | None) -> Iterator[None]:
    """Turn what damaged files of a checkpoint end in into one line."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError,
            UnpicklingError, SafetensorError) as error:  # fmt: skip
        # A device or a rank that failed is a RuntimeError, too.
        if is_out_of_memory(error) or isinstance(error, (torch.AcceleratorError, torch.distributed.DistBackendError)):
            raise
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({why}); if it is damaged, move it away and run this again"
        ) from error


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run. Checkpoints are renamed into place whole, so the newest is good."""
    found = {int(m[1]): p for p in (run / CHECKPOINTS).glob("checkpoint-*") if (m := re.search(r"-(\d+)$", p.name))}
    return found[max(found)] if found else None
