"""The router loss of a mixture of experts, as the model's own forward adds it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.core.errors import UserError
from gentletune.lm.label_tokens import evaluating
from gentletune.methods import Method

UNSET = "_gentletune_unset"
"""Mark of a model whose weights this rank does not have yet."""


@dataclass(frozen=True)
class RouterLoss:
    """A model's own balancing loss of its router logits, times its own coefficient."""

    balance: Callable[..., Any]
    experts: int
    chosen: int
    coefficient: float

    def __call__(self, router_logits: Any, attention_mask: Tensor | None) -> Tensor:
        """The loss, a scalar, of one pass; padding does not count."""
        found = self.balance(router_logits, self.experts, self.chosen, attention_mask)
        return self.coefficient * torch.as_tensor(found)


def has_router_loss(model: Any) -> bool:
    """Whether a causal LM's configuration asks for its router loss (`output_router_logits: true`)."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def router_loss_of(model: Any) -> RouterLoss:
    """The router loss of a causal LM, looked up where its class takes it from and held against its own forward.

    Raises:
        UserError: its forward computes another loss, or none.

    Source: Switch Transformer (arXiv 2101.03961), equations 4 to 6, as transformers has it in each model's file.
    """
    config, refusal = model.config.get_text_config(), _refusal(model)

    def named(*names: str) -> Any:
        places = ((place, name) for name in names for place in (model, config))
        return next((v for place, name in places if (v := getattr(place, name, None)) is not None), None)

    balance = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    experts, chosen = named("num_experts", "num_local_experts"), named("num_experts_per_tok")
    coefficient = named("router_aux_loss_coef", "aux_loss_coef")
    if balance is None or not isinstance(experts, int) or not isinstance(chosen, int) or coefficient is None:
        raise UserError(refusal)
    found = RouterLoss(balance, experts, chosen, float(coefficient))
    try:
        same = _same(model, found)
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(refusal) from error
    if not same:
        raise UserError(refusal)
    return found


@torch.no_grad()
def _same(model: Any, loss: RouterLoss) -> bool:
    """Whether the model's own loss on a few tokens is that of their labels and ours."""
    device = next(model.parameters()).device
    if device.type == "meta" or hasattr(model, UNSET):  # rank 0, which has the weights, looks
        return True
    ids = torch.arange(6, device=device).view(2, 3) % model.config.get_text_config().vocab_size
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
    labels = torch.where(mask == 1, ids, -100)
    with evaluating(model):  # some routers add noise while they train
        own = model(input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=True)
        inside = model.base_model(input_ids=ids, attention_mask=mask, output_router_logits=True, use_cache=False)
        bare = model(input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=False)
    ours = loss(inside.router_logits, mask).float()
    return bool(torch.isclose((own.loss - bare.loss).float(), ours, rtol=1e-2, atol=1e-5))


def check_normalization(method: Method) -> None:
    """Raises `UserError` where a step's whole gradient is rescaled at its end, and a router loss would be with it."""
    if method.normalization == "simplex":
        raise UserError(
            f"method '{method.label}': normalization=simplex would rescale the router loss, too; use "
            "normalization=count, or set output_router_logits: false in the model's config.json"
        )


def _refusal(model: Any) -> str:
    return (
        f"the router loss of {type(model).__name__} is computed in a way gentletune does not know; set "
        "output_router_logits: false in its config.json to train without it"
    )
