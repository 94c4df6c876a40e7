"""Σ f·w(ℓ)·ℓ in one pass, and what it shares with `token_nll`: early gradients, tiles, a padded vocabulary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gentletune.losses import (
    batch_tau,
    chunked,
    dft_weights,
    heads,
    sequence_means,
    talr_weights,
    token_nll,
    weighted_nll,
)

from .head_cases import (
    BACKENDS,
    TILES,
    TOLERANCE,
    WEIGHS,
    Largest,
    OnePass,
    Option,
    case,
    each_backend,
    each_dtype,
    each_function,
    each_option,
    each_tiling,
    each_weigh,
    exact,
    factors_of,
    forbid,
    naive,
    relative,
    with_bias,
)


@each_backend
def test_golden(backend: heads.Backend) -> None:
    # Logits 0 and ln 3: p = 1/4 for target 0 and 3/4 for target 1. Σ f·p·ℓ with f = 2 and 4.
    hidden = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    out = weighted_nll(
        hidden, weight, torch.tensor([0, 1]), dft_weights, factors=torch.tensor([2.0, 4.0]), backend=backend
    )
    assert out.nll.tolist() == pytest.approx([math.log(4), math.log(4 / 3)], rel=1e-14)
    assert out.lse.tolist() == pytest.approx([math.log(4)] * 2, rel=1e-14)
    assert out.weights.tolist() == pytest.approx([0.5, 3.0], rel=1e-14)
    assert out.loss.item() == pytest.approx(0.5 * math.log(4) + 3 * math.log(4 / 3), rel=1e-14)
    # ∂ℓ/∂h = Σ p_j W_j - W_target: 3/4 ln 3 and -1/4 ln 3.
    out.loss.backward()
    assert hidden.grad[:, 0].tolist() == pytest.approx([0.375 * math.log(3), -0.75 * math.log(3)], rel=1e-13)


@each_tiling
@each_dtype
@each_option
@each_weigh
def test_equals_plain_float64(
    sizes: Any, dtype: torch.dtype, option: Option, weigh: chunked.Weigh | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_CPU", sizes)
    hidden, weight, targets, bias = case(13, 32, 700, dtype=dtype, std=0.4)
    options, copies = exact(option, hidden, weight, bias)
    leaves = (hidden, weight, bias) if "bias" in option else (hidden, weight)
    true = naive(*copies[:2], targets, **options)
    for backend, factors in itertools.product(BACKENDS, (None, factors_of(13, dtype))):
        given = with_bias(option, bias) | {"factors": factors, "backend": backend}
        found = weighted_nll(hidden, weight, targets, weigh, **given)
        assert [values.requires_grad for values in found] == [True, False, False, False]
        # Weights of the NLL as it was found: e^-ℓ makes ℓ's rounding, 5e-7 of fp32 near ℓ = 7, a relative error.
        weights = torch.ones(13).double() if weigh is None else weigh(found.nll.double()).double()
        assert weigh is None or weights.unique().numel() > 1
        weights = weights if factors is None else weights * factors.double()
        loss = (weights * true.nll).sum()
        expected = [loss, *true[:2], weights]
        expected += torch.autograd.grad(loss, copies[: len(leaves)], retain_graph=True)
        for result, value in zip([*found, *torch.autograd.grad(found.loss, leaves)], expected, strict=True):
            assert result.dtype == dtype
            assert relative(result, value) <= TOLERANCE[dtype]


@each_backend
def test_no_gradient_flows_through_the_weights(backend: heads.Backend) -> None:
    hidden, weight, targets, _ = case()
    weigh = WEIGHS["soft"]
    nll = naive(hidden, weight, targets).nll
    detached, attached = (
        torch.autograd.grad((w * nll).sum(), hidden, retain_graph=True)[0] for w in (weigh(nll).detach(), weigh(nll))
    )
    (found,) = torch.autograd.grad(weighted_nll(hidden, weight, targets, weigh, backend=backend).loss, hidden)
    assert relative(found, detached) <= 1e-12
    assert relative(found, attached) >= 0.1


@each_option
def test_gradcheck(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", chunked._Sizes(1, 3, 1, 1))
    hidden, weight, targets, bias = case()
    assert torch.autograd.gradcheck(lambda *leaves: OnePass.apply(targets, option, *leaves), (hidden, weight, bias))


@each_backend
def test_factors_do_not_change_the_precision(backend: heads.Backend) -> None:
    hidden, weight, targets, _ = case(dtype=torch.float32)
    out = weighted_nll(hidden, weight, targets, factors=factors_of(7), backend=backend)
    assert {values.dtype for values in out} == {torch.float32}


@pytest.mark.parametrize("by", [3.0, 1 / 7, -1.0, 0.0])
@each_backend
def test_a_scaled_loss_has_a_scaled_gradient(backend: heads.Backend, by: float) -> None:
    leaves, targets = (case()[0], case()[1], case()[3]), case()[2]
    loss = weighted_nll(*leaves[:2], targets, dft_weights, bias=leaves[2], backend=backend).loss
    again = weighted_nll(*leaves[:2], targets, dft_weights, bias=leaves[2], backend=backend).loss
    for found, plain in zip(torch.autograd.grad(loss * by, leaves), torch.autograd.grad(again, leaves), strict=True):
        assert plain.any()
        torch.testing.assert_close(found, by * plain, rtol=1e-14, atol=1e-16)


def test_one_pass_can_be_differentiated_once() -> None:
    hidden, weight, targets, _ = case()
    loss = weighted_nll(hidden, weight, targets, backend="chunked").loss
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    with pytest.raises(RuntimeError, match="computed in the forward pass and has been given out"):
        loss.backward()
    weighted_nll(hidden, weight, targets, backend="chunked").loss.backward()  # a new pass adds to what is there
    torch.testing.assert_close(weight.grad, 2 * once, rtol=1e-14, atol=0)


@each_weigh
def test_without_gradient_the_loss_is_the_same(weigh: chunked.Weigh | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, bias = case(13, 8, 700)
    true = weighted_nll(hidden, weight, targets, weigh, factors=factors_of(13), bias=bias, backend="chunked")
    forbid(monkeypatch, "one_pass")  # it would compute gradients for nobody
    frozen = [t.detach() for t in (hidden, weight, bias)]
    for backend in BACKENDS:
        given: Option = {"factors": factors_of(13), "backend": backend}
        with torch.no_grad():
            results = [weighted_nll(hidden, weight, targets, weigh, bias=bias, **given)]
        results.append(weighted_nll(*frozen[:2], targets, weigh, bias=frozen[2], **given))
        for found in results:
            assert not found.loss.requires_grad
            for values, expected in zip(found, true, strict=True):
                torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-14)


@each_tiling
@each_option
@pytest.mark.parametrize("upstream", ["median", "arbitrary"])
def test_frozen_head_needs_no_second_pass(
    sizes: Any, option: Option, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_CPU", sizes)
    forbid(monkeypatch, "gradients")
    hidden, weight, targets, bias = case(13, 8, 700)
    sequence, grads = torch.tensor([0] * 5 + [1] * 6 + [2] * 2), []
    for backend in BACKENDS:
        options = with_bias(option, bias.detach())
        nll = token_nll(hidden, weight.detach(), targets, backend=backend, **options).nll
        if upstream == "median":  # every weight waits for all tokens
            tau = batch_tau(sequence_means(nll, sequence, 3))
            (grad,) = torch.autograd.grad((talr_weights(nll, tau) * nll).mean(), hidden)
        else:
            (grad,) = torch.autograd.grad(nll.square().prod() + nll.sin().sum(), hidden)
        grads.append(grad)
    assert relative(grads[1], grads[0]) <= 1e-12


def test_trained_head_takes_its_gradient_later(monkeypatch: pytest.MonkeyPatch) -> None:
    # The opposite of the frozen head: a test that `gradients` is what the backward pass calls.
    forbid(monkeypatch, "gradients")
    hidden, weight, targets, _ = case()
    nll = token_nll(hidden, weight, targets, backend="chunked").nll
    with pytest.raises(AssertionError, match=r"chunked\.gradients was called"):
        nll.sum().backward()


RUNS: dict[str, Callable[..., Tensor]] = {
    "token_nll": lambda *given, **options: token_nll(*given, **options).nll.sum(),
    "entropy": lambda *given, **options: token_nll(*given, entropy=True, **options).nll.sum(),
    "frozen": lambda hidden, weight, *given, bias, **options: token_nll(
        hidden, weight.detach(), *given, bias=bias.detach(), **options
    ).nll.sum(),
    "weighted_nll": lambda *given, **options: weighted_nll(*given[:3], dft_weights, **options).loss,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_logits_are_never_whole(
    run: Callable[..., Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_CPU", chunked._Sizes(100 * 1200, 1, 512 * 256, 512))

    def largest(n: int, backend: heads.Backend) -> int:
        hidden, weight, targets, bias = case(n, 4, 1200, dtype=dtype)
        with Largest() as seen:
            run(hidden, weight, targets, bias=bias, softcap=3.0, backend=backend).backward()
        return seen.elements

    assert largest(4000, "reference") >= 4000 * 1200
    tile = largest(4000, "chunked")
    assert tile < 4000 * 1200 / 4
    assert largest(8000, "chunked") == tile  # what grows with the tokens, N·D elements, is smaller


@each_function
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_inside_a_compiled_function(function: Any, backend: heads.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", TILES["uneven"])
    hidden, weight, targets, bias = case(13, 8, 700)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        found = function((2 * h).tanh(), w, targets, bias=b, softcap=3.0, backend=backend)
        return 3 * (found.loss if function is weighted_nll else (talr_weights(found.nll, 2.9) * found.nll).sum())

    def compiler(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        shapes.extend(value.shape for value in inputs if isinstance(value, Tensor))
        return graph.forward

    shapes: list[torch.Size] = []
    leaves = hidden, weight, bias
    plain, compiled = loss(*leaves), torch.compile(loss, backend=compiler)(*leaves)
    assert (weight.shape in shapes) == (backend == "reference")  # a graph of tiles would be one of every tile
    torch.testing.assert_close(compiled, plain, rtol=1e-14, atol=0)
    columns = torch.autograd.grad(compiled, leaves), torch.autograd.grad(plain, leaves)
    torch.testing.assert_close(*columns, rtol=1e-13, atol=1e-15)


@given(
    n=st.integers(0, 14),
    d=st.integers(1, 5),
    v=st.integers(1, 6) | st.integers(250, 700),
    padding=st.integers(0, 3),
    option=st.fixed_dictionaries(
        {"softcap": st.none() | st.floats(0.5, 30), "scale": st.just(1.0) | st.floats(0.1, 3)},
        optional={"bias": st.just(True)},
    ),
    sizes=st.builds(chunked._Sizes, st.integers(1, 6000), st.integers(1, 5), st.integers(1, 6000), st.integers(1, 15)),
    seed=st.integers(0, 99),
)
def test_chunked_equals_reference(
    n: int, d: int, v: int, padding: int, option: Option, sizes: Any, seed: int
) -> None:  # fmt: skip
    hidden, weight, _, bias = leaves = case(n, d, v + padding, seed=seed)
    targets = torch.randint(v, (n,), generator=torch.Generator().manual_seed(seed))
    options = with_bias(option, bias) | {"vocab_size": v}
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_CPU", sizes)
        for backend in BACKENDS:
            found = token_nll(hidden, weight, targets, entropy=True, backend=backend, **options)
            once = weighted_nll(hidden, weight, targets, lambda nll: torch.exp(-nll), backend=backend, **options)
            grads = torch.autograd.grad(
                found.nll.square().sum() + once.loss, leaves[:2] + leaves[3:], allow_unused="bias" not in option
            )
            results.append([*found, *once, *grads])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("one_pass", [False, True], ids=["token_nll", "weighted_nll"])
def test_bf16_gradients_do_not_stall_over_many_tiles(one_pass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uniform over 2 tokens, target 0, h = 1: each of 2000 tokens adds +1/2 to the gradients of the second row and
    # bias, 1000 in all. A bf16 running sum would stop at 128, where 1/2 is below half a unit in the last place.
    monkeypatch.setattr(chunked, "_CPU", TILES["single_tokens"])
    weight, bias = (torch.zeros(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((2, 1), (2,)))
    inputs = torch.ones(2000, 1, dtype=torch.bfloat16), weight, torch.zeros(2000, dtype=torch.long)
    if one_pass:
        weighted_nll(*inputs, bias=bias, backend="chunked").loss.backward()
    else:
        token_nll(*inputs, bias=bias, backend="chunked").nll.sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [[-1000.0], [1000.0]]
    assert bias.grad.tolist() == [-1000.0, 1000.0]


@each_backend
def test_forbidden_tokens_are_as_if_they_were_not_there(
    backend: heads.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bias of -inf on two whole tiles of vocabulary, the first among them: a running maximum starts without a logit.
    monkeypatch.setattr(chunked, "_CPU", TILES["single_tokens"])
    hidden, weight, _, bias = case(13, 8, 700)
    bias.data[:512] = -math.inf
    bias.data[600] = -math.inf
    targets, kept = torch.arange(520, 533), [*range(512, 600), *range(601, 700)]
    found = token_nll(hidden, weight, targets, bias=bias, entropy=True, backend=backend)
    once = weighted_nll(hidden, weight, targets, bias=bias, backend=backend)
    true = naive(hidden, weight[kept], targets - 512, bias=bias[kept])
    for values, expected in zip((*found, once.nll, once.lse), (*true, *true[:2]), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
    leaves = hidden, weight, bias
    expected = torch.autograd.grad(true.nll.sum(), leaves)
    for loss in (found.nll.sum(), once.loss):
        torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected, rtol=1e-12, atol=1e-14)


@each_backend
@each_option
def test_vocab_size_is_slicing(backend: heads.Backend, option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", TILES["uneven"])
    hidden, weight, targets, bias = case(13, 8, 700)
    targets = targets % 601
    options = with_bias(option, bias)
    found = token_nll(hidden, weight, targets, vocab_size=601, entropy=True, backend=backend, **options)
    once = weighted_nll(hidden, weight, targets, vocab_size=601, backend=backend, **options)
    true = naive(hidden, weight[:601], targets, **with_bias(option, bias[:601]))
    leaves = (hidden, weight, bias) if "bias" in option else (hidden, weight)
    for values, expected in zip((*found, *once[1:3]), (*true, *true[:2]), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad(true.nll.sum(), leaves)
    for loss in (found.nll.sum(), once.loss):
        grads = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-14)
        assert not any(grad[601:].any() for grad in grads[1:])


@pytest.mark.parametrize("size", [0, -1, 6])
@each_function
def test_vocab_size_out_of_range(function: Any, size: int) -> None:
    hidden, weight, targets, _ = case()
    with pytest.raises(ValueError, match=f"vocab_size must lie in 1…5, the rows of the weight, got {size}"):
        function(hidden, weight, targets, vocab_size=size)
