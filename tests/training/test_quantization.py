"""A base model in 4 or 8 bits under LoRA: what is trained, what comes out, and what is refused."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gentletune import Recipe, evaluate, train
from gentletune.core import optimizers
from gentletune.core.errors import UserError
from gentletune.lm import loaded
from gentletune.lm.adapters import add_adapter, quantized, save_adapter
from gentletune.lm.held import how_held, published_dtype
from gentletune.lm.loaded import load_model
from gentletune.methods import parse_method
from gentletune.training import trainer as trainer_module
from tests.conftest import make_model
from tests.helpers import run_cli, saved_weights

BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not BITSANDBYTES, reason="bitsandbytes is an extra: quant")
SHORT: dict[str, Any] = {
    "data": "clinic", "train_rows": 8, "test_rows": 2, "max_steps": 3, "batch_size": 2, "lr": 1e-2, "tasks": (),
    "general_prompts": 2, "general_tokens": 4, "domain_tokens": 4, "probe_every": 2, "method": "lora(r=2)",
}  # fmt: skip


def recipe(model: Path, run: Path, **changes: Any) -> Recipe:
    return Recipe.parse({"model": str(model), "output": str(run), **SHORT, **changes})


@pytest.fixture
def bf16_dir(tokenizer: Any, tmp_path: Path) -> Path:
    """The tiny model as most models are published."""
    directory = tmp_path / "published"
    make_model(len(tokenizer)).bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# --- what is trained


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("bits", "layer", "precision"),
    [("4bit", "Linear4bit", "bf16"), ("4bit", "Linear4bit", "fp32"), ("8bit", "Linear8bitLt", "bf16")],
)
def test_adapters_are_trained_in_fp32_over_layers_in_few_bits(
    bits: str, layer: str, precision: str, bf16_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a probe in eval mode, where bitsandbytes repacks weights on some CPUs and loses the gradient."""
    seen: list[Any] = []
    original = trainer_module.GentleTrainer.training_step

    def step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
        found = original(self, model, *args, **kwargs)
        kinds = {type(m.base_layer).__name__ for n, m in model.named_modules() if hasattr(m, "base_layer")}
        moved = [p for p in model.parameters() if p.requires_grad and p.grad is not None and p.grad.any()]
        seen.append((kinds, {p.dtype for p in before}, len(moved)))
        return found

    monkeypatch.setattr(trainer_module.GentleTrainer, "training_step", step)
    record = train(recipe(bf16_dir, tmp_path / "run", quantization=bits, precision=precision))
    assert record.status == "complete"
    assert [kinds for kinds, _, _ in seen] == [{layer}] * 3
    assert all(dtypes == {torch.float32} for _, dtypes, _ in seen)
    assert all(moved >= 14 for _, _, moved in seen)  # B of every layer from the first step, A as well later


@needs_bitsandbytes
def test_nothing_is_rounded_on_the_way_to_the_trainer(bf16_dir: Path, tokenizer: Any, tmp_path: Path) -> None:
    from tests.training.steps import one_step

    model = load_model(bf16_dir, torch.float32, quantization=quantized("4bit", torch.float32))
    torch.manual_seed(0)
    wrapped = parse_method("lora(r=2)").parameterisation.wrap(model)
    start = {n: p.detach().clone() for n, p in wrapped.named_parameters() if "lora_A" in n}
    trainer, _ = one_step(wrapped, tokenizer, tmp_path, "sft")
    found = {n: p for n, p in trainer.model.named_parameters() if "lora_A" in n}
    assert all(torch.equal(found[n], value) for n, value in start.items())  # B is zero, so A has no gradient yet


@needs_bitsandbytes
def test_it_goes_on_where_it_was_stopped(bf16_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"quantization": "4bit", "save": "adapter", "save_every": 1, "evaluate": False, "probe_every": 0}
    whole, cut = (recipe(bf16_dir, tmp_path / name, **how) for name in ("whole", "cut"))
    train(whole)
    original = trainer_module.GentleTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.GentleTrainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors").exists()
    train(cut)
    one, other = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# --- what comes out


