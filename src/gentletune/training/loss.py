"""The loss of a Method on one micro-batch: for the trainers here and for loops written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from gentletune.losses import Backend, sequence_means
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
    inputs: Mapping[str, Any],
    method: Method | str,
    *,
    previous: Tensor | None = None,
    sequence_weights: Tensor | None = None,
    scale: Tensor | float | None = None,
    backend: Backend = "auto",
    gather: Callable[[Tensor], Tensor] = _local,
) -> MethodLoss:
    """Σ u_s w_t ℓ_t of a micro-batch, for any causal LM of transformers, with or without PEFT, DDP or FSDP around it.

    Args:
        model: the model as the loop calls it. Its forward learns `token_nll=True` and is else unchanged.
        inputs: `input_ids` and `labels` (batch, length), -100 where there is no label, and what else the model
            takes: `attention_mask`, or `position_ids` alone for packed rows.
        method: a Method or its text, such as `talr(tau=lagged_median)`. Its penalty, parameterisation and finish are
            not the business of a micro-batch and are left to the caller.
        previous: `means` of the previous global batch, for methods that use them. None: the method takes this
            batch's own, in two passes.
        sequence_weights: (batch,) u_s.
        scale: what the sum is multiplied by, such as 1 over the number of label tokens of the global batch. None: 1
            over this batch's own Z, which is right where it is the global batch.
        gather: gives the sequence means of all ranks from one rank's.

    Returns:
        `MethodLoss`. Its loss can be differentiated once.

    Raises:
        ValueError: an adapter on the head, a router loss. UserError: an unknown method.

    Source: arXiv 2509.20758. Example: `examples/hand_written_loop.py`.
    """
    method = parse_method(method) if isinstance(method, str) else method
    add_token_nll(extract_model_from_parallel(model, keep_torch_compile=False), backend)
    if method.one_pass and not (method.uses_previous and previous is None):
        return _one_pass(model, inputs, method, previous, sequence_weights, scale)
    out = model(**inputs, token_nll=True)
    nll, means = out["nll"], _means(out)
    batch = TokenBatch(nll.detach(), gather(means), previous)
    weighted = _weights(method, batch)
    weights = weighted.weights
    if sequence_weights is not None:
        weights = weights * sequence_weights[out["index"] // inputs["labels"].shape[1]]
    weighted = Weighted(weights, weighted.stats)
    return MethodLoss((weights * nll).sum() * _scale(scale, method, weights), batch, weighted, means)


def _one_pass(
    model: Any,
    inputs: Mapping[str, Any],
    method: Method,
    previous: Tensor | None,
    sequence_weights: Tensor | None,
    scale: Tensor | float | None,
) -> MethodLoss:
    """Weights and gradient of each token as soon as its NLL is known."""

    def weigh(nll: Tensor) -> Tensor:
        return _weights(method, TokenBatch(nll, nll.new_empty(0), previous)).weights

    shape, device = inputs["labels"].shape, inputs["labels"].device
    rows = torch.ones(shape[0], device=device) if sequence_weights is None else sequence_weights.to(device)
    # The scale goes in here too, so that the backward pass has nothing left to multiply.
    known = rows if scale is None else rows * scale
    out = model(
        **inputs,
        token_nll=True,
        one_pass=True,
        weigh=None if method.token_weights is None else weigh,
        factors=known[:, None].expand(shape),
    )
    means = _means(out)
    batch = TokenBatch(out["nll"], means, previous)
    weighted = _weights(method, batch)
    weights = weighted.weights if sequence_weights is None else weighted.weights * rows[out["index"] // shape[1]]
    loss = out["loss"] if scale is not None else out["loss"] * _scale(None, method, weights)
    return MethodLoss(loss, batch, Weighted(weights, weighted.stats), means)


def _means(out: Mapping[str, Tensor]) -> Tensor:
    sequence = out["sequence"]
    sequences = int(sequence.max()) + 1 if sequence.numel() else 0
    return sequence_means(out["nll"].detach(), sequence, sequences)


def _weights(method: Method, batch: TokenBatch) -> Weighted:
    if method.token_weights is None or not batch.nll.numel():
        return Weighted(torch.ones_like(batch.nll))
    return method.token_weights(batch)


def _scale(scale: Tensor | float | None, method: Method, weights: Tensor) -> Tensor | float:
    if scale is not None:
        return scale
    total = weights.sum() if method.normalization == "simplex" else torch.as_tensor(float(weights.numel()))
    return 1 / total.clamp_min(torch.finfo(weights.dtype).tiny if weights.is_floating_point() else 1)
