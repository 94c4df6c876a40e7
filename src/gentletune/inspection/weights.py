"""The weight each method would give each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gentletune.core.errors import UserError
from gentletune.methods import Method, TokenBatch, method_names, parse_method

Tokens = dict[str, NDArray[Any]]
"""Columns of tokens, by name, each of one length."""

HARD = 0.1
"""A token is hard where its probability is below this; masking's threshold by default, too."""

PLAIN = "sft"
"""The method whose weights are all 1."""

TOP_K = 20
"""Tokens whose entropy is the column `topk_entropy`: as many as EAFT looks at by default."""


def method_columns() -> list[str]:
    """Names of the methods that are shown: `sft`, then every registered one with token weights, by name."""
    return [PLAIN, *_weighting()]


def method_weights(tokens: Tokens, tau: float) -> Tokens:
    """The weights of tokens, of which `nll` and `topk_entropy` (nats) are given, a column for each method.

    Each method is at its defaults. Of the sequences it sees one, whose mean NLL is `tau` (nats), the median of all:
    that is TALR's temperature.
    """
    nll, sequences = torch.tensor(tokens["nll"]), torch.tensor([tau], dtype=torch.float64)
    entropy = torch.tensor(tokens["topk_entropy"])
    found = {PLAIN: np.ones_like(tokens["nll"])}
    for name, method in _weighting().items():
        assert method.token_weights is not None
        batch = TokenBatch(nll, sequences, sequences if method.uses_previous else None, entropy)
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
