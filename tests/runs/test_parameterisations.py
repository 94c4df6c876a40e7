"""What is trained, from recipe to record: kinds of adapters, their rate, frozen parts, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.lm.loaded import load_model
from gentletune.lm.plan import Planner, Setting
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method
from gentletune.methods.adapted import check_adapted
from gentletune.training.callbacks.metrics import read_metrics
from tests.conftest import make_model
from tests.helpers import run_cli, tiny_recipe
from tests.methods.test_adapters import METHODS

QUIET: dict[str, Any] = {"max_steps": 3, "evaluate": False, "probe_every": 0, "precision": "fp32", "save_every": 1000}


def trained(model: Path, run: Path, method: str, **changes: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    record = train(tiny_recipe(model, run, method=method, **QUIET | changes))
    assert record.status == "complete", record.error
    return record, load_file(run / "model" / "model.safetensors") if changes.get("save") != "adapter" else {}


# --- LoRA's rate


def test_loras_rate_is_ten_times_the_recipes_and_said(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, scaled = trained(tiny_dir, tmp_path / "scaled", "lora(r=2)", learning_rate=1e-3)
    assert "learning rate 0.01 (10 x 0.001 for adapters)" in capsys.readouterr().err
    assert (record.learning_rate, record.label) == (1e-3, "lora(r=2)")
    assert record.training["optimizer_rate"] == pytest.approx(0.01)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "scaled" / "metrics.jsonl") if "loss" in line]
    assert max(rates) == pytest.approx(0.01)
    record, plain = trained(tiny_dir, tmp_path / "plain", "lora(r=2, rate_scale=1)", learning_rate=1e-2)
    assert "for adapters" not in capsys.readouterr().err
    assert "optimizer_rate" not in record.training
    assert record.label == "lora(r=2, rate_scale=1)"
    assert all(torch.equal(value, plain[name]) for name, value in scaled.items())
    record, _ = trained(tiny_dir, tmp_path / "full", "hft", learning_rate=1e-3)
    assert "optimizer_rate" not in record.training


# --- adapters of other kinds


@pytest.mark.parametrize(
    "method",
    [
        "talr+l2(weight=0.1)+oplora(k=3, r=2)+wise_ft",
        "eaft+peft(kind=oft, r=8)+l2+wise_ft(alpha=0.7)",
        "infosft+talr(tau=lagged_median)+peft(kind=osf, r=8)",
        "talr+hft+mofo+l2+wise_ft",
        "eaft+freeze+ema",
    ],
)
def test_it_composes(method: str, tiny_dir: Path, tmp_path: Path) -> None:
    record, tuned = trained(tiny_dir, tmp_path / "run", method)
    assert record.method == parse_method(method).name
    assert record.training["update_norm"] > 0
    base = load_file(tiny_dir / "model.safetensors")
    assert tuned.keys() == base.keys()
    kept = [name for name, value in tuned.items() if torch.equal(value, base[name])]
    assert kept  # the embedding, a half, a layer


@pytest.mark.parametrize("method", ["oplora(k=3, r=2)", "peft(kind=osf, r=8)", "peft(kind=shira, r=2)"])
def test_it_is_saved_alone_as_it_would_be_merged(method: str, tiny_dir: Path, tmp_path: Path) -> None:
    for save in ("merged", "adapter"):
        trained(tiny_dir, tmp_path / save, method, save=save)
    saved = {path.name for path in (tmp_path / "adapter" / "model").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    merged, found = (load_model(tmp_path / save / "model") for save in ("merged", "adapter"))
    other = dict(found.named_parameters())
    for name, value in merged.named_parameters():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
    if method.startswith("oplora"):  # a plain LoRA adapter, that anyone can load
        config = json.loads((tmp_path / "adapter" / "model" / "adapter_config.json").read_text())
        names = load_file(tmp_path / "adapter" / "model" / "adapter_model.safetensors")
        assert config["peft_type"] == "LORA"
        assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)


@pytest.mark.parametrize("method", ["oplora(k=3, r=2)", "peft(kind=osf, r=8)", "peft(kind=shira, r=2)", "hft+mofo"])
def test_it_goes_on_from_a_checkpoint(
    method: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gentletune.training.trainer import GentleTrainer

    more = {"max_steps": 4, "save_every": 2}
    _, whole = trained(tiny_dir, tmp_path / "whole", method, **more)
    step = GentleTrainer.training_step

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GentleTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tiny_dir, tmp_path / "run", method, **more)
    _, again = trained(tiny_dir, tmp_path / "run", method, **more)
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["peft(kind=rslora, r=2)+l2", "peft(kind=dora, r=2)+l2"])
def test_a_base_in_few_bits_goes_under_loras_kin(method: str, tiny_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    record, tuned = trained(tiny_dir, tmp_path / "run", method, quantization="4bit", learning_rate=1e-2)
    assert record.training["update_norm"] > 0.01
    base = load_file(tiny_dir / "model.safetensors")
    norm = sum(float((tuned[name] - base[name]).double().square().sum()) for name in base) ** 0.5
    assert norm == pytest.approx(record.training["update_norm"], rel=0.1 if "dora" in method else 1e-3)


# --- the plan


@pytest.mark.parametrize("method", [*METHODS, "hft", "freeze", "mofo", "lora(layers=1)"])
def test_the_plan_counts_what_is_trained(method: str) -> None:
    model = make_model(64)
    config = copy.deepcopy(model.config)
    wrapped = parse_method(method).parameterisation.wrap(model)
    plan = Planner(config).plan(Setting(Work(rows=2, length=16, labels=20), method=method))
    assert plan.trained == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert plan.optimizer == 8 * plan.trained
    assert plan.training > 4 * plan.parameters


def test_the_plan_of_a_real_model_knows_its_adapter() -> None:
    config = AutoConfig.for_model("llama", vocab_size=1000, hidden_size=64, intermediate_size=128,
                                  num_hidden_layers=12, num_attention_heads=4)  # fmt: skip
    setting = Setting(Work(rows=2, length=16, labels=20))
    planner = Planner(config)
    plans = {m: planner.plan(Setting(setting.work, method=m)) for m in ("sft", "hft", "lora(r=2, layers=0-3)", "mofo")}
    assert plans["mofo"].trained == plans["sft"].trained == plans["sft"].parameters
    inside = plans["sft"].parameters - 2 * 1000 * 64 - 64
    assert plans["sft"].trained - plans["hft"].trained == pytest.approx(inside / 2, rel=0.05)
    assert plans["lora(r=2, layers=0-3)"].trained == 4 * 2 * (4 * 128 + 3 * 192)


# --- refusals


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("hft", {"save": "adapter"}, "save: adapter needs LoRA, and 'hft' trains whole weights"),
        ("hft", {"quantization": "4bit"}, "quantization: 4bit holds a frozen base, and 'hft' trains its weights"),
        ("peft(kind=osf)", {"quantization": "4bit"}, "is for lora, rslora and dora, not for 'peft(kind=osf)'"),
        ("oplora", {"quantization": "8bit"}, "is for lora, rslora and dora, not for 'oplora'"),
        ("peft(kind=oft)", {"processes": 2, "strategy": "fsdp2"}, "needs whole weights, and fsdp2 cuts them"),
    ],
)
def test_what_a_method_cannot_do_is_told_in_a_line(method: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_adapted(Recipe(method=method, **changes), parse_method(method))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_is_told_before_it_trains(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--train-rows", "4", "--output", str(tmp_path / "r")]
    assert run_cli(monkeypatch, *call, "--method", "lora(layers=0-7)") == 2
    assert "layers: 7, and the model's layers are 0-1" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
