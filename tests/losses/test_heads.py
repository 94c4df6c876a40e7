from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gentletune.losses import cce, chunked, dft_weights, heads, token_nll, weighted_nll
from gentletune.losses.cce import _kernel as real_kernel

from .head_cases import (
    BACKENDS,
    TILES,
    TOLERANCE,
    WEIGHS,
    Kernel,
    Option,
    by_hand,
    case,
    each_backend,
    each_dtype,
    each_function,
    each_option,
    each_tiling,
    exact,
    gradients,
    loss_of,
    naive,
    relative,
    with_bias,
)


@each_backend
def test_golden(backend: heads.Backend) -> None:
    # Logits 2·(0 + ln 2) = ln 4 and 2·(ln 3 + 0) = ln 9: p = 4/13 and 9/13, so ℓ = ln(13/4) and ln(13/9), lse = ln 13.
    hidden = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    weight = torch.tensor([[0.0, 5.0], [math.log(3), 7.0]], dtype=torch.float64)
    bias = torch.tensor([math.log(2), 0.0], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    nll, lse, entropy = token_nll(hidden, weight, targets, bias=bias, scale=2.0, entropy=True, backend=backend)
    true = torch.tensor([13 / 4, 13 / 9], dtype=torch.float64).log()
    spread = 4 / 13 * math.log(13 / 4) + 9 / 13 * math.log(13 / 9)
    torch.testing.assert_close(nll, true, rtol=1e-14, atol=0)
    torch.testing.assert_close(lse, torch.tensor([13.0, 13.0], dtype=torch.float64).log(), rtol=1e-14, atol=0)
    assert entropy.tolist() == pytest.approx([spread] * 2, rel=1e-14)


@each_backend
@each_option
def test_equals_a_python_loop(backend: heads.Backend, option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", TILES["uneven"])
    hidden, weight, targets, bias = case(7, 2, 300, std=2.0)
    found = token_nll(hidden, weight, targets, entropy=True, backend=backend, **with_bias(option, bias))
    options = with_bias(option, bias.tolist())
    true = by_hand(hidden.tolist(), weight.tolist(), targets.tolist(), **options)
    for values, expected in zip(found, true, strict=True):
        assert values.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@each_backend
@each_option
def test_gradcheck(backend: heads.Backend, option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CPU", TILES["uneven"])
    hidden, weight, targets, bias = case()

    def nll(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return token_nll(h, w, targets, backend=backend, **with_bias(option, b)).nll

    assert torch.autograd.gradcheck(nll, (hidden, weight, bias))


@each_tiling
@each_dtype
@each_option
def test_every_tiling_equals_plain_float64(
    sizes: Any, dtype: torch.dtype, option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_CPU", sizes)
    hidden, weight, targets, bias = case(13, 32, 700, dtype=dtype, std=0.4)
    options, copies = exact(option, hidden, weight, bias)
    true = naive(*copies[:2], targets, **options)
    count = 3 if "bias" in option else 2
    expected = [*true, *gradients(true.nll, *copies[:count])]
    for backend in BACKENDS:
        found = token_nll(hidden, weight, targets, entropy=True, backend=backend, **with_bias(option, bias))
        results = [*found, *gradients(found.nll, *(hidden, weight, bias)[:count])]
        for result, value in zip(results, expected, strict=True):
            assert result.dtype == dtype
            assert relative(result, value) <= TOLERANCE[dtype]


@pytest.mark.parametrize("needs", range(1, 8))
@each_function
def test_chunked_gives_only_the_gradients_asked_for(function: Any, needs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[chunked.Gradients] = []
    result = chunked._Sums.result
    monkeypatch.setattr(chunked._Sums, "result", lambda self: made.append(result(self)) or made[0])
    hidden, weight, targets, bias = case()
    nll = naive(hidden, weight, targets, bias=bias).nll
    true = torch.autograd.grad((dft_weights(nll) * nll).sum(), (hidden, weight, bias))
    leaves = [t.detach().requires_grad_(bool(needs >> i & 1)) for i, t in enumerate((hidden, weight, bias))]
    loss_of(function, *leaves[:2], targets, dft_weights, bias=leaves[2], backend="chunked").backward()
    for leaf, expected in zip(leaves, true, strict=True):
        assert (leaf.grad is not None) == leaf.requires_grad
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-15)
    # Nor is another computed: autograd would drop it without a word.
    assert [[grad is not None for grad in grads] for grads in made] == [[leaf.requires_grad for leaf in leaves]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@each_backend
@each_function
def test_bf16_is_no_worse_than_naive_bf16(
    function: Any, backend: heads.Backend, frozen: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_CPU", chunked._Sizes(10 * 300, 1, 1, 10))
    hidden, weight, targets, bias = case(64, 32, 300, dtype=torch.bfloat16, seed=seed)
    options, copies = exact({"bias": True}, hidden, weight, bias)
    true = naive(*copies[:2], targets, **options).nll
    rough = functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    leaves, weigh = (hidden, weight, bias)[: 1 if frozen else 3], WEIGHS["talr"]
    fine = torch.autograd.grad((weigh(true) * true).sum(), copies[: len(leaves)])
    low = torch.autograd.grad((weigh(rough) * rough).sum(), leaves)
    weight.requires_grad_(not frozen)
    bias.requires_grad_(not frozen)
    nll = function(hidden, weight, targets, bias=bias, backend=backend).nll
    loss = loss_of(function, hidden, weight, targets, weigh, bias=bias, backend=backend)
    assert nll.dtype == loss.dtype == torch.float32
    assert relative(nll, true) <= 1.05 * relative(rough, true) + 1e-6
    for found, other, best in zip(torch.autograd.grad(loss, leaves), low, fine, strict=True):
        assert found.dtype == torch.bfloat16
        assert relative(found, best) <= 1.05 * relative(other, best) + 1e-6


@pytest.mark.parametrize("seed", range(3))
@each_function
def test_bf16_of_one_tile_rounds_as_autograd_does(function: Any, seed: int) -> None:
    hidden, weight, targets, bias = case(64, 32, 300, dtype=torch.bfloat16, seed=seed)
    options, copies = exact({"bias": True}, hidden, weight, bias)
    true = naive(*copies[:2], targets, **options).nll
    fine = torch.autograd.grad((dft_weights(true) * true).sum(), copies)
    errors = []
    for backend in BACKENDS:
        loss = loss_of(function, hidden, weight, targets, dft_weights, bias=bias, backend=backend)
        grads = torch.autograd.grad(loss, (hidden, weight, bias))
        errors.append([relative(found, best) for found, best in zip(grads, fine, strict=True)])
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@each_backend
@each_function
def test_autocast(function: Any, backend: heads.Backend) -> None:
    hidden, weight, targets, bias = case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(function, hidden, weight, targets, dft_weights, bias=bias, backend=backend)
    loss.backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    dtypes = torch.bfloat16, torch.bfloat16, torch.float32  # autocast leaves the bias, which fp32 logits get
    low = [t.detach().to(d).requires_grad_() for t, d in zip((hidden, weight, bias), dtypes, strict=True)]
    same = loss_of(function, *low[:2], targets, dft_weights, bias=low[2], backend=backend)
    same.backward()
    assert torch.equal(loss, same)
    for leaf, other in zip((hidden, weight, bias), low, strict=True):
        assert torch.equal(leaf.grad, other.grad.float())


@each_backend
@each_function
def test_no_tokens(function: Any, backend: heads.Backend) -> None:
    hidden, weight, targets, bias = case(0)
    options: Option = {"entropy": True} if function is token_nll else {"weigh": dft_weights, "factors": torch.ones(0)}
    found = function(hidden, weight, targets, bias=bias, backend=backend, **options)
    assert [values.shape for values in found[-3:]] == [(0,)] * 3
    found[0].sum().backward()
    assert found[0].sum().item() == 0
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()
    assert not bias.grad.any()


@each_backend
def test_only_nll_has_a_gradient(backend: heads.Backend) -> None:
    hidden, weight, targets, _ = case()
    found = token_nll(hidden, weight, targets, entropy=True, backend=backend)
    assert [values.requires_grad for values in found] == [True, False, False]
    assert token_nll(hidden, weight, targets, backend=backend).entropy is None


@each_backend
@each_function
def test_tied_weight_gets_the_gradient_of_both_uses(function: Any, backend: heads.Backend) -> None:
    _, table, targets, _ = case(6)
    ids = torch.tensor([0, 1, 1, 3, 4, 0])
    loss_of(function, table[ids].tanh(), table, targets, dft_weights, backend=backend).backward()
    embedding, head = (table.detach().clone().requires_grad_() for _ in range(2))
    nll = naive(embedding[ids].tanh(), head, targets).nll
    parts = torch.autograd.grad((dft_weights(nll) * nll).sum(), (embedding, head))
    assert all(part.any() for part in parts)
    torch.testing.assert_close(table.grad, parts[0] + parts[1], rtol=1e-13, atol=1e-15)


@each_backend
@each_function
def test_large_logits_stay_finite(function: Any, backend: heads.Backend) -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    loss = loss_of(function, hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]), backend=backend)
    assert loss.item() == 2e4
    assert torch.autograd.grad(loss, hidden)[0].tolist() == [[2.0]]


@each_dtype
@each_backend
@pytest.mark.parametrize("top", [0, 300, 699], ids=["first_tile", "middle_tile", "last_tile"])
def test_entropy_from_certain_to_uniform(
    top: int, backend: heads.Backend, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One logit of 1e4, 0 and -1e4 among 699 zeros: entropy 0, ln 700 and ln 699.
    monkeypatch.setattr(chunked, "_CPU", TILES["single_tokens"])
    weight = torch.zeros(700, 1, dtype=dtype)
    weight[top] = 1
    hidden, targets = torch.tensor([[1e4], [0], [-1e4]], dtype=dtype), torch.zeros(3, dtype=torch.long)
    entropy = token_nll(hidden, weight, targets, entropy=True, backend=backend).entropy
    assert entropy.tolist() == pytest.approx([0, math.log(700), math.log(699)], rel=TOLERANCE[dtype], abs=1e-15)


@pytest.mark.parametrize(("limit", "tiles"), [(34, True), (35, False)])
@each_function
def test_auto_takes_tiles_once_the_logits_are_many(
    function: Any, limit: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for name in ("find", "one_pass"):
        run = getattr(chunked, name)
        monkeypatch.setattr(chunked, name, lambda *given, name=name, run=run: used.append(name) or run(*given))
    monkeypatch.setattr(heads, "_SMALL", limit)
    hidden, weight, targets, _ = case(7, 4, 5)
    function(hidden, weight, targets)
    assert used == (["find" if function is token_nll else "one_pass"] if tiles else [])


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "bias"),
    [
        ((3, 4), (5, 4), (2,), None),
        ((3, 4), (5, 3), (3,), None),
        ((1, 3, 4), (5, 4), (1, 3), None),
        ((3, 4), (4,), (3,), None),
        ((3, 4), (5, 4), (3, 1), None),
        ((3, 4), (5, 4), (3,), (1,)),
    ],
)
@pytest.mark.parametrize("backend", heads.BACKENDS)
@each_function
def test_shapes_that_do_not_fit(
    hidden: tuple[int, ...], weight: tuple[int, ...], targets: tuple[int, ...], bias: tuple[int, ...] | None,
    backend: heads.Backend, function: Any,
) -> None:  # fmt: skip
    given = None if bias is None else torch.zeros(bias)
    ids = torch.zeros(targets, dtype=torch.long)
    with pytest.raises(ValueError, match="shapes do not fit"):
        function(torch.zeros(hidden), torch.zeros(weight), ids, bias=given, backend=backend)


@pytest.mark.parametrize("target", [-100, 5, 6])
@each_backend
@each_function
def test_a_target_that_is_no_token_is_an_error(function: Any, backend: heads.Backend, target: int) -> None:
    hidden, weight, targets, _ = case(v=7)
    targets = targets.clamp_max(4)
    targets[3] = target
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        function(hidden, weight, targets, vocab_size=5, backend=backend)


@each_function
def test_unknown_backend(function: Any) -> None:
    hidden, weight, targets, _ = case()
    with pytest.raises(ValueError, match="unknown head backend 'fast'; known: auto, cce, chunked, reference"):
        function(hidden, weight, targets, backend="fast")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(cce, "IMPLEMENTATION", "torch_compile")
    monkeypatch.setattr(cce, "_kernel", lambda: found)
    return found


@pytest.mark.parametrize("package", [False, True], ids=["kernel", "package"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_cce_equals_reference(
    package: bool, softcap: float | None, scale: float, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        pytest.importorskip("cut_cross_entropy")
        monkeypatch.setattr(cce, "_kernel", real_kernel)
    hidden, weight, targets, _ = case(13, 32, 300, dtype=torch.float32, std=0.4)
    options: Option = {"softcap": softcap, "scale": scale, "entropy": True}
    true = token_nll(hidden, weight, targets, backend="reference", **options)
    with torch.compiler.set_stance("force_eager"):  # the package's arithmetic, without a compiler's minute
        found = token_nll(hidden, weight, targets, backend="cce", **options)
    assert [values.requires_grad for values in found] == [True, False, False]
    columns = [*found, *gradients(found.nll, hidden, weight)], [*true, *gradients(true.nll, hidden, weight)]
    for value, expected in zip(*columns, strict=True):
        assert value.dtype == torch.float32
        assert relative(value, expected) <= 1e-6
    # The filter is off: with it the kernel drops small gradients.
    assert package or kernel.given == [{"reduction": "none", "filter_eps": None, "impl": "torch_compile"}]


def test_cce_serves_weighted_nll(kernel: Kernel) -> None:
    hidden, weight, targets, _ = case(13, 32, 300, dtype=torch.float32, std=0.4)
    results = [weighted_nll(hidden, weight, targets, dft_weights, backend=backend) for backend in ("reference", "cce")]
    assert len(kernel.given) == 1
    grads = [torch.autograd.grad(result.loss, (hidden, weight)) for result in results]
    for true, found in zip((*results[0], *grads[0]), (*results[1], *grads[1]), strict=True):
        assert relative(found, true) <= 1e-6


def test_auto_takes_cce_where_it_can_run(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, bias = case()
    token_nll(hidden, weight, targets)  # small
    monkeypatch.setattr(heads, "_SMALL", 34)
    token_nll(hidden, weight, targets, bias=bias)
    token_nll(hidden, weight, targets, entropy=True)  # tiles give it along the way
    assert not kernel.given
    token_nll(hidden, weight, targets)
    assert len(kernel.given) == 1


def test_cce_says_why_it_cannot_run(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, bias = case()

    def reason(**options: Any) -> str:
        with pytest.raises(ValueError) as error:
            token_nll(hidden, weight, targets, backend="cce", **options)
        return str(error.value)

    assert reason(bias=bias) == "head backend cce: it knows no head bias; use auto or chunked"
    monkeypatch.setattr(cce, "_kernel", lambda: None)
    assert reason() == (
        "head backend cce: cut-cross-entropy is not installed (pip install cut-cross-entropy); use auto or chunked"
    )
    monkeypatch.setattr(cce, "IMPLEMENTATION", "cce")
    assert reason() == "head backend cce: it needs a CUDA GPU; use auto or chunked"


def test_cce_needs_low_precision(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cce, "IMPLEMENTATION", "cce")
    head = chunked.Head(torch.empty(0), None, None, 1.0)
    said = {
        dtype: cce.obstacle(SimpleNamespace(device=torch.device("cuda"), dtype=dtype), head)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    assert list(said.values()) == [None, None, "it needs bf16 or fp16, got torch.float32"]
