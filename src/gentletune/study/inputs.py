"""What a recipe resolves to before anything is trained, read once for all the trials of a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from gentletune.cache import digest
from gentletune.data import DomainData, EncodedRows, encode_rows, load_data
from gentletune.evaluation.harness import Subject, code_walls, resolve_tasks
from gentletune.evaluation.measure import row_limit
from gentletune.methods import Method, parse_method, training_part
from gentletune.models import load_model, load_tokenizer, model_hash, resolve_model
from gentletune.recipe import Recipe

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
        self.method: Method = parse_method(recipe.method)
        self.sandbox = code_walls(resolve_tasks(recipe), recipe) if recipe.evaluate else ""
        fields = recipe.model_dump(mode="json", include=set(_DATA))
        self.data: DomainData = shared.once(["data", fields], lambda: load_data(recipe))
        self.directory = Path(
            shared.once(["model", recipe.model, trust], lambda: resolve_model(recipe.model, trust_remote_code=trust))
        )
        where = [str(self.directory), trust]
        self.tokenizer: Any = shared.once(
            ["tokenizer", where], lambda: load_tokenizer(self.directory, trust_remote_code=trust)
        )
        self.model_hash = shared.once(["hash", where], lambda: model_hash(self.directory))
        config = shared.once(["config", where], lambda: _config(self.directory, trust))
        self.max_length = limit = row_limit(SimpleNamespace(config=config), recipe)

        def encoded(side: str, rows: list[Any], rows_hash: str) -> EncodedRows:
            name = f"{self.data.name}, {side}"
            return shared.once(
                ["rows", rows_hash, self.model_hash, limit],
                lambda: encode_rows(rows, self.tokenizer, max_length=limit, where=name),
            )

        self.hashes = {"model": self.model_hash, "train": self.data.train_hash, "test": self.data.test_hash}
        self.train = encoded("training", self.data.train, self.hashes["train"])
        self.test = encoded("held out", self.data.test, self.hashes["test"])
        self._loaded: Any = None

    def initial_model(self) -> Any:
        """The initial model, to be read only; loaded at the first call."""
        if self._loaded is None:
            self._loaded = load_model(self.directory, trust_remote_code=self.recipe.trust_remote_code)
        return self._loaded

    def model_to_train(self) -> Any:
        """The initial model for the caller to change: the one loaded, which is then forgotten here."""
        model, self._loaded = self.initial_model(), None
        return model

    def subject(self, model: Any, directory: Path | None = None) -> Subject:
        """A model of the run to measure: the initial one, or the one whose weights lie in `directory`."""
        mine = self.model_hash if directory is None else model_hash(directory)
        return Subject(model, self.tokenizer, directory or self.directory, mine, self.max_length)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the trained weights, before any finish."""
        fields = self.recipe.training_fields() | {"method": training_part(self.recipe.method)}
        for path in ("model", "data_path", "test_path", "test_rows"):  # their content counts, by its hash
            fields.pop(path)
        return fields | {k: v for k, v in self.hashes.items() if k != "test"}


def _config(directory: Path, trust_remote_code: bool) -> Any:
    """The model's configuration; from the loaded model's errors, where it cannot be read, comes the one line."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return load_model(directory, trust_remote_code=trust_remote_code).config
