"""Rounding at random: the two neighbours, their mean, and draws that hang on the values alone."""

from __future__ import annotations

import pytest
import torch

from gentletune.methods import rounding
from gentletune.methods.rounding import put, rounded


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 7), (torch.float16, 10)])
def test_each_value_is_one_of_its_neighbours_and_their_mean_is_right(dtype: torch.dtype, bits: int) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 3
    values = values[values.abs() > 0.01]  # fp16's steps are finer relative to smaller ones only down to there
    found = rounded(values, dtype).double()
    step = 2.0 ** (values.double().abs().log2().floor() - bits)
    assert ((found - values.double()).abs() < step).all()
    assert ((found / step) % 1 == 0).all()
    off = ((found - values.double()) / step).mean()
    assert abs(float(off)) < 5 * 0.5 / values.numel() ** 0.5


def test_what_the_dtype_has_stays_and_so_does_what_is_no_number() -> None:
    values = torch.randn(1000).bfloat16().float()
    assert torch.equal(rounded(values, torch.bfloat16).float(), values)
    odd = torch.tensor([0x7FFFFFFF, 0x7FC00000, -0x800000, 0x7F800000], dtype=torch.int32).view(torch.float32)
    found = rounded(odd, torch.bfloat16)
    assert found[:2].isnan().all()
    assert found[2:].tolist() == [-torch.inf, torch.inf]
    assert rounded(torch.empty(0, 3), torch.bfloat16).shape == (0, 3)
    assert rounded(torch.tensor(2.0), torch.bfloat16).item() == 2.0


def test_any_change_of_the_values_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two roundings in a row must not share their draws, wherever in a matrix the change between them was."""
    monkeypatch.setattr(rounding, "BLOCK", 999)  # not a divisor
    values = torch.full((100, 50), 1.003)
    first = rounded(values, torch.bfloat16)
    assert torch.equal(rounded(values, torch.bfloat16), first)
    assert 0.2 < float((first > 1).double().mean()) < 0.6
    for row, column in ((0, 1), (57, 49), (99, 0)):
        other = values.clone()
        other[row, column] = 1.5
        assert float((rounded(other, torch.bfloat16) != first).double().mean()) > 0.2


def test_only_weights_of_two_bytes_are_rounded() -> None:
    values = torch.full((64,), 1.003)
    for dtype in (torch.float32, torch.float64):
        parameter = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
        put(parameter, values)
        assert torch.equal(parameter.detach(), values.to(dtype))
    turned = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16)).T  # not contiguous
    put(turned, values.view(8, 8))
    assert set(turned.detach().flatten().tolist()) == {1.0, 1.0078125}
