"""bf16 weights: what they lose is measured and said, and Kahan summation keeps it, through every door."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optimi
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import gentletune.lm.held as held
from gentletune import Recipe, train
from gentletune.data import encode_rows, load_data
from gentletune.lm.held import how_held, parameter_count
from gentletune.lm.loaded import Loaded
from gentletune.methods import parse_method
from gentletune.training import fit
from gentletune.training.callbacks.lost_updates import Watch
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.trainer import METRICS_FILE
from tests.conftest import make_model
from tests.helpers import StoppedError, run_cli, tiny_recipe
from tests.training.test_optimizers import fields, trained

BF16 = torch.bfloat16


def bf16_model(tokenizer: Any) -> Any:
    return make_model(len(tokenizer)).to(BF16)


def fitted(tokenizer: Any, run: Path, capsys: Any, **keys: Any) -> tuple[Any, list[dict[str, Any]], str]:
    """A training of bf16 weights: the model, its metrics and what was said."""
    recipe = Recipe.parse(
        {**fields(keys.pop("optimizer", "adamw_torch")), "precision": "auto", "weights": "bf16", **keys}
    )
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    done = fit(recipe, parse_method(recipe.method), bf16_model(tokenizer), tokenizer, rows, run)
    return done, read_metrics(run / METRICS_FILE), " ".join(capsys.readouterr().err.split())


# --- what is lost


def test_an_update_is_lost_where_neither_weight_nor_compensation_takes_it() -> None:
    def lost(kind: Any, rate: float, dtype: torch.dtype, **how: Any) -> float | None:
        weight = torch.nn.Parameter(torch.linspace(0.5, 1, 64).to(dtype))
        optimizer = kind([weight], lr=rate, **how)
        watch = Watch([weight])
        weight.grad = torch.cat([torch.zeros(32), torch.ones(32)]).to(dtype)  # half of them want nothing
        watch.before(optimizer.state)
        optimizer.step()
        return watch.lost(optimizer.state)

    assert lost(torch.optim.SGD, 1e-4, BF16) == 1.0
    assert lost(torch.optim.SGD, 1e-4, torch.float32) == 0.0
    assert lost(torch.optim.SGD, 1e-1, BF16) == 0.0
    assert lost(torch.optim.AdamW, 1e-4, BF16, weight_decay=0.0) == 1.0
    assert lost(optimi.AdamW, 1e-4, BF16, weight_decay=0.0) == 0.0
    assert lost(optimi.SGD, 1e-4, BF16) == 0.0


def test_a_first_moment_wants_an_update_without_a_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=BF16))
    optimizer, watch = torch.optim.SGD([weight], lr=1e-6, momentum=0.9), Watch([weight])
    for gradient, expected in [(1.0, 1.0), (0.0, 1.0)]:
        weight.grad = torch.full_like(weight, gradient)
        watch.before(optimizer.state)
        optimizer.step()
        assert watch.lost(optimizer.state) == expected
    weight.grad = None
    watch.before(optimizer.state)
    assert watch.lost(optimizer.state) is None


def test_a_few_entries_of_many_are_looked_at() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.rand(300, 64).to(BF16) + 0.5) for _ in range(4)]
    optimizer, shares = torch.optim.SGD(weights, lr=4e-3), []
    for entries in (10**9, 2000):
        watch = Watch(weights, entries)
        before = [w.detach().clone() for w in weights]
        for w in weights:
            w.grad = torch.rand(w.shape, generator=torch.Generator().manual_seed(1)).to(BF16)
        watch.before(optimizer.state)
        optimizer.step()
        shares.append(watch.lost(optimizer.state))
        with torch.no_grad():
            for w, b in zip(weights, before, strict=True):
                w.copy_(b)
    assert Watch(weights, 2000).stride > 30
    assert 0.2 < shares[0] < 0.9
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


# --- in training


def test_kahan_keeps_what_plain_bf16_loses(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    """At a small rate a bf16 weight takes nothing in; with compensation the movement is fp32's before long."""
    keys: dict[str, Any] = {"max_steps": 8, "lr": 5e-5, "schedule": "constant", "warmup": 0.0, "betas": (0.9, 0.99)}
    kept, lines, text = fitted(tokenizer, tmp_path / "kahan", capsys, **keys)
    assert "weights are held in bf16: what they cannot take in is kept for the next step (Kahan summation)" in text
    assert "are lost" not in text
    assert kept.figures["lost_updates"] < 0.01
    assert all(line["lost_updates"] < 0.01 for line in lines if "nll" in line)
    plain, _, text = fitted(tokenizer, tmp_path / "plain", capsys, optimizer="adafactor", **keys | {"betas": None})
    assert plain.figures["lost_updates"] > 0.5
    assert re.search(r"\d+% of the updates of step 1 are lost: bf16 weights do not move at a rate of 5e-05; set", text)
    assert text.count("are lost") == 1
    whole = fit_fp32(tokenizer, tmp_path / "fp32", **keys)
    assert kept.figures["update_norm"] == pytest.approx(whole, rel=0.15)
    assert 0 < kept.figures["waiting_norm"] < kept.figures["update_norm"]
    assert "too small for bf16" not in text


