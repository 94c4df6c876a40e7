"""A run's tuned weights as files: written with tokenizer and card, and taken from another run of the same training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gentletune.core.cache import whole_directory
from gentletune.core.errors import UserError
from gentletune.core.provenance import model_card
from gentletune.core.records import Score, read_record
from gentletune.data.chat import end_tokens
from gentletune.data.templates import save_tokenizer
from gentletune.lm.base_weights import FileWeights
from gentletune.lm.kinds import copy_processor
from gentletune.lm.loaded import stop_at
from gentletune.lm.model_files import quiet
from gentletune.methods import method_parts
from gentletune.methods.rounding import BLOCK
from gentletune.runs.adapted import place_adapter
from gentletune.runs.budget import before_merge
from gentletune.runs.directory import FIGURES_FILE, STATE_FILE, holds_model, read_json
from gentletune.runs.inputs import Inputs


class SourceFailedError(Exception):
    """The run that was to train the weights failed, so this one does."""


def reused(inputs: Inputs, source: Path) -> tuple[Any, dict[str, float]]:
    """Tuned weights of another run of the same training, before its merge, and figures of their training."""
    failed = read_record(source)
    if failed and failed.status == "failed" and not holds_model(source / "tuned"):
        raise SourceFailedError(f"{source.name}, whose weights it takes, failed")
    state = read_json(source / STATE_FILE)
    if state.get("identity") != inputs.identity:
        raise UserError(f"{source} was not trained by the same recipe, so its weights cannot be reused")
    tuned = source / "tuned" if (source / "tuned").is_dir() else source / "model"
    if not holds_model(tuned):
        raise UserError(f"{source} holds no tuned model yet; let it complete first")
    figures = before_merge(read_json(source / FIGURES_FILE))
    figures.pop("lost_in_bf16", None)  # of its own merge
    if "tuned_norm" in figures:
        figures["update_norm"] = figures.pop("tuned_norm")
    return inputs.base.with_model(directory=tuned).model, figures


def save(model: Any, inputs: Inputs, target: Path, method: str, adapter: Path | None = None) -> None:
    """Write the model, whole or as the adapter alone, with its tokenizer and card."""
    with whole_directory(target) as scratch, quiet():
        if adapter is not None:
            place_adapter(adapter, inputs, scratch)
        else:
            stop_at(model, end_tokens(inputs.base.tokenizer))
            model.save_pretrained(scratch, max_shard_size=inputs.recipe.shard_size)
        save_tokenizer(inputs.base.tokenizer, scratch)
        copy_processor(inputs.base.directory, scratch)
        (scratch / "README.md").write_text(card_text(inputs, method), encoding="utf-8")


@torch.no_grad()
def lost_in_bf16(model: Any, base: Path) -> float | None:
    """The share of the update of a model held in fp32 that is lost where it is loaded in bf16.

    1 - <θ-θ⁰, bf16(θ)-θ⁰> / ‖θ-θ⁰‖², over the weights that `base` published in bf16; None where there are none or
    nothing moved.
    """
    published, kept, whole = FileWeights(base), 0.0, 0.0
    for name, value in model.named_parameters():
        start = published.get(name)
        if value.dtype != torch.float32 or start is None or (start.dtype, start.shape) != (torch.bfloat16, value.shape):
            continue
        for now, before in zip(value.reshape(-1).split(BLOCK), start.reshape(-1).split(BLOCK), strict=True):
            first = before.to(now.device).float()
            delta = now - first
            kept += float((delta * (now.bfloat16().float() - first)).sum(dtype=torch.float64))
            whole += float(delta.square().sum(dtype=torch.float64))
    return 1 - kept / whole if whole else None


def card_text(inputs: Inputs, method: str, scores: Sequence[Score] = (), base: Sequence[Score] = ()) -> str:
    """The model's card, with its scores beside the base model's where they are known."""
    return model_card(inputs.recipe, method, inputs.hashes, method_parts(method), scores, base)
