"""The loss outside our own trainer: TRL, transformers, a loop by hand, PEFT, packing, torch.compile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune import MethodMixin, TALRTrainer, method_loss
from gentletune.core.errors import UserError
from gentletune.data.batches import pad_batch
from gentletune.training.loss import add_token_nll
from gentletune.training.packing import training_set
from tests.training.steps import (
    EXACT,
    ROWS,
    KeepGradients,
    distance,
    first_loss,
    gradients,
    lively_model,
    one_step,
    settings,
    token_losses,
)


class MethodTrainer(MethodMixin, Trainer):
    """As a user of transformers would write it."""


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return lively_model(tokenizer)


def collator(tokenizer: Any, **kwargs: Any) -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, **kwargs)


def batch(tokenizer: Any) -> dict[str, torch.Tensor]:
    return pad_batch(ROWS, tokenizer.pad_token_id)


def own_gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


METHODS = ["sft", "talr", "talr(tau=3.0)", "talr(tau=lagged_median)", "talr(normalization=simplex)", "dft"]


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_by_hand_gets_the_trainers_gradient(method: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(model)
    trainer, _ = one_step(twin, tokenizer, tmp_path, method)
    found = method_loss(model, batch(tokenizer), method)
    found.loss.backward()
    assert distance(gradients(trainer), own_gradients(model)) < EXACT
    assert found.loss.item() == pytest.approx(first_loss(trainer), rel=EXACT)


def test_a_loop_by_hand_carries_the_lagged_median(model: Any, tokenizer: Any) -> None:
    first = method_loss(model, batch(tokenizer), "talr(tau=lagged_median)")
    means = torch.stack([token_losses(model, row).mean() for row in ROWS]).detach()
    torch.testing.assert_close(first.means.double(), means, rtol=1e-5, atol=0)
    second = method_loss(model, batch(tokenizer), "talr(tau=lagged_median)", previous=2 * first.means)
    losses = torch.cat([token_losses(model, row) for row in ROWS]).detach()
    tau = 2 * means.quantile(0.5)
    expected = (torch.exp(-losses / tau).clamp_min(0.01) * losses).mean()
    assert second.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_accumulation_by_hand(model: Any, tokenizer: Any) -> None:
    twin, count = copy.deepcopy(model), sum(row.label_count for row in ROWS)
    method_loss(twin, batch(tokenizer), "talr(tau=3.0)").loss.backward()
    for row in ROWS:
        method_loss(model, pad_batch([row], 2), "talr(tau=3.0)", scale=1 / count).loss.backward()
    assert distance(own_gradients(twin), own_gradients(model)) < EXACT


@pytest.mark.parametrize("method", ["talr", "talr(tau=3.0)"])
def test_rows_in_groups_are_one_micro_batch(method: str, model: Any, tokenizer: Any) -> None:
    twin = copy.deepcopy(model)
    whole = batch(tokenizer) | {"sequence_weights": torch.tensor([0.5, 1.0, 0.25, 0.75])}
    groups = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 1), slice(1, 4))]
    one, other = method_loss(twin, whole, method), method_loss(model, groups, method)
    one.loss.backward()
    other.loss.backward()
    assert distance(own_gradients(twin), own_gradients(model)) < EXACT
    torch.testing.assert_close(one.weighted.weights, other.weighted.weights)


def test_the_loss_can_be_differentiated_through_peft(model: Any, tokenizer: Any) -> None:
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    twin = copy.deepcopy(wrapped)
    method_loss(wrapped, batch(tokenizer), "talr(tau=3.0)").loss.backward()
    losses = torch.cat([token_losses(twin, row) for row in ROWS])
    (torch.exp(-losses.detach() / 3).clamp_min(0.01) * losses).mean().backward()
    assert distance(own_gradients(twin), own_gradients(wrapped)) < EXACT


@pytest.mark.parametrize(
    ("method", "accumulation"),
    # The exact median is of the micro-batch, so accumulation is another update there.
    [(m, k) for m in METHODS for k in (1, 2) if k == 1 or m not in ("talr", "talr(normalization=simplex)")],
)
def test_the_mix_in_on_transformers(method: str, accumulation: int, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(model)
    ours, _ = one_step(twin, tokenizer, tmp_path / "a", method)
    plain = settings(tmp_path / "b").to_dict()
    known = TrainingArguments(tmp_path).to_dict().keys()
    arguments = TrainingArguments(**{
        key: value for key, value in plain.items() if key in known and not key.startswith(("_", "gradient_"))
    } | {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation})  # fmt: skip
    trainer = MethodTrainer(
        model, arguments, method=method, train_dataset=training_set(ROWS), data_collator=collator(tokenizer),
        callbacks=[KeepGradients()],
    )  # fmt: skip
    trainer.train()
    assert distance(gradients(ours), gradients(trainer)) < EXACT
    assert first_loss(trainer) == pytest.approx(first_loss(ours), rel=EXACT)


def talr_trainer(model: Any, tokenizer: Any, output: Path, **kwargs: Any) -> Any:
    """TALRTrainer on the four rows as TRL's own preparation and collator give them."""
    changes = {key: kwargs.pop(key) for key in list(kwargs) if key in ("packing", "padding_free", "max_length", "bf16")}
    args = settings(output, **changes, dataset_kwargs=None)
    rows = datasets.Dataset.from_dict(
        {"input_ids": [row.input_ids for row in ROWS], "labels": [row.labels for row in ROWS]}
    )
    return TALRTrainer(
        model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[KeepGradients()], **kwargs
    )


