"""Tensors to tensors: token NLL, weights, reductions. No model, no I/O, no configuration."""

from gentletune.losses.chunked import Head, Weigh
from gentletune.losses.heads import (
    BACKENDS,
    IGNORE,
    Backend,
    LabelTokens,
    TokenNLL,
    WeightedNLL,
    label_tokens,
    sequence_means,
    token_nll,
    weighted_nll,
)
from gentletune.losses.kl import TOP_K, BaseTopK, KLFromBase, kl_from_base
from gentletune.losses.weights import (
    batch_tau,
    dft_weights,
    eaft_weights,
    effective_sample_size,
    flow_weights,
    infosft_weights,
    mask_weights,
    talr_weights,
    topk_entropy,
)

__all__ = [
    "BACKENDS",
    "IGNORE",
    "TOP_K",
    "Backend",
    "BaseTopK",
    "Head",
    "KLFromBase",
    "LabelTokens",
    "TokenNLL",
    "Weigh",
    "WeightedNLL",
    "batch_tau",
    "dft_weights",
    "eaft_weights",
    "effective_sample_size",
    "flow_weights",
    "infosft_weights",
    "kl_from_base",
    "label_tokens",
    "mask_weights",
    "sequence_means",
    "talr_weights",
    "token_nll",
    "topk_entropy",
    "weighted_nll",
]
