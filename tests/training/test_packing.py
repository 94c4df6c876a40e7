"""Packed rows train as unpacked ones do, whatever the method; what could mix them up is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from gentletune import Recipe
from gentletune.core.errors import UserError
from gentletune.core.records import read_record
from gentletune.training.attention import at_own, attending, keeps_apart
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.callbacks.throughput import device_peak, model_flops
from gentletune.training.packing import Layout, pack_length, rows_to_draw, training_set
from tests.cli.test_cli import GOOD, refused_last, run, write
from tests.conftest import make_model
from tests.training.steps import EXACT, ROWS, distance, first_loss, gradients, lively_model, one_step

METHODS = [
    "sft", "talr", "talr(tau=3.0)", "talr(tau=lagged_median)", "talr(normalization=simplex)", "l2(weight=0.1)",
    "lora(r=2)+talr", "asft(weight=0.3)", "replay(share=0.5)",
]  # fmt: skip
WEIGHTS = [0.9, 0.1, 0.5, 0.3]
LENGTH = 14  # of 6, 3, 8 and 4 tokens: two packed rows, one of them padded in a batch


def test_packed_rows_are_whole_rows_with_their_weights() -> None:
    packed = training_set(ROWS, WEIGHTS, pack=LENGTH)
    assert len(packed) == 2
    found = {}
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            part = slice(start, start + length)
            found[tuple(row["input_ids"][part])] = (row["labels"][part], row["sequence_weight"][part])
            start += length
        assert start == len(row["input_ids"]) <= LENGTH
    assert found == {
        tuple(row.input_ids): (row.labels, pytest.approx([weight] * len(row.labels)))
        for row, weight in zip(ROWS, WEIGHTS, strict=True)
    }


@pytest.mark.parametrize("layout", ["packed", "flat"])
@pytest.mark.parametrize("method", METHODS)
def test_the_update_is_that_of_unpacked_rows(method: str, layout: Layout, tokenizer: Any, tmp_path: Path) -> None:
    def step(name: str, **how: Any) -> Any:
        torch.manual_seed(0)  # of the adapters
        return one_step(lively_model(tokenizer), tokenizer, tmp_path / name, method, weights=WEIGHTS, **how)[0]

    plain = step("plain")
    packed = step("packed", pack=LENGTH, layout=layout, per_device_train_batch_size=2)
    assert distance(gradients(plain), gradients(packed)) < EXACT
    assert first_loss(packed) == pytest.approx(first_loss(plain), rel=EXACT)


def test_the_step_is_the_same_without_sequence_weights(tokenizer: Any, tmp_path: Path) -> None:
    plain, _ = one_step(lively_model(tokenizer), tokenizer, tmp_path / "a", "talr")
    packed, _ = one_step(lively_model(tokenizer), tokenizer, tmp_path / "b", "talr", pack=LENGTH, layout="packed")
    assert distance(gradients(plain), gradients(packed)) < EXACT


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)).eval()
    model = make_model(50)
    model.set_attn_implementation(kind)
    return model


@pytest.mark.parametrize("layout", ["packed", "flat"])
@pytest.mark.parametrize("kind", ["sdpa", "eager", "gpt2"])
def test_attention_that_follows_positions_keeps_rows_apart(kind: str, layout: Layout) -> None:
    assert keeps_apart(model_of(kind), layout)


@pytest.mark.parametrize("layout", ["packed", "flat"])
def test_attention_that_does_not_is_found_out(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keeps_apart(model_of("bloom"), layout)  # it takes no positions
    blind = model_of("sdpa")
    forward = blind.model.forward
    monkeypatch.setattr(blind.model, "forward", lambda position_ids=None, **inputs: forward(**inputs))
    assert not keeps_apart(blind, layout)


def test_steps_count_packed_rows() -> None:
    recipe = Recipe(packing=True, max_length=LENGTH, batch_size=1, epochs=3)
    assert pack_length(recipe, ROWS) == LENGTH
    assert recipe.steps(rows_to_draw(recipe, ROWS)) == 6
    plain = recipe.override({"packing": False})
    assert plain.steps(rows_to_draw(plain, ROWS)) == 12


SMALL = ["--batch-size", "2", "--test-rows", "2", "--probe-every", "0", "--no-evaluate", "--lr", "1e-3"]


def trained(monkeypatch: pytest.MonkeyPatch, tiny_dir: Path, tmp_path: Path, *more: str) -> Path:
    data, out = write(tmp_path / "d.jsonl", GOOD * 2), tmp_path / "run"
    code = run(monkeypatch, "train", "--model", str(tiny_dir), "--data", data, *SMALL, "--output", str(out), *more)
    assert code == 0
    return out


def test_packing_from_the_command_line(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = trained(monkeypatch, tiny_dir, tmp_path, "--packing", "--max-length", "160", "--epochs", "2")
    record = read_record(out)
    assert record is not None
    rows, steps = record.data["train"]["rows"], int(record.training["steps"])
    assert steps < rows / 2  # two epochs of two rows a step would be as many steps as rows
    line = next(line for line in capfd.readouterr().err.splitlines() if "attention" in line)
    assert line.startswith(f"gentletune: sft lr 0.001: attention sdpa; {rows} rows packed into ")
    for figures in (record.training, *read_metrics(out / "metrics.jsonl")):
        assert figures["tokens_per_second"] > 0
        assert 0.01 < figures["peak_memory_gib"] < 100
        assert "mfu" not in figures  # the peak of a CPU is not known
    label_tokens = sum(line["label_tokens"] for line in read_metrics(out / "metrics.jsonl"))
    assert label_tokens == 2 * record.data["label_tokens"]  # every row once an epoch


def test_grouping_from_the_command_line(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(monkeypatch, tiny_dir, tmp_path, "--max-steps", "1", "--group-by-length")
    assert "rows, those of like length together" in capfd.readouterr().err


@pytest.mark.slow
def test_a_compiled_run_is_the_same(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        (tmp_path / name).mkdir()
        out = trained(monkeypatch, tiny_dir, tmp_path / name, "--max-steps", "2", *options)
        lines.append(read_metrics(out / "metrics.jsonl"))
    plain, compiled = ([line["nll"] for line in found] for found in lines)
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_rows_of_like_length_are_drawn_together(tokenizer: Any, tmp_path: Path) -> None:
    rows = [ROWS[i % 4] for i in range(200)]
    trainer, _ = one_step(
        lively_model(tokenizer), tokenizer, tmp_path, "sft", rows=rows, max_steps=1,
        train_sampling_strategy="group_by_length", per_device_train_batch_size=4,
    )  # fmt: skip
    batches = list(trainer.get_train_dataloader())
    alike = [len(set(batch["attention_mask"].sum(1).tolist())) == 1 for batch in batches]
    assert sum(alike) > len(alike) / 2  # in random order one in 64


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused for want of a GPU, and one is here")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--packing", "--group-by-length"], "packing leaves no padding"),
        (["--attention", "flash_attention_2"], "flash_attention_2 trains on a GPU"),
        (["--attention", "flex_attention"], "flex_attention trains on a GPU"),
        (["--compile"], "needs a C++ compiler"),
    ],
)
def test_what_cannot_work_is_one_line(
    options: list[str], told: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "--compile" in options:
        monkeypatch.setattr("gentletune.training.attention.get_cpp_compiler", no_compiler)
    data, out = write(tmp_path / "d.jsonl", GOOD), tmp_path / "run"
    call = ["train", "--model", str(tiny_dir), "--data", data, *SMALL, "--output", str(out), *options]
    assert told in refused_last(monkeypatch, capfd, *call)
    assert not (out / "model").exists()


def no_compiler() -> str:
    raise InvalidCxxCompiler


def test_a_model_that_would_mix_rows_up_is_refused(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gentletune.training.attention.keeps_apart", lambda *_: False)
    data, out = write(tmp_path / "d.jsonl", GOOD), tmp_path / "run"
    call = ["train", "--model", str(tiny_dir), "--data", data, *SMALL, "--output", str(out), "--packing"]
    assert "does not keep the rows of a packed row apart" in refused_last(monkeypatch, capfd, *call)
    assert not (out / "model").exists()


def test_the_arithmetic_of_a_model(tokenizer: Any) -> None:
    model = make_model(len(tokenizer))
    weights = sum(p.numel() for p in model.parameters())  # tied: the embedding is the head
    flops = model_flops(model)
    assert flops is not None
    assert flops.token == 6 * weights
    assert flops.square == 6 * 2 * 32  # layers, width
    model.requires_grad_(False)
    frozen = model_flops(model)
    assert frozen is not None
    assert frozen.token == 4 * weights
    assert device_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert device_peak("NVIDIA L40S") == 362e12
    assert device_peak("NVIDIA RTX A1000") is device_peak("NVIDIA A10G") is None


def test_attention_is_the_models_own_again(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(50)
    look = at_own(model, lambda seen: seen.config._attn_implementation)
    assert look is not None
    with attending(model, Recipe(attention="eager", packing=True), bf16=False) as (name, layout):
        assert (name, layout) == ("eager", "packed")
        assert model.config._attn_implementation == "eager"
        assert look(model) == "sdpa"  # a probe measures as an evaluation does
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr("gentletune.training.attention.keeps_apart", lambda *_: False)
    with pytest.raises(UserError, match="apart"), attending(model, Recipe(attention="eager", packing=True), bf16=False):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_the_hubs_build_of_flash_attention_is_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes it where `flash_attn` is not installed and `kernels` is; no GPU is here to run it."""
    model = make_model(50)
    built = {"flash_attention_2": "kernels-community/flash-attn2"}

    def take(name: str) -> None:
        model.config._attn_implementation_internal = built.get(name, name)

    monkeypatch.setattr("gentletune.training.attention.device", lambda: torch.device("cuda"))
    monkeypatch.setattr(model, "set_attn_implementation", take)
    recipe = Recipe(attention="flash_attention_2", precision="bf16")
    with attending(model, recipe, bf16=True) as (name, layout):
        assert (name, layout) == ("flash_attention_2", "padded")
        assert model.config._attn_implementation == built[name]
    assert model.config._attn_implementation == "sdpa"
    built["flash_attention_2"] = "eager"
    with pytest.raises(UserError, match="has eager alone"), attending(model, recipe, bf16=True):
        pass
