"""The tiled head in pure PyTorch: N×V logits are never whole in memory, and each tile is written in place.

Two shapes of tile. A tile of tokens over the whole vocabulary gives a token's log-sum-exp at once, so weight and
gradient can follow while its logits are still there: one pass, three matrix products. A tile of vocabulary over
many tokens stays in the cache and finishes its rows of the weight's gradient in one product, but knows no
log-sum-exp: it serves NLL alone, and gradients once the log-sum-exp is known, four matrix products in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gentletune.losses.weights import topk_entropy

Weigh = Callable[..., Tensor]


class Head(NamedTuple):
    """A language-model head: logits = cap·tanh(scale·(h Wᵀ + b)/cap), the cap only where `softcap` is set.

    >>> Head(torch.ones(4, 2), scale=0.5).logits(torch.ones(1, 2)).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Bias, cap and scale as the keyword arguments of `token_nll` and `weighted_nll`."""
        return {"bias": self.bias, "softcap": self.softcap, "scale": self.scale}

    def logits(self, hidden: Tensor) -> Tensor:
        """Whole logits (…, V) of hidden states (…, D), in fp32 (float64 stays float64)."""
        found = (hidden @ self.weight.T).to(_accumulator(hidden))
        if self.bias is not None:
            found = found + self.bias
        if self.scale != 1.0:
            found = found * self.scale
        return self.softcap * torch.tanh(found / self.softcap) if self.softcap else found


class Found(NamedTuple):
    """(N,) each, without gradient; entropy only where asked for."""

    nll: Tensor
    lse: Tensor
    entropy: Tensor | None


class Gradients(NamedTuple):
    """Of Σ cᵢ ℓᵢ, for what needs one."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _Sizes(NamedTuple):
    """Elements of a tile of tokens, its least rows, elements of a tile of vocabulary, and its most rows."""

    one_pass: int
    least_rows: int
    block: int
    most_rows: int


# The least rows bound the traffic of adding to the weight's gradient once a tile. On a CPU a block of 16 MiB in
# fp32 stays in the last-level cache.
_CPU = _Sizes(one_pass=2**25, least_rows=512, block=2**22, most_rows=8192)
_GPU = _Sizes(one_pass=2**27, least_rows=1024, block=2**27, most_rows=8192)


