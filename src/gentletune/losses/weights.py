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


def topk_entropy(logits: Tensor, k: int = 20) -> Tensor:
    """Entropy of the k most probable tokens, normalised among themselves: (N,) nats, at most ln k, no gradient.

    Args:
        logits: (N, V) over the vocabulary, V ≥ k.
        k: tokens that count, at least 2.

    Raises:
        ValueError: k below 2 or above V.

    Source: arXiv 2601.02151.

    >>> round(topk_entropy(torch.zeros(1, 30)).item(), 4)  # ln 20
    2.9957
    """
    check_top_k(k, logits.shape[-1])
    log_p = logits.detach().topk(k, dim=-1).values
    log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def check_top_k(k: int, vocabulary: int) -> None:
    """Raises `ValueError` where no entropy of the k most probable of so many tokens can be taken."""
    if not 2 <= k <= vocabulary:
        raise ValueError(f"k must lie in [2, {vocabulary}], got {k}")


def eaft_weights(entropy: Tensor, k: int = 20, alpha: float = 1.0) -> Tensor:
    """EAFT's token weights sg[(H_topk / ln k)^α] in [0, 1], from the entropy of the k most probable tokens.

    The divisor is the largest entropy that k tokens can have. Public codes differ: LLaMA-Factory divides by 3.0
    (ln 20 is 2.9957), axolotl not at all.

    Args:
        entropy: (N,) `topk_entropy`, nats.
        k: tokens that counted in it.
        alpha: exponent ≥ 0.

    Raises:
        ValueError: k below 2, alpha < 0.

    Source: arXiv 2601.02151.

    >>> eaft_weights(topk_entropy(torch.zeros(1, 30))).round(decimals=4).tolist()  # knows nothing: full weight
    [1.0]
    """
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}")
    if alpha < 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}")
    return (entropy.detach() / math.log(k)).clamp(0.0, 1.0) ** alpha


def infosft_weights(nll: Tensor, p_max: float = 0.93) -> Tensor:
    """InfoSFT's token weights sg[p · max(0, 1 - logit(p) / logit(p_max))]: tokens of medium probability learn most.

    It is 0 at p = 0 and from p_max on, and about 0.5 at most. The paper has p · (logit(p_max) - logit(p)); its public
    code divides by logit(p_max), as here.

    Args:
        nll: (N,) nats.
        p_max: where a token is known well enough to be left alone, in (0.5, 1).

    Raises:
        ValueError: p_max outside (0.5, 1).

    Source: arXiv 2605.14967 and its code.

    >>> infosft_weights(-torch.tensor([0.5, 0.93, 0.99]).log()).round(decimals=4).tolist() == [0.5, 0.0, 0.0]
    True
    """
    if not 0.5 < p_max < 1:
        raise ValueError(f"p_max must lie in (0.5, 1), got {p_max}")
    log_p = -nll.detach().clamp_min(0.0)
    logit = log_p - torch.log(-torch.expm1(log_p))  # infinite where p is 1, so that the weight is 0
    return log_p.exp() * (1 - logit / math.log(p_max / (1 - p_max))).clamp_min(0)


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
