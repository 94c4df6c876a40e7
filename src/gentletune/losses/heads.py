"""Token negative log-likelihood from hidden states, without keeping the logits.

One definition (`reference`) and backends that give the same numbers. Shapes: N label tokens, D hidden size,
V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "chunked"]

_CHUNK_ELEMENTS = 2**25  # logits held at once: 128 MiB in fp32


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target, and the log-sum-exp of its logits, in nats.

    Args:
        hidden: (N, D) hidden states at the positions that predict the targets.
        weight: (V, D) head weight, tied or not.
        targets: (N,) token ids.
        bias: (V,) head bias.
        softcap: logits become softcap·tanh(logits/softcap) (Gemma).
        scale: logits are multiplied by it before the cap (Cohere, Granite).
        backend: `reference` materialises (N, V) logits; `chunked` holds a slice of them and computes them
            again in the backward pass; `auto` is `chunked` once the logits outgrow one slice.

    Returns:
        nll (N,) with gradient to hidden, weight and bias; lse (N,) without gradient. Both fp32.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.

    >>> nll, _ = token_nll(torch.zeros(1, 2), torch.ones(4, 2), torch.tensor([3]))
    >>> round(nll.item(), 4)  # uniform over 4 tokens: ln 4
    1.3863
    """
    fits = hidden.ndim == weight.ndim == 2 and hidden.shape == (*targets.shape, weight.shape[1])
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"shapes do not fit: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, "
            f"targets {tuple(targets.shape)}, bias {None if bias is None else tuple(bias.shape)}; "
            "expected (N, D), (V, D), (N,), (V,)"
        )
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if backend == "auto":
        backend = "chunked" if hidden.shape[0] * weight.shape[0] > _CHUNK_ELEMENTS else "reference"
    with torch.autocast(hidden.device.type, enabled=False):
        if backend == "reference":
            return _reference(hidden, weight, targets, bias, softcap, scale)
        if backend == "chunked":
            return _chunked(hidden, weight, targets, bias, softcap, scale)
    raise ValueError(f"unknown head backend '{backend}'; known: auto, chunked, reference")


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    if scale != 1.0:
        logits = logits * scale
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, scale: float
) -> tuple[Tensor, Tensor]:
    logits = _logits(hidden, weight, bias, softcap, scale)
    lse = logits.logsumexp(-1)
    return lse - logits.gather(-1, targets[:, None]).squeeze(-1), lse.detach()


class _ChunkedNLL(torch.autograd.Function):
    """Loops over slices of tokens; the backward pass rebuilds each slice of logits from the saved lse."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        parts = [
            _reference(h, weight, t, bias, softcap, scale)
            for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        nll, lse = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, lse, bias)
        ctx.softcap, ctx.scale, ctx.rows = softcap, scale, rows
        ctx.mark_non_differentiable(lse)
        return nll, lse

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse, bias = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        accumulator = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=accumulator) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=accumulator) if needs_bias else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            h, t = hidden[part], targets[part]
            logits = _logits(h, weight, bias, ctx.softcap, ctx.scale)
            delta = (logits - lse[part, None]).exp_()
            delta.scatter_add_(1, t[:, None], torch.full_like(t[:, None], -1, dtype=delta.dtype))
            delta *= grad_nll[part, None]
            if ctx.softcap:
                delta *= 1 - (logits / ctx.softcap) ** 2
            delta *= ctx.scale
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = delta @ weight
            if grad_weight is not None:
                grad_weight += delta.T @ h
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, None, grad_bias, None, None


# torch leaves Function.apply untyped.
_chunked: Callable[..., tuple[Tensor, Tensor]] = _ChunkedNLL.apply
