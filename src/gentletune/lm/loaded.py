"""A model: by name from its files, in memory, and from it to its hidden states, its head and its published weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gentletune.core.cache import Shared, digest
from gentletune.core.errors import UserError, is_out_of_memory
from gentletune.core.recipe import DATE, Recipe
from gentletune.data.templates import prompted_hash, set_chat_template
from gentletune.lm.adapters import Bits, keep_layout, merge_adapter, quantized
from gentletune.lm.base_weights import base_weights
from gentletune.lm.device import device, give_back_memory, index_here
from gentletune.lm.held import how_held
from gentletune.lm.kinds import freeze_unread, model_class
from gentletune.lm.model_files import adapter_base, is_adapter, model_hash, plain_directory, quiet, resolve_model
from gentletune.losses import Head

ROW_LENGTH = 4096
"""Longest row in tokens where the recipe does not say: one as long as today's contexts would fill any memory."""


UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What transformers raises on a model's configuration or tokenizer; the last two where JSON is no object."""


class Loaded:
    """A model by its directory, bundled alias or hub name, as it is trained, asked and measured.

    `tokenizer` has a pad token, the chat template asked for, and the date that a dated template prints. `max_length` is
    the most tokens at a time: what was asked for, else the model's context; `encoding` is how rows are encoded, of
    which none is longer than 4,096 tokens unless that was asked for. `dtype` is what the weights are held in.
    Hashes are of the files as they lie there when first asked for. `shared` keeps what several have in common.

    Raises:
        UserError: no such model, files that lack or cannot be read, a `max_length` beyond the context.

    >>> base = Loaded.of(Recipe(model="smollm2-135m"))  # doctest: +SKIP
    >>> base.model.num_parameters()  # doctest: +SKIP
    134515008
    """

    def __init__(
        self,
        name: str,
        *,
        chat_template: str | None = None,
        date: str = DATE,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        dtype: torch.dtype = torch.float32,
        shared: Shared | None = None,
    ) -> None:
        once, self._trust, self._model = (shared or Shared()).once, trust_remote_code, None
        self.name, self.dtype = name, dtype
        self.directory: Path = once(["model", name, self._trust], self._resolve)
        where = self._where = [str(self.directory), self._trust]
        self._once = once
        self.tokenizer: Any = once(
            ["tokenizer", where, chat_template, date],
            lambda: set_chat_template(
                load_tokenizer(self.directory, trust_remote_code=self._trust), chat_template, date
            ),
        )
        self.config: Any = once(["config", where], self._config)
        self.max_length = self._limit(max_length)
        longest = self.max_length if max_length else min(self.max_length, ROW_LENGTH)
        self.encoding: dict[str, Any] = {"max_length": longest, "truncate": "drop", "labels": "assistant"}

    @classmethod
    def of(cls, recipe: Recipe, name: str | None = None, shared: Shared | None = None) -> Loaded:
        """The recipe's base model, or another by `name`, under its template, date, limit, trust and way of holding."""
        loaded = cls(
            name or recipe.model, chat_template=recipe.chat_template, date=recipe.date, max_length=recipe.max_length,
            trust_remote_code=recipe.trust_remote_code, shared=shared,
        )  # fmt: skip
        loaded.encoding |= {"truncate": recipe.truncate, "labels": recipe.labels}
        loaded.dtype = how_held(recipe, loaded.directory).dtype
        return loaded

    @cached_property
    def files_hash(self) -> str:
        """SHA-256 of the config, tokenizer, template and weight files."""
        return self._once(["hash", self._where], lambda: model_hash(self.directory))

    @cached_property
    def hash(self) -> str:
        """Hash of the files, the template that prompts are written with and the dtype: what answers depend on."""
        found = prompted_hash(self.files_hash, self.tokenizer)
        return found if self.dtype == torch.float32 else digest([found, str(self.dtype)])

    @property
    def model(self) -> Any:
        """The model in memory, to be read only; loaded at the first call."""
        return self.load()._model

    def load(self) -> Loaded:
        """Itself, the model loaded now, so that what is wrong with its weights is told now."""
        if self._model is None:
            self._model = load_model(self.directory, self.dtype, trust_remote_code=self._trust)
        return self

    def on_host(self) -> Any:
        """The model in the host's memory, loaded for the caller to change."""
        return load_model(self.directory, self.dtype, trust_remote_code=self._trust, place=torch.device("cpu"))

    def quantized(self, bits: Bits, compute: torch.dtype) -> Any:
        """The model for the caller to train adapters on: its linear layers in few bits, which compute in `compute`."""
        how = quantized(bits, compute)
        return load_model(self.directory, self.dtype, trust_remote_code=self._trust, quantization=how)

    def hand_over(self) -> Any:
        """The model for the caller to change, which is then forgotten here."""
        model, self._model = self.model, None
        return model

    def forget(self) -> None:
        """Give the model's memory back; it is loaded again where it is asked for again."""
        self._model = None
        give_back_memory()

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights by parameter name, on the host, read a tensor at a time; the first call loads the model."""
        return base_weights(self.model, self.directory)

    def with_model(self, model: Any = None, directory: Path | None = None, *, known_as: str | None = None) -> Loaded:
        """Another model with the same tokenizer and limit: the one saved in `directory`, or `model` in memory.

        What is kept of it goes by the files in `directory`, or by `known_as` in the place of their hash.

        Raises:
            ValueError: neither is given, so what is known of this model would be taken for the other's.
        """
        if directory is None and known_as is None:
            raise ValueError("a model that lies in no directory has no hash: say what it is known as")
        other = copy.copy(self)
        for name in ("files_hash", "hash", "weights"):
            other.__dict__.pop(name, None)
        other._model = model
        if directory is not None:
            other.name, other.directory, other._once = str(directory), directory, Shared().once
        if known_as is not None:
            other.hash = known_as
        return other

    def _resolve(self) -> Path:
        return Path(resolve_model(self.name, trust_remote_code=self._trust))

    def _config(self) -> Any:
        """The configuration; from the loaded model's errors, where it cannot be read, comes the one line."""
        from transformers import AutoConfig

        try:
            directory = plain_directory(self.directory, trust_remote_code=self._trust)
            return AutoConfig.from_pretrained(directory, trust_remote_code=self._trust)
        except UNREADABLE:
            return self.model.config

    @property
    def context(self) -> int | None:
        """The most tokens that the model takes at a time, where its configuration says so."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or None

    def _limit(self, wanted: int | None) -> int:
        context = self.context
        if wanted is None:
            return int(context or 2**31)
        if context and wanted > context:
            where = f"the model in {self.directory}"
            raise UserError(f"max_length {wanted} exceeds the context of {context} tokens of {where}; lower it")
        return wanted


def load_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    *,
    trust_remote_code: bool = False,
    place: torch.device | None = None,
    quantization: Any = None,
) -> Any:
    """The causal LM in `directory`, its weights in `dtype`, in eval mode, at `place` (None: the GPU, if any).

    An adapter's directory gives its base model with the adapter added. `quantization` is transformers' configuration
    of layers held in few bits.
    """
    from transformers import AutoConfig

    problem = f"cannot load a causal language model from {directory}"
    if is_adapter(directory):
        if quantization is not None:
            raise UserError(f"{problem}: quantization needs plain weights, and this is an adapter; merge it first")
        base = adapter_base(directory, trust_remote_code=trust_remote_code)
        plain = load_model(base, dtype, trust_remote_code=trust_remote_code, place=place)
        return merge_adapter(plain, directory).eval()
    held = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": index_here()}}
    try:
        with quiet():
            kind = model_class(AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code))
            model, found = kind.from_pretrained(
                directory,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **held,
            )
    except (*UNREADABLE, RuntimeError, SafetensorError) as error:
        raise UserError(f"{problem}: {why_unread(error)}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random weights
        raise UserError(f"{problem}: its files lack {len(missing)} weights that its config names, such as {missing[0]}")
    model = model.to(place or device()).eval()
    if model.config.is_encoder_decoder:
        raise UserError(f"{problem}: a {type(model).__name__} encodes a text apart from its answer; take a decoder")
    if quantization is not None:
        keep_layout(model)
    _check_head(model, directory)
    return freeze_unread(model)


def _check_head(model: Any, directory: Path) -> None:
    """Refuse a family that scales or caps its logits otherwise than `lm_head` thinks."""
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        try:
            own = model(input_ids=ids).logits.float()
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the model in {directory} does not take text alone: {reason}") from error
        head, hidden = lm_head(model), hidden_states(model, input_ids=ids)
        logits = head.logits(hidden)
    near = max(1e-3, 4 * torch.finfo(head.weight.dtype).eps)
    if own.shape != logits.shape or not torch.allclose(own, logits.float(), rtol=near, atol=near, equal_nan=True):
        raise UserError(
            f"the model in {directory} computes its logits in a way gentletune does not know; report its type"
        )


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `directory`, with a pad token (the end token where it has none)."""
    from transformers import AutoTokenizer

    if is_adapter(directory) and not (directory / "tokenizer_config.json").is_file():
        directory = plain_directory(directory, trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise UserError(f"cannot load a tokenizer from {directory}: {why_unread(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {directory} has no end token; a model trained with it would never stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Lengths are checked, and told, by whoever encodes: transformers' warning of a long text is said already.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def why_unread(error: Exception) -> str:
    """What transformers says of files that it cannot read, in a line."""
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{said}; are its JSON files whole?" if isinstance(error, (TypeError, AttributeError)) else said


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


def stop_at(model: Any, tokens: Iterable[int]) -> None:
    """Have answers of the saved model end at `tokens` as well: inference engines read them in its generation config."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    own = config.eos_token_id
    known = list(own) if isinstance(own, (list, tuple)) else [] if own is None else [own]
    if more := sorted(set(tokens) - set(known)):
        config.eos_token_id = [*known, *more]
