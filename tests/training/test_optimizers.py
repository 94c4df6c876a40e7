"""Optimisers by transformers' names: which are known, what they are given, and weights that are right when they end."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

import gentletune.core.optimizers as optimizers
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.data import encode_rows, load_data
from gentletune.methods import parse_method
from gentletune.methods.micro_batch import check_micro_batch
from gentletune.training import fit
from gentletune.training.arguments import training_arguments
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.optimizers import check_optimizer
from gentletune.training.trainer import METRICS_FILE, GentleTrainer
from tests.conftest import make_model
from tests.helpers import run_cli

WITHOUT_BNB = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
EIGHT_BIT = [pytest.param(name, marks=WITHOUT_BNB) for name in ("adamw_8bit", "lion_8bit", "ademamix_8bit")]
NAMES = ["adamw_torch", "sgd", "adafactor", "rmsprop", "stable_adamw", "schedule_free_adamw", *EIGHT_BIT]


def fields(name: str, **more: Any) -> dict[str, Any]:
    schedule = {"schedule": "constant"} if name.startswith("schedule_free") else {}
    return {"optimizer": name, "data": "clinic", "train_rows": 6, "batch_size": 2, "lr": 1e-3, "precision": "fp32",
            "max_steps": 4, "save_every": 2, "warmup": 0.3, **schedule, **more}  # fmt: skip


def trained(
    tokenizer: Any, run: Path, recipe: Recipe, stop: int | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The weights after a training, or after one that is killed in step `stop` and called again."""
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def go() -> dict[str, torch.Tensor]:
        model = make_model(len(tokenizer))
        model = model if dtype is None else model.to(dtype)
        return dict(fit(recipe, parse_method("sft"), model, tokenizer, rows, run).model.state_dict())

    if stop is None:
        return go()
    with pytest.MonkeyPatch.context() as patch:
        plain = GentleTrainer.training_step

        def step(self: Any, *args: Any) -> torch.Tensor:
            if self.state.global_step + 1 == stop:
                raise KeyboardInterrupt
            return plain(self, *args)

        patch.setattr(GentleTrainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            go()
    return go()


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `gentletune train` refuses with."""
    assert run_cli(monkeypatch, "train", *arguments) == 2
    return capsys.readouterr().err.strip()


def test_every_name_of_transformers_is_known_or_refused_for_a_reason() -> None:
    known = {*optimizers.OPTIMIZERS, *optimizers._EARLY, *optimizers._ELSEWHERE}
    assert known == {str(name.value) for name in OptimizerNames}


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_trains_and_resumes_bit_for_bit(name: str, tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe.parse(fields(name))
    whole = trained(tokenizer, tmp_path / "whole", recipe)
    again = trained(tokenizer, tmp_path / "again", recipe, stop=4)
    start = make_model(len(tokenizer)).state_dict()
    assert any(not torch.equal(whole[key], start[key]) for key in start)
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("name", ["adamw_torch_fused", "stable_adamw", "adafactor", *EIGHT_BIT[:1]])
def test_released_gradients_make_the_same_weights_resumed_or_not(name: str, tokenizer: Any, tmp_path: Path) -> None:
    _released_as_kept(name, torch.float32, tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["adamw_torch", "stable_adamw"])
def test_released_gradients_make_the_same_weights_of_two_bytes(name: str, tokenizer: Any, tmp_path: Path) -> None:
    _released_as_kept(name, torch.bfloat16, tokenizer, tmp_path)


def _released_as_kept(name: str, dtype: torch.dtype, tokenizer: Any, tmp_path: Path) -> None:
    precision = {"weights": "bf16", "precision": "bf16"} if dtype == torch.bfloat16 else {}
    keys = {"max_grad_norm": 0, "batch_size": 1, "gradient_checkpointing": True, **precision}
    start = make_model(len(tokenizer)).to(dtype).state_dict()
    recipe = Recipe.parse(fields(name, **keys))
    kept = trained(tokenizer, tmp_path / "kept", recipe, dtype=dtype)
    released = recipe.override({"gradient_release": True})
    for stop in (None, 4):
        found = trained(tokenizer, tmp_path / f"released-{stop}", released, stop, dtype)
        for key, value in kept.items():
            moved, off = (value - start[key]).norm(), (found[key] - value).norm()
            assert float(off) <= 1e-6 * float(moved), key


def test_a_released_gradient_is_alone_in_memory(tokenizer: Any, tmp_path: Path) -> None:
    most, whole = dict[bool, int](), 0
    for release in (False, True):
        recipe = Recipe.parse(fields("adamw_torch", max_grad_norm=0, gradient_release=release, max_steps=2))
        rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
        model, held = make_model(len(tokenizer)), [0]
        largest, whole = max(p.nbytes for p in model.parameters()), sum(p.nbytes for p in model.parameters())

        def look(_parameter: Any, model: Any = model, held: list[int] = held) -> None:
            held.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(look)
        fit(recipe, parse_method("sft"), model, tokenizer, rows, tmp_path / str(release))
        most[release] = max(held)
        assert ("grad_norm" in read_metrics(tmp_path / str(release) / METRICS_FILE)[0]) is not release
        assert all(len(parameter._post_accumulate_grad_hooks) == 1 for parameter in model.parameters())
    assert most == {False: whole, True: largest}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"max_grad_norm": 1.0}, "before clipping has seen them all; set max_grad_norm: 0"),
        ({"gradient_accumulation": 2}, "a step is one micro-batch; leave gradient_accumulation and global_batch out"),
        ({"global_batch": 8}, "a step is one micro-batch; leave gradient_accumulation and global_batch out"),
        ({"processes": 2}, "is of one process, before gradients are added up over several; take strategy: fsdp2"),
        ({"method": "talr+lora"}, "saves next to nothing where 'talr+lora' trains so little; leave it out"),
        ({"method": "l2"}, "works on the whole gradient of a step, which gradient_release does not keep"),
        ({"method": "talr(normalization=simplex)"}, "works on the whole gradient of a step"),
        ({"optimizer": "schedule_free_adamw", "schedule": "constant"}, "cannot step for one weight at a time"),
    ],
)
def test_what_needs_the_whole_gradient_keeps_it(keys: dict[str, Any], told: str) -> None:
    recipe = Recipe.parse({"data": "clinic", "gradient_release": True, "max_grad_norm": 0, **keys})
    with pytest.raises(UserError, match=re.escape(told)):
        check_micro_batch(recipe, parse_method(recipe.method))


class Look(TrainerCallback):
    """Keeps the optimiser, and the rates it steps at."""

    optimizer: Any = None

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer = kwargs["optimizer"]
        group = self.optimizer.param_groups[0]
        self.rates.append((group["lr"], group.get("scheduled_lr", group["lr"])))


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_saves_and_measures_the_averaged_weights(name: str, tokenizer: Any, tmp_path: Path) -> None:
    recipe, seen, look = Recipe.parse(fields(name, probe_every=4, save_every=4)), list[torch.Tensor](), Look()
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def probe(model: Any) -> dict[str, float]:
        seen.append(model.model.norm.weight.detach().clone())
        return {"domain_nll": 0.0}

    model, method = make_model(len(tokenizer)), parse_method("sft")
    weight = fit(
        recipe, method, model, tokenizer, rows, tmp_path, probe=probe, callbacks=[look]
    ).model.model.norm.weight.detach()
    averaged = weight.clone()
    saved = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert torch.equal(saved["model.norm.weight"], averaged)
    assert torch.equal(seen[-1], averaged)
    look.optimizer.train()
    assert not torch.equal(weight, averaged)  # the weights that training went on from are others
    # The warm-up is the schedule's, and no second one is put on top.
    assert all(rate == applied for rate, applied in look.rates)
    assert look.rates[0][0] < look.rates[-1][0] == 1e-3


def test_betas_and_momentum_reach_the_optimizer(tokenizer: Any, tmp_path: Path) -> None:
    for name, keys in [
        ("adamw_torch", {"betas": (0.8, 0.95)}),
        ("stable_adamw", {"betas": (0.8, 0.95)}),
        ("sgd", {"momentum": 0.7}),
        ("rmsprop", {"momentum": 0.7}),
    ]:
        recipe, look = Recipe.parse(fields(name, max_steps=1, **keys)), Look()
        rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
        model = make_model(len(tokenizer))
        fit(recipe, parse_method("sft"), model, tokenizer, rows, tmp_path / name, callbacks=[look])
        group = look.optimizer.param_groups[0]
        found = group.get("betas", (group.get("beta1"), group.get("beta2")))
        assert found == keys["betas"] if "betas" in keys else group["momentum"] == 0.7, name


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"optimizer": "adamw_torh"}, "did you mean 'adamw_torch'?"),
        ({"optimizer": "adamw"}, "optimizer 'adamw' goes by transformers' name: adamw_torch_fused"),
        ({"optimizer": "lomo"}, "steps within the backward pass"),
        ({"optimizer": "adamw_torch_xla"}, "not supported; take adamw_torch_fused"),
        ({"optimizer": "sgd", "betas": "0.9,0.99"}, "'sgd' has no betas; give momentum"),
        ({"optimizer": "adafactor", "betas": "0.9,0.99"}, "'adafactor' has no betas; leave it out"),
        ({"momentum": "0.9"}, "has no momentum key; its first beta is one"),
        ({"betas": "0.9"}, "betas.1: field required"),
        ({"betas": "0.9,1"}, "betas.1: input should be less than 1"),
        ({"optimizer": "schedule_free_sgd"}, "set schedule: constant"),
        ({"weights": "bf16", "precision": "fp32"}, "leave one of them out"),
        ({"optimizer": "grokadamw"}, "pip install grokadamw"),
        ({"optimizer": "apollo_adamw"}, "pip install apollo-torch"),
    ],
)
def test_what_cannot_be_is_one_line_before_torch_is_there(
    keys: dict[str, str], expected: str, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    line = said(monkeypatch, capsys, f"--model={tiny_dir}", "--data=clinic", *arguments)
    assert expected in line
    assert "\n" not in line


def test_pages_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    if not torch.cuda.is_available():
        for name in (name for name in optimizers.OPTIMIZERS if name.startswith("paged_")):
            with pytest.raises(UserError, match="without a GPU take ") as refusal:
                check_optimizer(Recipe(optimizer=name))
            assert str(refusal.value).rpartition(" ")[2] in optimizers.OPTIMIZERS
    check_optimizer(Recipe(optimizer="adamw_8bit"))


def test_a_recipe_asks_for_nothing_that_is_deprecated(tmp_path: Path) -> None:
    """From Python, where the command line's filter is not, a user saw transformers' warning at every training."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert training_arguments(Recipe(lr=1e-5), tmp_path).learning_rate == 1e-5
