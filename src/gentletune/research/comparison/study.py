"""The study behind a comparison: a ready one for the domain, with what the user asked for in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.yaml_file import read_yaml

READY = ("lab", "helpdesk", "clinic", "medcalc")
OWN = "own"  # for the user's rows: no domain of ours has this name
_ASKED = {"method": "--methods", "learning_rate": "--rates", "seed": "--seeds"}


def ready_study(data: str | None) -> Path:
    """The study file that fits a domain, with or without knobs; without a name that of the lab.

    >>> ready_study("lab(hard=1)").name, ready_study("mine.jsonl").name
    ('lab.yaml', 'own.yaml')
    """
    name = "lab" if data is None else data.partition("(")[0]
    return Path(
        str(files("gentletune.research.comparison").joinpath("studies", f"{name if name in READY else OWN}.yaml"))
    )


def comparison_study(
    given: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    methods: Sequence[str] = (),
    rates: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """A study of methods × learning rates × seeds, seed by seed, so that what is done of it is balanced.

    `given` are recipe keys in the place of the study's own; `config` is a study file of the user's, else the ready one
    for `given["data"]` is taken. `methods`, `rates` and `seeds` stand for the study's where they are given.

    Raises:
        UserError: a file that is no study of methods, a recipe key that an axis has.

    >>> study = comparison_study({"data": "lab"}, methods=["sft", "talr"], rates=[1e-3], seeds=[0])
    >>> study["axes"]
    {'seed': [0], 'learning_rate': [0.001], 'method': ['sft', 'talr']}
    """
    chosen = dict(given or {})
    if taken := next((name for name in _ASKED if name in chosen), None):
        raise UserError(f"a comparison has several values of {taken}; give {_ASKED[taken]}")
    path = config or ready_study(chosen.get("data") or chosen.get("data_path"))
    study = read_yaml(path)
    axes = study.get("axes")
    if not isinstance(axes, dict) or not isinstance(study.get("base"), dict):
        raise UserError(f"{path}: a comparison needs base, and axes with method and learning_rate")
    axes = {"seed": [0], **axes} | {
        name: list(values)
        for name, values in (("method", methods), ("learning_rate", rates), ("seed", seeds))
        if values
    }
    if missing := [name for name in ("method", "learning_rate") if name not in axes]:
        raise UserError(f"{path}: axes has no {missing[0]}; give {_ASKED[missing[0]]}")
    order = [*(name for name in axes if name not in ("learning_rate", "method")), "learning_rate", "method"]
    return {**study, "base": {**study["base"], **chosen}, "axes": {name: axes[name] for name in order}}
