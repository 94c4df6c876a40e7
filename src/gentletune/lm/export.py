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
from gentletune.lm.model_files import is_adapter, plain_directory, quiet, resolve_model

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


def to_bf16(model: Path, target: Path, *, trust_remote_code: bool = False) -> Path:
    """Write a model directory in bf16, rounded at random, whole or not at all; returns `target`.

    fp32 weights are rounded but for those that the model's class keeps in fp32; an adapter's directory gives its base
    model with the adapter merged in fp32 and then rounded. It takes 4 bytes of host memory per parameter. The same
    model gives the same weights. Tokenizer, processor and card come with it.

    Raises:
        UserError: no model that can be loaded, weights that are not in fp32, an adapter that cannot be merged.
    """
    import torch

    from gentletune.data.chat import end_tokens
    from gentletune.data.templates import save_tokenizer
    from gentletune.lm.held import published_dtype
    from gentletune.lm.kinds import copy_processor
    from gentletune.lm.loaded import load_model, load_tokenizer, stop_at

    directory = resolve_model(str(model), trust_remote_code=trust_remote_code)
    base = plain_directory(directory, trust_remote_code=trust_remote_code)
    if not is_adapter(directory) and published_dtype(directory) != torch.float32:
        raise UserError(f"bf16: the weights in {model} are not in fp32, so there is nothing to round")
    if _quantised(base):
        raise UserError(f"bf16: {base} holds a quantised model; take one that is held in fp32")
    loaded = load_model(directory, trust_remote_code=trust_remote_code, place=torch.device("cpu"))
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    _round(loaded)
    with whole_directory(target.resolve()) as scratch, quiet():
        if is_adapter(directory):
            stop_at(loaded, end_tokens(tokenizer))
        loaded.save_pretrained(scratch)
        save_tokenizer(tokenizer, scratch)
        copy_processor(base, scratch)
        if (card := directory / "README.md").is_file():
            shutil.copy2(card, scratch)
    return target


def _quantised(directory: Path) -> bool:
    try:
        return "quantization_config" in json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):  # what is wrong is told where the model is loaded
        return False


def _round(model: Any) -> None:
    """Put a model's fp32 parameters into bf16, but for those whose class keeps them in fp32."""
    import torch

    from gentletune.methods.rounding import rounded

    patterns = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32 and not any(re.search(rf"\b{re.escape(p)}\b", name) for p in patterns):
            parameter.data = rounded(parameter.detach(), torch.bfloat16)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]
