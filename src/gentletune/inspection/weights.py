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

EAFT, EAFT_K = "eaft", 20
"""Shown beside the registered methods: its weights need whole logits, which a method of ours does not get."""

EAFT_WEIGHT = "eaft_weight"
"""The column of tokens that has them."""


def method_columns() -> list[str]:
    """Names of the methods that are shown: `sft`, then EAFT and every registered one with token weights, by name."""
    return [PLAIN, *sorted({EAFT, *_weighting()})]


def method_weights(tokens: Tokens, tau: float) -> Tokens:
    """The weights of tokens, of which `nll` (nats) and EAFT's weight are given, a column for each method.

    Each method is at its defaults. Of the sequences it sees one, whose mean NLL is `tau` (nats), the median of all:
    that is TALR's temperature. EAFT's weights come from whole logits and are passed through.
    """
    nll, sequences = torch.tensor(tokens["nll"]), torch.tensor([tau], dtype=torch.float64)
    found = {PLAIN: np.ones_like(tokens["nll"]), EAFT: tokens[EAFT_WEIGHT]}
    for name, method in _weighting().items():
        assert method.token_weights is not None
        batch = TokenBatch(nll, sequences, sequences if method.uses_previous else None)
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
