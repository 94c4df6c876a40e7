"""The memory plan: what it says beside what torch really allocates, what it says of other devices, what fits."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gentletune.lm.adapters import merge_adapter, save_adapter
from gentletune.lm.fitting import largest_rows, nearest, with_rows
from gentletune.lm.loaded import load_model
from gentletune.lm.plan import GPU_OVERHEAD, Planner, Setting, optimizer_bytes
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method
from gentletune.training import TrainingDivergedError
from gentletune.training.trainer import GentleTrainer
from tests.training.steps import settings

ROWS, LENGTH, LABELS = 4, 96, 40
CONFIG = LlamaConfig(
    vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2, pad_token_id=2,
)  # fmt: skip
WIDE = LlamaConfig(**{**CONFIG.to_dict(), "vocab_size": 20_000})  # most of it is its embedding


def allocated(run: Any) -> int:
    """The most bytes that torch holds on the CPU beyond what it held before, while `run` runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    gc.collect()  # else what an earlier training left goes while this one is measured, and counts against it
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("method", "accumulation", "checkpointing", "releases"),
    [
        ("sft", 1, False, False),
        ("sft", 1, True, True),
        ("talr", 2, True, False),
        ("lora", 1, True, False),
        ("lora(r=4)", 2, True, False),
    ],
)
def test_the_plan_is_what_torch_allocates(
    method: str, accumulation: int, checkpointing: bool, releases: bool, tokenizer: Any, tmp_path: Path
) -> None:
    parts = parse_method(method)
    row = {"input_ids": [5] * LENGTH, "labels": [-100] * (LENGTH - LABELS) + [5] * LABELS}
    rows = datasets.Dataset.from_list([row] * (2 * ROWS * accumulation))
    arguments = settings(
        tmp_path, per_device_train_batch_size=ROWS, gradient_accumulation_steps=accumulation, max_steps=2,
        gradient_checkpointing=checkpointing, optim="adamw_torch_fused",
    )  # fmt: skip
    model = parts.parameterisation.wrap(LlamaForCausalLM(CONFIG).float())
    trainer = GentleTrainer(model, arguments, method=parts, train_dataset=rows, processing_class=tokenizer)
    trainer.releases = releases
    measured = allocated(trainer.train)
    work = Work(ROWS, LENGTH, ROWS * LABELS, accumulates=accumulation > 1, checkpointing=checkpointing)
    plan = Planner(CONFIG).plan(Setting(work, method, releases=releases))
    assert plan.training - plan.weights == pytest.approx(measured, rel=0.1)
    assert not plan.rough


def test_a_checkpoint_takes_no_more_than_the_step_before_it(tokenizer: Any, tmp_path: Path) -> None:
    parts = parse_method("lora(r=2)")
    row = {"input_ids": [5] * LENGTH, "labels": [-100] * (LENGTH - 2) + [5] * 2}
    arguments = settings(
        tmp_path, per_device_train_batch_size=1, max_steps=2, gradient_checkpointing=True, optim="adamw_torch_fused",
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    model = parts.parameterisation.wrap(LlamaForCausalLM(WIDE).float())
    rows = datasets.Dataset.from_list([row] * 2)
    trainer = GentleTrainer(model, arguments, method=parts, train_dataset=rows, processing_class=tokenizer)
    measured = allocated(trainer.train)
    trainer.finish_checkpoint()
    assert (tmp_path / "checkpoint-2").is_dir()
    plan = Planner(WIDE).plan(Setting(Work(1, LENGTH, 2, checkpointing=True), "lora(r=2)"))
    assert plan.training - plan.weights == pytest.approx(measured, rel=0.1)
    trainer.optimizer.param_groups[0]["params"][0].data[0, 0] = float("nan")
    with pytest.raises(TrainingDivergedError, match="the weights are not finite at step 2"):
        trainer._save_checkpoint(model, None)


def test_few_layers_tell_of_many() -> None:
    deep = LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 8, "vocab_size": 5000})
    skeleton = Planner(deep)._of(Setting(Work(2, 64, 60)))
    work = Work(2, 64, 60, checkpointing=True, bf16=True)
    assert skeleton._few is not None
    assert skeleton.peak(work) == skeleton._peak(work)


