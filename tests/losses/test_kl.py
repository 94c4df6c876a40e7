"""KL from base of the tiled head against whole logits and autograd, and what the tail leaves out of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from gentletune.losses import BaseTopK, kl, kl_from_base
from tests.losses.head_cases import case, each_option, each_tiling, factors_of, relative, with_bias

N, V = 13, 700


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, option: dict[str, Any]) -> Tensor:
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits * option.get("scale", 1.0)
    cap = option.get("softcap")
    return cap * (logits / cap).tanh() if cap else logits


def coarse(p: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    """KL between two distributions over the tokens `ids` and one outcome for all others."""
    top = torch.zeros_like(p, dtype=torch.bool).scatter(1, ids, True)
    q = log_q.exp()
    at = torch.where(top & (p > 0), p * (p.log() - log_q), 0.0).sum(1)
    tail_p, tail_q = p.masked_fill(top, 0).sum(1), q.masked_fill(top, 0).sum(1)
    return at + torch.where(tail_p > 0, tail_p * (tail_p.log() - tail_q.log()), 0.0)


@each_tiling
@each_option
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_are_those_of_whole_logits(
    masked: bool, option: dict[str, Any], sizes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "_sizes", lambda _: sizes)
    hidden, weight, targets, bias = case(N, 4, V)
    base_logits = logits_of(*[t.detach() for t in case(N, 4, V, seed=1, std=1.5)[:2]], None, {})
    base = BaseTopK.of(base_logits, targets, k=9)
    targets[:4] = base.ids[:4, 0]  # of some positions the base model's favourite stands there
    base = BaseTopK.of(base_logits, targets, k=9)
    given = with_bias(option, bias)
    found = kl_from_base(hidden, weight, targets, base, masked=masked, factors=factors_of(N), **given)

    log_q, p = logits_of(hidden, weight, given["bias"], option), base_logits
    if masked:
        log_q, p = (one.scatter(1, targets[:, None], -torch.inf) for one in (log_q, p))
    expected = coarse(p.softmax(1), log_q.log_softmax(1), base.ids)
    assert relative(found.kl, expected) < 1e-11
    leaves = [hidden, weight, *([bias] if "bias" in option else [])]
    wanted = torch.autograd.grad((factors_of(N) * expected).sum(), leaves)
    for one, other in zip(torch.autograd.grad(found.loss, leaves), wanted, strict=True):
        assert relative(one, other) < 1e-11


def test_it_is_the_exact_kl_where_all_tokens_are_kept() -> None:
    hidden, weight, targets, _ = case(N, 4, 50)
    base_logits = 2 * torch.randn(N, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = kl_from_base(hidden, weight, targets, BaseTopK.of(base_logits, targets, k=64))
    log_q = (hidden @ weight.T).log_softmax(1)
    exact = kl_div(log_q, base_logits.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert relative(found.kl, exact) < 1e-12
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    assert relative(gradient, torch.autograd.grad(exact.sum(), hidden)[0]) < 1e-11


def test_what_the_tail_hides_is_its_mass_times_the_kl_within_it() -> None:
    hidden, weight, targets, _ = case(40, 4, V, std=1.0)
    base_logits = hidden.detach() @ weight.detach().T + 0.5 * torch.randn(40, V, dtype=torch.float64)
    base = BaseTopK.of(base_logits, targets, k=64)
    found = kl_from_base(hidden, weight, targets, base).kl
    log_p, log_q = base_logits.log_softmax(1), (hidden @ weight.T).log_softmax(1).detach()
    exact = (log_p.exp() * (log_p - log_q)).sum(1)
    tail = torch.ones_like(log_p, dtype=torch.bool).scatter(1, base.ids, False)
    inside_p, inside_q = (one.masked_fill(~tail, -torch.inf).log_softmax(1) for one in (log_p, log_q))
    ratio = torch.where(tail, inside_p - inside_q, 0.0)
    hidden_part = base.log_tail.exp() * (inside_p.exp() * ratio).sum(1)
    assert relative(exact - found, hidden_part) < 1e-9
    assert bool((found <= exact).all())
    assert bool((exact - found <= base.log_tail.exp() * ratio.amax(1)).all())


@pytest.mark.parametrize("masked", [False, True])
def test_the_base_model_itself_is_at_zero_and_stays_there(masked: bool) -> None:
    hidden, weight, targets, _ = case(N, 4, V, dtype=torch.float32)
    base = BaseTopK.of((hidden @ weight.T).detach(), targets, k=64)
    found = kl_from_base(hidden, weight, targets, base, masked=masked)
    assert float(found.kl.abs().max()) < 1e-6
    (gradient,) = torch.autograd.grad(found.loss, weight)
    assert float(gradient.abs().max()) < 1e-6


def test_masked_takes_no_part_in_the_target() -> None:
    hidden, weight, targets, _ = case(N, 4, V)
    base = BaseTopK.of((hidden @ weight.T).detach(), targets, k=64)
    pushed = weight.detach().clone()
    logits = hidden.detach() @ pushed.T
    logits.scatter_add_(1, targets[:, None], torch.full((N, 1), 3.0, dtype=torch.float64))  # the targets alone learned
    eye = torch.eye(V, dtype=torch.float64)
    assert float(kl_from_base(logits, eye, targets, base, masked=True).kl.abs().max()) < 1e-12
    assert float(kl_from_base(logits, eye, targets, base).kl.min()) > 0


@pytest.mark.parametrize("far", [60.0, 200.0])
def test_a_model_that_moved_far_away_has_a_finite_kl_and_gradient(far: float) -> None:
    logits = torch.zeros(2, 30)
    logits[:, 0] = far
    logits.requires_grad_()
    targets = torch.tensor([1, 2])
    base = BaseTopK.of(torch.linspace(0, 1, 60).view(2, 30), targets, k=5)
    for masked in (False, True):
        found = kl_from_base(logits, torch.eye(30), targets, base, masked=masked)
        (gradient,) = torch.autograd.grad(found.loss, logits)
        assert bool(found.kl.isfinite().all())
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) <= 1


def test_shapes_that_do_not_fit_are_told() -> None:
    hidden, weight, targets, _ = case()
    base = BaseTopK.of(torch.zeros(3, 5), targets[:3], k=2)
    with pytest.raises(ValueError, match="7 positions, and the base model's 3"):
        kl_from_base(hidden, weight, targets, base)
