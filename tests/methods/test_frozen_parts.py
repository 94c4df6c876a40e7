"""What stays as it is under full fine-tuning: half of each layer's weights, or whole layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from gentletune.core.errors import UserError
from gentletune.methods import parse_method
from gentletune.methods.parameters.hft import frozen_modules


@pytest.fixture
def model() -> Any:
    """Six layers."""
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2,
                    attention_bias=True)
    )  # fmt: skip


def frozen(model: Any, method: str) -> list[str]:
    how = parse_method(method).parameterisation
    assert not how.adapter
    assert how.rate_scale == 1
    assert how.wrap(model) is model
    return [name for name, p in model.named_parameters() if not p.requires_grad]


def by_layer(names: list[str], part: str) -> list[int]:
    counts = Counter(int(name.split(".")[2]) for name in names if part in name and name.endswith("weight"))
    return [counts[layer] for layer in range(6)]


def test_hft_freezes_half_of_every_category_of_every_layer(model: Any) -> None:
    names = frozen(model, "hft")
    assert by_layer(names, "self_attn") == [2] * 6
    assert sorted(by_layer(names, "mlp")) == [1, 1, 1, 2, 2, 2]  # of three
    assert by_layer(names, "norm") == [1] * 6
    assert all(".layers." in name for name in names)  # embedding, last norm and head are trained
    for name in names:  # a bias goes with its weight
        if name.endswith("proj.weight") and "self_attn" in name:
            assert name.replace("weight", "bias") in names


def test_hft_is_drawn_by_its_seed_and_its_share(model: Any) -> None:
    first = frozen(model, "hft")
    model.requires_grad_(True)
    assert frozen(model, "hft") == first
    model.requires_grad_(True)
    assert frozen(model, "hft(seed=1)") != first
    model.requires_grad_(True)
    assert frozen(model, "hft(share=0)") == []
    three_quarters = frozen(model, "hft(share=0.75)")
    assert by_layer(three_quarters, "self_attn") == [3] * 6
    assert sum(by_layer(three_quarters, "mlp")) == 14  # 13.5


def test_layers_of_several_stacks_are_halved_apart() -> None:
    names = [f"{stack}.blocks.{n}.mlp.{part}" for stack in ("vision", "text") for n in range(4) for part in "abc"]
    found = frozen_modules([*names, "text.embed", "text.norm"], set(names), 0.5, 3)
    assert {stack: sum(name.startswith(stack) for name in found) for stack in ("vision", "text")} == {
        "vision": 6, "text": 6,
    }  # fmt: skip


def test_freeze_keeps_whole_layers(model: Any) -> None:
    assert {name.split(".")[2] for name in frozen(model, "freeze")} == {"0", "1", "2"}
    model.requires_grad_(True)
    found = frozen(model, "freeze(layers=4-5)")
    assert {name.split(".")[2] for name in found} == {"4", "5"}
    assert len(found) == 2 * sum(name.startswith("model.layers.0.") for name, _ in model.named_parameters())


def test_bad_arguments() -> None:
    for text, words in (("hft(share=1)", "share must be a number in"), ("hft(seed=-1)", "seed must be a whole number"),
                        ("freeze(layers=[])", "layers must be a range"), ("hft+lora", "both choose the trained"),
                        ("hft+freeze", "both choose the trained")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            parse_method(text)