def _sizes(hidden: Tensor) -> _Sizes:
    return _CPU if hidden.device.type == "cpu" else _GPU


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _ranges(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


class _Tile:
    """Buffers for logits of up to `elements`, used again for every tile."""

    def __init__(self, hidden: Tensor, head: Head, elements: int) -> None:
        self.head = head
        self.exact = torch.empty(elements, dtype=_accumulator(hidden), device=hidden.device)
        low = hidden.dtype != self.exact.dtype
        self.low = torch.empty(elements, dtype=hidden.dtype, device=hidden.device) if low else None
        self.damp = torch.empty_like(self.exact) if head.softcap else None

    def logits(self, hidden: Tensor, rows: slice) -> Tensor:
        """Logits (n, rows) of `hidden` (n, D), in the buffer."""
        head, weight = self.head, self.head.weight[rows]
        shape = (hidden.shape[0], weight.shape[0])
        out = self._view(self.exact, shape)
        if self.low is None:
            torch.mm(hidden, weight.T, out=out)
        else:
            out.copy_(torch.mm(hidden, weight.T, out=self._view(self.low, shape)))
        if head.bias is not None:
            out.add_(head.bias[rows])
        if head.scale != 1.0:
            out.mul_(head.scale)
        if head.softcap:
            out.div_(head.softcap).tanh_()
            assert self.damp is not None
            damp = self._view(self.damp, shape)
            torch.mul(out, out, out=damp).neg_().add_(1)  # the derivative of the cap, 1 - tanh²
            out.mul_(head.softcap)
        return out

    def damped(self, delta: Tensor) -> Tensor:
        """`delta`, a gradient to the capped logits last computed, carried through the cap."""
        return delta if self.damp is None else delta.mul_(self._view(self.damp, tuple(delta.shape)))

    def operands(self, delta: Tensor, hidden: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(δ, h, c) for the products δᵀh and c·(δW), the coefficient in whichever place rounds least.

        In fp32 it goes to the small matrices; in lower precision into δ before that is rounded, as autograd has it.
        """
        if self.low is None:
            return delta, hidden * coefficient, coefficient
        delta.mul_(coefficient)
        return self._view(self.low, tuple(delta.shape)).copy_(delta), hidden, None

    @staticmethod
    def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
        return buffer[: shape[0] * shape[1]].view(shape)


def find(hidden: Tensor, targets: Tensor, head: Head, entropy: bool | int = False) -> Found:
    """NLL, log-sum-exp and entropy of each token, by tiles of vocabulary with a running maximum and sum.

    An `entropy` that is a number is that of so many most probable tokens, normalised among themselves.
    """
    sizes, vocabulary = _sizes(hidden), head.weight.shape[0]
    width = _width(hidden, vocabulary)
    tile = _Tile(hidden, head, min(hidden.shape[0], sizes.most_rows) * width)
    parts = [
        _find_rows(hidden[rows], targets[rows], tile, list(_ranges(vocabulary, width)), entropy)
        for rows in _ranges(hidden.shape[0], sizes.most_rows)
    ]
    if not parts:
        empty = hidden.new_empty(0, dtype=_accumulator(hidden))
        return Found(empty, empty.clone(), empty.clone() if entropy else None)
    nll, lse, spread = zip(*parts, strict=True)
    return Found(torch.cat(nll), torch.cat(lse), torch.cat(spread) if entropy else None)


def _width(hidden: Tensor, vocabulary: int) -> int:
    sizes = _sizes(hidden)
    rows = min(hidden.shape[0], sizes.most_rows)
    return min(vocabulary, max(256, sizes.block // max(rows, 1)))


def _find_rows(hidden: Tensor, targets: Tensor, tile: _Tile, blocks: list[slice], entropy: bool | int) -> Found:
    dtype, top_k = tile.exact.dtype, 0 if isinstance(entropy, bool) else entropy
    best = hidden.new_empty((hidden.shape[0], 0), dtype=dtype)  # the top_k logits so far
    top = hidden.new_full((hidden.shape[0], 1), torch.finfo(dtype).min, dtype=dtype)
    total, moment, at_target = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
    for block in blocks:
        logits = tile.logits(hidden, block)
        inside, local = _local(targets, block)
        at_target = torch.where(inside, logits.gather(1, local), at_target)
        if top_k:
            mine = logits.topk(min(top_k, logits.shape[1]), dim=1).values
            best = torch.cat([best, mine], dim=1)
            best = best.topk(min(top_k, best.shape[1]), dim=1).values
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        drop = top - higher
        powers = logits.sub_(higher).exp_()
        if entropy is True:  # Σ e^y·y with y = z - top, carried to the new top
            moment = drop.exp() * (moment + drop * total)
            moment += torch.special.xlogy(powers, powers).sum(1, keepdim=True)
        total = drop.exp() * total + powers.sum(1, keepdim=True)
        top = higher
    log_total = total.log()
    nll = (top - at_target) + log_total
    spread = (log_total - moment / total).squeeze(1)
    if top_k:
        spread = topk_entropy(best, top_k)
    return Found(nll.squeeze(1), (top + log_total).squeeze(1), spread if entropy else None)


def _local(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block (n, 1), and its column there (0 where it does not)."""
    local = (targets - block.start)[:, None]
    inside = (local >= 0) & (local < block.stop - block.start)
    return inside, local.where(inside, 0)


def gradients(
    hidden: Tensor, targets: Tensor, lse: Tensor, coefficient: Tensor, head: Head, needs: tuple[bool, bool, bool]
) -> Gradients:
    """Gradients of Σ cᵢ ℓᵢ by tiles of vocabulary, the log-sum-exp known."""
    sizes, vocabulary = _sizes(hidden), head.weight.shape[0]
    width = _width(hidden, vocabulary)
    tile = _Tile(hidden, head, min(hidden.shape[0], sizes.most_rows) * width)
    sums = _Sums(hidden, head, needs, several=hidden.shape[0] > sizes.most_rows)
    for rows in _ranges(hidden.shape[0], sizes.most_rows):
        h, t = hidden[rows], targets[rows]
        c = coefficient[rows, None] * head.scale
        for block in _ranges(vocabulary, width):
            delta = tile.logits(h, block).sub_(lse[rows, None]).exp_()
            inside, local = _local(t, block)
            delta.scatter_add_(1, local, -inside.to(delta.dtype))
            sums.add(tile, tile.damped(delta), h, c, rows, block)
    return sums.result()


def one_pass(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    weigh: Weigh | None,
    factors: Tensor | None,
    needs: tuple[bool, bool, bool],
    top_k: int | None = None,
) -> tuple[Found, Tensor, Gradients]:
    """NLL, coefficients cᵢ = fᵢ·weigh(ℓᵢ) and the gradients of Σ cᵢ ℓᵢ, by tiles of tokens.

    With `top_k`, weigh is also given the entropy of each token's so many most probable ones.
    """
    sizes, (vocabulary, count) = _sizes(hidden), (head.weight.shape[0], hidden.shape[0])
    step = min(max(sizes.least_rows, sizes.one_pass // vocabulary), max(count, 1))
    tile = _Tile(hidden, head, step * vocabulary)
    sums = _Sums(hidden, head, needs, several=count > step)
    dtype = tile.exact.dtype
    nll, lse, coefficients = (hidden.new_empty(count, dtype=dtype) for _ in range(3))
    everything = slice(0, vocabulary)
    for rows in _ranges(count, step):
        h, t = hidden[rows], targets[rows, None]
        logits = tile.logits(h, everything)
        top, at_target = logits.amax(1, keepdim=True), logits.gather(1, t)
        entropy = (topk_entropy(logits, top_k),) if top_k else ()
        delta = logits.sub_(top).exp_()
        total = delta.sum(1, keepdim=True)
        log_total = total.log()
        nll[rows] = ((top - at_target) + log_total).squeeze(1)
        lse[rows] = (top + log_total).squeeze(1)
        c = torch.ones_like(nll[rows]) if weigh is None else weigh(nll[rows], *entropy).to(dtype)
        coefficients[rows] = c if factors is None else c * factors[rows]
        # Powers are left unscaled: δ = powers - total·onehot, and 1/total goes into the coefficient.
        delta.scatter_add_(1, t, -total)
        sums.add(tile, tile.damped(delta), h, coefficients[rows, None] * head.scale / total, rows, everything)
    return Found(nll, lse, None), coefficients, sums.result()


class _Sums:
    """Gradients as they add up over tiles; `several`: a row of the weight's gradient gets more than one part."""

    def __init__(self, hidden: Tensor, head: Head, needs: tuple[bool, bool, bool], *, several: bool) -> None:
        self.like, self.head, self.several = hidden, head, several
        exact, weight = _accumulator(hidden), head.weight
        self.hidden = torch.zeros_like(hidden, dtype=exact) if needs[0] else None
        self.weight = (
            torch.zeros_like(weight, dtype=_accumulator(weight) if several else weight.dtype) if needs[1] else None
        )
        self.bias = torch.zeros_like(head.bias, dtype=exact) if needs[2] and head.bias is not None else None

    def add(self, tile: _Tile, delta: Tensor, hidden: Tensor, coefficient: Tensor, rows: slice, block: slice) -> None:
        if self.bias is not None:
            self.bias[block] += torch.mv(delta.T, coefficient.squeeze(1))
        left, right, scale = tile.operands(delta, hidden, coefficient)
        if self.hidden is not None:
            part = left @ self.head.weight[block]
            self.hidden[rows] += part if scale is None else part.mul_(scale)
        if self.weight is not None:
            self._add_weight(left, right, block)

    def _add_weight(self, left: Tensor, right: Tensor, block: slice) -> None:
        assert self.weight is not None
        if not self.several:
            torch.mm(left.T, right, out=self.weight[block])
        elif self.weight.dtype == left.dtype:
            self.weight[block].addmm_(left.T, right)
        else:  # a running sum in low precision would stall; the part is low, the sum is not
            for columns in _ranges(left.shape[1], 8192):
                start = block.start
                self.weight[start + columns.start : start + columns.stop] += left[:, columns].T @ right

    def result(self) -> Gradients:
        head = self.head
        return Gradients(
            None if self.hidden is None else self.hidden.to(self.like.dtype),
            None if self.weight is None else self.weight.to(head.weight.dtype),
            None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype),
        )


class TokenNLLFunction(torch.autograd.Function):
    """NLL with a gradient for any later use. Where only `hidden` needs one (a frozen head, as with LoRA), ∂ℓᵢ/∂hᵢ is
    taken while the logits are there and scaled in the backward pass; else the logits are computed again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None,
        softcap: float | None, scale: float, entropy: bool | int, recording: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        head = Head(weight, bias, softcap, scale)
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        ctx.early = recording and needs == (True, False, False) and not entropy
        if ctx.early:
            found, _, grads = one_pass(hidden, targets, head, None, None, needs)
            ctx.save_for_backward(grads.hidden)
        else:
            found = find(hidden, targets, head, entropy)
            ctx.save_for_backward(hidden, weight, targets, found.lse, bias)
            ctx.softcap, ctx.scale, ctx.needs = softcap, scale, needs
        ctx.mark_non_differentiable(found.lse, *([] if found.entropy is None else [found.entropy]))
        return found.nll, found.lse, found.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.early:
            (grad,) = ctx.saved_tensors
            return (grad * grad_nll[:, None]).to(grad.dtype), *[None] * 7
        hidden, weight, targets, lse, bias = ctx.saved_tensors
        head = Head(weight, bias, ctx.softcap, ctx.scale)
        found = gradients(hidden, targets, lse, grad_nll, head, ctx.needs)
        return found.hidden, found.weight, None, found.bias, None, None, None, None


class WeightedNLLFunction(torch.autograd.Function):
    """Σ fᵢ·weigh(ℓᵢ)·ℓᵢ with its gradient computed in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None,
        scale: float, weigh: Weigh | None, factors: Tensor | None, top_k: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
        found, coefficients, grads = one_pass(
            hidden, targets, Head(weight, bias, softcap, scale), weigh, factors, needs, top_k
        )
        ctx.grads = grads
        ctx.mark_non_differentiable(found.nll, found.lse, coefficients)
        return (coefficients * found.nll).sum(), found.nll, found.lse, coefficients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradient was computed in the forward pass and has been given out; run it again")
        grads, ctx.grads = ctx.grads, None
        if grad_loss.device.type != "cpu" or grad_loss != 1:  # on a GPU looking would cost a wait
            for grad in grads:
                if grad is not None:
                    grad.mul_(grad_loss)
        return grads.hidden, grads.weight, None, grads.bias, *[None] * 5
