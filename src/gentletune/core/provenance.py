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
from gentletune.core.records import Score, write_text_atomic
from gentletune.core.render import MISSING, plain, template

_CHOICE = "## Why this model"
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


def model_card(
    recipe: Recipe,
    method: str,
    hashes: Mapping[str, str],
    parts: Sequence[Described],
    scores: Sequence[Score] = (),
    base: Sequence[Score] = (),
) -> str:
    """The README.md of a tuned model: what was done, to what, with what, and what came of it.

    `method` is its label, `parts` what that names; `scores` are the model's, `base` the base model's.
    """
    before = {score.key: score for score in base}
    fields = {k: v for k, v in recipe.model_dump(mode="json").items() if v is not None and k != "output"}
    card: str = template("gentletune.core", "model_card.md.j2").render(
        recipe=recipe,
        data=recipe.data or recipe.data_path or "",
        method=method,
        hashes=hashes,
        parts=parts,
        fields=sorted(fields.items()),
        scores=[
            (s.key, s.side, "higher" if s.higher_is_better else "lower", _value(before.get(s.key)), _value(s))
            for s in scores
        ],
    )
    return card


def explain_choice(card: Path, lines: Sequence[str]) -> None:
    """Write into a model card why a report names this model, in the place of what an earlier report wrote.

    Nothing is done where there is no card, or it is no UTF-8 text, or cannot be written. With no lines what was written
    is taken away.
    """
    try:
        old = card.read_text(encoding="utf-8")
        kept = old.partition(_CHOICE)[0].rstrip() + "\n"
        said = "".join(f"\n{plain(line)}\n" for line in lines)
        new = f"{kept}\n{_CHOICE}\n{said}" if lines else kept
        if new != old:
            write_text_atomic(card, new)
    except (OSError, UnicodeDecodeError):
        return


def _value(score: Score | None) -> str:
    if score is None:
        return MISSING
    return f"{score.value:.4g} ± {'?' if score.stderr is None else f'{score.stderr:.2g}'}"
