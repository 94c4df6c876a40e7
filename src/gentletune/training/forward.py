"""A causal LM that can answer with token NLL instead of logits, through whatever wraps it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel, get_mixed_precision_context_manager
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from gentletune.lm.loaded import base_causal_lm, hidden_states, lm_head
from gentletune.losses import Backend, Weigh, label_tokens, token_nll, weighted_nll

_MARK = "_gentletune_token_nll"


@dataclass
class _Taught:
    """What a model was taught: the head's backend, the forward we gave it, and its own from before (None: its class's).

    `autocast` where accelerate had already put autocast around that forward, so that ours has to enter it itself.
    """

    backend: Backend
    forward: Callable[..., Any]
    before: Any
    autocast: bool


def add_token_nll(model: Any, backend: Backend = "auto") -> None:
    """Teach `model` to answer `model(..., labels=…, token_nll=True)` with token NLL instead of logits.

    The answer holds `nll` (N,) with gradient, and `index` and `sequence` (N,) as in `LabelTokens`. With
    `one_pass=True` also `loss`, the scalar Σ fᵢ·weigh(ℓᵢ)·ℓᵢ, whose gradient is taken in the forward pass; `nll` is
    then without gradient. `factors` (batch, length) gives fᵢ by position.

    The head runs on label positions only. It goes through the model's own forward, so that DDP, FSDP, PEFT and
    autocast wrappers see the call, whether they were put around it before or after; without the flag the forward is
    the one it was. Asked again, it only changes the backend. A deep copy of the model runs its own weights.

    Raises:
        ValueError: an adapter on the head, or a mixture of experts with a router loss: both would be left out.
    """
    base = base_causal_lm(model)
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise ValueError("an adapter on lm_head would be left out of the loss; remove lm_head from target_modules")
    if getattr(base.config.get_text_config(), "output_router_logits", False):
        raise ValueError("the router loss of a mixture of experts would be left out; set output_router_logits: false")
    taught = base.__dict__.get(_MARK)
    if taught is not None and _reaches(base.forward, taught.forward):
        taught.backend = backend
        return
    _drop_fused_head(base)
    before = base.__dict__.get("forward")
    autocast = "_original_forward" in base.__dict__  # where accelerate put autocast around the forward
    forward = _forward_of(base.forward, autocast)
    base.__dict__[_MARK] = _Taught(backend, forward, before, autocast)
    base.forward = MethodType(forward, base)


def remove_token_nll(model: Any) -> None:
    """Give `model` the forward it had before; what was put around ours since, such as autocast, goes too."""
    base = base_causal_lm(model)
    taught = base.__dict__.pop(_MARK, None)
    if taught is None:
        return
    del base.forward
    if taught.before is not None:
        base.forward = taught.before
    if not taught.autocast:
        base.__dict__.pop("_original_forward", None)


def unprepare(model: Any) -> None:
    """Forget that accelerate, or a trainer of ours, prepared `model` before: its precision is the next one's choice.

    accelerate leaves a model that it prepared once as it is, in the precision of that time.
    """
    remove_token_nll(model)
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    model.__dict__.pop("_is_accelerate_prepared", None)


def _drop_fused_head(base: Any) -> None:
    """Take TRL's fused head off: its loss is not used here, and through it a deep copy would run the first model."""
    forward = getattr(base.__dict__.get("forward"), "__func__", None)
    if forward is not None and "fused_lm_head" in forward.__code__.co_varnames:
        del base.forward
        base.__dict__.pop("_original_forward", None)  # of an autocast that was put around a forward now gone


def _reaches(outer: Any, ours: Callable[..., Any]) -> bool:
    """Whether a call of `outer` comes to `ours`: accelerate wraps our forward, other libraries replace it."""
    while outer is not None:
        outer = getattr(outer, "__func__", outer)
        if outer is ours:
            return True
        outer = getattr(outer, "__wrapped__", None)
    return False


def _forward_of(original: Any, autocast: bool) -> Callable[..., Any]:
    """`original` with the flag, as a function of the model: bound to a deep copy, it runs the copy's weights."""
    bound = isinstance(original, MethodType)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, token_nll: bool = False, **kwargs: Any) -> Any:
        if not token_nll:
            return original.__func__(self, *args, **kwargs) if bound else original(*args, **kwargs)
        taught: _Taught = self.__dict__[_MARK]
        with _autocast() if taught.autocast else contextlib.nullcontext():
            return _nll_uncompiled(self, taught.backend, **kwargs)

    # Trainers read the signature to choose columns.
    signature, first = inspect.signature(original), inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    if not autocast:  # accelerate unwraps along `__wrapped__`: as far as ours, or through ours to what it had wrapped
        del forward.__wrapped__
    return forward


def _autocast() -> Any:
    """accelerate's autocast, as long as its state asks for one: asked under "no" it would give torch's default."""
    on = AcceleratorState._shared_state != {} and AcceleratorState().mixed_precision != "no"
    return get_mixed_precision_context_manager(native_amp=True) if on else contextlib.nullcontext()


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
