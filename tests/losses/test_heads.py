from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gentletune.losses import heads, token_nll

BACKENDS = ("reference", "chunked")
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 3.0, "scale": 1.7},
}
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_option = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens a slice at V = 5: N = 7 makes slices of 3, 3 and an uneven 1."""
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", 3 * 5 + 2)


def case(
    n: int = 7, d: int = 4, v: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0, std: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, bias; the float tensors ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    floats = [std * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, d), (v, d), (v,))]
    hidden, weight, bias = (t.to(dtype).requires_grad_() for t in floats)
    return hidden, weight, torch.randint(v, (n,), generator=generator), bias


def by_hand(
    hidden: list[list[float]],
    weight: list[list[float]],
    targets: list[int],
    bias: list[float] | None,
    softcap: float | None,
    scale: float,
) -> tuple[list[float], list[float]]:
    nll, lse = [], []
    for h, target in zip(hidden, targets, strict=True):
        logits = []
        for j, row in enumerate(weight):
            z = sum(a * b for a, b in zip(h, row, strict=True)) + (bias[j] if bias else 0.0)
            z *= scale
            logits.append(softcap * math.tanh(z / softcap) if softcap else z)
        lse.append(math.log(sum(math.exp(z) for z in logits)))
        nll.append(lse[-1] - logits[target])
    return nll, lse


def gradients(nll: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of Σ (1 + i/N) ℓ_i: every token has another weight."""
    return torch.autograd.grad(nll, leaves, torch.linspace(1, 2, len(nll), dtype=nll.dtype))


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


@each_backend
def test_golden(backend: heads.Backend) -> None:
    # Logits 2·(0 + ln 2) = ln 4 and 2·(ln 3 + 0) = ln 9: p = 4/13 and 9/13, so ℓ = ln(13/4) and ln(13/9), lse = ln 13.
    hidden = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    weight = torch.tensor([[0.0, 5.0], [math.log(3), 7.0]], dtype=torch.float64)
    bias = torch.tensor([math.log(2), 0.0], dtype=torch.float64)
    nll, lse = token_nll(hidden, weight, torch.tensor([0, 1]), bias=bias, scale=2.0, backend=backend)
    torch.testing.assert_close(nll, torch.tensor([13 / 4, 13 / 9], dtype=torch.float64).log(), rtol=1e-14, atol=0)
    torch.testing.assert_close(lse, torch.tensor([13.0, 13.0], dtype=torch.float64).log(), rtol=1e-14, atol=0)


@pytest.mark.usefixtures("small_chunks")
@each_backend
@each_option
def test_equals_a_python_loop(backend: heads.Backend, option: dict[str, float]) -> None:
    hidden, weight, targets, bias = case(std=2.0)
    given = option | {"bias": bias if "bias" in option else None}
    nll, lse = token_nll(hidden, weight, targets, backend=backend, **given)
    true_nll, true_lse = by_hand(
        hidden.tolist(),
        weight.tolist(),
        targets.tolist(),
        bias.tolist() if "bias" in option else None,
        option.get("softcap"),
        option.get("scale", 1.0),
    )
    assert nll.tolist() == pytest.approx(true_nll, rel=1e-12, abs=1e-13)
    assert lse.tolist() == pytest.approx(true_lse, rel=1e-12, abs=1e-13)


