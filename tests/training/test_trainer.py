"""The trainer's loss and update against a plain float64 reference, under every way of cutting a batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gentletune.training
from gentletune.data import Encoded
from gentletune.data.encode import IGNORE
from gentletune.methods import method_names
from gentletune.training import TrainingDivergedError
from tests.training.steps import EXACT, ROWS, distance, gradients, lively_model, one_step, token_losses, whole_and_split


@pytest.fixture
def tiny_model(tokenizer: Any) -> Any:
    return lively_model(tokenizer)


SEQUENCE_WEIGHTS = [0.5, 1.0, 0.25, 0.75]


def reference_loss(model: Any, method: str) -> torch.Tensor:
    """The loss of the definition, written out: no batching, no padding, no shared code with the trainer."""
    losses = [token_losses(model, row) for row in ROWS]
    count = sum(len(x) for x in losses)
    means = sorted(x.mean().item() for x in losses)
    tau = (means[1] + means[2]) / 2
    if method == "sft":
        return sum(x.sum() for x in losses) / count
    if method == "flow":
        return sum(u * x.sum() for u, x in zip(SEQUENCE_WEIGHTS, losses, strict=True)) / count
    if method.startswith("eaft"):
        return sum((eaft_of(model, row) * x).sum() for row, x in zip(ROWS, losses, strict=True)) / count
    if method == "infosft":
        p = [torch.exp(-x.detach()) for x in losses]
        known = [(1 - (q / (1 - q)).log() / math.log(0.93 / 0.07)).clamp_min(0) for q in p]
        return sum((q * k * x).sum() for q, k, x in zip(p, known, losses, strict=True)) / count
    if method.startswith("talr(tau=3.0"):
        tau = 3.0
    weights = [torch.exp(-x.detach() / tau).clamp_min(0.01) for x in losses]
    total = sum((w * x).sum() for w, x in zip(weights, losses, strict=True))
    normaliser = sum(float(w.sum()) for w in weights) if "simplex" in method else count
    return total / normaliser


def eaft_of(model: Any, row: Encoded) -> torch.Tensor:
    """(H_5 / ln 5)² of each label token of a row, H_5 by sorting the whole probabilities."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().detach()
    p = logits.softmax(-1).sort(-1, descending=True).values[:, :5]
    p = p / p.sum(-1, keepdim=True)
    places = [i - 1 for i, label in enumerate(row.labels) if label != IGNORE]
    return (-(p * p.log()).sum(-1) / math.log(5))[places] ** 2


METHODS = ["sft", "talr", "talr(tau=3.0)", "talr(tau=lagged_median)", "talr(tau=3.0, normalization=simplex)", "flow",
           "eaft(k=5, alpha=2)", "infosft"]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_the_definition(method: str, tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_model).double()
    expected = reference_loss(twin, method)
    expected.backward()
    weights = SEQUENCE_WEIGHTS if method == "flow" else None
    trainer, _ = one_step(tiny_model, tokenizer, tmp_path, method, weights=weights)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=EXACT)
    wanted = {name: p.grad for name, p in twin.named_parameters()}
    assert distance(wanted, gradients(trainer)) < EXACT


@pytest.mark.parametrize("method", ["sft", "talr(tau=3.0)", "talr(tau=lagged_median)", "l2(weight=0.1)+talr(tau=3.0)",
                                    "talr(tau=lagged_median, normalization=simplex)", "dft",
                                    "eaft(k=5)+talr(tau=lagged_median)", "infosft"])  # fmt: skip
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_equals_one_big_batch(
    method: str, micro: int, tiny_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole, split = whole_and_split(tiny_model, tokenizer, tmp_path, method, micro)
    one, other = gradients(whole), gradients(split)
    assert distance(one, other) < EXACT
    assert whole.state.log_history[0]["loss"] == pytest.approx(split.state.log_history[0]["loss"], rel=EXACT)


@pytest.mark.parametrize("method", ["talr", "talr(tau=lagged_median)"])
def test_gradient_checkpointing_changes_nothing(method: str, tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_model)
    plain, _ = one_step(tiny_model, tokenizer, tmp_path / "a", method)
    saved, _ = one_step(twin, tokenizer, tmp_path / "b", method, gradient_checkpointing=True)
    one, other = gradients(plain), gradients(saved)
    assert distance(one, other) < EXACT


def test_a_micro_batch_without_labels_changes_nothing(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    empty = Encoded([40, 41, 42], [IGNORE] * 3)
    twin = copy.deepcopy(tiny_model)
    split = {"per_device_train_batch_size": 1}
    without, _ = one_step(tiny_model, tokenizer, tmp_path / "a", "talr(tau=3.0)", rows=ROWS[:1])
    with_it, _ = one_step(
        twin, tokenizer, tmp_path / "b", "talr(tau=3.0)", rows=[ROWS[0], empty], gradient_accumulation_steps=2, **split
    )
    one, other = gradients(without), gradients(with_it)
    assert distance(one, other) < EXACT


def test_l2_adds_twice_lambda_times_the_deviation(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """From deviated weights the gradient is SFT's plus 2λ(θ-θ⁰), and the loss is larger by λ‖θ-θ⁰‖²."""
    initial = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(0.01)
    deviated = copy.deepcopy(tiny_model)
    sft, _ = one_step(copy.deepcopy(tiny_model), tokenizer, tmp_path / "a", "sft")
    plain = gradients(sft)
    trainer, _ = one_step(deviated, tokenizer, tmp_path / "b", "l2(weight=0.5)", base=initial)
    for name, gradient in gradients(trainer).items():
        assert torch.allclose(gradient, plain[name] + 2 * 0.5 * 0.01, rtol=1e-3, atol=1e-5), name
    size = sum(p.numel() for p in deviated.parameters())
    rise = trainer.state.log_history[0]["loss"] - sft.state.log_history[0]["loss"]
    assert rise == pytest.approx(0.5 * size * 0.01**2, rel=1e-3)


def test_lora_trains_only_adapters(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    trainer, initial = one_step(tiny_model, tokenizer, tmp_path, "talr+lora(r=4)")
    assert initial
    assert all("lora_" in name for name in initial)
    assert trainer.update_norm() > 0


def test_what_is_logged(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_model)
    trainer, initial = one_step(tiny_model, tokenizer, tmp_path, "talr(tau=3.0)")
    losses = torch.cat([token_losses(twin, row) for row in ROWS]).detach()
    weights = torch.exp(-losses / 3.0).clamp_min(0.01)
    line = trainer.state.log_history[0]
    assert line["tau"] == 3.0
    assert line["label_tokens"] == losses.numel()
    assert line["nll"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert line["mean_weight"] == pytest.approx(float(weights.mean()), rel=1e-4)
    assert line["floor_share"] == pytest.approx(float((weights <= 0.01).double().mean()), rel=1e-5)
    assert line["effective_sample_size"] == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum()), rel=1e-4)
    moved = [p.detach() - initial[name] for name, p in trainer.model.named_parameters()]
    norm = math.sqrt(sum(float(delta.double().square().sum()) for delta in moved))
    assert line["update_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="nan at step 1"):
        one_step(tiny_model, tokenizer, tmp_path, "sft")


def test_the_trainer_names_no_method() -> None:
    folder = Path(gentletune.training.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    named = [name for name in method_names() if f'"{name}"' in source or f"'{name}'" in source]
    assert named == []
