"""Figures that are added up, against the same figures of all tokens at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gentletune.inspection.summary import DECADES, LINEAR_EDGES, Totals
from gentletune.inspection.weights import Tokens, method_columns, method_weights
from gentletune.losses import effective_sample_size, infosft_weights, talr_weights


def frame(nll: Any, *, kind: Any = "word", position: Any = 1, entropy: Any = 0.5) -> Tokens:
    nll = np.asarray(nll, dtype=float)
    columns = {"nll": nll, "probability": np.exp(-nll), "class": kind, "position": position, "topk_entropy": entropy}
    return {name: np.broadcast_to(values, len(nll)) for name, values in columns.items()}


def cut(tokens: Tokens, *parts: slice) -> list[Tokens]:
    return [{name: values[part] for name, values in tokens.items()} for part in parts]


def added(*frames: Tokens, thresholds: tuple[float, ...] = (0.1, 0.5), tau: float = 1.3) -> dict[str, Any]:
    totals = Totals(thresholds)
    for tokens in frames:
        totals.add(tokens, method_weights(tokens, tau))
    return totals.result()


@pytest.fixture
def nll() -> np.ndarray:
    return np.random.default_rng(0).gamma(0.5, 3.0, size=4001)


def test_quantiles_are_nearest_rank_to_a_thousandth(nll: np.ndarray) -> None:
    found = added(*map(frame, np.array_split(nll, 17)))["quantiles"]
    assert list(found) == [0.05, 0.25, 0.5, 0.75, 0.95]
    for q, probability in found.items():
        exact = np.sort(np.exp(-nll))[max(1, round(q * len(nll))) - 1]
        assert probability == pytest.approx(exact, rel=1e-3)


def test_quantiles_of_one_token_ties_and_extremes() -> None:
    assert added(frame([1.0]))["quantiles"][0.5] == pytest.approx(np.exp(-1.0), rel=1e-12)
    assert added(frame([0.3] * 9))["quantiles"][0.05] == pytest.approx(np.exp(-0.3), rel=1e-12)
    assert added(frame([0.0, 0.0]))["quantiles"][0.95] == 1.0
    # beyond the grid
    assert added(frame([100.0, 100.0]))["quantiles"][0.5] == pytest.approx(np.exp(-100.0), rel=1e-9)


def test_histograms_hold_their_edges(nll: np.ndarray) -> None:
    edges = frame([1e3, np.log(2), np.log(2), 0.0]) | {"probability": np.array([0.0, 0.5, 0.5, 1.0])}
    found = added(*cut(edges, slice(2), slice(2, 4)))
    assert found["histogram"] == (1, *[0] * 9, 2, *[0] * 8, 1)
    assert found["decades"] == (1, *[0] * 6, 3)
    found = added(*map(frame, np.array_split(nll, 5)))
    assert found["histogram"] == tuple(np.histogram(np.exp(-nll), LINEAR_EDGES)[0])
    assert found["decades"] == tuple(np.histogram(np.exp(-nll), DECADES)[0])


def test_groups_count_and_leave_out_the_empty() -> None:
    first = frame([-np.log(0.05), 2.0], kind=["first", "unit"], position=[1, 513])
    last = frame([4.0, 0.25], kind=["unit", "unit"], position=[600, 3])
    found = added(first, last)
    one, two = found["classes"]
    assert (one.name, one.tokens, one.mean_nll) == ("first", 1, pytest.approx(-np.log(0.05)))
    assert one.hard_share == {0.1: 1.0, 0.5: 1.0}
    assert (two.name, two.tokens, two.mean_nll) == ("unit", 3, pytest.approx(6.25 / 3))
    assert two.hard_share == {0.1: pytest.approx(1 / 3), 0.5: pytest.approx(2 / 3)}
    assert [(g.name, g.tokens) for g in found["positions"]] == [("1", 1), ("3–4", 1), ("513+", 2)]
    assert (found["tokens"], found["hard_share"][0.1]) == (4, 0.5)


def test_positions_are_named_by_their_bins() -> None:
    places = [1, 2, 4, 5, 16, 17, 64, 65, 256, 257, 9999]
    assert [g.name for g in added(frame([1.0] * 11, position=places))["positions"]] == [
        "1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–128", "129–256", "257–512", "513+",
    ]  # fmt: skip


def test_weight_totals_are_those_of_all_weights(nll: np.ndarray) -> None:
    tokens = frame(nll, entropy=np.random.default_rng(1).random(len(nll)))
    weights = method_weights(tokens, 1.3)
    assert list(weights) == method_columns() == ["sft", "asft", "dft", "eaft", "infosft", "mask", "talr"]
    found = added(*cut(tokens, *(slice(i, None, 9) for i in range(9))))["weights"]
    hard = np.exp(-nll) < 0.1
    for total, (method, values) in zip(found, weights.items(), strict=True):
        assert total.method == method
        assert total.mean == pytest.approx(values.mean())
        assert total.hard_share == pytest.approx(values[hard].sum() / values.sum())
        ess = float(effective_sample_size(torch.tensor(values)))
        assert total.ess_share == pytest.approx(ess / len(nll))


def test_the_methods_weights_are_the_losses_own(nll: np.ndarray) -> None:
    weights = method_weights(frame(nll, entropy=0.25), tau=0.7)
    assert np.array_equal(weights["talr"], talr_weights(torch.from_numpy(nll), 0.7).numpy())
    assert np.allclose(weights["dft"], np.exp(-nll))
    assert np.array_equal(weights["mask"], (np.exp(-nll) > 0.1).astype(float))
    assert np.allclose(weights["eaft"], 0.25 / np.log(20))
    assert np.array_equal(weights["infosft"], infosft_weights(torch.from_numpy(nll)).numpy())
    assert (weights["sft"] == 1.0).all()


def test_weights_that_are_all_zero_have_no_share() -> None:
    found = {weight.method: weight for weight in added(frame([5.0, 6.0, 7.0]))["weights"]}
    assert (found["mask"].mean, found["mask"].hard_share, found["mask"].ess_share) == (0.0, 0.0, 0.0)
    assert found["sft"].hard_share == 1.0
