"""The weight each method would give each token, and what the weights amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gentletune.core.errors import UserError
from gentletune.methods import Method, TokenBatch, method_names, parse_method

Array = NDArray[np.float64]

HARD = 0.1
"""A token is hard where its probability is below this; masking's threshold by default, too."""

PLAIN = "sft"
"""The method whose weights are all 1."""

EAFT, EAFT_K = "eaft", 20
"""Shown beside the registered methods: its weights need whole logits, which a method of ours does not get."""


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


def method_columns() -> list[str]:
    """Names of the methods that are shown: `sft`, then EAFT and every registered one with token weights, by name."""
    return [PLAIN, *sorted({EAFT, *_weighting()})]


def method_weights(nll: Array, eaft: Array, tau: float) -> Mapping[str, Array]:
    """The weights (N,) of `method_columns`, by name, for tokens of that NLL (nats) and EAFT weight.

    Each method is at its defaults. Of the sequences it sees one, whose mean NLL is `tau` (nats), the median of all:
    that is TALR's temperature. EAFT's weights come from whole logits and are passed through.
    """
    seen, sequences = torch.from_numpy(nll), torch.tensor([tau], dtype=torch.float64)
    found = {PLAIN: np.ones_like(nll), EAFT: eaft}
    for name, method in _weighting().items():
        assert method.token_weights is not None
        batch = TokenBatch(seen, sequences, sequences if method.uses_previous else None)
        found[name] = method.token_weights(batch).weights.double().numpy()
    return {name: found[name] for name in method_columns()}


def _weighting() -> dict[str, Method]:
    """The registered methods with token weights, at their defaults; without one that has to be given an argument."""
    found = {}
    for name in method_names():
        try:
            method = parse_method(name)
        except UserError:
            continue
        if method.token_weights is not None:
            found[name] = method
    return found
