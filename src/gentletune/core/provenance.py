"""What a run ran on, and the card that says what was done to a model."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gentletune.core.recipe import Recipe

_PACKAGES = ("gentletune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class Described:
    """What a method is: its name, title, reference with the URL, and the parameters in force."""

    name: str
    title: str
    reference: str
    url: str
    parameters: Mapping[str, Any]


def provenance() -> dict[str, Any]:
    """The `versions`, `hardware`, `git_commit` and `created` fields of a record."""
    return {
        "versions": _versions(),
        "hardware": _hardware(),
        "git_commit": _git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def _hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    torch: Any = sys.modules.get("torch")  # whoever ran on a GPU has imported it
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


@cache
def _git_commit() -> str | None:
    """The commit of gentletune's own checkout; None for an installed package."""
    top = Path(__file__).resolve().parents[3]
    if not (top / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(top), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def model_card(recipe: Recipe, method: str, hashes: Mapping[str, str], parts: Sequence[Described]) -> str:
    """The README.md of a tuned model: what was done, to what, with what.

    `method` is its label, `parts` what that names.
    """
    fields = {k: v for k, v in recipe.model_dump(mode="json").items() if v is not None}
    rows = "\n".join(f"| {key} | {value} |" for key, value in sorted(fields.items()) if key != "output")
    methods = "\n".join(_method_line(part) for part in parts)
    return f"""---
library_name: transformers
tags: [gentletune, sft]
---

# {recipe.model}, fine-tuned by {method}

Fine-tuned with gentletune on `{recipe.data or recipe.data_path}` at a learning rate of {recipe.learning_rate:g}.
Load it with `AutoModelForCausalLM.from_pretrained` on this directory. The licence of the initial model applies.
What it gained on the domain and lost in general skill is in `record.json` beside this directory.

## Method

{methods}

## Recipe

| field | value |
|---|---|
{rows}

SHA-256 of the initial model `{hashes["model"][:16]}…`, of the training rows `{hashes["train"][:16]}…`.
"""


def _method_line(part: Described) -> str:
    values = ", ".join(f"{name} = {value}" for name, value in part.parameters.items())
    return f"- `{part.name}`: {part.title} ([{part.reference}]({part.url})); " + (values or "no parameters")
