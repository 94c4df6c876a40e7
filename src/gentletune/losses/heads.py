"""Label tokens, and their negative log-likelihood from the hidden states that predict them, without keeping logits.

One definition (`reference`) and backends that give the same numbers. Shapes: N label tokens, D hidden size,
V vocabulary size. There is no label smoothing: a smoothed target has no token probability to weight by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gentletune.losses import cce
from gentletune.losses.chunked import Head, TokenNLLFunction, Weigh, WeightedNLLFunction, find
from gentletune.losses.weights import check_top_k, topk_entropy

Backend = Literal["auto", "reference", "chunked", "cce"]
IGNORE = -100
BACKENDS: tuple[Backend, ...] = ("auto", "cce", "chunked", "reference")

# Below this many logits (16 MiB in fp32) whole logits are cheaper than tiles.
_SMALL = 2**22


@dataclass(frozen=True)
class LabelTokens:
    """The N label tokens of a batch, after the causal shift.

    `index` (N,) points into the flattened (batch·length) positions that predict them, `targets` (N,) are
    their ids, `sequence` (N,) numbers the sequence each belongs to in 0…sequences-1.
    """

    index: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int

    def gather(self, values: Tensor) -> Tensor:
        """`values` (batch, length, …) at the predicting positions: (N, …)."""
        return values.flatten(0, 1)[self.index]


def label_tokens(labels: Tensor, position_ids: Tensor | None = None) -> LabelTokens:
    """Find the label tokens of `labels` (batch, length), where -100 means no label.

    A row is one sequence unless `position_ids` (batch, length) restart within it, as they do in packed rows;
    the first token of a packed sequence is no label, since nothing of its own sequence predicts it.

    >>> found = label_tokens(torch.tensor([[1, -100, 5, 6]]))
    >>> found.targets.tolist(), found.index.tolist()
    ([5, 6], [1, 2])
    """
    batch, length = labels.shape
    if position_ids is None:
        sequence = torch.arange(batch, device=labels.device)[:, None].expand(batch, length)
        starts = torch.zeros_like(labels, dtype=torch.bool)
    else:
        starts = position_ids == 0
        starts[:, 0] = True
        sequence = starts.flatten().cumsum(0).view(batch, length) - 1
    valid = (labels != IGNORE) & ~starts
    valid[:, 0] = False
    index = valid.flatten().nonzero().squeeze(1)
    number = sequence.flatten()[index]
    # Renumber, so that sequences without a label token do not count.
    present, number = number.unique(return_inverse=True)
    return LabelTokens(index - 1, labels.flatten()[index], number, int(present.numel()))


def sequence_means(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Mean of `values` (N,) within each sequence: (sequences,). Every sequence has at least one token.

    >>> sequence_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [2.0, 5.0]
    """
    total = values.new_zeros(sequences).index_add_(0, sequence, values)
    count = values.new_zeros(sequences).index_add_(0, sequence, torch.ones_like(values))
    return total / count


class TokenNLL(NamedTuple):
    """`nll` (N,) with gradient; `lse` (N,) and `entropy` (N,), nats, without. Entropy is None unless asked for."""

    nll: Tensor
    lse: Tensor
    entropy: Tensor | None


