"""Tensors to tensors: token NLL, weights, reductions. No model, no I/O, no configuration."""

from gentletune.losses.heads import Backend, token_nll
from gentletune.losses.labels import IGNORE, LabelTokens, label_tokens, sequence_means
from gentletune.losses.weights import (
    batch_tau,
    dft_weights,
    effective_sample_size,
    flow_weights,
    talr_weights,
)

__all__ = [
    "IGNORE",
    "Backend",
    "LabelTokens",
    "batch_tau",
    "dft_weights",
    "effective_sample_size",
    "flow_weights",
    "label_tokens",
    "sequence_means",
    "talr_weights",
    "token_nll",
]
