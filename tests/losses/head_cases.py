"""Inputs for tests of the head, and the head written plainly: whole logits, torch's own softmax, autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gentletune.losses import TokenNLL, chunked, dft_weights, talr_weights, token_nll, weighted_nll
from gentletune.losses.chunked import _Sizes

Option = dict[str, Any]
BACKENDS = ("reference", "chunked")
OPTIONS: dict[str, Option] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 3.0, "scale": 1.7},
}
# What they make of N = 13 and V = 700, where a tile of vocabulary has at least 256 columns.
TILES = {
    "single_tokens": _Sizes(1, 1, 1, 1),  # tokens one by one; vocabulary 256 + 256 + 188
    "uneven": _Sizes(5 * 700 + 9, 2, 4 * 300 + 3, 4),  # tokens 5 + 5 + 3; 4 + 4 + 4 + 1 with vocabulary 300 + 300 + 100
    "last_token_alone": _Sizes(1, 6, 1, 12),  # tokens 6 + 6 + 1; 12 + 1 with vocabulary 256 + 256 + 188
    "last_column_alone": _Sizes(12 * 700, 1, 13 * 699, 13),  # tokens 12 + 1; all 13 with vocabulary 699 + 1
    "one": _Sizes(2**24, 256, 2**22, 8192),
}
# Of ℓ near ln 700 = 6.6: floor and mask hold for some tokens and not for others. `soft` does not detach.
WEIGHS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "talr": lambda nll: talr_weights(nll, 2.9, floor=0.1),
    "dft": dft_weights,
    "soft": lambda nll: torch.exp(-nll / 2.9),
    "mask": lambda nll: nll < 6.6,
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_option = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
each_tiling = pytest.mark.parametrize("sizes", TILES.values(), ids=TILES)
each_weigh = pytest.mark.parametrize("weigh", WEIGHS.values(), ids=WEIGHS)
each_function = pytest.mark.parametrize("function", [token_nll, weighted_nll])
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def case(
    n: int = 7, d: int = 4, v: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0, std: float = 0.7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, bias; the float tensors ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    floats = [std * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, d), (v, d), (v,))]
    hidden, weight, bias = (t.to(dtype).requires_grad_() for t in floats)
    return hidden, weight, torch.randint(v, (n,), generator=generator), bias


def factors_of(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Factors of both signs, other for every token."""
    return torch.linspace(-0.5, 2, n, dtype=dtype) / n


def with_bias(option: Option, bias: Tensor) -> Option:
    """The head's keyword arguments, the bias only where the option has one."""
    return option | {"bias": bias if "bias" in option else None}


def naive(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TokenNLL:
    """All in the inputs' own precision."""
    logits = (hidden @ weight.T if bias is None else functional.linear(hidden, weight, bias)) * scale
    logits = softcap * (logits / softcap).tanh() if softcap else logits
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    nll = functional.nll_loss(log_p, targets, reduction="none")
    return TokenNLL(nll, logits.logsumexp(-1).detach(), entropy.detach())


def by_hand(
    hidden: list[list[float]],
    weight: list[list[float]],
    targets: list[int],
    *,
    bias: list[float] | None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[list[float], list[float], list[float]]:
    nll, lse, entropy = [], [], []
    for h, target in zip(hidden, targets, strict=True):
        logits = []
        for j, row in enumerate(weight):
            z = sum(a * b for a, b in zip(h, row, strict=True)) + (bias[j] if bias else 0.0)
            z *= scale
            logits.append(softcap * math.tanh(z / softcap) if softcap else z)
        lse.append(math.log(sum(math.exp(z) for z in logits)))
        nll.append(lse[-1] - logits[target])
        entropy.append(sum(math.exp(z - lse[-1]) * (lse[-1] - z) for z in logits))
    return nll, lse, entropy


def exact(option: Option, *leaves: Tensor) -> tuple[Option, list[Tensor]]:
    """Copies of hidden, weight and bias in float64 that ask for a gradient, and the option with this bias."""
    copies = [t.detach().double().requires_grad_() for t in leaves]
    return with_bias(option, copies[2]), copies


def loss_of(
    function: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weigh: chunked.Weigh | None = None, **options: Any
) -> Tensor:
    """Σ w(ℓ)·ℓ by `token_nll` or by `weighted_nll`."""
    if function is weighted_nll:
        return weighted_nll(hidden, weight, targets, weigh, **options).loss
    nll = token_nll(hidden, weight, targets, **options).nll
    return nll.sum() if weigh is None else (weigh(nll.detach()) * nll).sum()


def gradients(nll: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of Σ (1 + i/N) ℓ_i: every token has another weight."""
    return torch.autograd.grad(nll, leaves, torch.linspace(1, 2, len(nll), dtype=nll.dtype))


def relative(found: Tensor, true: Tensor) -> float:
    difference = (found.detach().double() - true.detach().double()).norm()
    return float(difference / true.detach().double().norm())


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives while this is on, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


class Kernel:
    """Stands in for the package's kernel: plain cross-entropy behind its keyword arguments."""

    def __init__(self) -> None:
        self.given: list[Option] = []

    def __call__(self, e: Tensor, c: Tensor, targets: Tensor, *, softcap: float | None, **given: Any) -> Tensor:
        self.given.append(given)
        return naive(e, c, targets, softcap=softcap).nll


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a call of this function of `chunked` an error."""

    def fail(*_: Any) -> None:
        raise AssertionError(f"chunked.{name} was called")

    monkeypatch.setattr(chunked, name, fail)


class OnePass(torch.autograd.Function):
    """The one pass run anew for every backward pass, since gradcheck takes several of one forward pass."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, option: Option, *leaves: Tensor) -> Tensor:
        ctx.given = targets, option, leaves
        return OnePass.run(targets, option, leaves).detach()

    @staticmethod
    def run(targets: Tensor, option: Option, leaves: tuple[Tensor, ...]) -> Tensor:
        factors = factors_of(len(targets))
        options = with_bias(option, leaves[2]) | {"factors": factors, "backend": "chunked"}
        return weighted_nll(*leaves[:2], targets, **options).loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        targets, option, leaves = ctx.given
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            loss = OnePass.run(targets, option, leaves)
        return None, None, *torch.autograd.grad(loss, leaves, grad, allow_unused="bias" not in option)
