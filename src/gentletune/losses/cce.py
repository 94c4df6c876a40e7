"""The head through Apple's cut-cross-entropy (arXiv 2411.09009), where a GPU is and the package is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentletune.losses.chunked import Head

# The package's own choice of implementation; tests on a machine without a GPU set "torch_compile".
IMPLEMENTATION = "cce"


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        return None
    kernel: Callable[..., Any] = linear_cross_entropy
    return kernel


def obstacle(hidden: Tensor, head: Head) -> str | None:
    """Why the kernel cannot run on these inputs, or None."""
    if IMPLEMENTATION == "cce" and hidden.device.type != "cuda":
        return "it needs a CUDA GPU"
    if _kernel() is None:
        return "cut-cross-entropy is not installed (pip install cut-cross-entropy)"
    if head.bias is not None:
        return "it knows no head bias"
    if IMPLEMENTATION == "cce" and hidden.dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bf16 or fp16, got {hidden.dtype}"
    return None


def token_nll(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL with gradient and log-sum-exp without, (N,) each, fp32.

    The kernel's filter, which drops small gradients, is off: the numbers are to be those of the other backends.
    """
    kernel = _kernel()
    assert kernel is not None
    scaled = hidden if head.scale == 1.0 else hidden * head.scale
    nll: Tensor = kernel(
        scaled, head.weight, targets, softcap=head.softcap, reduction="none", filter_eps=None, impl=IMPLEMENTATION
    ).float()
    with torch.no_grad():
        at_target = (scaled * head.weight[targets]).sum(-1, dtype=torch.float32)
        if head.softcap:
            at_target = head.softcap * torch.tanh(at_target / head.softcap)
        return nll, nll.detach() + at_target
