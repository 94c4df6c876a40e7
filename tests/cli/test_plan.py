"""`gentletune plan`, what `train` says of its plan, and micro-batches that are chosen and halved."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import gentletune.lm.setting as setting_module
import gentletune.runs.plan as plan_module
from gentletune.core import optimizers
from gentletune.core.devices import check_devices
from gentletune.core.recipe import Recipe
from gentletune.core.records import read_record
from gentletune.methods import parse_method
from gentletune.methods.micro_batch import check_micro_batch
from gentletune.runs.inputs import Inputs
from gentletune.training.trainer import GentleTrainer
from tests.cli.test_cli import GOOD, refused, refused_last, run, write

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
SHORT = [
    "--max-steps",
    "3",
    "--lr",
    "1e-2",
    "--precision",
    "fp32",
    "--no-evaluate",
    "--probe-every",
    "0",
    "--save-every",
    "1",
]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


def training(tiny_dir: Path, tmp_path: Path, name: str, *more: str) -> list[str]:
    data = write(tmp_path / "d.jsonl", GOOD)
    return ["train", "--model", str(tiny_dir), "--data", data, *SHORT, "--output", str(tmp_path / name), *more]


def test_plan_of_a_configuration_alone(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_dir / "config.json", bare)
    out = tmp_path / "plan.json"
    call = ["plan", "--model", str(bare), "--gpus", "2", "--memory", "80", "--method", "lora", "--json", str(out)]
    assert run(monkeypatch, *call) == 0
    said = capfd.readouterr().out
    for word in ("weights", "activations", "optimizer", "available (fits)", "80.00 GiB", "assumed: rows of 512 tokens"):
        assert word in said
    found = json.loads(out.read_text())
    assert found["verdict"] == "fits"
    assert found["memory"]["trained"] < found["memory"]["parameters"]
    parts = ("weights", "copies", "gradients", "optimizer", "activations", "head", "other", "overhead")
    assert sum(found["memory"][part] for part in parts) == found["memory"]["training"]


def test_plan_goes_by_the_rows_and_names_what_fits(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "d.jsonl", GOOD), tmp_path / "plan.json"
    call = ["plan", "--model", str(tiny_dir), "--data", data, "--precision", "fp32", "--eval-batch-tokens", "64"]
    assert run(monkeypatch, *call, "--json", str(out)) == 0
    whole = json.loads(out.read_text())
    assert whole["micro_batch"]["tokens"] < 100  # not the 512 of the context
    assert whole["steps"] == 1
    monkeypatch.setattr(setting_module.psutil, "virtual_memory", lambda: Left(int(whole["memory"]["total"])))
    assert run(monkeypatch, *call, "--json", str(out)) == 0
    assert "what surely fits: batch_size: " in capfd.readouterr().out
    assert json.loads(out.read_text())["verdict"] == "tight"
    assert run(monkeypatch, *call, "--global-batch", "8") == 0
    said = capfd.readouterr().out
    assert "what surely fits: batch_size: " in said
    assert "gradient_accumulation" not in said  # which a recipe with global_batch refuses


def test_plan_refuses_what_training_would(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = ["plan", "--model", str(tiny_dir), "--strategy", "fsdp2"]
    assert "strategy: fsdp2 shares a training among several" in refused(monkeypatch, capfd, *call)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refused(monkeypatch, capfd, "plan", "--model", str(tiny_dir), "--gpus", "2")
    assert "so --gpus needs --memory" in line
    more = ["--gpus", "3", "--memory", "8", "--global-batch", "8"]
    assert "cannot be shared evenly by 3 processes" in refused(
        monkeypatch, capfd, "plan", "--model", str(tiny_dir), *more
    )


def wide(folder: Path) -> Path:
    """The configuration of a model of 50 M parameters, without weights or a tokenizer."""
    LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
    ).save_pretrained(folder / "bare")  # fmt: skip
    return folder / "bare"


def test_every_way_that_is_named_is_a_recipe_that_trains(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    model = wide(tmp_path)
    asked: dict[str, dict[str, Any]] = {  # by the GiB of each GPU
        "1": {"method": "talr", "strategy": "ddp", "batch_size": 2},
        "1.3": {"early_stop": "domain_nll", "weights": "bf16", "batch_size": 2},
    }
    for gib, values in asked.items():
        recipe = Recipe.parse({**values, "model": str(model), "evaluate": False, "processes": 4})
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
        call = ["plan", "--model", str(model), *flags, "--no-evaluate", "--gpus", "4", "--json", str(out)]
        assert run(monkeypatch, *call, "--memory", gib) == 0
        found = json.loads(out.read_text())
        assert found["verdict"] != "fits"
        changed = recipe.override(found["what_fits"])
        method = parse_method(changed.method)
        check_devices(changed, method, 4)
        check_micro_batch(changed, method, 4)
        assert changed.processes == 4
        assert changed.step_rows(4) == recipe.step_rows(4)
        assert method.one_pass or changed.batch_size == recipe.batch_size
        assert not (changed.early_stop and changed.strategy == "fsdp2")


def test_strategy_auto_goes_by_the_plan(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "plan.json", wide(tmp_path)
    call = ["plan", "--model", str(model), "--batch-size", "1", "--no-evaluate", "--gpus", "8", "--json", str(out)]

    def strategy(gib: str, *more: str) -> str:
        assert run(monkeypatch, *call, "--memory", gib, *more) == 0
        return str(json.loads(out.read_text())["strategy"])

    assert strategy("8") == "ddp"
    assert strategy("1") == "fsdp2"
    assert "on each of 8 (fsdp2)" in capfd.readouterr().out
    assert strategy("1", "--early-stop", "domain_nll") == "ddp"  # which needs whole weights
    data = write(tmp_path / "d.jsonl", GOOD)
    recipe = Recipe.parse(
        {"model": str(tiny_dir), "data": data, "processes": 2, "precision": "fp32", "evaluate": False}
    )
    inputs = Inputs(recipe)
    assert plan_module.shared_out(inputs) is inputs
    monkeypatch.setattr(plan_module.Planner, "plan", lambda self, setting: Fits(setting.sharded))
    assert plan_module.shared_out(inputs).recipe.strategy == "fsdp2"


class Fits:
    """A plan that fits, or does not."""

    def __init__(self, fits: bool) -> None:
        self.verdict = lambda _: "fits" if fits else "too large"


def test_plan_counts_the_longest_row_and_what_is_on_disk(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plan.json"

    def planned(text: str, *more: str) -> dict[str, Any]:
        data = write(tmp_path / "d.jsonl", text)
        call = ["plan", "--model", str(tiny_dir), "--data", data, "--precision", "fp32", "--no-evaluate"]
        assert run(monkeypatch, *call, *more, "--json", str(out)) == 0
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    short = planned(GOOD)
    row = {"prompt": "a long one", "completion": "on and on " * 30}
    long = planned(GOOD + json.dumps(row) + "\n")  # one row, wherever it may come in training
    assert long["micro_batch"]["tokens"] > 3 * short["micro_batch"]["tokens"]
    assert long["memory"]["activations"] > 3 * short["memory"]["activations"]
    adapter = planned(GOOD, "--method", "lora(r=2)", "--save", "adapter")
    trained = 4 * adapter["memory"]["trained"]
    assert adapter["model_bytes"] == trained  # and not the whole weights
    assert adapter["disk"] == trained + 2 * (trained + 2 * trained) + trained  # checkpoints with AdamW; the adapter
    whole = 4 * short["memory"]["parameters"]
    assert planned(GOOD, "--early-stop", "domain_nll")["disk"] == short["disk"] + 2 * whole


def test_a_plan_for_another_machine_needs_no_bitsandbytes_here(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    out = tmp_path / "plan.json"
    call = ["plan", "--model", str(tiny_dir), "--no-evaluate", "--json", str(out)]
    more = ["--method", "lora(r=2)", "--quantization", "4bit", "--optimizer", "paged_adamw_8bit"]
    assert run(monkeypatch, *call, *more, "--gpus", "1", "--memory", "24") == 0
    few_bits = json.loads(out.read_text())["memory"]["weights"]
    assert run(monkeypatch, *call, "--method", "lora(r=2)", "--memory", "24") == 0
    assert few_bits < json.loads(out.read_text())["memory"]["weights"]
    assert "needs bitsandbytes" in refused_last(monkeypatch, capfd, *call, *more)
    assert "needs bitsandbytes" in refused_last(monkeypatch, capfd, *call, *more, "--memory", "24", "--probe")
    # What a plan proposes for a machine is what trains there.
    full = ["plan", "--model", str(wide(tmp_path)), "--no-evaluate", "--batch-size", "1", "--json", str(out)]
    assert run(monkeypatch, *full, "--memory", "1.4") == 0
    assert json.loads(out.read_text())["what_fits"]["optimizer"] == "adamw_8bit"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra: quant")
def test_plan_tells_what_the_merge_of_a_quantised_run_takes(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = ["plan", "--model", str(tiny_dir), "--data", write(tmp_path / "d.jsonl", GOOD), "--no-evaluate"]
    assert run(monkeypatch, *call, "--method", "lora(r=2)", "--quantization", "4bit") == 0
    assert "merging afterwards" in capfd.readouterr().out


class Left:
    """What psutil says of a machine with so many bytes left."""

    def __init__(self, available: int) -> None:
        self.available = available


def test_weights_that_cannot_fit_are_refused_with_what_does(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    size = (tmp_path / "wide" / "model.safetensors").stat().st_size
    monkeypatch.setattr(plan_module, "memory", lambda _: int(0.99 * size))
    more = ["--method", "lora(r=2)", "--weights", "fp32", "--precision", "bf16", "--batch-size", "1"]
    call = training(tmp_path / "wide", tmp_path, "run", *more)
    line = refused(monkeypatch, capfd, *call)
    assert f"the weights of {tmp_path / 'wide'} alone take" in line
    assert "what fits: weights: bf16" in line
    assert not (tmp_path / "run").exists()


def test_train_says_its_plan_and_a_chosen_micro_batch_changes_no_update(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *training(tiny_dir, tmp_path, "whole", "--batch-size", "4")) == 0
    said = capfd.readouterr().err
    assert "gentletune: plan: about " in said.splitlines()[1]
    auto = ["--batch-size", "auto", "--global-batch", "4"]
    monkeypatch.setattr("gentletune.runs.micro_batch.largest_rows", lambda *_: 2)
    assert run(monkeypatch, *training(tiny_dir, tmp_path, "auto", *auto)) == 0
    record = read_record(tmp_path / "auto")
    assert record is not None
    assert (record.training["micro_batch"], record.training["steps"]) == (2, 3)
    whole, chosen = weights(tmp_path / "whole"), weights(tmp_path / "auto")
    assert all(torch.allclose(whole[name], chosen[name], atol=1e-5) for name in whole)
    # The machine chose; the run is the same where another would choose otherwise, or the user does.
    monkeypatch.setattr("gentletune.runs.micro_batch.largest_rows", lambda *_: 4)
    monkeypatch.setattr("gentletune.runs.run.fit", None)
    assert run(monkeypatch, *training(tiny_dir, tmp_path, "auto", "--batch-size", "1", "--global-batch", "4")) == 0


def test_a_full_memory_halves_the_micro_batch_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    auto = ["--batch-size", "auto", "--global-batch", "4"]
    assert run(monkeypatch, *training(tiny_dir, tmp_path, "whole", *auto)) == 0
    plain, seen = GentleTrainer.training_step, list[int]()
    full = [3]  # the step at which memory is full, once each

    def step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        seen.append(self.args.per_device_train_batch_size)
        if len(seen) in full:
            raise CUDA
        return plain(self, model, inputs, *more)

    monkeypatch.setattr(GentleTrainer, "training_step", step)
    capfd.readouterr()
    assert run(monkeypatch, *training(tiny_dir, tmp_path, "halved", *auto)) == 0
    assert "out of memory in training: micro-batches of 2 rows instead of 4 from the last checkpoint on" in (
        capfd.readouterr().err
    )
    assert seen == [4, 4, 4, 2, 2]  # two steps are kept, the third is done again in two halves
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    assert all(torch.allclose(whole[name], halves[name], atol=1e-5) for name in whole)
    seen.clear()
    full[:] = [1, 2]
    line = refused_last(monkeypatch, capfd, *training(tiny_dir, tmp_path, "twice", *auto))
    assert line.startswith("gentletune: out of memory in training")
    assert seen == [4, 2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch-size", "auto"], "batch_size: auto fills global_batch, the rows of one update; give it"),
        (["--batch-size", "3", "--global-batch", "4"], "global_batch 4 is no multiple of batch_size 3"),
        (["--global-batch", "8", "--gradient-accumulation", "2"], "leave gradient_accumulation out"),
        (["--batch-size", "auto", "--global-batch", "8", "--method", "talr"], "its τ is of a micro-batch; give"),
        (["--global-batch", "8", "--processes", "3"], "global_batch 8 cannot be shared evenly by 3 processes"),
        (["--batch-size", "some"], "batch_size: must be a whole number from 1, or auto"),
    ],
)
def test_micro_batches_that_cannot_be(
    more: list[str], words: str, tiny_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert words in refused_last(monkeypatch, capfd, *training(tiny_dir, tmp_path, "run", *more))
    assert not (tmp_path / "run").exists()