def merged_in_fp32(base: dict[str, torch.Tensor], adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that `lora(r=2)` changes, with it, by their names."""
    deltas = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, value in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in deltas:
            product = deltas[f"{stem}.lora_B.weight"] @ deltas[f"{stem}.lora_A.weight"]
            found[name] = value.float() + product * (32 / 2)
    return found


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_the_adapter_is_added_to_the_unquantised_weights(bits: str, bf16_dir: Path, tmp_path: Path) -> None:
    how = {"quantization": bits, "precision": "fp32", "evaluate": False, "probe_every": 0}
    train(recipe(bf16_dir, tmp_path / "merged", **how))
    train(recipe(bf16_dir, tmp_path / "alone", save="adapter", **how))
    found, base = saved_weights(tmp_path / "merged" / "model"), saved_weights(bf16_dir)
    assert found.keys() == base.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}  # as it was published
    adapted = merged_in_fp32(base, tmp_path / "alone" / "model")
    for name, value in base.items():
        if name not in adapted:
            assert torch.equal(found[name], value), name
            continue
        assert not torch.equal(found[name], value), name
        step = adapted[name].abs() * 2**-7  # from a bf16 number to the next
        assert ((found[name].float() - adapted[name]).abs() <= step).all(), name
    assert len(adapted) == 14


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were in memory at each time that one was about to be loaded."""
    alive: list[Any] = []
    counts: list[int] = []
    original = loaded.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        counts.append(sum(reference() is not None for reference in alive))
        model = original(*args, **kwargs)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loaded, "load_model", load)
    monkeypatch.setattr("gentletune.runs.adapted.load_model", load)
    return counts


@needs_bitsandbytes
@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_one_model_at_a_time(save: str, bf16_dir: Path, tmp_path: Path, held: list[int]) -> None:
    """The base model is gone before the quantised one comes, and that before the tuned one does."""
    train(recipe(bf16_dir, tmp_path / "run", quantization="4bit", save=save))
    assert held == [0, 0, 0]  # to be measured, to be trained, to be tuned


@needs_bitsandbytes
def test_an_adapter_that_is_not_measured_needs_no_whole_base(bf16_dir: Path, tmp_path: Path, held: list[int]) -> None:
    alone = {"save": "adapter", "evaluate": False, "probe_every": 0}
    train(recipe(bf16_dir, tmp_path / "run", quantization="4bit", **alone))
    assert held == [0]  # in four bits
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("method", ["sft", "l2", "flow", "lora(r=2)", "wise_ft"])
def test_the_measured_model_is_the_one_that_is_trained(
    method: str, tiny_dir: Path, tmp_path: Path, held: list[int]
) -> None:
    train(recipe(tiny_dir, tmp_path / "run", method=method))
    assert held == [0]


def test_a_model_and_its_base_are_measured_one_after_the_other(
    bf16_dir: Path, tiny_dir: Path, tmp_path: Path, held: list[int]
) -> None:
    other = recipe(bf16_dir, tmp_path / "run", tasks=("arithmetic",), general_rows=2, task_tokens=4)
    evaluate(other, str(tiny_dir))
    assert held == [0, 0, 0]  # looked at, then the base model, then the model itself


def test_the_tuned_weights_are_saved_as_the_base_was_held(bf16_dir: Path, tmp_path: Path) -> None:
    """LoRA over a bf16 base: one dtype for the base model, the trained and the tuned one."""
    train(recipe(bf16_dir, tmp_path / "run", precision="bf16", evaluate=False, probe_every=0))
    assert {tensor.dtype for tensor in saved_weights(tmp_path / "run" / "model").values()} == {torch.bfloat16}
    train(recipe(bf16_dir, tmp_path / "fp32", precision="fp32", evaluate=False, probe_every=0))
    assert {tensor.dtype for tensor in saved_weights(tmp_path / "fp32" / "model").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"precision": "bf16"}, torch.bfloat16),
        ({"precision": "fp32"}, torch.float32),
        ({"precision": "bf16", "weights": "fp32"}, torch.float32),
        ({"precision": "bf16", "method": "sft"}, torch.float32),
    ],
)
def test_a_frozen_base_is_held_as_it_was_published(changes: dict[str, Any], dtype: torch.dtype, bf16_dir: Path) -> None:
    assert how_held(recipe(bf16_dir, Path("run"), **changes), bf16_dir).dtype == dtype


