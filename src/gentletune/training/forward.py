"""A causal LM that can answer with token NLL instead of logits, through whatever wraps it."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from gentletune.losses import Backend, label_tokens, token_nll
from gentletune.models import base_causal_lm, hidden_states, lm_head


def add_token_nll(model: Any, backend: Backend) -> None:
    """Teach `model(..., token_nll=True)` to return `{"nll": (N,), "index": (N,), "sequence": (N,)}`.

    The head runs on label positions only. It goes through the model's own forward, so that DDP, FSDP, PEFT and
    autocast wrappers see the call; without the flag the forward is the one it was.
    """
    base = base_causal_lm(model)
    original = base.forward

    @functools.wraps(original)
    def forward(*args: Any, token_nll: bool = False, **kwargs: Any) -> Any:
        return _nll(base, backend, **kwargs) if token_nll else original(*args, **kwargs)

    base.forward = forward


def _nll(base: Any, backend: Backend, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
    inputs = {key: value for key, value in inputs.items() if value is not None and key not in _HEAD_ONLY}
    hidden = hidden_states(base, **inputs)
    packed = inputs.get("position_ids") if "attention_mask" not in inputs else None
    tokens = label_tokens(labels, packed)
    head = lm_head(base)
    nll, _ = token_nll(tokens.gather(hidden), head.weight, tokens.targets, **head.options, backend=backend)
    return {"nll": nll, "index": tokens.index, "sequence": tokens.sequence}


# What PEFT hands on that a backbone does not take, or that only the head would use.
_HEAD_ONLY = frozenset({"use_cache", "return_dict", "logits_to_keep", "num_items_in_batch"})
