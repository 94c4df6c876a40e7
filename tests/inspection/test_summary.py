"""Figures that are added up, against the same figures of all tokens at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gentletune.inspection.summary import Groups, Histogram, NLLGrid, position_names
from gentletune.inspection.weights import WeightTotals, method_columns, method_weights
from gentletune.losses import effective_sample_size, talr_weights


@pytest.fixture
def nll() -> np.ndarray:
    return np.random.default_rng(0).gamma(0.5, 3.0, size=4001)


def grid(*values: float) -> NLLGrid:
    made = NLLGrid()
    made.add(np.array(values))
    return made


@pytest.mark.parametrize("q", [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
def test_quantiles_are_nearest_rank_to_a_thousandth(nll: np.ndarray, q: float) -> None:
    made = NLLGrid()
    for part in np.array_split(nll, 17):
        made.add(part)
    exact = np.sort(np.exp(-nll))[max(1, round(q * len(nll))) - 1]
    assert made.quantile(q) == pytest.approx(exact, rel=1e-3)


def test_quantiles_of_one_token_ties_and_extremes() -> None:
    assert grid(1.0).quantile(0.5) == pytest.approx(np.exp(-1.0), rel=1e-12)
    assert grid(*[0.3] * 9).quantile(0.05) == pytest.approx(np.exp(-0.3), rel=1e-12)
    assert grid(0.0, 0.0).quantile(0.95) == 1.0
    assert grid(100.0, 100.0).quantile(0.5) == pytest.approx(np.exp(-100.0), rel=1e-9)  # beyond the grid


def test_histograms_hold_their_edges() -> None:
    made = Histogram([0.0, 0.1, 0.5, 1.0])
    made.add(np.array([0.0, 0.1, 0.49, 0.5, 1.0]))
    made.add(np.array([]))
    assert made.result() == (1, 2, 2)


def test_groups_count_and_leave_out_the_empty() -> None:
    made = Groups(["a", "b", "c"], [0.1, 0.5])
    made.add(np.array([0, 2, 2]), np.array([1.0, 2.0, 4.0]), np.array([0.05, 0.2, 0.1]))
    first, last = made.result()
    assert (first.name, first.tokens, first.mean_nll, first.hard_share) == ("a", 1, 1.0, {0.1: 1.0, 0.5: 1.0})
    assert (last.name, last.tokens, last.mean_nll, last.hard_share) == ("c", 2, 3.0, {0.1: 0.0, 0.5: 1.0})


def test_positions_are_named_by_their_bins() -> None:
    assert position_names() == (
        "1",
        "2",
        "3–4",
        "5–8",
        "9–16",
        "17–32",
        "33–64",
        "65–128",
        "129–256",
        "257–512",
        "513+",
    )


def test_weight_totals_are_those_of_all_weights(nll: np.ndarray) -> None:
    eaft = np.random.default_rng(1).random(len(nll))
    weights = method_weights(nll, eaft, tau=1.3)
    assert list(weights) == method_columns() == ["sft", "dft", "eaft", "mask", "talr"]
    hard = np.exp(-nll) < 0.1
    for method, values in weights.items():
        totals = WeightTotals(method)
        for part, marks in zip(np.array_split(values, 9), np.array_split(hard, 9), strict=True):
            totals.add(part, marks)
        found = totals.result()
        assert found.mean == pytest.approx(values.mean())
        assert found.hard_share == pytest.approx(values[hard].sum() / values.sum())
        ess = float(effective_sample_size(torch.from_numpy(values)))
        assert found.ess_share == pytest.approx(ess / len(nll))


def test_the_methods_weights_are_the_losses_own(nll: np.ndarray) -> None:
    weights = method_weights(nll, np.full(len(nll), 0.25), tau=0.7)
    assert np.array_equal(weights["talr"], talr_weights(torch.from_numpy(nll), 0.7).numpy())
    assert np.allclose(weights["dft"], np.exp(-nll))
    assert np.array_equal(weights["mask"], (np.exp(-nll) > 0.1).astype(float))
    assert (weights["eaft"] == 0.25).all()
    assert (weights["sft"] == 1.0).all()


def test_weights_that_are_all_zero_have_no_share() -> None:
    totals = WeightTotals("mask")
    totals.add(np.zeros(3), np.array([True, True, False]))
    found = totals.result()
    assert (found.mean, found.hard_share, found.ess_share) == (0.0, 0.0, 0.0)