@pytest.mark.parametrize("tau", ["median", "lagged_median", 3.0])
@pytest.mark.parametrize(
    "layout",
    [{}, {"padding_free": True}, {"packing": True, "max_length": 32}],
    ids=["padded", "padding_free", "packed"],
)
def test_talr_trainer_in_every_layout(
    tau: Any, layout: dict[str, Any], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ours, _ = one_step(copy.deepcopy(model), tokenizer, tmp_path / "a", f"talr(tau={tau})")
    trainer = talr_trainer(model, tokenizer, tmp_path / "b", tau=tau, **layout)
    shapes = [(b["input_ids"].shape, "attention_mask" in b) for b in trainer.get_train_dataloader()]
    assert shapes == ([((4, 8), True)] if not layout else [((1, 21), False)])
    trainer.train()
    assert distance(gradients(ours), gradients(trainer)) < EXACT
    assert first_loss(trainer) == pytest.approx(first_loss(ours), rel=EXACT)


def test_talr_trainer_takes_a_peft_config(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    trainer = talr_trainer(model, tokenizer, tmp_path, peft_config=LoraConfig(r=4, target_modules="all-linear"))
    trainer.train()
    moved = list(gradients(trainer))
    assert moved
    assert all("lora_" in name for name in moved)


def test_talr_with_all_weights_one_is_trls_own_loss(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The floor at 1 makes TALR plain SFT; TRL's own trainer is the reference."""
    twin = copy.deepcopy(model)
    theirs = SFTTrainer(
        twin, settings(tmp_path / "a"), train_dataset=training_set(ROWS), processing_class=tokenizer,
        data_collator=collator(tokenizer), callbacks=[KeepGradients()],
    )  # fmt: skip
    theirs.train()
    trainer = talr_trainer(model, tokenizer, tmp_path / "b", floor=1.0)
    trainer.train()
    assert distance(gradients(theirs), gradients(trainer)) < EXACT
    assert first_loss(trainer) == pytest.approx(first_loss(theirs), rel=EXACT)


def test_eval_loss_is_the_plain_mean_nll(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    expected = torch.cat([token_losses(model, row) for row in ROWS]).mean().item()
    trainer = talr_trainer(model, tokenizer, tmp_path, eval_dataset=training_set(ROWS))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_compute_metrics_still_gets_logits(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"ok": 1.0}

    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", per_device_eval_batch_size=4)
    trainer = MethodTrainer(
        model, arguments, method="talr(tau=3.0)", eval_dataset=training_set(ROWS), compute_metrics=metrics,
        data_collator=collator(tokenizer),
    )  # fmt: skip
    assert trainer.evaluate()["eval_ok"] == 1.0
    assert seen == [(4, 8, len(tokenizer))]


@pytest.mark.parametrize("method", ["talr", "talr(tau=3.0)"])
def test_torch_compile_changes_nothing(method: str, model: Any, tokenizer: Any) -> None:
    twin = copy.deepcopy(model)
    method_loss(twin, batch(tokenizer), method).loss.backward()
    compiled = torch.compile(model, backend="aot_eager")
    method_loss(compiled, batch(tokenizer), method).loss.backward()
    assert distance(own_gradients(twin), own_gradients(model)) < EXACT


@pytest.mark.parametrize("method", ["talr", "talr(tau=3.0)"])
def test_bf16_is_no_further_from_fp64_than_full_logits_are(method: str, model: Any, tokenizer: Any) -> None:
    exact, naive = copy.deepcopy(model).double(), copy.deepcopy(model)

    def reference(one: Any, tau: float | None = None) -> float:
        losses = [token_losses(one, row) for row in ROWS]
        means = torch.stack([x.mean() for x in losses]).detach()
        tau = float(means.quantile(0.5)) if method == "talr" else 3.0
        losses = torch.cat(losses)
        (torch.exp(-losses.detach() / tau).clamp_min(0.01) * losses).mean().backward()
        return tau

    reference(exact)
    with torch.autocast("cpu", torch.bfloat16):
        reference(naive)
        method_loss(model, batch(tokenizer), method).loss.backward()
    true = own_gradients(exact)
    assert distance(true, own_gradients(model)) <= 1.05 * distance(true, own_gradients(naive))


def test_a_second_preparation_only_changes_the_backend(model: Any) -> None:
    add_token_nll(model, "reference")
    forward = model.forward
    add_token_nll(model, "chunked")
    assert model.forward == forward


def test_an_adapter_on_the_head_is_refused(model: Any, tokenizer: Any) -> None:
    model.config.tie_word_embeddings = False
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    with pytest.raises(ValueError, match="adapter on lm_head"):
        method_loss(wrapped, batch(tokenizer), "sft")


def test_a_router_loss_that_the_model_has_not_is_refused(model: Any, tokenizer: Any) -> None:
    model.config.output_router_logits = True
    with pytest.raises(UserError, match="router loss"):
        method_loss(model, batch(tokenizer), "sft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "talr+lora"}, "peft_config"),
        ({"method": "talr+trust_region"}, "a budget is kept by gentletune train alone"),
        ({"method": "wise_ft"}, "average the weights after training"),
        ({"method": "talr", "label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_what_the_mix_in_cannot_do_is_refused(
    changes: dict[str, Any], message: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    method = changes.pop("method")
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", **changes)
    with pytest.raises(ValueError, match=message):
        MethodTrainer(model, arguments, method=method, train_dataset=training_set(ROWS))


@pytest.mark.parametrize(
    "asked", [{"loss_type": "dft"}, {"compute_loss_func": lambda *_, **__: 0}], ids=["loss_type", "compute_loss_func"]
)
def test_another_loss_is_not_passed_over_in_silence(
    asked: dict[str, Any], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    args = settings(tmp_path, **{k: v for k, v in asked.items() if k == "loss_type"})
    own = {k: v for k, v in asked.items() if k != "loss_type"}
    with pytest.raises(ValueError, match="would be passed over"):
        TALRTrainer(model, args, train_dataset=training_set(ROWS), processing_class=tokenizer, **own)


def test_l2_in_the_mix_in_starts_from_the_model_as_it_came(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(model)
    ours, _ = one_step(twin, tokenizer, tmp_path / "a", "l2(weight=0.5)", max_steps=2)
    arguments = settings(tmp_path / "b", max_steps=2)

    class Mixed(MethodMixin, SFTTrainer):
        pass

    trainer = Mixed(
        model, arguments, method="l2(weight=0.5)", train_dataset=training_set(ROWS), processing_class=tokenizer,
        data_collator=collator(tokenizer), callbacks=[KeepGradients()],
    )  # fmt: skip
    trainer.train()
    assert distance(gradients(ours), gradients(trainer)) < EXACT
    assert trainer.update_norm() > 0
