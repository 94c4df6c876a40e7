"""Every method trains: a new one is tested by being registered, and so are compositions across the slots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gentletune import Recipe, train
from gentletune.methods import method_names, parse_method

from ..helpers import tiny_recipe

OTHERWISE = {"mask": "mask(p_min=0.001)"}  # at its default a model that knows nothing has no token left
TOGETHER = [
    "talr+l2+wise_ft",
    "flow+lora+wise_ft",
    "dft+mask(p_min=0.001)+l2(weight=0.1)",
    "eaft+replay(loss=kl)+peft(kind=oft)+ema+lines",
    "asft+hft+mofo+ties",
    "infosft+kl(target=masked)+freeze+dare",
]


def recipe_of(model: Path, output: Path, method: str, **changes: Any) -> Recipe:
    quiet = {"max_steps": 3, "evaluate": False, "probe_every": 0, "save_every": 1000, "learning_rate": 1e-2}
    return tiny_recipe(model, output, method=method, **quiet, **changes)


@pytest.mark.parametrize("method", [*(OTHERWISE.get(name, name) for name in method_names()), *TOGETHER])
def test_it_trains(method: str, tiny_dir: Path, tmp_path: Path) -> None:
    record = train(recipe_of(tiny_dir, tmp_path / "run", method))
    assert record.status == "complete", record.error
    assert record.method == parse_method(method).name
    assert record.training["steps"] == 3
    assert math.isfinite(record.training["last_nll"])
    assert record.training["update_norm"] > 0
    tuned = load_file(tmp_path / "run" / "model" / "model.safetensors")
    base = load_file(tiny_dir / "model.safetensors")
    assert tuned.keys() == base.keys()  # the plain architecture, whatever trained it
    assert all(tensor.isfinite().all() for tensor in tuned.values())
    assert any((tensor.to(base[name]) != base[name]).any() for name, tensor in tuned.items())
