"""Mixtures of experts: the router loss is the one their own forward adds, also when micro-batches are accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gentletune.core.errors import UserError
from gentletune.data.batches import pad_batch
from gentletune.training import loss as loss_module
from gentletune.training.experts import router_loss_of
from gentletune.training.loss import method_loss
from tests.training.steps import EXACT, ROWS, distance, first_loss, gradients, one_step

SMALL = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.5,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                  "shared_expert_intermediate_size": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
LARGE = 0.5  # a coefficient under which the router's loss is no small part of the gradient


def experts(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    own = FAMILIES[family] | {"output_router_logits": True, "router_aux_loss_coef": LARGE} | changes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **own)).float()


def own_gradients(model: Any, rows: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the model's own forward, router loss and all."""
    model.train()
    loss = model(**pad_batch(rows, 1)).loss
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_training_is_that_of_the_models_own_forward(family: str, tokenizer: Any, tmp_path: Path) -> None:
    loss, expected = own_gradients(experts(family), ROWS)
    bare, without = own_gradients(experts(family, output_router_logits=False), ROWS)
    assert loss > bare + 0.1
    trainer, _ = one_step(experts(family), tokenizer, tmp_path, "sft")
    found = gradients(trainer)
    assert distance(expected, {n: found.get(n, torch.zeros_like(g)) for n, g in expected.items()}) < 10 * EXACT
    assert distance(expected, without) > 0.01
    assert first_loss(trainer) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_micro_batches_add_their_share(checkpointing: bool, tokenizer: Any, tmp_path: Path) -> None:
    """Each micro-batch has a router loss of its own, which counts by its label tokens."""
    batches = [ROWS[:2], ROWS[2:]]
    labels = [sum(row.label_count for row in rows) for rows in batches]
    total: dict[str, torch.Tensor] = {}
    for rows, count in zip(batches, labels, strict=True):
        for name, gradient in own_gradients(experts("mixtral"), rows)[1].items():
            total[name] = total.get(name, 0) + gradient * count / sum(labels)
    trainer, _ = one_step(
        experts("mixtral"), tokenizer, tmp_path, "sft", per_device_train_batch_size=2, gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        train_sampling_strategy="sequential",
    )  # fmt: skip
    assert distance(total, gradients(trainer)) < 10 * EXACT


def test_weights_of_tokens_are_no_weights_of_the_router_loss(tokenizer: Any, tmp_path: Path) -> None:
    model, batch = experts("olmoe"), pad_batch(ROWS, 1)
    model.train()
    with_router = method_loss(model, batch, "talr(tau=1.0)")
    model.config.output_router_logits = False
    other = experts("olmoe", output_router_logits=False).train()
    without = method_loss(other, batch, "talr(tau=1.0)")
    aux = router_loss_of(model)
    inside = model.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
    )
    expected = aux(inside.router_logits, batch["attention_mask"])
    assert float(with_router.loss - without.loss) == pytest.approx(float(expected), rel=1e-4)
    assert torch.allclose(with_router.weighted.weights, without.weighted.weights)
    assert float(method_loss(model.eval(), batch, "sft").loss) == pytest.approx(
        float(method_loss(other.eval(), batch, "sft").loss)
    )


def test_weights_normalised_by_their_sum_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="normalization=simplex would rescale the router loss"):
        one_step(experts("mixtral"), tokenizer, tmp_path, "talr(tau=1.0, normalization=simplex)")
    with pytest.raises(UserError, match="normalization=simplex would rescale the router loss"):
        method_loss(experts("mixtral").train(), pad_batch(ROWS, 1), "talr(tau=1.0, normalization=simplex)")


def test_a_router_loss_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = experts("mixtral")
    own = type(model).forward

    def other(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        if out.loss is not None and kwargs.get("output_router_logits"):
            out.loss = out.loss + 0.1
        return out

    monkeypatch.setattr(type(model), "forward", other)
    with pytest.raises(
        UserError, match=r"the router loss of MixtralForCausalLM is computed in a way .* set output_rou"
    ):
        loss_module.add_token_nll(model)
