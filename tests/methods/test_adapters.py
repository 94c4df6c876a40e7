"""Every kind of adapter: it starts at the base model, its change is told and differentiated exactly, and it merges."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from gentletune.core.errors import UserError
from gentletune.lm.adapters import add_adapter, save_adapter
from gentletune.methods import parse_method
from gentletune.methods.parameters.peft import KINDS, adapted_layers, adapter_delta, merged
from tests.conftest import make_model

SMALL = {
    "lora": 2, "rslora": 4, "dora": 2, "delora": 2, "fourierft": 20, "hira": 2, "hra": 2, "loha": 2, "lokr": 2,
    "miss": 4, "oft": 8, "osf": 4, "randlora": 4, "shira": 2, "vera": 4,
}  # fmt: skip
METHODS = [*(f"peft(kind={kind}, r={SMALL[kind]})" for kind in KINDS), "oplora(k=3, r=2)"]
# Of what moves weights by a tenth of a bf16 step or so; else 1e-5.
SIZES = {"hira": 2e-3, "hra": 5e-4, "vera": 2e-4, "loha": 4e-5, "oft": 5e-5, "oplora": 2e-6}
IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture
def base() -> LlamaForCausalLM:
    return make_model(64)


def moved(method: str, base: Any, size: float = 0.05) -> Any:
    """The model under an adapter that has been trained, as far as anyone can tell."""
    wrapped = parse_method(method).parameterisation.wrap(copy.deepcopy(base)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return wrapped


def change(model: Any, base: Any) -> dict[str, torch.Tensor]:
    start = dict(base.named_parameters())
    return {n: p.detach() - start[n].detach() for n, p in model.named_parameters() if "_proj" in n}


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_at_the_base_model_and_ends_as_a_plain_one(method: str, base: LlamaForCausalLM) -> None:
    how = parse_method(method).parameterisation
    assert (how.adapter, how.needs_base, how.rate_scale) == (True, False, 10.0)
    wrapped = how.wrap(copy.deepcopy(base)).eval()
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trained
    assert not any("lm_head" in name or "embed" in name or "norm" in name for name in trained)
    with torch.no_grad():
        expected = base(IDS).logits
        torch.testing.assert_close(wrapped(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        assert sum(float(d.value.square().sum()) for d in how.deviations(wrapped, {})) < 1e-8
        other = moved(method, base)
        after = other(IDS).logits
        assert not torch.allclose(after, expected, atol=1e-3)
        told = [deviation.value for deviation in how.deviations(other, {})]
        merged = how.unwrap(other)
        assert type(merged) is LlamaForCausalLM
        assert merged.state_dict().keys() == base.state_dict().keys()
        torch.testing.assert_close(merged(IDS).logits, after, rtol=1e-4, atol=1e-4)
    for own, real in zip(told, change(merged, base).values(), strict=True):
        torch.testing.assert_close(own, real, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_on_its_change_has_the_slope_of_the_merged_weights(method: str, base: LlamaForCausalLM) -> None:
    both = parse_method(f"{method}+l2(weight=0.5)")
    assert both.penalty is not None
    wrapped = moved(method, base)
    for deviation in both.parameterisation.deviations(wrapped, {}):
        _, gradient = both.penalty(deviation.value)
        deviation.pull_back(gradient)
    trained = [p for p in wrapped.parameters() if p.requires_grad and p.grad is not None]
    slope = sum(float(p.grad.double().square().sum()) for p in trained if p.grad is not None) ** 0.5
    assert slope > 0
    small, sizes = 1e-3, list[float]()
    for sign in (1, -1):
        with torch.no_grad():
            for p in trained:
                assert p.grad is not None
                p.add_(p.grad, alpha=sign * small / slope)
            total = sum(float(adapter_delta(m).double().square().sum()) for m in adapted_layers(wrapped))
            sizes.append(0.5 * total)
            for p in trained:
                p.sub_(p.grad, alpha=sign * small / slope)
    found = (sizes[0] - sizes[1]) / (2 * small)
    if "dora" in method:  # DoRA's gradient takes the norm that it divides by for a constant
        assert found > 0.1 * slope
    else:
        assert found == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_change_is_not_rounded_away_in_bf16(method: str, base: LlamaForCausalLM) -> None:
    """Each weight is one of the two bf16 numbers around what it should be, the same at each merge, right on average."""
    held = base.bfloat16()
    other = moved(
        method, held, size=next((size for kind, size in SIZES.items() if re.search(rf"\b{kind}\b", method)), 1e-5)
    )
    with torch.no_grad():
        wanted = [m.get_base_layer().weight.float() + adapter_delta(m) for m in adapted_layers(other)]
        again = parse_method(method).parameterisation.unwrap(copy.deepcopy(other))
        model = parse_method(method).parameterisation.unwrap(other)
    assert type(model) is LlamaForCausalLM
    start = dict(held.named_parameters())
    kept = whole = least = 0.0
    for (name, found), exact in zip([(n, p) for n, p in model.named_parameters() if "_proj" in n], wanted, strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, again.get_parameter(name))
        assert ((found.float() - exact).abs() <= exact.abs() * 2**-7 + 1e-9).all(), name
        delta = exact - start[name].float()
        kept += float((delta * (found.float() - start[name].float())).sum())
        least += float((delta * (exact.bfloat16().float() - start[name].float())).sum())
        whole += float(delta.square().sum())
    assert kept / whole == pytest.approx(1, abs=0.15)
    if not any(kind in method for kind in ("delora", "randlora")):  # whose change is large however they are trained
        assert least / whole < 0.5  # to the nearest


@pytest.mark.parametrize(
    "how",
    [
        {"trainable_token_indices": [1, 2], "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"]},
    ],
    ids=["tokens", "parameters"],
)
def test_an_adapter_of_ones_own_merges_into_bf16(how: dict[str, Any], base: LlamaForCausalLM) -> None:
    """What is no adapted linear layer is merged as PEFT does it."""
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **how)
    wrapped = get_peft_model(copy.deepcopy(base).bfloat16(), config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "tokens_delta" in name:
                parameter.normal_(std=0.2)
        expected = wrapped(IDS).logits.float()
        found = merged(wrapped)
        assert type(found) is LlamaForCausalLM
        assert not torch.allclose(base.bfloat16()(IDS).logits.float(), expected, atol=0.01)
        torch.testing.assert_close(found(IDS).logits.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_side_of_a_tied_matrix_is_refused(target: str, tmp_path: Path) -> None:
    tied = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2, tie_word_embeddings=True))  # fmt: skip
    wrapped = get_peft_model(copy.deepcopy(tied), LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM"))
    save_adapter(wrapped, tmp_path)
    with pytest.raises(UserError, match="the embedding or the head alone, which are one matrix in this model"):
        add_adapter(tied, tmp_path)


def test_a_merged_model_takes_its_adapter_with_it(base: LlamaForCausalLM) -> None:
    """Nothing of the wrapper holds on to the layers, so they go without the cyclic garbage collector."""
    wrapped = moved("lora(r=2)", base.bfloat16())
    layers = [weakref.ref(layer) for layer in adapted_layers(wrapped)]
    gc.collect()
    gc.disable()
    try:
        model = merged(wrapped)
        del wrapped
        assert type(model) is LlamaForCausalLM
        assert [layer for layer in layers if layer() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("method", METHODS)
def test_it_is_saved_alone_and_comes_back(method: str, base: LlamaForCausalLM, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    wrapped = moved(method, base)
    wrapped.base_model.model.config._name_or_path = wrapped.peft_config["default"].base_model_name_or_path = str(
        tmp_path / "base"
    )
    with torch.no_grad():
        expected = wrapped(IDS).logits
        save_adapter(parse_method(method).parameterisation.settle(wrapped), tmp_path / "adapter")
        again = add_adapter(copy.deepcopy(base), tmp_path / "adapter").merge_and_unload().eval()
        torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_lora_is_peft_of_its_kind(base: LlamaForCausalLM) -> None:
    for short, long in (
        ("lora", "peft(r=16, alpha=32)"),
        ("lora(r=2, dropout=0.1)", "peft(r=2, alpha=32, dropout=0.1)"),
    ):
        one, other = (parse_method(text).parameterisation.wrap(copy.deepcopy(base)) for text in (short, long))
        assert one.peft_config["default"] == other.peft_config["default"]


# --- layers and targets


@pytest.mark.parametrize("method", ["lora(layers=1-1)", "peft(kind=osf, r=4, layers=[1])", "oplora(k=2, layers=1)"])
def test_only_the_chosen_layers_are_adapted(method: str, base: LlamaForCausalLM) -> None:
    wrapped = parse_method(method).parameterisation.wrap(base)
    adapted = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert adapted
    assert all(".layers.1." in name for name in adapted)
    assert len(list(adapted_layers(wrapped))) == 7


def test_layers_go_with_targets_however_they_are_written(base: LlamaForCausalLM) -> None:
    for targets in ("[q_proj, v_proj]", "'.*(q_proj|v_proj)'"):
        wrapped = parse_method(f"lora(targets={targets}, layers=0)").parameterisation.wrap(copy.deepcopy(base))
        assert len(list(adapted_layers(wrapped))) == 2
    assert parse_method("lora(layers=0-1)").label == "lora(layers=0-1)"
    assert parse_method(parse_method("lora(layers='0-1')").label).label == "lora(layers=0-1)"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lora(layers=0-5)", "layers: 5, and the model's layers are 0-1"),
        ("freeze(layers=[2])", "layers: 2, and the model's layers are 0-1"),
        ("lora(layers=0, targets=[nothing])", "targets: no linear layer of the model is ['nothing']"),
        ("peft(kind=shira, r=64)", "method shira: The set rank 64 results in more shira params"),
        ("oplora(k=16)", "method oplora: k=16 leaves nothing of a weight of 16 x 32; take a k below 16"),
    ],
)
def test_what_does_not_fit_the_model_is_told_in_a_line(method: str, words: str, base: LlamaForCausalLM) -> None:
    with pytest.raises(UserError) as caught:
        parse_method(method).parameterisation.wrap(base)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("peft(kind=lara)", "unknown kind 'lara'; did you mean 'lora'"),
        ("peft(kind=[1])", "unknown kind '[1]'. Known: delora, dora"),
        ("lora(targets=5)", "targets must be all-linear, a pattern, or a list such as [q_proj, v_proj], got 5"),
        *(
            (f"lora(targets={value})", "targets must be all-linear, a pattern, or a list")
            for value in ("[]", "[1]", "''")
        ),
        ("lora(targets='[')", "'lora': targets is no regular expression: unterminated character set"),
        ("peft(kind=corda)", "kind=corda is not served: it wants samples of what is to be kept"),
        ("peft(kind=pissa)", "kind=pissa is not served"),
        ("peft(kind=osf, alpha=3)", "osf has no alpha; leave it out"),
        ("peft(kind=oft, dropout=0.1)", "oft has no dropout; leave it out"),
        ("peft(r=0)", "r must be a whole number >= 1, got 0"),
        ("lora(rate_scale=0)", "rate_scale must be a number > 0, got 0"),
        ("lora(layers=last)", "layers must be a range such as 0-11, a number from 0, or a list of them, got 'last'"),
        ("lora(layers=[0, 1.5])", "layers must be a range"),
        ("lora(layers=3-1)", "layers must be a range"),
        ("oplora(k=0)", "k must be a whole number >= 1, got 0"),
        ("lora+oplora", "both choose the trained parameters; keep one"),
    ],
)
def test_bad_arguments(method: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_method(method)
    assert words in str(caught.value)


# --- OPLoRA


def test_oplora_keeps_the_largest_singular_values_and_their_vectors() -> None:
    base = make_model(64).double()
    wrapped = parse_method("oplora(k=3, r=4, alpha=8)").parameterisation.wrap(copy.deepcopy(base))
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    for layer, weight in zip(
        adapted_layers(wrapped), (p for n, p in base.named_parameters() if "_proj" in n), strict=True
    ):
        left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
        a, b = (getattr(layer, part)["default"].parametrizations.weight.original for part in ("lora_A", "lora_B"))
        eye_out, eye_in = torch.eye(len(weight)).double(), torch.eye(weight.shape[1]).double()
        keep_out, keep_in = left[:, :3] @ left[:, :3].T, right[:3].T @ right[:3]
        expected = 2.0 * (eye_out - keep_out) @ b @ a @ (eye_in - keep_in)
        delta = adapter_delta(layer).detach()
        torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-11)
        assert expected.norm() > 1
        after = weight.detach() + delta
        torch.testing.assert_close(after @ right[:3].T, left[:, :3] * values[:3], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(after.T @ left[:, :3], right[:3].T * values[:3], rtol=1e-9, atol=1e-10)