def test_what_bf16_weights_could_not_take_in_is_added_at_the_end(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    """Two steps at 1e-6 move hardly a bf16 weight; in the end they hold the whole update on average, as a line says."""
    done, _, text = fitted(tokenizer, tmp_path / "bf16", capsys, lr=1e-6, max_steps=2)
    assert done.figures["lost_updates"] < 0.01
    assert re.search(r"bf16 weights while training, which moved them by \S+; the rest, \S+, is added now", text)
    recipe = Recipe.parse(fields("adamw_torch", lr=1e-6, max_steps=2))
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    model = bf16_model(tokenizer).float()
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    whole = fit(recipe, parse_method("sft"), model, tokenizer, rows, tmp_path / "fp32").model
    wanted = {name: value.detach() - base[name] for name, value in whole.named_parameters()}
    found = {name: value.detach().float() - base[name] for name, value in done.model.named_parameters()}
    kept = sum(float((found[name] * change).sum()) for name, change in wanted.items())
    assert kept / sum(float(change.square().sum()) for change in wanted.values()) == pytest.approx(1, abs=0.2)


def test_it_is_added_after_a_kill_at_the_last_checkpoint_too(tokenizer: Any, tmp_path: Path) -> None:
    class Kill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                raise StoppedError

    recipe = Recipe.parse(fields("adamw_torch", lr=1e-6) | {"precision": "auto", "weights": "bf16"})
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows

    def go(run: Path, *callbacks: TrainerCallback) -> Any:
        return fit(
            recipe, parse_method("sft"), bf16_model(tokenizer), tokenizer, rows, tmp_path / run, callbacks=callbacks
        )

    whole = go(Path("whole"))
    with pytest.raises(StoppedError):
        go(Path("cut"), Kill())
    again = go(Path("cut"))
    assert again.figures["waiting_norm"] == whole.figures["waiting_norm"] > 0
    weights = dict(again.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in whole.model.named_parameters())


def test_an_average_of_bf16_weights_keeps_what_is_smaller_than_a_step(tokenizer: Any, tmp_path: Path) -> None:
    """The average of training's fp32 states is between two bf16 numbers mostly; what is saved has its mean."""

    class Keep(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.values = {name: value.clone() for name, value in self.trainer.average.values.items()}

    recipe = Recipe.parse(
        fields("adamw_torch", lr=1e-4, method="ema(decay=0.9)") | {"precision": "auto", "weights": "bf16"}
    )
    rows, keep = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows, Keep()
    keep.trainer = None
    done = fit(recipe, parse_method(recipe.method), bf16_model(tokenizer), tokenizer, rows, tmp_path, callbacks=[keep])
    between = off = 0.0
    for name, value in done.model.named_parameters():
        missing = keep.values[name] - keep.values[name].bfloat16().float()
        between += float(missing.abs().sum())
        off += float((value.detach().float() - keep.values[name])[missing != 0].sum())
    assert between > 0
    assert abs(off) < 0.1 * between
    assert "waiting_norm" not in done.figures


def fit_fp32(tokenizer: Any, run: Path, **keys: Any) -> float:
    """‖θ-θ⁰‖ of the same training from the same weights, held in fp32."""
    recipe = Recipe.parse(fields("adamw_torch", **keys))
    rows = encode_rows(load_data(recipe).train, tokenizer, max_length=512).rows
    model = bf16_model(tokenizer).float()
    return fit(recipe, parse_method("sft"), model, tokenizer, rows, run).figures["update_norm"]


def test_fp32_weights_measure_nothing(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    recipe = Recipe.parse(fields("adamw_torch"))
    trained(tokenizer, tmp_path, recipe)
    assert not any("lost_updates" in line for line in read_metrics(tmp_path / METRICS_FILE))
    assert "bf16" not in capsys.readouterr().err


def test_compensated_training_resumes_bit_for_bit(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.test_optimizers.make_model", lambda vocab: make_model(vocab).to(BF16))
    recipe = Recipe.parse({**fields("adamw_torch", lr=1e-5), "precision": "auto", "weights": "bf16"})
    whole = trained(tokenizer, tmp_path / "whole", recipe)
    again = trained(tokenizer, tmp_path / "again", recipe, stop=4)
    for key, value in whole.items():
        assert value.dtype == BF16
        assert torch.equal(value, again[key]), key


# --- a whole run


@pytest.mark.parametrize("method", ["talr", "lora(r=2)+wise_ft"])
def test_a_run_in_bf16(method: str, tiny_dir: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiny_dir, run, weights="bf16", method=method, tasks=("arithmetic",), max_steps=3)
    record = train(recipe)
    assert record.status == "complete"
    assert {value.dtype for value in load_file(run / "model" / "model.safetensors").values()} == {BF16}
    assert record.scores
    adapters = "lora" in method
    assert ("the adapters are trained in fp32" in capsys.readouterr().err) == adapters
    assert ("lost_updates" in record.training) == (not adapters)
    assert train(recipe) == record  # complete: nothing is done again


def test_base_and_tuned_model_are_measured_as_they_are_trained(tiny_dir: Path) -> None:
    """What is cached of a model in one precision is not taken for the other's."""
    bf16, fp32 = (Loaded.of(Recipe(model=str(tiny_dir), weights=weights)) for weights in ("bf16", "fp32"))
    assert (bf16.model.dtype, fp32.model.dtype) == (BF16, torch.float32)
    assert bf16.hash != fp32.hash
    assert bf16.files_hash == fp32.files_hash
    assert bf16.with_model(directory=tiny_dir).model.dtype == BF16


# --- auto


def test_auto_is_fp32_where_it_fits(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = parameter_count(tiny_dir)
    assert count == sum(p.numel() for p in make_model(Loaded(str(tiny_dir)).config.vocab_size).parameters())

    def auto(room: float, **keys: Any) -> str:
        monkeypatch.setattr(held, "memory", lambda recipe: int(room * count / held.ROOM) + 8)
        return how_held(Recipe(model=str(tiny_dir), **keys), tiny_dir).name

    assert (auto(16), auto(15)) == ("fp32", "bf16")  # weights, gradients, two moments
    assert (auto(4, method="lora"), auto(3, method="lora")) == ("fp32", "bf16")
    assert (auto(8, optimizer="sgd"), auto(7, optimizer="sgd")) == ("fp32", "bf16")
    assert (auto(1, weights="fp32"), auto(99, weights="bf16")) == ("fp32", "bf16")
    assert auto(1, precision="fp32") == "fp32"


def test_auto_says_that_it_takes_bf16(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(held, "memory", lambda recipe: 1)
    recipe = tiny_recipe(tiny_dir, tmp_path, evaluate=False, probe_every=0, max_steps=2)
    record = train(recipe)
    assert "weights are held in bf16 (training would not fit in fp32): what" in " ".join(
        capsys.readouterr().err.split()
    )
    assert record.training["lost_updates"] < 0.01
    monkeypatch.undo()
    command = ["train", f"--model={tiny_dir}", "--data=clinic", "--train-rows=12", "--max-steps=2", "--no-evaluate"]
    command += ["--probe-every=0", f"--output={tmp_path}"]
    assert run_cli(monkeypatch, *command) == 2  # held otherwise, it is another training
    assert "weights" in capsys.readouterr().err
