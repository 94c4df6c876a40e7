"""A model is loaded whole or not at all, and its head gives the model's own likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.lm import loaded
from gentletune.lm.device import device
from gentletune.lm.loaded import Loaded, hidden_states, lm_head, load_model, load_tokenizer
from gentletune.losses import Head, token_nll
from tests.conftest import make_model, make_tokenizer
from tests.helpers import edit_json

# --- a model by name


def test_a_model_by_name_is_loaded_when_it_is_asked_for(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []

    def counted(directory: Path, *dtype: Any, **how: Any) -> Any:
        loads.append(directory)
        return load_model(directory, *dtype, **how)

    monkeypatch.setattr(loaded, "load_model", counted)
    base = Loaded(str(tiny_dir))
    assert (base.max_length, base.hash != base.files_hash, loads) == (512, True, [])
    model = base.model
    assert base.model is model
    assert base.hand_over() is model
    assert base.model is not model
    base.forget()
    base.load()
    assert loads == [tiny_dir] * 3


def test_another_model_under_the_same_tokenizer_has_a_hash_of_its_own(tiny_dir: Path, copy: Path) -> None:
    base = Loaded(str(tiny_dir), max_length=64)
    make_model(len(base.tokenizer), 1).save_pretrained(copy)
    tuned = base.with_model(directory=copy)
    assert tuned.tokenizer is base.tokenizer
    assert (tuned.max_length, tuned.hash) == (64, Loaded(str(copy)).hash)
    assert tuned.hash != base.hash
    assert str(tuned.model.name_or_path) == str(copy)
    probe = base.with_model(base.model, known_as="probe")
    assert (probe.model, probe.hash) == (base.model, "probe")
    with pytest.raises(ValueError, match="say what it is known as"):
        base.with_model(tuned.model)  # the base model's scores would be taken for its own


def test_several_read_what_they_have_in_common_once(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared()
    one = Loaded(str(tiny_dir), shared=shared)
    assert one.hash
    for name in ("resolve_model", "load_tokenizer", "model_hash"):
        monkeypatch.setattr(loaded, name, None)
    other = Loaded(str(tiny_dir), max_length=100, shared=shared)
    assert (other.tokenizer, other.hash, other.max_length) == (one.tokenizer, one.hash, 100)


# --- loading


def test_a_model_loads_in_fp32_ready_to_evaluate(tiny_dir: Path) -> None:
    model = load_model(tiny_dir)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.device.type == device().type


def test_half_precision_weights_are_widened(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == torch.float32


def broken_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def unknown_type(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="no-such-type")


def no_language_model(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="vit")


def more_layers_than_weights(copy: Path) -> None:
    edit_json(copy / "config.json", num_hidden_layers=3)


def other_shape(copy: Path) -> None:
    edit_json(copy / "config.json", intermediate_size=48)


def broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")


@pytest.mark.parametrize(
    "spoil",
    [broken_weights, unknown_type, no_language_model, more_layers_than_weights, other_shape, broken_config],
)
def test_a_model_that_cannot_be_loaded_whole_is_one_line(copy: Path, spoil: Any) -> None:
    spoil(copy)
    with pytest.raises(UserError, match=f"cannot load a causal language model from {copy}: .") as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_gets_the_end_token_for_padding(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "no-pad")
    assert load_tokenizer(tmp_path / "no-pad").pad_token == "<|im_end|>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no-end")
    with pytest.raises(UserError, match="has no end token"):
        load_tokenizer(tmp_path / "no-end")


def test_a_directory_without_a_tokenizer_is_named(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match=f"tokenizer (from|in) {copy}") as caught:
        load_tokenizer(copy)
    assert "\n" not in str(caught.value)


# --- head

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 24},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 2},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "recurrent_gemma": {"logits_soft_cap": 3.0, "lru_width": 16, "block_types": ["recurrent", "attention"]},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 7.0},
    "hyperclovax": {"logits_scaling": 0.25},
}


def tiny_family(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "bias" in name:
                parameter.normal_()
    return model


def losses(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Each next token's NLL from hidden states and head, and from the model's own logits."""
    ids = torch.randint(2, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].flatten()
    with torch.no_grad():
        hidden = hidden_states(model, input_ids=ids)[:, :-1].flatten(0, 1)
        head = lm_head(model)
        nll, *_ = token_nll(hidden, head.weight, targets, bias=head.bias, softcap=head.softcap, scale=head.scale)
        own = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    return nll, cross_entropy(own, targets, reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_head_give_the_models_own_likelihood(family: str) -> None:
    nll, own = losses(tiny_family(family))
    assert own.std() > 0.01
    torch.testing.assert_close(nll, own, atol=1e-4, rtol=1e-4)


def test_a_lora_model_keeps_its_adapter_and_its_head() -> None:
    model = tiny_family("gemma2")
    before, _ = losses(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    nll, own = losses(adapted.eval())
    torch.testing.assert_close(nll, own, atol=1e-4, rtol=1e-4)
    assert (nll - before).abs().max() > 1e-3


def test_a_head_gentletune_does_not_know_is_refused(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loaded.lm_head

    def scaled(model: Any) -> Head:
        return plain(model)._replace(scale=2.0)

    assert loaded.load_model(tiny_dir) is not None
    monkeypatch.setattr(loaded, "lm_head", scaled)
    with pytest.raises(UserError, match="in a way gentletune does not know"):
        loaded.load_model(tiny_dir)
