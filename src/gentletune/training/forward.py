"""A causal LM that can answer with token NLL instead of logits, through whatever wraps it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from gentletune.losses import Backend, Weigh, label_tokens, token_nll, weighted_nll
from gentletune.models import base_causal_lm, hidden_states, lm_head


def add_token_nll(model: Any, backend: Backend = "auto") -> None:
    """Teach `model` to answer `model(..., labels=…, token_nll=True)` with token NLL instead of logits.

    The answer holds `nll` (N,) with gradient, and `index` and `sequence` (N,) as in `LabelTokens`. With
    `one_pass=True` also `loss`, the scalar Σ fᵢ·weigh(ℓᵢ)·ℓᵢ, whose gradient is taken in the forward pass; `nll` is
    then without gradient. `factors` (batch, length) gives fᵢ by position.

    The head runs on label positions only. It goes through the model's own forward, so that DDP, FSDP, PEFT and
    autocast wrappers see the call; without the flag the forward is the one it was. Asked again, it only changes the
    backend.

    Raises:
        ValueError: an adapter on the head, or a mixture of experts with a router loss: both would be left out.
    """
    base = base_causal_lm(model)
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise ValueError("an adapter on lm_head would be left out of the loss; remove lm_head from target_modules")
    if getattr(base.config.get_text_config(), "output_router_logits", False):
        raise ValueError("the router loss of a mixture of experts would be left out; set output_router_logits: false")
    if hasattr(base.forward, "token_nll_backend"):
        base.forward.token_nll_backend = backend
        return
    original = base.forward

    def forward(*args: Any, token_nll: bool = False, **kwargs: Any) -> Any:
        return _nll_uncompiled(base, patched.token_nll_backend, **kwargs) if token_nll else original(*args, **kwargs)

    patched: Any = functools.wraps(original)(forward)
    patched.token_nll_backend = backend
    base.forward = patched


def remove_token_nll(model: Any) -> None:
    """Give `model` its plain forward back."""
    base = base_causal_lm(model)
    base.__dict__.pop("forward", None)


def _nll(
    base: Any,
    backend: Backend,
    *,
    labels: Tensor,
    one_pass: bool = False,
    weigh: Weigh | None = None,
    factors: Tensor | None = None,
    **inputs: Any,
) -> dict[str, Tensor]:
    inputs = {key: value for key, value in inputs.items() if value is not None and key not in _HEAD_ONLY}
    hidden = hidden_states(base, **inputs)
    packed = inputs.get("position_ids") if inputs.get("attention_mask") is None else None
    tokens = label_tokens(labels, packed)
    head = lm_head(base)
    given = {**head.options, "backend": backend}
    found = {"index": tokens.index, "sequence": tokens.sequence}
    if not one_pass:
        return found | {"nll": token_nll(tokens.gather(hidden), head.weight, tokens.targets, **given).nll}
    by_token = None if factors is None else tokens.gather(factors)
    out = weighted_nll(tokens.gather(hidden), head.weight, tokens.targets, weigh, factors=by_token, **given)
    return found | {"nll": out.nll, "loss": out.loss}


# Under torch.compile the backbone is compiled and the head is not: which positions hold labels changes by batch.
_nll_uncompiled: Callable[..., dict[str, Tensor]] = torch.compiler.disable(_nll, recursive=False)

# What PEFT and trainers hand on that a backbone does not take, or that only the head would use.
_HEAD_ONLY = frozenset({"use_cache", "return_dict", "logits_to_keep", "num_items_in_batch"})
