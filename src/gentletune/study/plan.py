"""A study's plan: a pure function from study.yaml to a list of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentletune.errors import UserError, unknown
from gentletune.methods import parse_method, training_part
from gentletune.recipe import Recipe, read_yaml

_KEYS = ("base", "axes", "also")


@dataclass(frozen=True)
class Trial:
    """One run of a study. `trains_like` names an earlier trial with the same training, whose weights it takes."""

    name: str
    recipe: Recipe
    trains_like: str | None = None


def plan(study: Mapping[str, Any], output: Path, where: str = "study") -> list[Trial]:
    """Trials of a study: the product of its `axes` over its `base` recipe, then each entry of `also`.

    Trials whose recipes differ only in the method's finish share one training.

    Raises:
        UserError: an unknown key, an axis without values, a recipe that is not valid.
    """
    for key in study:
        if key not in _KEYS:
            raise UserError(f"{where}: {unknown('key', str(key), _KEYS)}")
    base, axes, also = study.get("base") or {}, study.get("axes") or {}, study.get("also") or []
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: axis '{axis}' needs a list of values")
    changes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    trials: list[Trial] = []
    trained: dict[str, str] = {}
    for change in [*changes, *also]:
        recipe = Recipe.parse({**base, **change}, where=where)
        name = _name(recipe, change)
        recipe = recipe.override({"output": str(output / name)})
        training = {**recipe.training_fields(), "method": training_part(recipe.method)}
        like = trained.setdefault(repr(sorted(training.items())), name)
        trials.append(Trial(name, recipe, None if like == name else like))
    names = [trial.name for trial in trials]
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two trials are the same; remove one")
    return trials


def _name(recipe: Recipe, change: Mapping[str, Any]) -> str:
    label = parse_method(recipe.method).label
    parts = [label, f"lr{recipe.learning_rate:g}"]
    parts += [f"{k}{v}" for k, v in sorted(change.items()) if k not in ("method", "learning_rate", "lr")]
    return "".join(c if c.isalnum() or c in "+-._=" else "_" for c in "-".join(parts))


def read_study(path: Path) -> dict[str, Any]:
    """study.yaml as a mapping. Raises `UserError` on broken YAML."""
    return read_yaml(path)