class WeightedNLL(NamedTuple):
    """`loss`, a scalar with gradient; `nll`, `lse` and `weights`, (N,) without."""

    loss: Tensor
    nll: Tensor
    lse: Tensor
    weights: Tensor


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    entropy: bool | int = False,
    backend: Backend = "auto",
) -> TokenNLL:
    """Negative log-likelihood of each target, and the log-sum-exp of its logits, in nats.

    Args:
        hidden: (N, D) hidden states at the positions that predict the targets.
        weight: (V, D) head weight, tied or not.
        targets: (N,) token ids.
        bias: (V,) head bias.
        softcap: logits become softcap·tanh(logits/softcap) (Gemma).
        scale: logits are multiplied by it before the cap (Cohere, Granite).
        vocab_size: rows of the weight beyond it are padding and take no probability. None: all rows count,
            as they do in transformers' own loss.
        entropy: also give the entropy of each prediction; a number, such as 20: of its so many most probable tokens,
            normalised among themselves.
        backend: `reference` materialises (N, V) logits; `chunked` holds a tile of them and computes them again in
            the backward pass (not where the head is frozen: then the forward pass has the gradient); `cce` is
            cut-cross-entropy's kernel, on a GPU; `auto` is `cce` where it can run, else `chunked`, or `reference`
            where the logits are small.

    Returns:
        `TokenNLL` in fp32 (float64 stays float64).

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run here.
        RuntimeError: a target that is no token, such as -100.

    >>> found = token_nll(torch.zeros(1, 2), torch.ones(4, 2), torch.tensor([3]), entropy=True)
    >>> round(found.nll.item(), 4), round(found.entropy.item(), 4)  # uniform over 4 tokens: ln 4
    (1.3863, 1.3863)
    """
    top_k = None if isinstance(entropy, bool) else entropy
    hidden, head, backend = _prepare(hidden, weight, targets, bias, softcap, scale, vocab_size, backend, top_k)
    with torch.autocast(hidden.device.type, enabled=False):
        if backend == "reference" or (backend == "auto" and targets.numel() * head.weight.shape[0] <= _SMALL):
            return _reference(hidden, head, targets, entropy)
        if backend == "cce" or (backend == "auto" and not entropy and cce.obstacle(hidden, head) is None):
            return TokenNLL(*cce.token_nll(hidden, head, targets), _entropy(hidden, head, targets, entropy))
        recording = torch.is_grad_enabled()
        return TokenNLL(*_token_nll(hidden, head.weight, targets, *head[1:], entropy, recording))


def weighted_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weigh: Weigh | None = None,
    *,
    factors: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
    top_k: int | None = None,
    backend: Backend = "auto",
) -> WeightedNLL:
    """Σ fᵢ·weigh(ℓᵢ)·ℓᵢ, no gradient through the weights, its own gradient taken in the forward pass.

    For weights that follow from a token's own NLL: plain SFT, DFT, masking, TALR at a τ known beforehand (fixed or
    lagged median). No logits are kept and none are computed twice. Where a weight waits for other tokens (the
    exact batch median), use `token_nll` and weight its `nll`.

    Args:
        weigh: NLL (n,) of some of the tokens, nats, to their weights (n,). None: ones.
        factors: (N,) further factors known beforehand, such as sequence weights or 1/N.
        top_k: weigh is given a second argument, the entropy (n,) of the so many most probable tokens, nats.
        backend: `chunked` is the one pass; `reference` and `cce` weight their `token_nll`. `auto` is `chunked`, or
            `reference` where the logits are small.
        hidden: (n, D) hidden states, as all below up to `vocab_size` as in `token_nll`.
        weight: (V, D) head weight.
        targets: (n,) token ids.
        bias: (V,) head bias.
        softcap: of the logits.
        scale: of the logits.
        vocab_size: how many rows of the head are tokens.

    Returns:
        `WeightedNLL`; its `weights` are fᵢ·weigh(ℓᵢ). Of the one pass, `loss` can be differentiated once, and its
        gradients are rounded before a loss scaler's factor arrives: train in bf16 or fp32, not in fp16.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run here.
        RuntimeError: a target that is no token, such as -100.

    Source: TALR, arXiv 2509.20758; gradient in the forward pass as in Liger Kernel, arXiv 2410.10989.

    >>> hidden, weight, targets = torch.zeros(2, 2), torch.ones(4, 2), torch.tensor([3, 0])
    >>> out = weighted_nll(hidden, weight, targets, lambda nll: torch.exp(-nll))  # w = p = 1/4, ℓ = ln 4
    >>> round(out.loss.item(), 4)
    0.6931
    """
    hidden, head, backend = _prepare(hidden, weight, targets, bias, softcap, scale, vocab_size, backend, top_k)
    small = targets.numel() * head.weight.shape[0] <= _SMALL
    tracked = (hidden, head.weight) if head.bias is None else (hidden, head.weight, head.bias)
    recording = torch.is_grad_enabled() and any(t.requires_grad for t in tracked)
    with torch.autocast(hidden.device.type, enabled=False):
        if recording and (backend == "chunked" or (backend == "auto" and not small)):
            return WeightedNLL(*_weighted_nll(hidden, head.weight, targets, *head[1:], weigh, factors, top_k))
        how = {**head.options, "entropy": top_k or False, "backend": backend}
        nll, lse, entropy = token_nll(hidden, head.weight, targets, **how)
        seen = nll.detach()
        given = (seen,) if entropy is None else (seen, entropy)
        weights = torch.ones_like(seen) if weigh is None else weigh(*given).to(seen.dtype)
        weights = weights if factors is None else (weights * factors).to(seen.dtype)
        return WeightedNLL((weights * nll).sum(), seen, lse, weights)


