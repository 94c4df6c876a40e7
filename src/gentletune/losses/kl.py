"""KL from base over the vocabulary, from the base model's most probable tokens, through a tiled head.

Of the base model p a position keeps its k most probable tokens and the mass t of all others, the tail. Of the tuned
model q the same is made of its logits, a tile at a time, and the two are compared as distributions over k + 1 outcomes:

    D = Σ_{v∈top} p_v (log p_v - log q_v) + t (log t - log r),   r = Σ_{v∉top} q_v

By the chain rule the exact KL(p‖q) is D + t·KL(p‖q, both given the tail): D is never above it, and below it by at most
t·max over the tail of log((p_v/t) / (q_v/r)). What the tuned model moves within the tail alone is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gentletune.losses.chunked import Gradients, Head, _accumulator, _ranges, _sizes, _Sums, _Tile
from gentletune.losses.heads import _prepare

TOP_K = 64
"""Tokens of the base model that are kept at a position."""


@dataclass(frozen=True)
class BaseTopK:
    """The base model's distribution at n positions, natural logarithms.

    `ids` and `log_p` (n, k) are its most probable tokens, `log_tail` (n,) is the mass of all others (-inf where there
    are none), `log_target` (n,) the probability of the token that stands there.
    """

    ids: Tensor
    log_p: Tensor
    log_tail: Tensor
    log_target: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, k: int) -> BaseTopK:
        """From whole logits (n, V): their k most probable tokens, or all V where there are fewer.

        >>> found = BaseTopK.of(torch.zeros(1, 4), torch.tensor([3]), k=3)  # uniform: a quarter is left
        >>> round(float(found.log_tail.exp()), 4)
        0.25
        """
        lse = logits.logsumexp(1, keepdim=True)
        top, ids = logits.topk(min(k, logits.shape[1]), dim=1)
        tail = logits.scatter(1, ids, -torch.inf).logsumexp(1) - lse.squeeze(1)
        return cls(ids, top - lse, tail, (logits.gather(1, targets[:, None]) - lse).squeeze(1))

    def without(self, targets: Tensor) -> BaseTopK:
        """The same given that it is another token than `targets` (n,): theirs is 0, and the rest adds up to 1."""
        hit = self.ids == targets[:, None]
        kept, tail = self.log_p.exp().masked_fill(hit, 0), self.log_tail.exp()
        tail = torch.where(hit.any(1), tail, (tail - self.log_target.exp()).clamp_min(0))
        total = (kept.sum(1) + tail).clamp_min(torch.finfo(tail.dtype).tiny)
        return BaseTopK(
            self.ids, (kept / total[:, None]).log(), (tail / total).log(), torch.full_like(tail, -torch.inf)
        )


class KLFromBase(NamedTuple):
    """`loss`, a scalar with gradient; `kl` (n,), nats, without."""

    loss: Tensor
    kl: Tensor


def kl_from_base(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    base: BaseTopK,
    *,
    masked: bool = False,
    factors: Tensor | float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> KLFromBase:
    """Σ fᵢ Dᵢ, D the KL from base over k + 1 outcomes (see above), its gradient taken in the forward pass.

    ∂D/∂z_v of a logit is q_v - p_v for the k tokens and q_v (1 - t/r) for the others. No whole logits are kept.

    Args:
        hidden: (n, D) hidden states at the positions.
        weight: (V, D) head weight.
        targets: (n,) the tokens that stand there.
        base: the base model's distribution at the same positions.
        masked: compare the distributions over all tokens but the target (arXiv 2605.29498), each made to add up to 1.
        factors: fᵢ, a number or (n,).
        bias: (V,) head bias.
        softcap: as in `token_nll`.
        scale: as in `token_nll`.

    Returns:
        `KLFromBase`; its `loss` can be differentiated once.

    Raises:
        ValueError: shapes that do not fit.

    >>> head, hidden, target = torch.eye(3), torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
    >>> round(kl_from_base(hidden, head, target, BaseTopK.of(hidden, target, k=1)).kl.abs().item(), 4)
    0.0
    """
    hidden, head, _ = _prepare(hidden, weight, targets, bias, softcap, scale, None, "chunked")
    if base.ids.shape[0] != targets.shape[0]:
        raise ValueError(f"shapes do not fit: {targets.shape[0]} positions, and the base model's {base.ids.shape[0]}")
    exact = _accumulator(hidden)
    base = BaseTopK(base.ids, *(part.to(exact) for part in (base.log_p, base.log_tail, base.log_target)))
    base, left_out = (base.without(targets), targets) if masked else (base, None)
    each = torch.as_tensor(factors, dtype=exact, device=hidden.device).expand(targets.shape)
    tracked = (hidden, head.weight) if head.bias is None else (hidden, head.weight, head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tracked):
            return KLFromBase(*_kl(hidden, *head, base, left_out, each))
        kl, _ = _pass(hidden, head, base, left_out, each, (False, False, False))
        return KLFromBase((each * kl).sum(), kl)


def _pass(
    hidden: Tensor, head: Head, base: BaseTopK, left_out: Tensor | None, factors: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:  # fmt: skip
    """D (n,) and the gradients of Σ fᵢ Dᵢ, by tiles of positions over the whole vocabulary."""
    sizes, (vocabulary, count) = _sizes(hidden), (head.weight.shape[0], hidden.shape[0])
    step = min(max(sizes.least_rows, sizes.one_pass // vocabulary), max(count, 1))
    tile = _Tile(hidden, head, step * vocabulary)
    sums = _Sums(hidden, head, needs, several=count > step)
    kl, everything = hidden.new_empty(count, dtype=tile.exact.dtype), slice(0, vocabulary)
    for rows in _ranges(count, step):
        logits = tile.logits(hidden[rows], everything)
        if left_out is not None:
            logits.scatter_(1, left_out[rows, None], -torch.inf)
        kl[rows], delta = _tile_kl(logits, base, rows)
        if any(needs):
            coefficient = factors[rows, None] * head.scale
            sums.add(tile, tile.damped(delta), hidden[rows], coefficient, rows, everything)
    return kl, sums.result()


def _tile_kl(logits: Tensor, base: BaseTopK, rows: slice) -> tuple[Tensor, Tensor]:
    """D of some positions, and in the place of their logits its gradient in them."""
    ids, log_p, log_tail = base.ids[rows], base.log_p[rows], base.log_tail[rows, None]
    p, tail, least = log_p.exp(), log_tail.exp(), torch.finfo(logits.dtype)
    at_top = logits.gather(1, ids)
    highest = logits.scatter_(1, ids, -torch.inf).amax(1, keepdim=True).clamp_min(least.min)
    powers = logits.sub_(highest).exp_()
    total = powers.sum(1, keepdim=True)
    lse_tail = highest + total.log()
    lse = torch.logaddexp(lse_tail, at_top.logsumexp(1, keepdim=True))
    log_q, log_r = at_top - lse, lse_tail - lse
    parts = torch.where(p > 0, p * (log_p - log_q), 0).sum(1, keepdim=True)
    kl = parts + torch.where(tail > 0, tail * (log_tail - log_r), 0)
    mass = p.sum(1, keepdim=True) + tail  # 1 but for rounding
    delta = powers.mul_((log_r.exp() * mass - tail) / total.clamp_min(least.tiny))
    delta.scatter_(1, ids, log_q.exp() * mass - p)
    return kl.squeeze(1), delta


class _KLFunction(torch.autograd.Function):
    """Σ fᵢ Dᵢ with its gradient computed in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
        base: BaseTopK, left_out: Tensor | None, factors: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        kl, ctx.grads = _pass(hidden, Head(weight, bias, softcap, scale), base, left_out, factors, needs)
        ctx.mark_non_differentiable(kl)
        return (factors * kl).sum(), kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradient was computed in the forward pass and has been given out; run it again")
        for grad in grads:
            if grad is not None:
                grad.mul_(grad_loss)
        return *grads, *[None] * 5


_kl: Callable[..., Any] = torch.compiler.disable(_KLFunction.apply)
