"""bf16 means that the model's linear layers compute in bf16, through every door, and nothing else changes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune import MethodMixin, Recipe, TALRTrainer, method_loss, train
from gentletune.data.batches import pad_batch
from gentletune.training.loss import add_token_nll, remove_token_nll
from gentletune.training.packing import training_set
from tests.training.steps import ROWS, lively_model, one_step, settings


class MethodTrainer(MethodMixin, Trainer):
    """As a user of transformers would write it."""


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one precision a process, until a Trainer or this says otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def dtypes_in_training() -> Iterator[set[torch.dtype]]:
    """Collects the output dtype of every linear layer that runs in train mode."""
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and module.training:
            seen.add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["sft", "talr", "talr(tau=lagged_median)", "lora(r=2)"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_train_computes_in_the_recipes_precision(
    method: str, precision: Any, dtype: torch.dtype, tiny_dir: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        model=str(tiny_dir), data="clinic", train_rows=4, max_steps=2, batch_size=2, method=method, lr=1e-3,
        precision=precision, evaluate=False, probe_every=0, output=str(tmp_path / "run"),
    )  # fmt: skip
    with dtypes_in_training() as seen:
        assert train(recipe).status == "complete"
    assert seen == {dtype}


@pytest.mark.parametrize("tau", ["median", "lagged_median"])
def test_trainers_compute_in_bf16(tau: str, tokenizer: Any, tmp_path: Path) -> None:
    with dtypes_in_training() as seen:
        TALRTrainer(
            lively_model(tokenizer), settings(tmp_path / "a", bf16=True), tau=tau, train_dataset=training_set(ROWS),
            processing_class=tokenizer, data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        ).train()  # fmt: skip
        one_step(lively_model(tokenizer), tokenizer, tmp_path / "b", f"talr(tau={tau})", bf16=True)  # GentleTrainer
        arguments = TrainingArguments(tmp_path / "c", use_cpu=True, bf16=True, max_steps=1, report_to="none")
        MethodTrainer(
            lively_model(tokenizer), arguments, method=f"talr(tau={tau})", train_dataset=training_set(ROWS),
            data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        ).train()  # fmt: skip
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("taught_first", [True, False], ids=["before prepare", "after prepare"])
@pytest.mark.parametrize("method", ["talr", "talr(tau=3.0)"])
def test_method_loss_runs_under_accelerates_autocast(method: str, taught_first: bool, tokenizer: Any) -> None:
    model, batch = lively_model(tokenizer).train(), pad_batch(ROWS, tokenizer.pad_token_id)
    if taught_first:
        add_token_nll(model)
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    with dtypes_in_training() as seen:
        loss = method_loss(model, batch, method).loss
        loss.backward()
        method_loss(copy.deepcopy(model), batch, method)
    assert seen == {torch.bfloat16}
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=["bf16 first", "fp32 first"])
@pytest.mark.parametrize("kind", ["ours", "transformers", "peft"])
def test_a_second_trainer_on_the_same_model_has_its_own_precision(
    kind: str, order: tuple[bool, bool], tokenizer: Any, tmp_path: Path
) -> None:
    model: Any = lively_model(tokenizer)
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for bf16 in order:
        with dtypes_in_training() as seen:
            if kind == "transformers":
                arguments = TrainingArguments(tmp_path, use_cpu=True, bf16=bf16, max_steps=1, report_to="none")
                collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
                rows = training_set(ROWS)
                MethodTrainer(model, arguments, method="talr", train_dataset=rows, data_collator=collator).train()
            else:
                one_step(model, tokenizer, tmp_path / str(bf16), "talr", bf16=bf16)
        assert (torch.bfloat16 in seen) == bf16


@pytest.mark.parametrize("taught_first", [True, False], ids=["before prepare", "after prepare"])
def test_accelerate_can_unwrap_the_model_again(taught_first: bool, tokenizer: Any) -> None:
    model, batch = lively_model(tokenizer), pad_batch(ROWS, tokenizer.pad_token_id)
    expected = model(batch["input_ids"]).logits
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    if taught_first:
        add_token_nll(model)
    method_loss(accelerator.prepare_model(model), batch, "sft")
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert torch.equal(plain(batch["input_ids"]).logits, expected)


def test_a_deep_copy_runs_its_own_weights(tokenizer: Any, tmp_path: Path) -> None:
    for bf16 in (False, True):
        trainer, _ = one_step(lively_model(tokenizer), tokenizer, tmp_path / str(bf16), "talr", bf16=bf16)
        batch = pad_batch(ROWS, tokenizer.pad_token_id)
        before = method_loss(trainer.model, batch, "sft").loss.item()
        twin = copy.deepcopy(trainer.model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        uniform = method_loss(twin, batch, "sft").loss.item()
        assert uniform == pytest.approx(torch.tensor(float(len(tokenizer))).log().item(), rel=1e-4)
        assert not twin(**batch).logits.any()
        assert method_loss(trainer.model, batch, "sft").loss.item() == before


def test_the_forward_is_given_back(tokenizer: Any) -> None:
    model = lively_model(tokenizer)
    signature = inspect.signature(model.forward)
    add_token_nll(model)
    assert inspect.signature(model.forward).parameters.keys() == signature.parameters.keys()  # trainers read it
    remove_token_nll(Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model))
    assert "forward" not in model.__dict__
    assert model(torch.tensor([[5, 6]])).logits.dtype == torch.float32


def test_a_forward_replaced_by_another_library_is_taught_again(tokenizer: Any) -> None:
    model, batch = lively_model(tokenizer), pad_batch(ROWS, tokenizer.pad_token_id)
    expected = method_loss(model, batch, "sft").loss.item()
    own = type(model).forward
    model.forward = lambda *args, **kwargs: own(model, *args, **kwargs)
    assert method_loss(model, batch, "sft").loss.item() == expected
