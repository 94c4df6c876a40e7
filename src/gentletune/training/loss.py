"""The loss of a Method on one micro-batch, through a causal LM taught to answer with token NLL instead of logits."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel, get_mixed_precision_context_manager
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from gentletune.lm.loaded import base_causal_lm, hidden_states, lm_head
from gentletune.losses import IGNORE, Backend, Weigh, label_tokens, sequence_means, token_nll, weighted_nll
from gentletune.methods import Method, TokenBatch, Weighted, parse_method
from gentletune.training.anchor import Lookup, Toward, looked_up
from gentletune.training.experts import RouterLoss, check_normalization, has_router_loss, router_loss_of

_MARK = "_gentletune_token_nll"


def _local(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class MethodLoss:
    """`loss`, a scalar to call `backward` on; what the method saw; and the weights it gave, (N,) without gradient.

    `means` (S,) is this rank's mean NLL by sequence: what a later `previous` is made of. `kl` (N,) is the KL from base
    that the loss has a part of, nats, without gradient; None where it has none.
    """

    loss: Tensor
    batch: TokenBatch
    weighted: Weighted
    means: Tensor
    kl: Tensor | None = None


def method_loss(
    model: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    method: Method | str,
    *,
    previous: Tensor | None = None,
    scale: Tensor | float | None = None,
    backend: Backend = "auto",
    gather: Callable[[Tensor], Tensor] = _local,
    base: Lookup | None = None,
) -> MethodLoss:
    """Σ u_s w_t ℓ_t of a micro-batch, for any causal LM of transformers, with or without PEFT, DDP or FSDP around it.

    A mixture of experts whose configuration says `output_router_logits: true` adds its router loss while it trains, in
    the share that the micro-batch has of the label tokens of the global batch.

    Args:
        model: the model as the loop calls it. Its forward learns `token_nll=True` and is else unchanged.
        inputs: `input_ids` and `labels` (batch, length), -100 where there is no label, and what else the model
            takes: `attention_mask`, or `position_ids` alone for packed rows; `sequence_weights` u_s, (batch,) or
            for packed rows (batch, length), where sequences are weighted. A list of such is one micro-batch whose rows
            go through the model in groups.
        method: a Method or its text, such as `talr(tau=lagged_median)`. Its penalty, parameterisation and merge are
            not the business of a micro-batch and are left to the caller.
        previous: `means` of the previous global batch, for methods that use them. None: the method takes this
            batch's own, in two passes.
        scale: what the sum is multiplied by, such as 1 over the number of label tokens of the global batch. None: 1
            over this batch's own Z, which is right where it is the global batch.
        backend: of the token-NLL head.
        gather: gives the sequence means of all ranks from one rank's.
        base: the base model's distributions, for a method with a KL to base; batches then have their `base_place`, the
            number of each label token among those of all rows.

    Returns:
        `MethodLoss`. Its loss can be differentiated once.

    Raises:
        ValueError: an adapter on the head, a replay, a KL to base without `base`. UserError: an unknown method, a
            router loss of a kind that is not known, or one beside weights that are normalised by their sum.

    Source: arXiv 2509.20758. Example: `examples/hand_written_loop.py`.
    """
    method = parse_method(method) if isinstance(method, str) else method
    groups = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    _check_anchors(method, base)
    add_token_nll(extract_model_from_parallel(model, keep_torch_compile=False), backend)
    early = method.one_pass and not (method.uses_previous and previous is None)
    each = scale if scale is not None or not method.base_kl else _over_labels(groups)
    anchors = [_toward(group, method, base, each) for group in groups]
    outs = [_call(model, *pair, method, previous, scale, early) for pair in zip(groups, anchors, strict=True)]
    means = torch.cat([out["means"] for out in outs])
    nll = torch.cat([out["nll"] for out in outs])
    entropy = torch.cat([out["topk_entropy"] for out in outs]) if method.top_k else None
    batch = TokenBatch(nll.detach(), means if early else gather(means), previous, entropy)
    weighted = _weights(method, batch)
    known = [out["sequence_weights"] for out in outs]
    weights = weighted.weights if known[0] is None else weighted.weights * torch.cat(known)
    loss = torch.stack([out["loss"] for out in outs]).sum() if early else (weights * nll).sum()
    if scale is None:
        loss = loss / _normaliser(method, weights)
    elif not early:
        loss = loss * scale
    if "router_loss" in outs[0]:
        loss = loss + _router_loss(outs, method, scale)
    kl = None
    if method.base_kl:
        loss = loss + torch.stack([out["kl_loss"] for out in outs]).sum()
        kl = torch.cat([out["kl_nats"] for out in outs])
    return MethodLoss(loss, batch, Weighted(weights, weighted.stats), means, kl)


def _check_anchors(method: Method, base: Lookup | None) -> None:
    if method.replay is not None:
        raise ValueError(
            f"method '{method.label}': a micro-batch replays nothing; give MethodMixin the rows as `replay`, or take "
            "gentletune.train"
        )
    if method.base_kl and base is None:
        raise ValueError(
            f"method '{method.label}': the base model's predictions are not at hand; take gentletune.train, which "
            "computes them once"
        )


def _over_labels(groups: Sequence[Mapping[str, Any]]) -> Tensor:
    """1 over the label tokens of all groups."""
    return 1 / torch.stack([(group["labels"][:, 1:] != IGNORE).sum() for group in groups]).sum().clamp_min(1)


def _toward(
    inputs: Mapping[str, Any], method: Method, base: Lookup | None, scale: Tensor | float | None
) -> Toward | None:
    if not method.base_kl or base is None or scale is None:
        return None
    return Toward(looked_up(inputs, base), method.base_kl, scale)


def _call(
    model: Any,
    inputs: Mapping[str, Any],
    toward: Toward | None,
    method: Method,
    previous: Tensor | None,
    scale: Tensor | float | None,
    early: bool,
) -> dict[str, Any]:
    """The model's answer for some rows, with their `means` by sequence and `sequence_weights` by token."""
    inputs = dict(inputs)
    weights = inputs.pop("sequence_weights", None)
    inputs.pop("base_place", None)
    if toward is not None:
        inputs["toward"] = toward
    if weights is not None and weights.ndim == 1:
        weights = weights[:, None].expand(inputs["labels"].shape)
    asked = {"top_k": method.top_k} if method.top_k else {}
    if not early:
        out = model(**inputs, token_nll=True, **asked)
    else:
        out = model(**inputs, token_nll=True, **asked, one_pass=True, weigh=_weigh(method, previous),
                    factors=_factors(weights, scale, inputs["labels"]))  # fmt: skip
    sequence = out["sequence"]
    sequences = int(sequence.max()) + 1 if sequence.numel() else 0
    means = sequence_means(out["nll"].detach(), sequence, sequences)
    by_token = None if weights is None else weights.flatten()[out["index"]]
    return {**out, "means": means, "sequence_weights": by_token}


