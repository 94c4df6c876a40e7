"""A saved model elsewhere: on the hub, in bf16, as GGUF by llama.cpp's own converter. Needs no torch to say no."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gentletune.core.cache import whole_directory
from gentletune.core.errors import RunFailedError, UserError, unknown
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.core.records import whole_file
from gentletune.lm.model_files import INDEX, is_adapter, quiet

GGUF_TYPES = ("q8_0", "f16", "bf16", "f32", "auto", "tq1_0", "tq2_0")  # what the converter writes by itself
_CONVERTER = "convert_hf_to_gguf.py"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def check_export(recipe: Recipe) -> None:
    """Raises `UserError` where the hub or the converter that a recipe names could not be used after training."""
    if recipe.push_to_hub is not None:
        check_repository(recipe.push_to_hub)
        if recipe.save == "adapter" and ("/" not in recipe.model or user_path(recipe.model).exists()):
            raise UserError(
                f"push_to_hub: the adapter would name its base model {recipe.model} by a folder of this machine; take "
                "a base model of the hub, or save: merged"
            )
    if recipe.gguf is not None:
        check_converter(recipe.gguf)


def check_repository(name: str) -> str:
    """`name`, which is `owner/name`. Raises `UserError` where it is not, or where no token is at hand."""
    from huggingface_hub import get_token

    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"push_to_hub: '{name}' is no repository of the hub; write owner/name")
    if not get_token():
        raise UserError("push_to_hub: no token of the hub is at hand; set HF_TOKEN, or log in with `hf auth login`")
    return name


def push_to_hub(model: Path, repository: str, *, private: bool = True) -> str:
    """Upload a model directory as one commit, making the repository where there is none; returns its address.

    Raises:
        UserError: not `owner/name`, no token.
        RunFailedError: what the hub or the network refuses.
    """
    check_repository(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    try:
        with quiet():
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repository, folder_path=model, commit_message="Upload by gentletune")
    except HFValidationError as error:
        raise UserError(f"push_to_hub: {_first_line(error)}") from error
    except Exception as error:  # the hub's own errors, and those of whatever HTTP client it uses
        raise RunFailedError(
            f"push_to_hub: {repository} was not uploaded ({type(error).__name__}: {_first_line(error)}); the model is "
            f"whole in {model}: run the same command again"
        ) from error
    return str(getattr(done, "repo_url", None) or f"https://huggingface.co/{repository}")


def check_converter(name: str) -> Path:
    """The converter's file, from its path or from llama.cpp's directory. Raises `UserError` where there is none."""
    path = user_path(name)
    found = path / _CONVERTER if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"gguf: no file {found}; give the path to llama.cpp's {_CONVERTER}")
    return found


def to_gguf(model: Path, converter: str, target: Path, kind: str = "q8_0") -> Path:
    """Write a model directory as GGUF by llama.cpp's converter, whole or not at all; returns `target`.

    Raises:
        UserError: no converter, an unknown type, a directory without a whole model.
        RunFailedError: the converter ended with an error, or wrote nothing.
    """
    script = check_converter(converter).resolve()  # a bare name would be looked for on PATH
    if kind not in GGUF_TYPES:
        raise unknown("type of GGUF", kind, GGUF_TYPES)
    if not (model / "config.json").is_file():
        raise UserError(f"gguf: {model} holds no whole model; give a run directory, or one saved with save: merged")
    with whole_file(target) as scratch:
        options = [str(model.resolve()), "--outfile", str(scratch), "--outtype", kind]
        command = [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]
        try:
            done = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise UserError(f"gguf: {script} cannot be run ({error.strerror}); give {_CONVERTER}") from error
        if done.returncode:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            last = said[-1][:300] if said else "it said nothing"
            raise RunFailedError(f"gguf: {script.name} ended with code {done.returncode}: {last}")
        if not scratch.stat().st_size:
            raise RunFailedError(f"gguf: {script.name} wrote nothing")
    return target


def to_bf16(model: Path, target: Path) -> Path:
    """Write a model directory in bf16, rounded at random, whole or not at all; returns `target`.

    fp32 weights are rounded; an adapter's directory gives its base model in bf16 with the adapter merged. The same
    model gives the same files, and what is no weight is as it was.

    Raises:
        UserError: a directory without a model, weights that are not in fp32, an adapter that cannot be merged.
    """
    with whole_directory(target) as scratch:
        if is_adapter(model):
            _merge_in_bf16(model, scratch)
        else:
            _round_to_bf16(model, scratch)
    return target


def _merge_in_bf16(adapter: Path, target: Path) -> None:
    import torch

    from gentletune.lm.loaded import load_model, load_tokenizer

    with quiet():
        load_model(adapter, torch.bfloat16, place=torch.device("cpu")).save_pretrained(target)
        load_tokenizer(adapter).save_pretrained(target)


def _round_to_bf16(model: Path, target: Path) -> None:
    files = sorted(model.glob("*.safetensors"))
    if not (model / "config.json").is_file() or not files:
        raise UserError(f"bf16: {model} holds no weights; give a run directory, or the directory of a model")
    import torch
    from safetensors.torch import load_file, save_file

    from gentletune.methods.rounding import rounded

    shutil.copytree(model, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    found, size = False, 0
    for file in files:
        weights = load_file(file)
        for name, value in weights.items():
            if value.dtype == torch.float32:
                weights[name], found = rounded(value, torch.bfloat16), True
        save_file(weights, target / file.name, metadata={"format": "pt"})
        size += sum(value.nbytes for value in weights.values())
    if not found:
        raise UserError(f"bf16: the weights in {model} are not in fp32, so there is nothing to round")
    _set(target / "config.json", "dtype", "bfloat16")
    if (index := target / INDEX).is_file():
        _set(index, "metadata", {"total_size": size})


def _set(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {key: value}, indent=2) + "\n", encoding="utf-8")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]
