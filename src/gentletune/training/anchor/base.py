"""KLs to the base model's predictions at the label tokens of a call of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.losses import BaseTopK, Head, KLFromBase, kl_from_base, label_tokens
from gentletune.methods.base import BaseKL

Lookup = Callable[[Tensor], BaseTopK]
"""The base model's distributions at places (n,) among the label tokens of all rows; both lie on the host."""


@dataclass(frozen=True)
class Toward:
    """The KLs of a call: Σ over the `terms` of weight·scale·Σ_t KL(base‖model) is added to its loss.

    It is no tuple, so that wrappers which cast what they are given leave it alone.
    """

    base: BaseTopK
    terms: tuple[BaseKL, ...]
    scale: Tensor | float

    def of(self, states: Tensor, head: Head, targets: Tensor) -> dict[str, Tensor]:
        """`kl_loss`, a scalar with gradient, and `kl` (n,), nats, of the first term, without."""
        found: list[KLFromBase] = []
        for term in self.terms:
            each = self.scale * term.weight
            found.append(
                kl_from_base(states, head.weight, targets, self.base, masked=term.masked, factors=each, **head.options)
            )
        return {"kl_loss": torch.stack([one.loss for one in found]).sum(), "kl_nats": found[0].kl}


def looked_up(inputs: Mapping[str, Any], lookup: Lookup) -> BaseTopK:
    """The base model's distributions at the label tokens of a batch, by its `base_place` (batch, length)."""
    labels: Tensor = inputs["labels"]
    packed = inputs.get("position_ids") if inputs.get("attention_mask") is None else None
    tokens = label_tokens(labels, packed)
    found = lookup(inputs["base_place"].flatten()[tokens.index + 1].cpu())
    parts = (found.ids, found.log_p, found.log_tail, found.log_target)
    return BaseTopK(*(part.to(labels.device, non_blocking=True) for part in parts))