def _router_loss(outs: Sequence[Mapping[str, Any]], method: Method, scale: Tensor | float | None) -> Tensor:
    """The mean of the router losses of all passes of a step, each by its label tokens: this micro-batch's part."""
    check_normalization(method)
    counts = [out["nll"].numel() for out in outs]
    each = 1 / max(sum(counts), 1) if scale is None else scale
    return torch.stack([out["router_loss"] * count for out, count in zip(outs, counts, strict=True)]).sum() * each


def _weigh(method: Method, previous: Tensor | None) -> Weigh | None:
    """The method's weights from the NLL of some of the tokens."""
    if method.token_weights is None:
        return None
    return lambda nll, entropy=None: _weights(method, TokenBatch(nll, nll.new_empty(0), previous, entropy)).weights


def _factors(weights: Tensor | None, scale: Tensor | float | None, labels: Tensor) -> Tensor | None:
    """Sequence weight times scale by position: in the one pass, the backward pass is left nothing to multiply."""
    if scale is None:
        return weights
    return torch.as_tensor(scale, device=labels.device).expand(labels.shape) if weights is None else weights * scale


def _weights(method: Method, batch: TokenBatch) -> Weighted:
    if method.token_weights is None or not batch.nll.numel():
        return Weighted(torch.ones_like(batch.nll))
    return method.token_weights(batch)


def _normaliser(method: Method, weights: Tensor) -> Tensor:
    """Z of a batch that is the global batch."""
    if method.normalization == "simplex":
        return weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    return weights.new_tensor(max(weights.numel(), 1))


# --- a model that answers with token NLL


@dataclass
class _Taught:
    """What a model was taught: the head's backend, the forward we gave it, and its own from before (None: its class's).

    `autocast` where accelerate had already put autocast around that forward, so that ours has to enter it itself.
    `router` is the router loss that its configuration asks for.
    """

    backend: Backend
    forward: Callable[..., Any]
    before: Any
    autocast: bool
    router: RouterLoss | None


