"""A study's plan: a pure function from study.yaml to a list of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from gentletune.core.errors import UserError, unknown
from gentletune.core.recipe import Processes, Recipe
from gentletune.core.yaml_file import Keyed, read_yaml, validated
from gentletune.data.hub import data_name
from gentletune.methods import parse_method, training_part

_KEYS = ("base", "axes", "also", "search", "resources", "keep_models")
_MAPPINGS = {
    "base": "{data: clinic}",
    "axes": "{method: [sft], learning_rate: [1e-5]}",
    "search": "{trials: 20, space: {learning_rate: {low: 1e-6, high: 1e-4, log: true}}}",
    "resources": "{gpus: 1}",
}


@dataclass(frozen=True)
class Trial:
    """One run of a study. `trains_like` names an earlier trial with the same training, whose weights it takes."""

    name: str
    recipe: Recipe
    trains_like: str | None = None

    @cached_property
    def training(self) -> dict[str, Any]:
        """What trials that share one training have in common; `save`, too: of whole weights no adapter can be taken."""
        recipe = self.recipe
        return recipe.training_fields() | {"method": training_part(recipe.method), "save": recipe.save}


class Resources(Keyed):
    """What one trial gets. None: a GPU for each of its processes where there are any; an even share of the cores."""

    gpus: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1)

    def gpus_of(self, total: int, processes: Sequence[Processes]) -> int:
        """GPUs of a trial where there are `total`, enough for the trial with the most processes.

        >>> Resources().gpus_of(8, [1, 2]), Resources().gpus_of(8, ["auto"]), Resources(gpus=4).gpus_of(8, [1])
        (2, 8, 4)
        """
        if self.gpus is not None:
            return self.gpus
        return max((total if wanted == "auto" else wanted for wanted in processes), default=1) if total else 0


class Settings(Keyed):
    """How a study is run, as far as study.yaml says."""

    resources: Resources = Resources()
    keep_models: bool = True


def read_study(path: Path, model: str | None = None) -> dict[str, Any]:
    """study.yaml as a mapping, with `model` in the place of its base recipe's.

    Raises:
        UserError: broken YAML, a study of another shape.
    """
    study = read_yaml(path)
    check_keys(study, str(path))
    return {**study, "base": (study.get("base") or {}) | ({} if model is None else {"model": model})}


def read_settings(study: Mapping[str, Any], where: str = "study") -> Settings:
    """The study's `resources` and `keep_models`. Raises `UserError` for what they do not know.

    >>> read_settings({"resources": {"cpus": 2}}).resources.cpus
    2
    """
    check_keys(study, where)
    given = {k: study[k] for k in ("resources", "keep_models") if study.get(k) is not None}
    return validated(Settings, given, where)


def plan(study: Mapping[str, Any], output: Path, where: str = "study") -> list[Trial]:
    """Trials of a study: the product of its `axes` over its `base` recipe, then each entry of `also`; else the base.

    Trials whose recipes differ only in the method's merge share one training. The trials of a `search` are asked
    for one by one while it runs (`gentletune.sweeps.search`); of such a study this is `also` alone.

    Raises:
        UserError: an unknown key, an axis without values, a recipe that is not valid.

    >>> study = {"base": {"data": "clinic"}, "axes": {"method": ["sft", "wise_ft"], "lr": [1e-5]}}
    >>> [(trial.name, trial.trains_like) for trial in plan(study, Path("runs"))]
    [('sft-lr1e-05', None), ('wise_ft-lr1e-05', 'sft-lr1e-05')]
    """
    check_keys(study, where)
    base, axes, also = study.get("base") or {}, study.get("axes") or {}, study.get("also") or []
    if study.get("search") and axes:
        raise UserError(f"{where}: give axes or a search, not both; a list in the search's space is an axis")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: axis '{axis}' needs a list of values")
    changes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if study.get("search") or (also and not axes):
        changes = []
    trials: list[Trial] = []
    for change in [*changes, *also]:
        trials.append(make_trial(base, change, output, trials, where))
    named: dict[str, Trial] = {}
    for trial in trials:
        other = named.setdefault(trial.name, trial)
        if other.recipe != trial.recipe:
            problem = "by less than a name can tell, six digits of a rate and '_' for most signs; remove one"
            raise UserError(f"{where}: two trials would be called {trial.name}: they differ {problem}")
        if other is not trial:
            raise UserError(f"{where}: two trials are the same, {trial.name}; remove one")
    return trials


def make_trial(
    base: Mapping[str, Any],
    change: Mapping[str, Any],
    output: Path,
    earlier: Sequence[Trial],
    where: str,
    prefix: str = "",
) -> Trial:
    """The trial of `base` with a change; it takes the weights of an earlier one that is trained alike."""
    recipe = Recipe.parse({**base, **change}, where=where)
    if recipe.push_to_hub is not None or recipe.gguf is not None:
        key = "gguf" if recipe.push_to_hub is None else "push_to_hub"
        raise UserError(f"{where}: {key} is for one run; leave it out, and export what you choose: gentletune export")
    name = prefix + _name(recipe, change)
    recipe = recipe.override({"output": str(output / name)})
    trial = Trial(name, recipe)
    like = next((t.name for t in earlier if t.trains_like is None and t.training == trial.training), None)
    return replace(trial, trains_like=like)


def _name(recipe: Recipe, change: Mapping[str, Any]) -> str:
    label = parse_method(recipe.method).label
    parts = [label, f"lr{recipe.learning_rate:g}"]
    if recipe.mixture and "data" in change:
        sources = "+".join(f"{data_name(source.path)}{source.weight:g}" for source in recipe.sources)
        change = {**change, "data": f"-{sources}"}
    parts += [f"{k}{v}" for k, v in sorted(change.items()) if k not in ("method", "learning_rate", "lr")]
    return "".join(c if c.isalnum() or c in "+-._=" else "_" for c in "-".join(parts))


def check_keys(study: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a key no study has, and for a value of another shape than the key's; None says nothing."""
    for key, value in study.items():
        if key not in _KEYS:
            raise UserError(f"{where}: {unknown('key', str(key), _KEYS)}")
        if key in _MAPPINGS and not isinstance(value, Mapping | None):
            raise UserError(f"{where}: {key} must be a mapping, such as {key}: {_MAPPINGS[key]}, got {value!r}")
    also = [] if study.get("also") is None else study["also"]
    if not isinstance(also, (list, tuple)) or not all(isinstance(change, Mapping) for change in also):
        example = "also: [{method: talr, learning_rate: 1e-5}]"
        raise UserError(f"{where}: also must be a list of mappings, such as {example}, got {also!r}")
