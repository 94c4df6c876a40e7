"""Which attention a training computes with, and whether it keeps the rows of a packed row apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._triton import has_triton
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from gentletune.core.devices import launched, rank, sharded, sharing
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.lm.device import device
from gentletune.lm.held import use_bf16
from gentletune.lm.label_tokens import evaluating
from gentletune.lm.loaded import base_causal_lm, hidden_states
from gentletune.lm.model_files import quiet
from gentletune.losses import Backend
from gentletune.losses.heads import backend_obstacle
from gentletune.training.packing import Collator, Layout

T = TypeVar("T")
_FIRST, _OTHER, _SECOND = [1, 2, 3, 4], [7, 8, 9, 9], [5, 6, 5, 7, 8]


@contextmanager
def attending(model: Any, recipe: Recipe, bf16: bool) -> Iterator[tuple[str, Layout]]:
    """The model with the recipe's attention, by its name, and the layout of its batches; afterwards with its own again.

    `auto` is flash attention where rows are packed and it can run (installed, on a GPU, in bf16), else the model's own.
    `bf16` says whether the model is computed with in bf16.

    Raises:
        UserError: an attention or a head that cannot run here, or with this model; packed rows that would see each
            other.
    """
    base = base_causal_lm(model)
    own = base.config._attn_implementation
    name = own if recipe.attention == "auto" else recipe.attention
    if recipe.attention == "auto" and recipe.packing and bf16 and (flash := _flash(base)) is not None:
        name = flash
    _check(name, bf16)
    _check_head(recipe.head, bf16, getattr(base.get_output_embeddings(), "bias", None) is not None)
    layout: Layout = "padded" if not recipe.packing else "flat" if name.startswith("flash") else "packed"
    with _switched(base, name):
        # Of shares, rank 0's host alone holds the weights before they are cut: the others have none to tell it by.
        weighed = rank() == 0 or not sharded(recipe)
        if layout != "padded" and weighed and not keeps_apart(model, layout, bf16):
            raise UserError(
                f"packing: attention {name} of {base.config.model_type} does not keep the rows of a packed row apart; "
                "leave packing out (group_by_length: true saves padding, too)"
            )
        yield name, layout


def at_own(model: Any, look: Callable[[Any], T] | None) -> Callable[[Any], T] | None:
    """`look`, at the model with the attention that it has now: flash attention, say, has none for fp32."""
    if look is None:
        return None
    own = base_causal_lm(model).config._attn_implementation

    def looked(seen: Any) -> T:
        with _switched(base_causal_lm(seen), own):
            return look(seen)

    return looked


@contextmanager
def _switched(base: Any, name: str) -> Iterator[None]:
    """The model with the attention of that name; afterwards with the one it had."""
    before = base.config._attn_implementation
    _switch(base, name)
    try:
        yield
    finally:
        _switch(base, before)


def _flash(base: Any) -> str | None:
    """The fastest flash attention that is installed and that the model knows; None where the model is on a CPU."""
    if base.device.type != "cuda" or not getattr(base, "_supports_flash_attn", False):
        return None
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def check_speed(recipe: Recipe) -> None:
    """What cannot train on this machine, told before weights are loaded.

    Raises:
        UserError: an attention or a head that cannot run here, `compile` without a compiler; that, or packing with
            flash attention, with shares of the weights.
    """
    _check(recipe.attention, use_bf16(recipe))
    _check_head(recipe.head, use_bf16(recipe) or recipe.weights == "bf16")
    shares = sharing(recipe) == "fsdp2" and (launched() > 1 or recipe.processes != 1)
    if shares and recipe.packing and recipe.attention.startswith("flash"):  # the weights begin on the host
        raise UserError(f"packing with attention: {recipe.attention} cannot be tried under fsdp2; give sdpa, or auto")
    if not recipe.compile:
        return
    if shares:
        raise UserError("compile: true is not known to work with fsdp2; leave it out, or take strategy: ddp")
    try:
        if device().type == "cpu":
            get_cpp_compiler()
        elif not has_triton():
            raise UserError("compile: true needs triton, which is not installed; pip install triton, or leave it out")
    except InvalidCxxCompiler as error:
        raise UserError(
            "compile: true needs a C++ compiler, and none is found; install g++, or leave it out"
        ) from error


def _check(name: str, bf16: bool) -> None:
    if name.startswith(("flash", "flex")) and device().type != "cuda":
        raise UserError(f"attention: {name} trains on a GPU, and none is here; give sdpa, or auto")
    if name.startswith("flash") and not bf16:
        raise UserError(f"attention: {name} computes in bf16 alone; set precision: bf16, or attention: sdpa")


def _check_head(head: Backend, bf16: bool, bias: bool = False) -> None:
    why = backend_obstacle(head, device(), torch.bfloat16 if bf16 else torch.float32, bias=bias)
    if why is not None:
        raise UserError(f"head: {head}: {why}; give auto or chunked")


def _switch(base: Any, name: str) -> None:
    if base.config._attn_implementation == name:
        return
    try:
        with quiet():
            base.set_attn_implementation(name)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"attention: {name}: {str(error).strip().splitlines()[0]}") from error
    got = base.config._attn_implementation
    # Where flash attention is not installed and `kernels` is, transformers takes the hub's build, by its own name.
    if got != name and not (name.startswith("flash") and "flash-attn" in got):
        raise UserError(f"attention: {base.config.model_type} has {got} alone; give auto")


@torch.no_grad()
def keeps_apart(model: Any, layout: Layout, bf16: bool = False) -> bool:
    """Whether a row gets the same hidden states alone, behind another in a packed row, and behind yet another one.

    transformers makes the mask of packed rows from positions that begin again, where the architecture and the attention
    let it; some have their own masks, or none, and would let a row see the one before it.
    """
    start = len(_FIRST)
    try:
        with evaluating(model), _precision(model, bf16):
            behind, other = (_hidden(model, [first, _SECOND], layout)[start:] for first in (_FIRST, _OTHER))
            alone = _hidden(model, [_SECOND], "padded")
    except (TypeError, ValueError):  # it takes no positions
        return False
    size, coarse = alone.norm(), bf16 or base_causal_lm(model).dtype in (torch.bfloat16, torch.float16)
    moved, off = float((behind - other).norm() / size), float((behind - alone).norm() / size)
    return moved < (1e-3 if coarse else 1e-6) and off < (3e-2 if coarse else 1e-4)


def _precision(model: Any, bf16: bool) -> Any:
    return torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()


def _hidden(model: Any, rows: list[list[int]], layout: Layout) -> torch.Tensor:
    """Last hidden states (tokens, hidden) of a packed row."""
    ids = [token for row in rows for token in row]
    example = {"input_ids": ids, "labels": ids, "seq_lengths": [len(row) for row in rows]}
    batch = Collator(pad_token_id=0, layout=layout)([example])
    given = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return hidden_states(model, **{k: v for k, v in given.items() if k not in ("labels", "work")})[0].float()