def add_token_nll(model: Any, backend: Backend = "auto") -> None:
    """Teach `model` to answer `model(..., labels=…, token_nll=True)` with token NLL instead of logits.

    The answer holds `nll` (N,) with gradient, and `index` and `sequence` (N,) as in `LabelTokens`. With
    `one_pass=True` also `loss`, the scalar Σ fᵢ·weigh(ℓᵢ)·ℓᵢ, whose gradient is taken in the forward pass; `nll` is
    then without gradient. `factors` (batch, length) gives fᵢ by position; `top_k` asks for `topk_entropy` (N,) as well.
    With `toward` also what `Toward.of` finds, and with `toward_alone` no NLL.

    The head runs on label positions only. It goes through the model's own forward, so that DDP, FSDP, PEFT and
    autocast wrappers see the call, whether they were put around it before or after; without the flag the forward is
    the one it was. Asked again, it only changes the backend. A deep copy of the model runs its own weights.

    Raises:
        ValueError: an adapter on the head, which would be left out. UserError: so would a router loss of its kind.
    """
    base = base_causal_lm(model)
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise ValueError("an adapter on lm_head would be left out of the loss; remove lm_head from target_modules")
    taught = base.__dict__.get(_MARK)
    if taught is not None and _reaches(base.forward, taught.forward):
        taught.backend = backend
        return
    _drop_fused_head(base)
    router = router_loss_of(base) if has_router_loss(base) else None
    before = base.__dict__.get("forward")
    autocast = "_original_forward" in base.__dict__  # where accelerate put autocast around the forward
    forward = _forward_of(base.forward, autocast)
    base.__dict__[_MARK] = _Taught(backend, forward, before, autocast, router)
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
            return _nll_uncompiled(self, taught, **kwargs)

    # Trainers read the signature to choose columns.
    signature, first = inspect.signature(original), inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    shown: Any = forward  # functions have the attribute, their type has not
    shown.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    if not autocast:  # accelerate unwraps along `__wrapped__`: as far as ours, or through ours to what it had wrapped
        del forward.__wrapped__
    return forward


def _autocast() -> Any:
    """accelerate's autocast, as long as its state asks for one: asked under "no" it would give torch's default."""
    on = AcceleratorState._shared_state != {} and AcceleratorState().mixed_precision != "no"
    return get_mixed_precision_context_manager(native_amp=True) if on else contextlib.nullcontext()


def _nll(
    base: Any,
    taught: _Taught,
    *,
    labels: Tensor,
    one_pass: bool = False,
    weigh: Weigh | None = None,
    factors: Tensor | None = None,
    top_k: int | None = None,
    toward: Toward | None = None,
    toward_alone: bool = False,
    **inputs: Any,
) -> dict[str, Tensor]:
    inputs = {key: value for key, value in inputs.items() if value is not None and key not in _HEAD_ONLY}
    found = dict[str, Tensor]()
    if taught.router is None or not base.training:
        hidden = hidden_states(base, **inputs)
    else:
        inside = base.base_model(**inputs, use_cache=False, output_router_logits=True)
        hidden = inside.last_hidden_state
        found["router_loss"] = taught.router(inside.router_logits, inputs.get("attention_mask"))
    packed = inputs.get("position_ids") if inputs.get("attention_mask") is None else None
    tokens = label_tokens(labels, packed)
    head = lm_head(base)
    given = {**head.options, "backend": taught.backend}
    states = tokens.gather(hidden)
    found |= {"index": tokens.index, "sequence": tokens.sequence}
    if toward is not None:
        found |= toward.of(states, head, tokens.targets)
        if toward_alone:
            return found
    if not one_pass:
        out = token_nll(states, head.weight, tokens.targets, entropy=top_k or False, **given)
        return found | ({} if out.entropy is None else {"topk_entropy": out.entropy}) | {"nll": out.nll}
    by_token = None if factors is None else tokens.gather(factors)
    entropies = list[Tensor]()  # tile by tile, as they are weighted by

    def weighing(nll: Tensor, *entropy: Tensor) -> Tensor:
        entropies.extend(entropy)
        return nll.new_ones(nll.shape) if weigh is None else weigh(nll, *entropy)

    own = weighing if top_k else weigh
    weighed = weighted_nll(states, head.weight, tokens.targets, own, factors=by_token, top_k=top_k, **given)
    if top_k:
        found["topk_entropy"] = torch.cat([*entropies, weighed.nll[:0]])
    return found | {"nll": weighed.nll, "loss": weighed.loss}


# Under torch.compile the backbone is compiled and the head is not: which positions hold labels changes by batch.
_nll_uncompiled: Callable[..., dict[str, Tensor]] = torch.compiler.disable(_nll, recursive=False)

# What PEFT and trainers hand on that a backbone does not take, or that only the head would use.
_HEAD_ONLY = frozenset({"use_cache", "return_dict", "logits_to_keep", "num_items_in_batch"})
