"""HFT, half fine-tuning: a random half of each layer's weights is frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from gentletune.methods.base import Method, Parameterisation
from gentletune.methods.registry import check_number, check_whole, register

_IN_LAYER = re.compile(r"(?P<layer>(?:.*?\.)?\d+)\.(?P<part>[^.]+)(?P<rest>.*)\.[^.]+")


@register("hft", "Half fine-tuning (HFT)", "arXiv 2404.18466", "https://arxiv.org/abs/2404.18466")
def hft(share: float = 0.5, seed: int = 0) -> Method:
    """HFT (arXiv 2404.18466): in every layer a random half of the weights is frozen, chosen once, before training.

    The half is taken of each category by itself: of four attention weights two, of three feed-forward ones two in a
    random half of the layers and one in the others, and half of the layer's norms; embedding and head are trained. That
    the last norm is trained and a bias goes with its weight, and other shares than a half, are choices of ours.

    Args:
        share: of the weights of a category that is frozen, in [0, 1).
        seed: of the choice.

    Raises:
        ValueError: a value outside its range.
    """
    frozen = check_number("share", share, low=0, high=0.999)
    check_whole("seed", seed, low=0)

    def wrap(model: Any) -> Any:
        matrices = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.ndim > 1}
        chosen = frozen_modules(_holders(model), matrices, frozen, seed)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0] in chosen:
                parameter.requires_grad_(False)
        return model

    return Method(parameterise=Parameterisation(wrap=wrap))


def _holders(model: Any) -> list[str]:
    """Names of the modules that hold parameters, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def frozen_modules(modules: Sequence[str], matrices: set[str], share: float, seed: int) -> set[str]:
    """Which of the `modules`, by name, are frozen: of each category of each layer a `share`.

    A category are the `matrices` of one part of a layer (attention, feed-forward), or what else is in it (norms). What
    a share is not whole of is made up for by one more in some layers, drawn at random.

    >>> names = [f"layers.{n}.mlp.{part}" for n in range(2) for part in ("up", "down", "gate")]
    >>> len(frozen_modules(names, set(names), 0.5, 0))
    3
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name in modules:
        if (found := _IN_LAYER.fullmatch(f"{name}.weight")) is not None:
            stack, _, _ = found["layer"].rpartition(".")
            category = found["part"] if name in matrices else "norms"
            groups.setdefault((stack, category), {}).setdefault(found["layer"], []).append(name)
    random, chosen = Random(seed), set[str]()
    for layers in groups.values():
        exact = {layer: share * len(names) for layer, names in layers.items()}
        counts = {layer: int(size) for layer, size in exact.items()}
        missing = round(sum(exact.values())) - sum(counts.values())
        partial = [layer for layer, size in exact.items() if size > counts[layer]]
        for layer in random.sample(partial, min(missing, len(partial))):
            counts[layer] += 1
        for layer, names in layers.items():
            chosen.update(random.sample(names, counts[layer]))
    return chosen
