"""A training that leaves nothing behind but what was seen of it: for probes, and for those who follow a run."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gentletune.core.recipe import Recipe
from gentletune.core.schedule import QUIET
from gentletune.data import Encoded
from gentletune.methods import Method
from gentletune.training import TrainingDivergedError, fit
from gentletune.training.packing import rows_to_draw


class _LastLookError(Exception):
    """The last look is taken: what would follow is a checkpoint that nobody reads."""


def train_copy(
    model: Any, recipe: Recipe, method: Method, tokenizer: Any, rows: Sequence[Encoded],
    look: Callable[[Any, int], None], *, every: int, title: str,
) -> bool:  # fmt: skip
    """Train a copy of `model` in memory; `look(copy, step)` is called every `every` steps (0: never) and at the end.

    The model itself, which a method may hold on to as its base, stays as it is; no file is left and nothing reported.
    Returns whether it came to its end: False where the training diverged, or `look` raised `TrainingDivergedError`.
    """
    steps, done = recipe.steps(rows_to_draw(recipe, rows)), 0
    every = min(every, steps) or steps

    def probe(tuned: Any) -> dict[str, float]:
        nonlocal done
        done = min(done + every, steps)
        look(tuned, done)
        if done == steps:
            raise _LastLookError
        return {}

    alone = {"max_steps": steps, "probe_every": every, "save_every": steps + 1, "report_to": (), **QUIET}
    recipe = recipe.override(alone)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fit(
                recipe, method, copy.deepcopy(model), tokenizer, rows, Path(scratch),
                base=dict(model.named_parameters()), probe=probe, title=title,
            )  # fmt: skip
    except _LastLookError:
        pass
    except TrainingDivergedError:
        return False
    finally:
        gc.collect()  # a trainer refers to itself, and holds a model and its optimiser
    return True