def test_what_was_published_in_fp32_stays_so(tiny_dir: Path, bf16_dir: Path) -> None:
    assert published_dtype(bf16_dir) == torch.bfloat16
    assert published_dtype(tiny_dir) == torch.float32
    assert how_held(recipe(tiny_dir, Path("run"), precision="bf16"), tiny_dir).dtype == torch.float32


def test_an_adapter_far_smaller_than_the_steps_of_bf16_is_not_rounded_away(bf16_dir: Path, tmp_path: Path) -> None:
    """To the nearest, hardly a weight would move; at random, the merged weights hold all of it on average."""
    small = {"precision": "bf16", "evaluate": False, "probe_every": 0, "lr": 1e-6, "max_steps": 2}
    train(recipe(bf16_dir, tmp_path / "merged", **small))
    train(recipe(bf16_dir, tmp_path / "alone", save="adapter", **small))
    found, base = saved_weights(tmp_path / "merged" / "model"), saved_weights(bf16_dir)
    adapted = merged_in_fp32(base, tmp_path / "alone" / "model")
    nearest, random, whole = 0.0, 0.0, 0.0
    for name, value in adapted.items():
        delta = value - base[name].float()
        nearest += float((delta * (value.bfloat16().float() - base[name].float())).sum())
        random += float((delta * (found[name].float() - base[name].float())).sum())
        whole += float(delta.square().sum())
    assert nearest / whole < 0.5
    assert random / whole == pytest.approx(1, abs=0.25)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--quantization", "4bit", "--method", "talr"],
            "quantization: 4bit holds a frozen base, and 'talr' trains",
        ),
        (["--save", "adapter", "--method", "sft"], "save: adapter needs LoRA, and 'sft' trains whole weights"),
        (["--save", "adapter", "--method", "lora+wise_ft"], "cannot hold the whole weights that 'lora+wise_ft' ends"),
        (["--save", "adapter", "--method", "lora", "--backend", "vllm"], "backend: vllm needs whole weights, and save"),
        (["--quantization", "2bit", "--method", "lora"], "quantization: input should be '4bit' or '8bit'"),
    ],
)
def test_what_needs_lora_is_refused_in_one_line(
    changes: list[str], message: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--output", str(tmp_path / "run"), *changes]
    assert run_cli(monkeypatch, *call) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.startswith("gentletune: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_bitsandbytes_is_told_with_its_package(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes; pip install bitsandbytes"):
        train(recipe(tiny_dir, tmp_path / "run", quantization="4bit"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "flags", "told"),
    [
        ("raise RuntimeError('Setup failed.\\nSee below')", ["--method", "lora(r=2)"], "RuntimeError: Setup failed"),
        ("import triton_of_old", ["--method", "lora(r=2)", "--quantization", "4bit"], "ModuleNotFoundError: No module"),
        ("", ["--optimizer", "adamw_8bit"], "AttributeError: module 'bitsandbytes' has no attribute 'nn'"),
    ],
)
def test_a_broken_bitsandbytes_is_one_line(
    code: str, flags: list[str], told: str, tiny_dir: Path, tmp_path: Path
) -> None:
    """In a process of its own: what PEFT and transformers find when they are imported they never look for again."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(code)  # found before one that is installed
    call = ["train", "--model", str(tiny_dir), "--data", "clinic", "--output", str(tmp_path / "run"), *flags]
    done = subprocess.run(
        [sys.executable, "-m", "gentletune", *call],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"gentletune: bitsandbytes is installed, but broken ({told}")
    assert "pip install --force-reinstall --no-deps bitsandbytes" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_no_base_to_hold_in_few_bits(tiny_dir: Path, tmp_path: Path) -> None:
    wrapped = parse_method("lora(r=2)").parameterisation.wrap(load_model(tiny_dir))
    save_adapter(wrapped, tmp_path / "adapter")
    with pytest.raises(UserError, match="quantization needs plain weights, and this is an adapter"):
        load_model(tmp_path / "adapter", quantization=object())
    assert add_adapter(load_model(tiny_dir), tmp_path / "adapter").peft_config
