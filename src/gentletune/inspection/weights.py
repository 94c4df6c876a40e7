"""The weight each method would give each token, and what the weights amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gentletune.losses import dft_weights, mask_weights, talr_weights

Array = NDArray[np.float64]

METHODS = ("sft", "talr", "dft", "eaft", "mask")
HARD = 0.1
"""A token is hard where its probability is below this; masking's threshold by default, too."""

EAFT_K = 20


@dataclass(frozen=True)
class MethodWeight:
    """A method's token weights over a data set.

    `mean` is the mean weight, `hard_share` the share of all weight that lies on hard tokens (p < 0.1), and
    `ess_share` the effective sample size (Kish) over the number of tokens; both are 0 where all weights are 0.
    """

    method: str
    mean: float
    hard_share: float
    ess_share: float


class WeightTotals:
    """Sums of one method's weights: all that is kept of them."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._tokens, self._sum, self._squares, self._hard = 0, 0.0, 0.0, 0.0

    def add(self, weights: Array, hard: NDArray[np.bool_]) -> None:
        """Count the weights (N,) of N tokens, of which `hard` (N,) are hard."""
        self._tokens += len(weights)
        self._sum += float(weights.sum())
        self._squares += float((weights**2).sum())
        self._hard += float(weights[hard].sum())

    def result(self) -> MethodWeight:
        """What the weights amount to; at least one token must have been counted."""
        some = self._squares > 0
        return MethodWeight(
            self.method,
            mean=self._sum / self._tokens,
            hard_share=self._hard / self._sum if some else 0.0,
            # Kish's (Σw)²/Σw², as losses.effective_sample_size has it, from sums.
            ess_share=self._sum**2 / self._squares / self._tokens if some else 0.0,
        )


def method_weights(nll: Array, eaft: Array, tau: float) -> Mapping[str, Array]:
    """Each method's weights (N,), by name, for tokens of that NLL (nats) and EAFT weight.

    TALR's are at temperature `tau` (nats) and its default floor, masking's at its default threshold; EAFT's come from
    whole logits and are passed through.
    """
    seen = torch.from_numpy(nll)
    return {
        "sft": np.ones_like(nll),
        "talr": talr_weights(seen, tau).numpy(),
        "dft": dft_weights(seen).numpy(),
        "eaft": eaft,
        "mask": mask_weights(seen, HARD).numpy(),
    }
