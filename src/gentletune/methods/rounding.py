"""Weights computed in fp32 and put where they are held in 2 bytes, without losing what is smaller than a step there."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALL = 2  # bytes of a weight that takes steps of 1/256 of itself (bf16) or 1/2048 (fp16), at most
BLOCK = 2**24  # entries taken at a time, so that no other copy of a large weight is made


def put(parameter: Tensor, values: Tensor) -> None:
    """Copy fp32 values into a parameter, in place; into one of 2 bytes rounded at random.

    A bf16 weight takes steps of about 1/256 of itself. Rounded to the nearest, a change of less than half a step is
    lost, always towards the old value; rounded at random it is kept on average. Values that the dtype has stay as they
    are. The draws are seeded by the values: the same values come out the same, and what is
    rounded again after another change is drawn anew.
    """
    own, new = parameter.detach(), values.detach()
    own.copy_(rounded(new, own.dtype) if own.itemsize == SMALL else new)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 values in a float dtype of 2 bytes, rounded at random by draws that the values themselves seed."""
    import torch

    chance, found = _draws(values), torch.empty(values.shape, dtype=dtype, device=values.device)
    for mine, block in zip(found.view(-1).split(BLOCK), values.reshape(-1).split(BLOCK), strict=True):
        mine.copy_(rounded_at_random(block, dtype, chance))
    return found


def rounded_at_random(values: Tensor, dtype: torch.dtype, chance: torch.Generator) -> Tensor:
    """fp32 values in a float dtype of 2 bytes, each one of its two neighbours there, the nearer one the likelier.

    The mean over draws is the value, but for fp16 below its normal range. `chance` is a generator of the host, so that
    every device draws the same.

    >>> import torch
    >>> drawn = rounded_at_random(torch.full((10_000,), 1.001), torch.bfloat16, torch.Generator().manual_seed(0))
    >>> drawn.unique().tolist(), round(drawn.float().mean().item(), 3)
    ([1.0, 1.0078125], 1.001)
    """
    import torch

    cut = 23 + round(math.log2(torch.finfo(dtype).eps))  # bits of a fp32 mantissa that the dtype lacks
    more = torch.randint(1 << cut, values.shape, generator=chance, dtype=torch.int32).to(values.device)
    found = more.add_(values.view(torch.int32)).bitwise_and_(-(1 << cut)).view(torch.float32)
    return torch.where(values.isfinite(), found, values).to(dtype)  # the sum can turn a NaN into a number


def _draws(values: Tensor) -> torch.Generator:
    """A generator seeded by all bits of the values, by sums that come out the same in any order."""
    import torch

    sums = [int(block.view(torch.int32).sum(dtype=torch.int64)) for block in values.reshape(-1).split(BLOCK)]
    digest = hashlib.sha256(repr(sums).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