def test_what_changes_the_plan() -> None:
    planner = Planner(CONFIG)
    setting = Setting(Work(ROWS, LENGTH, ROWS * LABELS))
    plain = planner.plan(setting)
    assert plain.optimizer == 8 * plain.parameters
    low = planner.plan(replace(setting, weights="bf16"))
    assert low.weights == pytest.approx(plain.weights / 2, rel=0.01)
    assert low.optimizer == 6 * plain.parameters  # two moments, and what Kahan's sum has left
    shared = planner.plan(replace(setting, strategy="fsdp2", processes=4))
    assert (shared.weights, shared.optimizer) == (plain.weights // 4, plain.optimizer // 4)
    assert planner.plan(replace(setting, weights="bf16", strategy="fsdp2", processes=4)).weights == shared.weights
    assert shared.weights == pytest.approx(4 * plain.parameters / 4, rel=0.01)
    stage_2 = planner.plan(replace(setting, strategy="deepspeed", processes=4))
    assert (stage_2.weights, stage_2.rough) == (plain.weights, True)
    assert stage_2.optimizer < plain.optimizer
    several = planner.plan(replace(setting, processes=4))
    assert several.other >= 4 * plain.parameters  # DDP's buckets
    adapters = planner.plan(replace(setting, method="lora(r=2)"))
    few_bits = planner.plan(replace(setting, method="lora(r=2)", quantization="4bit"))
    assert adapters.trained < plain.parameters / 10
    assert few_bits.weights < adapters.weights / 3
    casts = planner.plan(replace(setting, work=replace(setting.work, bf16=True)))
    assert casts.copies == pytest.approx(2 * plain.parameters, rel=0.2)


def test_a_step_that_numbers_decide_is_a_rule_of_thumb(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(CONFIG)
    setting = Setting(Work(ROWS, LENGTH, ROWS * LABELS))
    exact = planner.plan(setting).activations

    def undecided(*_: Any, **__: Any) -> None:
        raise NotImplementedError("data-dependent")  # as torch's fake tensors do where a step asks for a number

    monkeypatch.setattr("gentletune.lm.step_memory.hidden_states", undecided)
    rough = Planner(CONFIG).plan(setting)
    assert rough.rough
    assert rough.activations == pytest.approx(exact, rel=0.5)
    monkeypatch.undo()
    monkeypatch.setattr("gentletune.lm.step_memory.Skeleton.forward_peak", undecided)
    assert Planner(CONFIG).plan(setting).rough
    assert not Planner(CONFIG).plan(replace(setting, eval_tokens=0)).rough


def test_an_adapter_of_a_base_in_few_bits_needs_the_plain_base_once() -> None:
    planner = Planner(CONFIG)
    setting = Setting(Work(1, 8, 4), "lora(r=2)", quantization="4bit", eval_tokens=0)
    alone, merged = planner.plan(replace(setting, save="adapter")), planner.plan(setting)
    assert (alone.merging, alone.total) == (0, alone.training)
    assert 4 * merged.parameters < merged.merging < 5 * merged.parameters
    assert merged.total == merged.merging > merged.training
    on_gpu = planner.plan(replace(setting, work=replace(setting.work, gpu=True)))
    assert (on_gpu.merging, on_gpu.total) == (merged.merging, on_gpu.training)  # nothing is measured: on the host
    measured = replace(setting, work=replace(setting.work, gpu=True), eval_tokens=8)
    assert planner.plan(measured).merging == merged.merging + GPU_OVERHEAD
    assert planner.plan(measured).total >= merged.merging + GPU_OVERHEAD
    way = nearest(planner, setting, int(1.4 * alone.training))
    assert way is not None
    assert way.text == "save: adapter"


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_the_plan_of_a_merge_is_what_torch_holds(weights: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    plain = LlamaForCausalLM(CONFIG).to(dtype)
    plain.save_pretrained(tmp_path / "base")
    save_adapter(parse_method("lora(r=2)").parameterisation.wrap(plain), tmp_path / "adapter")
    base = load_model(tmp_path / "base", dtype)  # in pages of its file, which the profiler does not see
    held = sum(tensor.nbytes for tensor in (*base.parameters(), *base.buffers()))

    def merge() -> None:
        merge_adapter(base, tmp_path / "adapter")

    setting = Setting(Work(1, 8, 4), "lora(r=2)", weights=weights, quantization="4bit", eval_tokens=0)
    assert Planner(base.config).plan(setting).merging == pytest.approx(held + allocated(merge), rel=0.02)


def test_what_is_merged_is_held_as_the_nearest_way_holds_it() -> None:
    """An adapter saved alone is added to the base to be measured: a base that the way holds in bf16 takes half."""
    planner = Planner(WIDE)
    setting = Setting(Work(1, 8, 4), "lora(r=2)", eval_tokens=8, save="adapter")
    half = planner.plan(replace(setting, weights="bf16"))
    assert half.merging < 0.8 * planner.plan(setting).merging
    way = nearest(planner, setting, int(1.36 * half.total))
    assert way is not None
    assert way.changes["weights"] == "bf16"
    assert way.plan.merging == half.merging
    assert planner.plan(replace(setting, save="merged")).merging == 0  # it goes into what it was trained on


@pytest.mark.parametrize(
    ("name", "bytes_each"),
    [("adamw_torch_fused", 8), ("sgd", 0), ("adamw_8bit", 2), ("lion_32bit", 4), ("adafactor", 0), ("adagrad", 4)],
)
def test_optimizers(name: str, bytes_each: int) -> None:
    held = optimizer_bytes(name, [torch.empty(1000, 1000, device="meta")])
    assert held / 1e6 == pytest.approx(bytes_each, abs=0.05)
    assert optimizer_bytes("sgd", [torch.empty(10)], momentum=True) == 40


def test_the_nearest_way_changes_the_update_least() -> None:
    planner = Planner(CONFIG)
    setting = Setting(Work(8, 128, 8 * 100), eval_tokens=0)

    def way(rows: int, **changes: Any) -> str | None:
        """What fits where so many rows and these changes of the work do."""
        work = replace(with_rows(setting.work, rows), **changes)
        has = int(1.4 * planner.plan(replace(setting, work=work)).total)
        found = nearest(planner, setting, has, kinds=("",))
        return None if found is None else found.text

    assert way(8) == ""
    assert way(4) == "batch_size: 4, gradient_accumulation: 2"
    assert way(2, checkpointing=True) == "batch_size: 2, gradient_accumulation: 4, gradient_checkpointing: true"
    assert nearest(planner, setting, 2**16, kinds=("",)) is None
    has = int(1.4 * planner.plan(replace(setting, work=with_rows(setting.work, 4))).total)
    median, lagged = replace(setting, method="talr"), replace(setting, method="talr(tau=lagged_median)")
    assert largest_rows(planner, median, has) == 0  # its τ is of a micro-batch, so fewer rows are another update
    assert largest_rows(planner, lagged, has) == 4
    refused = nearest(planner, setting, has, kinds=("",), accepts=lambda changes: "batch_size" not in changes)
    assert refused is None or "batch_size" not in refused.changes
    assert largest_rows(planner, setting, 2**16) == 0
