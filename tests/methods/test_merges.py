"""Merges against their formulas in float64, chained, and through a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.evaluation.steering import steering_answers
from gentletune.methods import parse_method
from gentletune.methods import training_part as trained_as
from gentletune.methods.base import Place, merge_weights, places
from gentletune.runs.budget import upper_bound
from gentletune.runs.inputs import Inputs
from tests.helpers import saved_weights, tiny_recipe


def merged(text: str, base: Tensor, tuned: Tensor, place: Place | None = None) -> Tensor:
    merge = parse_method(text).merge
    assert merge is not None
    return merge(place or Place("w"), base, tuned)


def pair(shape: tuple[int, ...] = (7, 5), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base.to(dtype), (base + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


# --- LiNeS

NAMES = [
    "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.experts.5.w",
    "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.layers.4.input_layernorm.weight",
    "model.norm.weight", "lm_head.weight",
]  # fmt: skip


def test_the_depth_of_a_tensor_comes_from_its_name() -> None:
    assert [place.depth for place in places(NAMES).values()] == [0, 0, 0, 0.25, 0.5, 1, 1, 1]
    assert [place.name for place in places(NAMES).values()] == NAMES
    assert [p.depth for p in places(["transformer.wte", "transformer.h.0.w", "transformer.ln_f"]).values()] == [0, 0, 1]
    two = places(["vision.blocks.0.w", "vision.blocks.1.w", "text.layers.0.w", "text.layers.3.w"])
    assert [place.depth for place in two.values()] == [0, 1, 0, 1]  # each stack by itself


@pytest.mark.parametrize(("text", "alpha", "beta"), [("lines", 0.1, 0.9), ("lines(alpha=0.2, beta=0.5)", 0.2, 0.5)])
def test_lines(text: str, alpha: float, beta: float) -> None:
    base, tuned = pair()
    for place in places(NAMES).values():
        wanted = base.numpy() + (alpha + beta * place.depth) * (tuned - base).numpy()
        np.testing.assert_allclose(merged(text, base, tuned, place).numpy(), wanted, rtol=1e-12)


def test_lines_leaves_the_last_layer_as_trained_and_a_whole_model_scaled(tiny_model: LlamaForCausalLM) -> None:
    base = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(1.0)
    merge = parse_method("lines(alpha=0.25)").merge
    assert merge is not None
    merge_weights(tiny_model, base, merge)
    change = {name: float((p.detach() - base[name]).mean()) for name, p in tiny_model.named_parameters()}
    assert change["model.embed_tokens.weight"] == pytest.approx(0.25, abs=1e-6)
    assert change["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(0.25, abs=1e-6)
    assert change["model.layers.1.self_attn.q_proj.weight"] == 1.0
    assert change["model.norm.weight"] == 1.0


# --- TIES


@pytest.mark.parametrize(("density", "alpha"), [(0.2, 1.0), (0.5, 0.3), (0.001, 1.0), (1.0, 2.0)])
def test_ties_keeps_the_largest_changes_of_a_tensor(density: float, alpha: float) -> None:
    base, tuned = pair()
    change = (tuned - base).numpy()
    count = max(1, round(density * change.size))
    least = np.sort(np.abs(change).ravel())[-count]
    wanted = base.numpy() + np.where(np.abs(change) >= least, alpha * change, 0.0)
    np.testing.assert_allclose(
        merged(f"ties(density={density}, alpha={alpha})", base, tuned).numpy(), wanted, rtol=1e-12
    )


def test_ties_of_everything_is_exact_and_so_is_what_it_drops() -> None:
    base, tuned = pair(dtype=torch.bfloat16)
    assert torch.equal(merged("ties(density=1)", base, tuned), tuned)
    few = merged("ties(density=0.2)", base, tuned)
    assert few.dtype == torch.bfloat16
    assert int((few == tuned).sum()) == 7
    assert torch.equal(torch.where(few == tuned, base, few), base)


# --- DARE


def test_dare_drops_a_share_and_keeps_the_mean() -> None:
    base = torch.zeros(400, 500, dtype=torch.float64)
    tuned = torch.full_like(base, 3.0)
    found = merged("dare(p=0.7)", base, tuned)
    assert found.unique().tolist() == pytest.approx([0.0, 3.0 / (1 - 0.7)])
    dropped = float((found == 0).double().mean())
    assert abs(dropped - 0.7) < 5 * math.sqrt(0.7 * 0.3 / base.numel())
    assert torch.equal(merged("dare(p=0.7, alpha=0.5)", base, tuned), found / 2)
    assert torch.equal(merged("dare(p=0)", base, tuned), tuned)


def test_dare_is_drawn_from_seed_and_name_alone() -> None:
    base, tuned = pair((30, 30))
    first = merged("dare", base, tuned)
    torch.rand(5)
    assert torch.equal(merged("dare", base, tuned), first)
    small = merged("dare", base.float(), tuned.float())
    assert torch.equal(small == base.float(), first == base)
    assert not torch.equal(merged("dare(seed=1)", base, tuned), first)
    assert not torch.equal(merged("dare", base, tuned, Place("v")), first)


# --- together


def test_scales_multiply_in_any_written_order() -> None:
    base, tuned = pair()
    middle = Place("layers.1.w", 0.5)
    for text in ("wise_ft(alpha=0.4)+lines(alpha=0.2)", "lines(alpha=0.2)+wise_ft(alpha=0.4)"):
        wanted = base + 0.4 * (0.2 + 0.8 * 0.5) * (tuned - base)
        torch.testing.assert_close(merged(text, base, tuned, middle), wanted, rtol=1e-12, atol=1e-12)
    kept = merged("ties(density=0.5)", base, tuned)
    both = merged("wise_ft(alpha=0.4)+ties(density=0.5)", base, tuned)
    torch.testing.assert_close(both, base + 0.4 * (kept - base), rtol=1e-12, atol=1e-12)
    assert parse_method("wise_ft+ties+ema+lines+dare+talr").name == "talr+ema+dare+lines+ties+wise_ft"


def test_what_differs_in_its_merge_alone_is_one_training() -> None:
    merges = ("ties(density=0.1)", "dare(p=0.9)", "lines(alpha=0)", "wise_ft(alpha=0.3)", "dare+ties+lines+wise_ft")
    assert {trained_as(f"talr+{merge}") for merge in merges} == {"talr"}
    # A training keeps the average in the place of the last weights, so it is another one.
    assert trained_as("ema(decay=0.5)+wise_ft") == "ema(decay=0.5)"


def test_an_average_in_bf16_keeps_its_share_of_updates_of_a_single_step(tiny_dir: Path, tmp_path: Path) -> None:
    """Rounded to the nearest, a quarter of a step would be nothing and three quarters all of it."""
    how = {"weights": "bf16", "max_steps": 2, "learning_rate": 1e-5, "evaluate": False, "probe_every": 0}
    train(tiny_recipe(tiny_dir, tmp_path / "sft", **how))
    base = {name: value.bfloat16().float() for name, value in saved_weights(tiny_dir).items()}
    sft = saved_weights(tmp_path / "sft" / "model")
    whole = {name: sft[name].float() - value for name, value in base.items()}
    assert any(change.any() for change in whole.values())
    for alpha in (0.25, 0.75):
        run = tmp_path / f"average-{alpha}"
        train(tiny_recipe(tiny_dir, run, method=f"wise_ft(alpha={alpha})", **how))
        found = saved_weights(run / "model")
        kept = sum(float(((found[name].float() - base[name]) * change).sum()) for name, change in whole.items())
        assert kept / sum(float(change.square().sum()) for change in whole.values()) == pytest.approx(alpha, abs=0.1)


def test_what_training_left_alone_stays_where_the_base_is_rounded_itself(tiny_dir: Path, tmp_path: Path) -> None:
    """The base model of the run is the published one in bf16, and no merge moves a weight that is still the base's."""
    how = {"weights": "bf16", "evaluate": False, "probe_every": 0}
    base = {name: value.bfloat16() for name, value in saved_weights(tiny_dir).items()}
    train(tiny_recipe(tiny_dir, tmp_path / "none", method="wise_ft(alpha=0)", **how))
    found = saved_weights(tmp_path / "none" / "model")
    assert all(torch.equal(found[name], value) for name, value in base.items())
    train(tiny_recipe(tiny_dir, tmp_path / "sft", **how))
    for method in ("wise_ft(alpha=0.5)", "dare(p=0.5)", "ties(density=0.2)"):
        train(tiny_recipe(tiny_dir, tmp_path / method, method=method, **how))
        sft, found = saved_weights(tmp_path / "sft" / "model"), saved_weights(tmp_path / method / "model")
        for name, value in base.items():
            alone = sft[name] == value
            assert torch.equal(found[name][alone], value[alone]), (method, name)


