"""MoFO's step against its formula in float64, and as the optimiser of a training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.methods import parse_method
from gentletune.methods.adapted import check_adapted
from gentletune.methods.update_rules.mofo import momentum_filtered_adamw
from tests.helpers import tiny_recipe

RATE, BETAS, EPS, DECAY = 0.01, (0.9, 0.95), 1e-8, 0.1


def start(share: float, shape: tuple[int, ...] = (7, 9)) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    kind = momentum_filtered_adamw()
    return weight, kind([weight], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, share=share)


def gradients(shape: tuple[int, ...], steps: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


@pytest.mark.parametrize("share", [0.1, 0.37, 0.001])
def test_it_moves_the_entries_of_the_largest_momentum(share: float) -> None:
    weight, optimizer = start(share)
    value, first, second = weight.detach().numpy().copy(), np.zeros((7, 9)), np.zeros((7, 9))
    count = max(1, int(share * 63))
    for step, gradient in enumerate(gradients((7, 9)), start=1):
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.numpy()
        first = BETAS[0] * first + (1 - BETAS[0]) * g
        second = BETAS[1] * second + (1 - BETAS[1]) * g * g
        kept = np.abs(first) >= np.sort(np.abs(first).ravel())[-count]
        assert kept.sum() == count
        moved = first / (1 - BETAS[0] ** step) / (np.sqrt(second / (1 - BETAS[1] ** step)) + EPS)
        value = value * (1 - RATE * DECAY) - RATE * np.where(kept, moved, 0)
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(7, 9), (9,)])
def test_a_share_of_one_and_a_vector_are_adamw(shape: tuple[int, ...]) -> None:
    weight, optimizer = start(1.0 if len(shape) > 1 else 0.1, shape)
    other = torch.nn.Parameter(weight.detach().clone())
    adamw = torch.optim.AdamW([other], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False)
    for gradient in gradients(shape):
        weight.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-14)
    assert optimizer.state_dict()["state"][0].keys() == adamw.state_dict()["state"][0].keys()


def test_it_goes_on_from_its_state() -> None:
    weight, optimizer = start(0.2)
    whole, again = gradients((7, 9)), copy.deepcopy(weight)
    for number, gradient in enumerate(whole):
        if number == 2:
            again = torch.nn.Parameter(weight.detach().clone())
            resumed = momentum_filtered_adamw()([again], lr=1.0, betas=BETAS, eps=EPS, share=0.2)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        weight.grad = gradient.clone()
        optimizer.step()
        if number >= 2:
            again.grad = gradient.clone()
            resumed.step()
    assert torch.equal(weight, again)


QUIET: dict[str, Any] = {"evaluate": False, "probe_every": 0, "precision": "fp32", "batch_size": 4, "max_steps": 1,
                         "train_rows": 4, "warmup": 0.0}  # fmt: skip


def test_a_step_of_training_moves_a_share_of_each_matrix(tiny_dir: Path, tmp_path: Path) -> None:
    base = load_file(tiny_dir / "model.safetensors")
    changed = {}
    for name, more in (("whole", {}), ("cut", {"batch_size": 2, "gradient_accumulation": 2})):
        record = train(tiny_recipe(tiny_dir, tmp_path / name, method="mofo(share=0.1)", **QUIET | more))
        assert record.status == "complete", record.error
        changed[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    for name, tensor in changed["whole"].items():
        moved = tensor != base[name]
        if tensor.ndim > 1:
            assert moved.float().mean() == pytest.approx(0.1, abs=0.01)
        else:
            assert moved.float().mean() > 0.9
        other = changed["cut"][name]
        assert ((other != base[name]) == moved).float().mean() > 0.999  # accumulation sums in another order
        torch.testing.assert_close(other, tensor, rtol=0, atol=1e-3) if tensor.ndim == 1 else None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "lion_8bit"}, "'mofo' filters AdamW's steps, and optimizer is lion_8bit; leave optimizer out"),
        ({"weights": "bf16"}, "'mofo' has nothing that keeps what bf16 weights cannot take in; set weights: fp32"),
        ({"processes": 2, "strategy": "fsdp2"}, "method 'mofo' needs whole weights, and fsdp2 cuts them"),
    ],
)
def test_what_it_cannot_do_is_told_in_a_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_adapted(Recipe(method="mofo", **changes), parse_method("mofo"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_shares_and_two_rules() -> None:
    for text in ("mofo(share=0)", "mofo(share=1.1)", "mofo(share=True)"):
        with pytest.raises(UserError, match="share must be a number above 0, up to 1"):
            parse_method(text)
    assert parse_method("hft+mofo+talr").label == "talr+hft+mofo"
