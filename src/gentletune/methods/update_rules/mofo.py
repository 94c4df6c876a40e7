"""MoFO: AdamW moves only the entries whose momentum is among the largest of their tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from gentletune.methods.base import Method
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("mofo", "Momentum-filtered optimiser (MoFO)", "arXiv 2407.20999", "https://arxiv.org/abs/2407.20999")
def mofo(share: float = 0.1) -> Method:
    """MoFO (arXiv 2407.20999): of each weight matrix, AdamW's step moves only the entries whose first moment is, by
    absolute value, among the largest `share`; both moments go on for all.

    As in the public code, norms and biases move whole, and weight decay takes hold of every entry.

    Args:
        share: of the entries of a matrix that move in a step, in (0, 1]; 1 is AdamW.

    Raises:
        ValueError: a share outside its range.
    """
    part = check_number("share", share, low=0, high=1, open_low=True)
    return Method(update_rule=lambda: (momentum_filtered_adamw(), {"share": part}))


@cache
def momentum_filtered_adamw() -> Any:
    """AdamW with MoFO's filter; a class made late, since torch is imported late."""
    import torch

    class MomentumFilteredAdamW(torch.optim.AdamW):
        def __init__(self, params: Any, *, share: float, **options: Any) -> None:
            super().__init__(params, foreach=False, **options)
            self.share = share

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group)
            return loss

        def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
            (first, second), state, gradient = group["betas"], self.state[parameter], parameter.grad
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            steps, momentum, square = float(state["step"]), state["exp_avg"], state["exp_avg_sq"]
            momentum.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (1 - second**steps) ** 0.5
            update = momentum / square.sqrt().div_(scale).add_(group["eps"])
            if parameter.ndim > 1 and self.share < 1:
                update.masked_fill_(momentum.abs() < largest(momentum, self.share), 0.0)
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] / (1 - first**steps))

    return MomentumFilteredAdamW


def largest(values: Tensor, share: float) -> Tensor:
    """The absolute value that the largest `share` of the entries, at least one, reach.

    >>> import torch
    >>> largest(torch.tensor([3.0, -4.0, 1.0, 2.0]), 0.5).item()
    3.0
    """
    count = max(1, int(share * values.numel()))
    return values.abs().flatten().kthvalue(values.numel() - count + 1).values
