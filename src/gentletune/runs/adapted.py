"""A run's adapter: out of training, into the unquantised base model, and saved alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from gentletune.core.cache import whole_directory
from gentletune.core.errors import UserError
from gentletune.core.paths import user_path
from gentletune.lm.adapters import merge_adapter, save_adapter
from gentletune.lm.device import give_back_memory
from gentletune.lm.held import published_dtype
from gentletune.lm.loaded import load_model
from gentletune.lm.model_files import ADAPTER, ADAPTER_WEIGHTS, is_adapter
from gentletune.runs.inputs import Inputs
from gentletune.training.arguments import CHECKPOINTS


def keep_adapter(trained: Any, run: Path) -> Path:
    """Where the adapter of `trained`, a PEFT model or what ranks left of one, lies until the run has its model."""
    adapter = run / CHECKPOINTS / "adapter"
    with whole_directory(adapter) as scratch:
        if isinstance(trained, Path):
            _copy(trained, scratch)
        else:
            save_adapter(trained, scratch)
    return adapter


def unquantised(inputs: Inputs, adapter: Path) -> Any:
    """The plain base model with the adapter added to its own weights, a tensor at a time.

    The caller holds no other model. From under a quantised base the result is in the dtype the base was published in,
    else in what the run holds its models in. Where nothing is to be measured it lies on the host.
    """
    give_back_memory()
    base, recipe = inputs.base, inputs.recipe
    published = recipe.quantization is not None and recipe.save == "merged"
    dtype = published_dtype(base.directory) if published else base.dtype
    place = None if recipe.evaluate else torch.device("cpu")
    plain = load_model(base.directory, dtype, trust_remote_code=recipe.trust_remote_code, place=place)
    return merge_adapter(plain, adapter).eval()


def adapter_of(run: Path) -> Path:
    """The adapter that another run saved. Raises `UserError` where it saved whole weights."""
    if not is_adapter(run / "model"):
        raise UserError(f"{run} saved whole weights, so save: adapter has nothing to take; leave save out")
    return run / "model"


def place_adapter(adapter: Path, inputs: Inputs, target: Path) -> None:
    """Put the adapter's files into `target`; its configuration names the base model so that any library finds it.

    That is the name on the hub, else where the files lie on this machine.
    """
    _copy(adapter, target)
    config = json.loads((target / ADAPTER).read_bytes())
    name, on_hub = inputs.recipe.model, "/" in inputs.recipe.model and not user_path(inputs.recipe.model).exists()
    config["base_model_name_or_path"] = name if on_hub else str(inputs.base.directory.resolve())
    (target / ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    for name in (ADAPTER, ADAPTER_WEIGHTS):
        shutil.copy2(source / name, target / name)
