"""Layers that stay as they are, under full fine-tuning of the others."""

from __future__ import annotations

from typing import Any

from gentletune.methods.base import Method, Parameterisation
from gentletune.methods.parameters.peft import Layers, check_layers, chosen_layers
from gentletune.methods.reach import layer_of
from gentletune.methods.registry import register


@register("freeze", "Frozen layers", "arXiv 1911.03090", "https://arxiv.org/abs/1911.03090")
def freeze(layers: Layers = None) -> Method:
    """Full fine-tuning with some layers frozen (such as arXiv 1911.03090); embedding, last norm and head are trained.

    Args:
        layers: which, from 0: `0-11`, a number, or a list. None: the first half.

    Raises:
        ValueError: layers that are no numbers.
    """
    chosen = chosen_layers(layers)

    def wrap(model: Any) -> Any:
        numbers = {name: layer_of(name) for name, _ in model.named_parameters()}
        if chosen is None:
            count = 1 + max((n for n in numbers.values() if n is not None), default=-1)
            frozen = frozenset(range(count // 2))
        else:
            check_layers(model, chosen)
            frozen = chosen
        for name, parameter in model.named_parameters():
            if numbers[name] in frozen:
                parameter.requires_grad_(False)
        return model

    return Method(parameterise=Parameterisation(wrap=wrap))
