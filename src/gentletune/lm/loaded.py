"""A model by name: what its files say of it, read once, and its weights when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.core.recipe import DATE, Recipe
from gentletune.data.templates import prompted_hash, set_chat_template
from gentletune.lm.base_weights import base_weights
from gentletune.lm.models import give_back_memory, load_model, load_tokenizer, model_hash, resolve_model


class Loaded:
    """A model by its directory, bundled alias or hub name, as it is trained, asked and measured.

    `tokenizer` has a pad token, the chat template asked for, and the date that a dated template prints. `max_length` is
    the longest row in tokens: what was asked for, else the model's context. Hashes are of the files as they lie there
    when first asked for. `shared` keeps what several have in common.

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
        shared: Shared | None = None,
    ) -> None:
        once, self._trust, self._model = (shared or Shared()).once, trust_remote_code, None
        self.name = name
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

    @classmethod
    def of(cls, recipe: Recipe, name: str | None = None, shared: Shared | None = None) -> Loaded:
        """The recipe's base model, or another by `name`, under the recipe's template, date, limit and trust."""
        return cls(
            name or recipe.model, chat_template=recipe.chat_template, date=recipe.date, max_length=recipe.max_length,
            trust_remote_code=recipe.trust_remote_code, shared=shared,
        )  # fmt: skip

    @cached_property
    def files_hash(self) -> str:
        """SHA-256 of the config, tokenizer, template and weight files."""
        return self._once(["hash", self._where], lambda: model_hash(self.directory))

    @cached_property
    def hash(self) -> str:
        """Hash of the files and of the template that prompts are written with: what the model's answers depend on."""
        return prompted_hash(self.files_hash, self.tokenizer)

    @property
    def model(self) -> Any:
        """The model in memory, to be read only; loaded at the first call."""
        self.load()
        return self._model

    def load(self) -> None:
        """Load the model now, so that what is wrong with its weights is told now."""
        if self._model is None:
            self._model = load_model(self.directory, trust_remote_code=self._trust)

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
        """Another model with the same tokenizer and limit: trained in memory, saved in `directory`, or both.

        `known_as` is its hash, where that of its files is not to be taken.
        """
        other = copy.copy(self)
        for name in ("files_hash", "hash", "weights"):
            other.__dict__.pop(name, None)
        other._model = model
        if directory is not None:
            other.directory, other._once = directory, Shared().once
        if known_as is not None:
            other.hash = known_as
        return other

    def _resolve(self) -> Path:
        return Path(resolve_model(self.name, trust_remote_code=self._trust))

    def _config(self) -> Any:
        """The configuration; from the loaded model's errors, where it cannot be read, comes the one line."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.directory, trust_remote_code=self._trust)
        except (OSError, ValueError, KeyError):
            return self.model.config

    def _limit(self, wanted: int | None) -> int:
        context = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if wanted is None:
            return int(context or 2**31)
        if context and wanted > context:
            where = f"the model in {self.directory}"
            raise UserError(f"max_length {wanted} exceeds the context of {context} tokens of {where}; lower it")
        return wanted
