"""The loss of a Method on one micro-batch: for the trainers here and for loops written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from gentletune.losses import Backend, Weigh, sequence_means
from gentletune.methods import Method, TokenBatch, Weighted, parse_method
from gentletune.training.forward import add_token_nll


def _local(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class MethodLoss:
    """`loss`, a scalar to call `backward` on; what the method saw; and the weights it gave, (N,) without gradient.

    `means` (S,) is this rank's mean NLL by sequence: what a later `previous` is made of.
    """

    loss: Tensor
    batch: TokenBatch
    weighted: Weighted
    means: Tensor


def method_loss(
    model: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    method: Method | str,
    *,
    previous: Tensor | None = None,
    scale: Tensor | float | None = None,
    backend: Backend = "auto",
    gather: Callable[[Tensor], Tensor] = _local,
) -> MethodLoss:
    """Σ u_s w_t ℓ_t of a micro-batch, for any causal LM of transformers, with or without PEFT, DDP or FSDP around it.

    Args:
        model: the model as the loop calls it. Its forward learns `token_nll=True` and is else unchanged.
        inputs: `input_ids` and `labels` (batch, length), -100 where there is no label, and what else the model
            takes: `attention_mask`, or `position_ids` alone for packed rows; `sequence_weights` (batch,) u_s where
            sequences are weighted. A list of such is one micro-batch whose rows go through the model in groups.
        method: a Method or its text, such as `talr(tau=lagged_median)`. Its penalty, parameterisation and merge are
            not the business of a micro-batch and are left to the caller.
        previous: `means` of the previous global batch, for methods that use them. None: the method takes this
            batch's own, in two passes.
        scale: what the sum is multiplied by, such as 1 over the number of label tokens of the global batch. None: 1
            over this batch's own Z, which is right where it is the global batch.
        backend: of the token-NLL head.
        gather: gives the sequence means of all ranks from one rank's.

    Returns:
        `MethodLoss`. Its loss can be differentiated once.

    Raises:
        ValueError: an adapter on the head, a router loss. UserError: an unknown method.

    Source: arXiv 2509.20758. Example: `examples/hand_written_loop.py`.
    """
    method = parse_method(method) if isinstance(method, str) else method
    groups = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    add_token_nll(extract_model_from_parallel(model, keep_torch_compile=False), backend)
    early = method.one_pass and not (method.uses_previous and previous is None)
    outs = [_call(model, group, method, previous, scale, early) for group in groups]
    means = torch.cat([out["means"] for out in outs])
    nll = torch.cat([out["nll"] for out in outs])
    batch = TokenBatch(nll.detach(), means if early else gather(means), previous)
    weighted = _weights(method, batch)
    known = [out["sequence_weights"] for out in outs]
    weights = weighted.weights if known[0] is None else weighted.weights * torch.cat(known)
    loss = torch.stack([out["loss"] for out in outs]).sum() if early else (weights * nll).sum()
    if scale is None:
        loss = loss / _normaliser(method, weights)
    elif not early:
        loss = loss * scale
    return MethodLoss(loss, batch, Weighted(weights, weighted.stats), means)


def _call(
    model: Any,
    inputs: Mapping[str, Any],
    method: Method,
    previous: Tensor | None,
    scale: Tensor | float | None,
    early: bool,
) -> dict[str, Any]:
    """The model's answer for some rows, with their `means` by sequence and `sequence_weights` by token."""
    inputs = dict(inputs)
    by_row, shape = inputs.pop("sequence_weights", None), inputs["labels"].shape
    if not early:
        out = model(**inputs, token_nll=True)
    else:
        out = model(**inputs, token_nll=True, one_pass=True, weigh=_weigh(method, previous),
                    factors=_factors(by_row, scale, inputs["labels"]))  # fmt: skip
    sequence = out["sequence"]
    sequences = int(sequence.max()) + 1 if sequence.numel() else 0
    means = sequence_means(out["nll"].detach(), sequence, sequences)
    return {**out, "means": means, "sequence_weights": None if by_row is None else by_row[out["index"] // shape[1]]}


def _weigh(method: Method, previous: Tensor | None) -> Weigh | None:
    """The method's weights from the NLL of some of the tokens."""
    if method.token_weights is None:
        return None
    return lambda nll: _weights(method, TokenBatch(nll, nll.new_empty(0), previous)).weights


def _factors(by_row: Tensor | None, scale: Tensor | float | None, labels: Tensor) -> Tensor | None:
    """Sequence weight times scale by position: in the one pass, the backward pass is left nothing to multiply."""
    if by_row is None and scale is None:
        return None
    factors = torch.ones(labels.shape[0], device=labels.device) if by_row is None else by_row
    return (factors if scale is None else factors * scale)[:, None].expand(labels.shape)


def _weights(method: Method, batch: TokenBatch) -> Weighted:
    if method.token_weights is None or not batch.nll.numel():
        return Weighted(torch.ones_like(batch.nll))
    return method.token_weights(batch)


def _normaliser(method: Method, weights: Tensor) -> Tensor:
    """Z of a batch that is the global batch."""
    if method.normalization == "simplex":
        return weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    return weights.new_tensor(max(weights.numel(), 1))