def test_an_average_after_an_average_is_drawn_anew(tiny_dir: Path, tmp_path: Path) -> None:
    """Were both rounded by the same draws, a weight that the first moved up would be moved up by the second, too."""
    how = {"weights": "bf16", "max_steps": 3, "learning_rate": 2e-6, "evaluate": False, "probe_every": 0}
    train(tiny_recipe(tiny_dir, tmp_path / "ema", method="ema(decay=0.5)", **how))
    train(tiny_recipe(tiny_dir, tmp_path / "both", method="ema(decay=0.5)+wise_ft(alpha=0.25)", **how))
    base = saved_weights(tiny_dir)
    kept = whole = 0.0
    for name, value in saved_weights(tmp_path / "ema" / "model").items():
        change = value.float() - base[name].bfloat16().float()
        found = saved_weights(tmp_path / "both" / "model")[name].float() - base[name].bfloat16().float()
        kept, whole = kept + float((found * change).sum()), whole + float(change.square().sum())
    assert kept / whole == pytest.approx(0.25, abs=0.1)


def test_a_budget_is_measured_on_the_weights_that_are_saved(tiny_dir: Path, tmp_path: Path) -> None:
    """bf16 weights are rounded before they are measured: the files give the same KL again."""
    method = "wise_ft(alpha=auto, budget=0.02)"
    recipe = tiny_recipe(
        tiny_dir, tmp_path / "run", method=method, weights="bf16", max_steps=3, evaluate=False, probe_every=0
    )
    figures = train(recipe).training
    assert 0 < figures["alpha"] < 1
    inputs = Inputs(recipe)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert saved.dtype == torch.bfloat16
    steering = steering_answers(inputs.base, recipe)
    again = steering.kl(saved, pad_id=inputs.base.tokenizer.pad_token_id, batch_tokens=recipe.eval_batch_tokens)
    told = figures[f"kl_upper(alpha={figures['alpha']:.4g})"]
    assert upper_bound(again) == pytest.approx(told, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lines(alpha=1.5)", "'lines': alpha must be a number in [0, 1], got 1.5"),
        ("lines(beta=-1)", "'lines': beta must be a number >= 0, got -1"),
        ("ties(density=0)", "'ties': density must be a number above 0, up to 1, got 0"),
        ("ties(alpha=-1)", "'ties': alpha must be a number >= 0, got -1"),
        ("dare(p=1)", "'dare': p must be below 1: 1 would drop every change"),
        ("dare(seed=0.5)", "'dare': seed must be a whole number >= 0, got 0.5"),
        ("ema(decay=1)", "'ema': decay must be below 1: 1 would keep the first step's weights"),
    ],
)
def test_values_out_of_range(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_method(text)
    assert words in str(caught.value)
