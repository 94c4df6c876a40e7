from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gentletune.losses import (
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

NLL = torch.tensor([0.05, 0.7, 1.3, 4.0, 25.0], dtype=torch.float64)
losses = st.lists(st.floats(0, 20), min_size=1, max_size=8)
positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)
taus = st.floats(0.05, 20)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_talr_golden() -> None:
    # τ = 2, ℓ = 0, 2 ln 2, 4 ln 3, 40: w = 1, e^(-ln 2) = 1/2, e^(-2 ln 3) = 1/9, e^-20 → the floor 0.01.
    nll = doubles([0, 2 * math.log(2), 4 * math.log(3), 40])
    assert talr_weights(nll, 2.0).tolist() == pytest.approx([1, 1 / 2, 1 / 9, 0.01], rel=1e-14)


def test_talr_is_sft_as_tau_grows() -> None:
    assert talr_weights(NLL, math.inf).tolist() == [1.0] * 5
    assert talr_weights(NLL, 1e12).tolist() == pytest.approx([1.0] * 5, rel=1e-10)


def test_talr_is_the_floor_as_tau_vanishes() -> None:
    assert talr_weights(NLL, 1e-9, floor=0.2).tolist() == [0.2] * 5
    assert talr_weights(torch.zeros(1), 1e-9).tolist() == [1.0]  # a token with p = 1 keeps its weight


def test_talr_floor_limits() -> None:
    assert talr_weights(NLL, 1.0, floor=1.0).tolist() == [1.0] * 5
    assert torch.equal(talr_weights(NLL, 1.0, floor=0.0), torch.exp(-NLL))


@given(nll=losses, tau=taus, floor=st.floats(0, 1))
def test_talr_is_p_to_the_inverse_tau(nll: list[float], tau: float, floor: float) -> None:
    expected = [max(math.exp(-loss) ** (1 / tau), floor) for loss in nll]
    assert talr_weights(doubles(nll), tau, floor).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(nll=losses, tau=taus, data=st.data())
def test_talr_minimises_the_entropic_objective(nll: list[float], tau: float, data: st.DataObject) -> None:
    def objective(w: Tensor) -> float:
        return float((w * doubles(nll)).sum() + tau * torch.xlogy(w, w).sum())

    weights = talr_weights(doubles(nll), tau, floor=0.0)
    best = objective(weights / weights.sum())
    other = doubles(data.draw(st.lists(st.floats(1e-6, 1), min_size=len(nll), max_size=len(nll))))
    assert best <= objective(other / other.sum()) + 1e-9
    assert best == pytest.approx(-tau * math.log(sum(math.exp(-loss / tau) for loss in nll)), rel=1e-9, abs=1e-9)


def test_dft_is_p() -> None:
    probabilities = [1.0, 0.5, 0.125]
    assert dft_weights(-doubles(probabilities).log()).tolist() == pytest.approx(probabilities, rel=1e-15)
    assert torch.equal(dft_weights(NLL), talr_weights(NLL, 1.0, floor=0.0))


@pytest.mark.parametrize(
    "weigh",
    [lambda nll: talr_weights(nll, batch_tau(nll)), dft_weights, flow_weights, lambda nll: flow_weights(nll, 0.7)],
    ids=["talr", "dft", "flow", "flow_fixed"],
)
def test_no_gradient_through_weights(weigh: Callable[[Tensor], Tensor]) -> None:
    nll = NLL.clone().requires_grad_()
    weights = weigh(nll)
    assert not weights.requires_grad
    (weights * nll).sum().backward()
    assert torch.equal(nll.grad, weights)
    assert not batch_tau(nll).requires_grad


@pytest.mark.parametrize(
    ("means", "median"),
    [([3.0], 3.0), ([9.0, 1.0, 2.0], 2.0), ([8.0, 1.0, 2.0, 4.0], 3.0), ([0.0, 0.0, 5.0], 1e-6), ([1e-9], 1e-6)],
    ids=["one", "odd", "even", "clamped_zero", "clamped"],
)
def test_batch_tau_is_the_median(means: list[float], median: float) -> None:
    assert batch_tau(doubles(means)).item() == median
    assert batch_tau(doubles(means)).ndim == 0