def backend_obstacle(backend: Backend, device: torch.device, dtype: torch.dtype, *, bias: bool = False) -> str | None:
    """Why a backend cannot take hidden states of this `dtype` on this device, or None: before there are any.

    `bias` says whether the head has one.

    >>> backend_obstacle("chunked", torch.device("cpu"), torch.float32) is None
    True
    """
    if backend != "cce":
        return None
    empty = torch.empty(0, device=device, dtype=dtype)
    return cce.obstacle(empty, Head(empty, empty if bias else None))


def _prepare(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    vocab_size: int | None, backend: Backend, top_k: int | None = None,
) -> tuple[Tensor, Head, Backend]:  # fmt: skip
    """Checked inputs, in autocast's precision where autocast is on, without the rows of vocabulary padding."""
    fits = hidden.ndim == weight.ndim == 2 and hidden.shape == (*targets.shape, weight.shape[1])
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"shapes do not fit: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, "
            f"targets {tuple(targets.shape)}, bias {None if bias is None else tuple(bias.shape)}; "
            "expected (N, D), (V, D), (N,), (V,)"
        )
    if backend not in BACKENDS:
        raise ValueError(f"unknown head backend '{backend}'; known: {', '.join(BACKENDS)}")
    if vocab_size is not None and not 0 < vocab_size <= weight.shape[0]:
        raise ValueError(f"vocab_size must lie in 1…{weight.shape[0]}, the rows of the weight, got {vocab_size}")
    if vocab_size is not None and vocab_size < weight.shape[0]:
        weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]
    if top_k is not None:
        check_top_k(top_k, weight.shape[0])
    known = ((targets >= 0) & (targets < weight.shape[0])).all()
    torch._assert_async(known, "a target is no token of the head: drop ignored positions (see label_tokens)")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    head = Head(weight, bias, softcap, scale)
    if backend == "cce" and (why := cce.obstacle(hidden, head)):
        raise ValueError(f"head backend cce: {why}; use auto or chunked")
    return hidden, head, backend


def _reference(hidden: Tensor, head: Head, targets: Tensor, entropy: bool | int) -> TokenNLL:
    logits = head.logits(hidden)
    lse = logits.logsumexp(-1)
    nll = lse - logits.gather(-1, targets[:, None]).squeeze(-1)
    spread = None
    if entropy is True:
        log_p = logits.detach().log_softmax(-1)
        spread = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    elif entropy:
        spread = topk_entropy(logits, entropy)
    return TokenNLL(nll, lse.detach(), spread)


def _entropy(hidden: Tensor, head: Head, targets: Tensor, wanted: bool | int) -> Tensor | None:
    with torch.no_grad():
        return find(hidden.detach(), targets, head, entropy=wanted).entropy if wanted else None


# torch leaves Function.apply untyped. Compiled models break their graph here: the tiles are loops over one buffer,
# which tracing would unroll.
_token_nll: Callable[..., Any] = torch.compiler.disable(TokenNLLFunction.apply)
_weighted_nll: Callable[..., Any] = torch.compiler.disable(WeightedNLLFunction.apply)
