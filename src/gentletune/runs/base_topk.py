"""The base model's most probable tokens at every label token of some rows: computed once, kept on disk as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentletune.core.cache import digest
from gentletune.core.errors import memory_errors
from gentletune.core.recipe import Recipe
from gentletune.data.disk.stored import once_on_disk
from gentletune.data.encode import Encoded, label_counts
from gentletune.evaluation.finite import check_rows, of_model
from gentletune.lm.generate import Progress
from gentletune.lm.label_tokens import label_states
from gentletune.lm.loaded import Loaded
from gentletune.losses import TOP_K, BaseTopK

BYTES = 8 * (TOP_K + 1)
"""Of a label token: its token ids and two more log-probabilities than those, 4 bytes each."""

_VERSION = 1  # raise when what is kept would come out differently
_LOGITS = 2**24  # elements of a block of logits
_PARTS = {"ids": np.int32, "log_p": np.float32, "log_tail": np.float32, "log_target": np.float32}

Arrays = dict[str, Any]


class BaseTopKRows:
    """The base model's distributions by the place of a label token; what lies on disk is mapped into memory."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def __call__(self, places: Tensor) -> BaseTopK:
        """Of places (n,), on the host."""
        found = {name: torch.from_numpy(np.asarray(values[places.numpy()])) for name, values in self.arrays.items()}
        return BaseTopK(found["ids"].long(), found["log_p"], found["log_tail"], found["log_target"])


def base_topk(
    base: Loaded, rows: Sequence[Encoded], key: Any, recipe: Recipe, *, progress: Progress | None = None
) -> BaseTopKRows:
    """Of every label token of the rows, which the JSON-able `key` tells from others; from the cache where it is known.

    Where the cache cannot be written they are held in memory: `BYTES` a label token.
    """

    def compute(make: Callable[..., Any]) -> Arrays:
        mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
        with of_model(f"the base model {recipe.model}"), memory_errors("in the base model's predictions", mend):
            return _computed(base, rows, recipe.eval_batch_tokens, make, progress)

    def write(scratch: Path) -> None:
        def on_disk(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
            return np.lib.format.open_memmap(scratch / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

        for values in compute(on_disk).values():
            values.flush()

    if (known := once_on_disk("topk", digest([_VERSION, TOP_K, base.hash, key]), _read, write)) is not None:
        return BaseTopKRows(known)
    return BaseTopKRows(compute(lambda _name, shape, dtype: np.empty(shape, dtype)))


def _read(place: Path) -> Arrays | None:
    try:
        return {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _PARTS}
    except (OSError, ValueError):
        return None


def _computed(
    base: Loaded, rows: Sequence[Encoded], batch_tokens: int, make: Callable[..., Any], progress: Progress | None
) -> Arrays:
    total, vocabulary = sum(label_counts(rows)), base.model.get_output_embeddings().weight.shape[0]
    wide = dict.fromkeys(("ids", "log_p"), (min(TOP_K, vocabulary),))
    arrays = {name: make(name, (total, *wide.get(name, ())), dtype) for name, dtype in _PARTS.items()}
    pad_id = base.tokenizer.pad_token_id
    step = max(1, _LOGITS // vocabulary)
    for states in label_states(base.model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress):
        for start in range(0, len(states.targets), step):
            some = slice(start, start + step)
            with torch.no_grad():
                found = BaseTopK.of(states.head.logits(states.hidden[some]), states.targets[some], TOP_K)
            places = states.place[some].numpy()
            for name, values in arrays.items():
                values[places] = getattr(found, name).cpu().numpy()
    starts = np.cumsum([0, *label_counts(rows)[:-1]])
    check_rows(np.add.reduceat(-arrays["log_target"], starts).tolist(), "training")
    return arrays