def test_no_sequence_has_no_median() -> None:
    for function in (batch_tau, flow_weights):
        with pytest.raises(ValueError, match="at least one sequence"):
            function(torch.empty(0))


def test_median_sequence_weighs_one_over_e() -> None:
    # τ is the median, so a token whose loss is the median has w = e^-1, whatever the unit of the losses.
    means = doubles([0.2, 3.0, 11.0])
    for unit in (1.0, 1e-3, 50.0):
        assert talr_weights(means * unit, batch_tau(means * unit))[1].item() == pytest.approx(math.exp(-1), rel=1e-12)


def test_flow_golden() -> None:
    # Median of 1, 2, 4, 8 is 3: u = e^(-1/3), e^(-2/3), e^(-4/3), e^(-8/3).
    expected = [math.exp(-x / 3) for x in (1, 2, 4, 8)]
    assert flow_weights(doubles([1, 2, 4, 8])).tolist() == pytest.approx(expected, rel=1e-14)


def test_flow_fixed_tau() -> None:
    # τ_F = 2: e^(-2 ln 2 / 2) = 1/2 and e^(-4 ln 2 / 2) = 1/4.
    assert flow_weights(math.log(2) * doubles([0, 2, 4]), 2.0).tolist() == pytest.approx([1, 1 / 2, 1 / 4], rel=1e-14)


@given(weights=positive, scale=st.floats(1e-3, 1e3))
def test_effective_sample_size_bounds_and_scale(weights: list[float], scale: float) -> None:
    size = effective_sample_size(doubles(weights)).item()
    assert 1 - 1e-9 <= size <= len(weights) * (1 + 1e-9)
    assert effective_sample_size(scale * doubles(weights)).item() == pytest.approx(size, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(weight=st.floats(1e-3, 1e3), count=st.integers(1, 50))
def test_effective_sample_size_of_equal_weights(weight: float, count: int) -> None:
    assert effective_sample_size(doubles([weight] * count)).item() == pytest.approx(count, rel=1e-12)


def test_effective_sample_size_golden() -> None:
    # (3 + 1)² / (9 + 1) = 1.6
    assert effective_sample_size(doubles([3, 1])).item() == pytest.approx(1.6, rel=1e-15)


def test_mask_keeps_what_lies_above_the_threshold() -> None:
    nll = -doubles([0.9, 0.1000001, 0.0999999, 1e-9]).log()
    assert mask_weights(nll).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert mask_weights(nll, p_min=0.0).tolist() == [1.0] * 4
    assert not mask_weights(nll.clone().requires_grad_()).requires_grad


def test_eaft_is_the_normalised_entropy_of_the_top_k() -> None:
    logits = doubles([[2.0, 1.0, 0.0, -50.0], [60.0, 0.0, 0.0, 0.0]])
    p = logits[0, :3].softmax(0)
    expected = float(-(p * p.log()).sum() / math.log(3))
    entropy = topk_entropy(logits.requires_grad_(), k=3)
    assert not entropy.requires_grad
    assert eaft_weights(entropy, k=3).tolist() == pytest.approx([expected, 0.0], abs=1e-15)
    assert eaft_weights(entropy, k=3, alpha=2.0)[0].item() == pytest.approx(expected**2, rel=1e-14)


@pytest.mark.parametrize(("k", "alpha", "message"), [(1, 1.0, "k must"), (5, 1.0, "k must"), (3, -1.0, "alpha")])
def test_eaft_refuses(k: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eaft_weights(topk_entropy(torch.zeros(2, 4), k), k, alpha)


def test_infosft_is_the_papers_weight_over_the_logit_of_its_bound() -> None:
    p = doubles([1e-30, 0.01, 0.3, 0.5, 0.7, 0.92, 0.93, 0.95, 1.0])
    expected = [x * max(0.0, 2.5866893440979424 - math.log(x / (1 - x))) if x < 1 else 0.0 for x in p.tolist()]
    found = infosft_weights(-p.log())
    assert (found * 2.5866893440979424).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert found[3].item() == pytest.approx(0.5, rel=1e-12)
    assert not infosft_weights((-p.log()).requires_grad_()).requires_grad
    assert infosft_weights(torch.tensor([0.0, -1e-7, 500.0])).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="p_max must lie in"):
        infosft_weights(p, p_max=0.4)
