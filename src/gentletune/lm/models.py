"""From a model directory to a causal LM in memory, and from it to its hidden states and head."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentletune.core.errors import UserError
from gentletune.lm.model_files import model_hash as model_hash
from gentletune.lm.model_files import quiet as quiet
from gentletune.lm.model_files import resolve_model as resolve_model
from gentletune.losses import Head

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


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
        logits = head.logits(hidden)
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


def stop_at(model: Any, tokens: Iterable[int]) -> None:
    """Have answers of the saved model end at `tokens` as well: inference engines read them in its generation config."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    own = config.eos_token_id
    known = list(own) if isinstance(own, (list, tuple)) else [] if own is None else [own]
    if more := sorted(set(tokens) - set(known)):
        config.eos_token_id = [*known, *more]


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


def give_back_memory() -> None:
    """Collect what is unreachable and return freed memory to the device and the system, also after the above."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


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
