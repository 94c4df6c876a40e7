"""The entropy of the most probable tokens, in tiles and whole, and weights that follow from it in one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gentletune.losses import chunked, eaft_weights, token_nll, topk_entropy, weighted_nll
from gentletune.losses.chunked import Head, _Sizes

from .head_cases import BACKENDS, OPTIONS, TILES, case

N, D, V, K = 13, 6, 700, 20


def inputs(option: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    hidden, weight, targets, bias = case(N, D, V, std=0.9)
    return hidden, weight, targets, option | ({"bias": bias} if option.get("bias") else {})


def expected(hidden: Tensor, weight: Tensor, options: dict[str, Any]) -> Tensor:
    """By sorting whole logits in float64."""
    logits = Head(weight, **{"bias": None} | options).logits(hidden).detach()
    top = logits.sort(-1, descending=True).values[:, :K].softmax(-1)
    return -(top * top.log()).sum(-1)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("sizes", TILES.values(), ids=TILES)
def test_tiles_find_it(option: dict[str, Any], sizes: _Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", sizes)
    hidden, weight, targets, options = inputs(option)
    wanted = expected(hidden, weight, options)
    assert wanted.std() > 1e-4
    torch.testing.assert_close(topk_entropy(Head(weight, **{"bias": None} | options).logits(hidden), K), wanted)
    for backend in BACKENDS:
        for head in (weight, weight.detach()):
            found = token_nll(hidden, head, targets, entropy=K, backend=backend, **options)
            assert found.entropy is not None
            assert not found.entropy.requires_grad
            torch.testing.assert_close(found.entropy, wanted, rtol=1e-12, atol=1e-12)
        assert found.nll.requires_grad


@pytest.mark.parametrize("sizes", TILES.values(), ids=TILES)
def test_weights_from_it_take_one_pass(sizes: _Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", sizes)
    hidden, weight, targets, options = inputs(OPTIONS["all"])
    weights = eaft_weights(expected(hidden, weight, options), K)
    nll = token_nll(hidden, weight, targets, backend="reference", **options).nll
    wanted = torch.autograd.grad((weights * nll).sum(), (hidden, weight, options["bias"]))
    for backend in BACKENDS:
        out = weighted_nll(
            hidden, weight, targets, lambda _nll, entropy: eaft_weights(entropy, K), top_k=K, backend=backend, **options
        )
        torch.testing.assert_close(out.weights, weights, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out.loss, (weights * nll).sum().detach(), rtol=1e-12, atol=0, check_device=False)
        found = torch.autograd.grad(out.loss, (hidden, weight, options["bias"]))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_no_token_has_none_and_too_many_are_refused() -> None:
    hidden, weight, targets, _ = case(4, 3, 30)
    for backend in BACKENDS:
        nothing = token_nll(hidden[:0], weight, targets[:0], entropy=5, backend=backend).entropy
        assert nothing is not None
        assert nothing.shape == (0,)
        for k in (0, 31):
            with pytest.raises(ValueError, match=r"k must lie in \[2, 30\]"):
                token_nll(hidden, weight, targets, entropy=k, backend=backend)
