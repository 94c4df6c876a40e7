"""What a recipe resolves to before anything is trained, read once for all the trials of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gentletune.core.cache import digest
from gentletune.core.errors import UserError
from gentletune.core.recipe import Processes, Recipe
from gentletune.data import DomainData, EncodedRows, encode_rows, load_data
from gentletune.data.templates import prompted_hash, set_chat_template
from gentletune.evaluation.harness import Subject, code_walls, resolve_tasks
from gentletune.evaluation.measure import content_hashes, row_limit
from gentletune.lm.base_weights import base_weights
from gentletune.lm.models import give_back_memory, load_model, load_tokenizer, model_hash, resolve_model
from gentletune.methods import Method, parse_method, training_part

T = TypeVar("T")
_DATA = ("data", "data_path", "data_split", "data_config", "test_path", "test_rows", "train_rows", "cot", "seed")


class Shared:
    """Rows, tokenizers, hashes and tokenised rows that several trials have in common.

    It is made for one study: files are taken not to change while it lasts.

    >>> shared = Shared()
    >>> shared.once("answer", lambda: 42), shared.once("answer", lambda: 43)
    (42, 42)
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The value of `make` at its first call for this JSON-able key."""
        name = digest(key)
        if name not in self._known:
            self._known[name] = make()
        return cast("T", self._known[name])


class Inputs:
    """What a recipe resolves to, read once: method, data, tokenizer, weights on disk and their hashes.

    Raises `UserError` on bad input. The model itself is loaded when it is first asked for.
    """

    def __init__(self, recipe: Recipe, shared: Shared | None = None) -> None:
        shared, trust = shared or Shared(), recipe.trust_remote_code
        self.recipe = recipe
        self.processes = processes_here(recipe.processes)
        self.method: Method = parse_method(recipe.method)
        tasks = resolve_tasks(recipe) if recipe.evaluate else []
        self.sandbox = code_walls(tasks, recipe)
        fields = recipe.model_dump(mode="json", include=set(_DATA))
        self.data: DomainData = shared.once(["data", fields], lambda: load_data(recipe))
        self.directory = Path(
            shared.once(["model", recipe.model, trust], lambda: resolve_model(recipe.model, trust_remote_code=trust))
        )
        where = [str(self.directory), trust]
        self.tokenizer: Any = shared.once(
            ["tokenizer", where, recipe.chat_template, recipe.date],
            lambda: set_chat_template(
                load_tokenizer(self.directory, trust_remote_code=trust), recipe.chat_template, recipe.date
            ),
        )
        files_hash = shared.once(["hash", where], lambda: model_hash(self.directory))
        self.model_hash = prompted_hash(files_hash, self.tokenizer)
        config = shared.once(["config", where], lambda: _config(self.directory, trust))
        self.max_length = limit = row_limit(SimpleNamespace(config=config), recipe)

        def encoded(side: str, rows: list[Any], rows_hash: str) -> EncodedRows:
            name = f"{self.data.name}, {side}"
            return shared.once(
                ["rows", rows_hash, self.model_hash, limit],
                lambda: encode_rows(rows, self.tokenizer, max_length=limit, where=name),
            )

        self.hashes = {"model": files_hash, "train": self.data.train_hash, "test": self.data.test_hash}
        self.train = encoded("training", self.data.train, self.hashes["train"])
        self.test = encoded("held out", self.data.test, self.hashes["test"])
        what = [fields, self.model_hash, limit, recipe.reference_path, recipe.eval_batch_tokens]
        self.measured: dict[str, str] = (
            {}
            if not recipe.evaluate
            else shared.once(
                ["measured", what, [[task.name, task.hash] for task in tasks]],
                lambda: content_hashes(recipe, self.data, tasks, self.tokenizer, limit),
            )
        )
        self._loaded: Any = None
        self._base: Mapping[str, Tensor] | None = None

    def initial_model(self) -> Any:
        """The initial model, to be read only; loaded at the first call."""
        if self._loaded is None:
            self._loaded = load_model(self.directory, trust_remote_code=self.recipe.trust_remote_code)
        return self._loaded

    def model_to_train(self) -> Any:
        """The initial model for the caller to change: the one loaded, which is then forgotten here."""
        model, self._loaded = self.initial_model(), None
        return model

    def forget_model(self) -> None:
        """Give the initial model's memory back; it is loaded again where it is asked for again."""
        self._loaded = None
        give_back_memory()

    def base_weights(self) -> Mapping[str, Tensor]:
        """θ⁰ by parameter name, on the host, read a tensor at a time; the first call loads the model to compare."""
        if self._base is None:
            self._base = base_weights(self.initial_model(), self.directory)
        return self._base

    def subject(self, model: Any, directory: Path | None = None) -> Subject:
        """A model of the run to measure: the initial one, or the one whose weights lie in `directory`."""
        mine = self.model_hash if directory is None else prompted_hash(model_hash(directory), self.tokenizer)
        return Subject(model, self.tokenizer, directory or self.directory, mine, self.max_length)

    @property
    def record_hashes(self) -> dict[str, str]:
        """SHA-256 of all that the result comes from."""
        return self.hashes | self.measured

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the trained weights, before any merge."""
        fields = self.recipe.training_fields() | {"method": training_part(self.recipe.method)}
        for name in ("model", "data_path", "test_path", "test_rows", "date"):  # their content counts, by its hash
            fields.pop(name)
        fields["chat_template"] = digest(self.tokenizer.chat_template)  # with the date, where it prints one
        fields.pop("processes", None)
        ranks = {"processes": self.processes} if self.processes > 1 else {}
        return fields | ranks | {k: v for k, v in self.hashes.items() if k != "test"}


def processes_here(wanted: Processes) -> int:
    """How many processes would train on this machine."""
    return max(1, torch.cuda.device_count()) if wanted == "auto" else wanted


def check_gpus(processes: int) -> None:
    """To call where so many processes are about to train: the machine that only plans may have fewer GPUs.

    Raises:
        UserError: there are GPUs, but too few for them.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise UserError(f"processes: {processes} need as many GPUs, and {gpus} can be seen; lower it, or give auto")


def _config(directory: Path, trust_remote_code: bool) -> Any:
    """The model's configuration; from the loaded model's errors, where it cannot be read, comes the one line."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return load_model(directory, trust_remote_code=trust_remote_code).config