@pytest.mark.usefixtures("small_chunks")
@each_backend
@each_option
def test_gradcheck(backend: heads.Backend, option: dict[str, float]) -> None:
    hidden, weight, targets, bias = case()

    def nll(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = option | {"bias": b if "bias" in option else None}
        return token_nll(h, w, targets, backend=backend, **given)[0]

    assert torch.autograd.gradcheck(nll, (hidden, weight, bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("chunk", [1, 3 * 50, 10 * 50, 10**6])
@each_option
def test_chunked_equals_reference(
    dtype: torch.dtype, tolerance: float, chunk: int, option: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", chunk)
    hidden, weight, targets, bias = case(23, 16, 50, dtype=dtype)
    given = option | {"bias": bias if "bias" in option else None}
    leaves = [hidden, weight, *([bias] if "bias" in option else [])]
    results = [token_nll(hidden, weight, targets, backend=backend, **given) for backend in BACKENDS]
    (true, true_lse), (nll, lse) = results
    assert nll.dtype == lse.dtype == dtype
    assert relative(nll.detach(), true.detach()) <= tolerance
    assert relative(lse, true_lse) <= tolerance
    for found, expected in zip(gradients(nll, *leaves), gradients(true, *leaves), strict=True):
        assert relative(found, expected) <= tolerance


@pytest.mark.parametrize("wanted", range(3))
def test_chunked_gives_only_the_gradients_asked_for(wanted: int) -> None:
    hidden, weight, targets, bias = case()
    true = gradients(token_nll(hidden, weight, targets, bias=bias, backend="reference")[0], hidden, weight, bias)
    leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((hidden, weight, bias))]
    token_nll(leaves[0], leaves[1], targets, bias=leaves[2], backend="chunked")[0].backward(
        torch.linspace(1, 2, 7, dtype=torch.float64)
    )
    assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(3)]
    torch.testing.assert_close(leaves[wanted].grad, true[wanted], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
@each_backend
def test_bf16_is_no_worse_than_naive_bf16(backend: heads.Backend, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", 10 * 300)
    hidden, weight, targets, bias = case(64, 32, 300, dtype=torch.bfloat16, seed=seed, std=0.7)
    leaves = (hidden, weight, bias)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    true = functional.cross_entropy(exact[0] @ exact[1].T + exact[2], targets, reduction="none")
    naive = functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    nll, _ = token_nll(hidden, weight, targets, bias=bias, backend=backend)
    assert nll.dtype == torch.float32
    assert relative(nll.detach(), true.detach()) <= 1.05 * relative(naive.detach(), true.detach()) + 1e-6
    columns = (gradients(nll, *leaves), gradients(naive, *leaves), gradients(true, *exact))
    for found, rough, fine in zip(*columns, strict=True):
        assert found.dtype == torch.bfloat16
        assert relative(found, fine) <= 1.05 * relative(rough, fine) + 1e-6


def test_bf16_bias_gradient_does_not_stall_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Uniform over 2 tokens, target 0: each of 2000 tokens adds +1/2 to the second bias' gradient, 1000 in all.
    # A bf16 running sum would stop at 128, where 1/2 is below half a unit in the last place.
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", 2)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    hidden, weight = torch.zeros(2000, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    nll, _ = token_nll(hidden, weight, torch.zeros(2000, dtype=torch.long), bias=bias, backend="chunked")
    nll.sum().backward()
    assert bias.grad is not None
    assert bias.grad.dtype == torch.bfloat16
    assert bias.grad.tolist() == [-1000.0, 1000.0]


@each_backend
def test_autocast(backend: heads.Backend) -> None:
    hidden, weight, targets, _ = case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nll, lse = token_nll(hidden, weight, targets, backend=backend)
    nll.sum().backward()
    assert nll.dtype == lse.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    low = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    same, _ = token_nll(*low, targets, backend=backend)
    same.sum().backward()
    assert torch.equal(nll, same)
    assert torch.equal(hidden.grad, low[0].grad.float())
    assert torch.equal(weight.grad, low[1].grad.float())


@each_backend
def test_no_tokens(backend: heads.Backend) -> None:
    hidden, weight, targets, bias = case(0)
    nll, lse = token_nll(hidden, weight, targets, bias=bias, backend=backend)
    assert nll.shape == lse.shape == (0,)
    nll.sum().backward()
    assert hidden.grad.shape == (0, 4)
    assert not weight.grad.any()
    assert not bias.grad.any()


@each_backend
def test_lse_has_no_gradient(backend: heads.Backend) -> None:
    hidden, weight, targets, _ = case()
    nll, lse = token_nll(hidden, weight, targets, backend=backend)
    assert nll.requires_grad
    assert not lse.requires_grad


@each_backend
def test_tied_weight_gets_the_gradient_of_both_uses(backend: heads.Backend) -> None:
    _, table, targets, _ = case(6)
    ids = torch.tensor([0, 1, 1, 3, 4, 0])
    tied = token_nll(table[ids].tanh(), table, targets, backend=backend)[0]
    (total,) = gradients(tied, table)
    embedding, head = (table.detach().clone().requires_grad_() for _ in range(2))
    parts = gradients(token_nll(embedding[ids].tanh(), head, targets, backend=backend)[0], embedding, head)
    assert all(part.any() for part in parts)
    torch.testing.assert_close(total, parts[0] + parts[1], rtol=1e-13, atol=1e-15)


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4]], requires_grad=True)
    for backend in BACKENDS:
        nll, _ = token_nll(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]), backend=backend)
        assert nll.item() == 2e4
        assert torch.autograd.grad(nll, hidden)[0].tolist() == [[2.0]]


@pytest.mark.parametrize(("limit", "expected"), [(34, "chunked"), (35, "reference")])
def test_auto_chunks_once_the_logits_outgrow_a_slice(
    limit: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", limit)
    for name in BACKENDS:
        monkeypatch.setattr(heads, f"_{name}", lambda *_, name=name: used.append(name))
    hidden, weight, targets, _ = case(7, 4, 5)
    token_nll(hidden, weight, targets)
    assert used == [expected]


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
@each_backend
def test_shapes_that_do_not_fit(
    hidden: tuple[int, ...],
    weight: tuple[int, ...],
    targets: tuple[int, ...],
    bias: tuple[int, ...] | None,
    backend: heads.Backend,
) -> None:
    given = None if bias is None else torch.zeros(bias)
    ids = torch.zeros(targets, dtype=torch.long)
    with pytest.raises(ValueError, match="shapes do not fit"):
        token_nll(torch.zeros(hidden), torch.zeros(weight), ids, bias=given, backend=backend)


def test_unknown_backend() -> None:
    hidden, weight, targets, _ = case()
    with pytest.raises(ValueError, match="unknown head backend 'fast'; known: auto, chunked, reference"):
        token_nll(hidden, weight, targets, backend="fast")
