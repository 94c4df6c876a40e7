"""gentletune: fine-tune a language model on a domain without losing what it could already do.

>>> from gentletune import Recipe
>>> Recipe(data="clinic", method="talr", lr=1e-5).method
'talr'
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gentletune.core.threads import wait_passively

wait_passively()  # before torch, which nothing above imports, starts its threads

if TYPE_CHECKING:
    from gentletune.advice import advise
    from gentletune.core.errors import UserError
    from gentletune.core.recipe import Recipe, load_recipe
    from gentletune.core.records import RunRecord, Score, load_records
    from gentletune.inspection import inspect
    from gentletune.reporting import recommend, report
    from gentletune.runs.evaluate import evaluate
    from gentletune.runs.run import train
    from gentletune.sweeps.sweep import sweep
    from gentletune.training import MethodMixin, TALRTrainer, method_loss

# Imported on first use: `import gentletune` stays quick, and reports need no torch. No module of the package may have
# a name of these: once imported it would stand in its place.
_LAZY = {
    "Recipe": "gentletune.core.recipe",
    "RunRecord": "gentletune.core.records",
    "Score": "gentletune.core.records",
    "UserError": "gentletune.core.errors",
    "load_recipe": "gentletune.core.recipe",
    "load_records": "gentletune.core.records",
    "train": "gentletune.runs.run",
    "evaluate": "gentletune.runs.evaluate",
    "sweep": "gentletune.sweeps.sweep",
    "recommend": "gentletune.reporting",
    "report": "gentletune.reporting",
    "inspect": "gentletune.inspection",
    "advise": "gentletune.advice",
    "MethodMixin": "gentletune.training",
    "TALRTrainer": "gentletune.training",
    "method_loss": "gentletune.training",
}

__all__ = [
    "MethodMixin",
    "Recipe",
    "RunRecord",
    "Score",
    "TALRTrainer",
    "UserError",
    "advise",
    "evaluate",
    "inspect",
    "load_recipe",
    "load_records",
    "method_loss",
    "recommend",
    "report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gentletune' has no attribute '{name}'")
    collects = gc.isenabled()
    gc.disable()  # imports make half a million objects and hardly any garbage: looking for it was a quarter of them
    try:
        globals()[name] = getattr(import_module(_LAZY[name]), name)
    finally:
        if collects:
            gc.enable()
    return globals()[name]
