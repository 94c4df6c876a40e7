"""Token and sequence weights: tensors in, tensors out, never a gradient through them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAU_MIN = 1e-6


def batch_tau(sequence_nll: Tensor) -> Tensor:
    """TALR's batch temperature: the median over sequences of their mean NLL, at least 1e-6. Nats, scalar.

    With an even number of sequences the median is the mean of the middle two (the usual definition; the paper
    does not say, so this choice is ours).

    Args:
        sequence_nll: (S,) mean NLL of each sequence.

    Raises:
        ValueError: no sequence.

    Source: arXiv 2509.20758, TALR.

    >>> batch_tau(torch.tensor([1.0, 2.0, 9.0])).item()
    2.0
    """
    if sequence_nll.numel() == 0:
        raise ValueError("batch_tau needs at least one sequence")
    return sequence_nll.detach().quantile(0.5).clamp_min(TAU_MIN)


def talr_weights(nll: Tensor, tau: Tensor | float, floor: float = 0.01) -> Tensor:
    """TALR's token weights sg[max(exp(-ℓ/τ), w_min)] = sg[max(p^(1/τ), w_min)], in [floor, 1].

    Args:
        nll: (N,) token NLL ℓ in nats.
        tau: temperature τ > 0 in nats.
        floor: w_min in [0, 1].

    Source: arXiv 2509.20758; up to the floor, the minimiser of Σ wℓ + τ Σ w log w over the simplex.

    >>> talr_weights(torch.tensor([0.0, 1.0, 100.0]), 1.0).tolist()  # 1, 1/e, the floor
    [1.0, 0.3678794503211975, 0.009999999776482582]
    """
    return torch.exp(-nll.detach() / tau).clamp_min(floor)


def dft_weights(nll: Tensor) -> Tensor:
    """DFT's token weights sg[p] = sg[exp(-ℓ)]: (N,) from (N,) nats. Source: arXiv 2508.05629."""
    return torch.exp(-nll.detach())


def mask_weights(nll: Tensor, p_min: float = 0.1) -> Tensor:
    """Hard-token masking: 1[p > p_min], (N,) from (N,) nats.

    Source: the truncation of hard tokens behind Figure 3 of arXiv 2509.20758.

    >>> mask_weights(-torch.tensor([0.5, 0.2, 0.05]).log()).tolist()
    [1.0, 1.0, 0.0]
    """
    return (torch.exp(-nll.detach()) > p_min).to(nll.dtype)


def eaft_weights(logits: Tensor, k: int = 20, alpha: float = 1.0) -> Tensor:
    """EAFT's token weights sg[(H_topk / log k)^α] in [0, 1], from the entropy of the k most probable tokens.

    Those k are normalised among themselves, so that H_topk is at most log k (our reading).

    Args:
        logits: (N, V) over the vocabulary, V ≥ k.
        k: tokens that count, at least 2.
        alpha: exponent ≥ 0.

    Raises:
        ValueError: k below 2 or above V, alpha < 0.

    >>> eaft_weights(torch.zeros(1, 30)).round(decimals=4).tolist()  # knows nothing: full weight
    [1.0]
    """
    if not 2 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie in [2, {logits.shape[-1]}], got {k}")
    if alpha < 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}")
    log_p = logits.detach().topk(k, dim=-1).values.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return (entropy / math.log(k)).clamp(0.0, 1.0) ** alpha


def flow_weights(base_sequence_nll: Tensor, tau: float | None = None) -> Tensor:
    """FLOW's sequence weights sg[exp(-ℓ̄_s(θ⁰)/τ_F)]: (S,) over the whole training set.

    Args:
        base_sequence_nll: (S,) mean NLL of each training sequence under the base model, nats.
        tau: τ_F in nats; None is the median over the training set.

    Raises:
        ValueError: no sequence.

    Source: arXiv 2502.02797.

    >>> flow_weights(torch.tensor([0.0, 1.0, 2.0])).tolist()  # τ_F = 1
    [1.0, 0.3678794503211975, 0.1353352814912796]
    """
    losses = base_sequence_nll.detach()
    return torch.exp(-losses / (batch_tau(losses) if tau is None else tau))


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size (Σw)²/Σw², between 1 and N: how many tokens the weights amount to.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0, 0.0])).item()
    2.0
    """
    return weights.sum() ** 2 / (weights**2).sum()
