"""LoRA's adapters by themselves, and a base model held in 4 or 8 bits under them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from gentletune.core.errors import UserError, is_out_of_memory
from gentletune.core.optimizers import check_bitsandbytes
from gentletune.lm.model_files import quiet
from gentletune.methods.parameters.peft import merged

Bits = Literal["4bit", "8bit"]


def quantized(bits: Bits, compute: torch.dtype) -> Any:
    """What transformers is told to hold the linear layers in `bits`, but for the head, and compute in `compute`.

    4 bits are nf4 with its scales quantised in turn (QLoRA, arXiv 2305.14314), 8 bits LLM.int8 (arXiv 2208.07339).
    """
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every layer's cast, at every call
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_layout(model: Any) -> None:
    """Have 4-bit layers keep the layout that they train in.

    On CPUs with AVX-512 bf16 the first forward pass in eval mode, such as a probe's, would pack the weights for
    inference: with coarser scales, and through a kernel that has no gradient, so that training would end there.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def save_adapter(model: Any, directory: Path) -> None:
    """Save the adapter of a PEFT model alone."""
    with quiet():
        model.save_pretrained(directory, save_embedding_layers=False)  # else it may ask the hub about the base model


def merge_adapter(model: Any, directory: Path) -> Any:
    """The plain `model` with the adapter in `directory` added to its weights, in place, a tensor at a time.

    Raises:
        UserError: as `add_adapter`; what PEFT refuses to merge.
    """
    wrapped = add_adapter(model, directory)
    try:
        return merged(wrapped)
    except (RuntimeError, ValueError, AttributeError) as error:  # PEFT's kinds refuse a layer by any of these
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"cannot merge the adapter in {directory}: {str(error).strip().splitlines()[0][:200]}"
        ) from error


def add_adapter(model: Any, directory: Path) -> Any:
    """The plain `model` under the adapter in `directory`, as a PEFT model.

    Raises:
        UserError: it is no adapter that can be added to weights, or not one of this model; a broken bitsandbytes.
    """
    from peft import PeftModel

    check_bitsandbytes()
    problem = f"cannot add the adapter in {directory} to its base model"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # what PEFT asks of transformers
            warnings.filterwarnings("error", message=".*missing adapter keys")  # they would stay as they were made
            wrapped = PeftModel.from_pretrained(model, str(directory))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning) as error:
        first, *more = str(error).strip().splitlines()
        raise UserError(f"{problem}: {(more[0].strip() if more else first)[:200]}") from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        kind = wrapped.peft_config["default"].peft_type
        raise UserError(f"{problem}: it is of the kind {kind}, which changes no weights, so there is nothing to add")
    if _splits_tied(wrapped):
        raise UserError(
            f"{problem}: it changes the embedding or the head alone, which are one matrix in this model; train it with "
            "ensure_weight_tying, or on a model whose head is its own"
        )
    return wrapped


def _splits_tied(wrapped: Any) -> bool:
    """Whether an adapter is on one side alone of an embedding and a head that share their weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = wrapped.get_base_model()
    sides = [plain.get_input_embeddings(), plain.get_output_embeddings()]
    if None in sides:
        return False
    one, other = (side.get_base_layer() if isinstance(side, BaseTunerLayer) else side for side in sides)
    if getattr(one, "weight", None) is not getattr(other, "weight", None):
        return False
    return isinstance(sides[0], BaseTunerLayer) != isinstance(sides[1], BaseTunerLayer)
