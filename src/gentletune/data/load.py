"""From a recipe to training rows and held-out examples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gentletune.core.cache import digest
from gentletune.core.errors import UserError, unknown
from gentletune.core.recipe import Recipe
from gentletune.data.domains.clinic import clinic_examples
from gentletune.data.domains.esci import esci_example
from gentletune.data.domains.medcalc import medcalc_example
from gentletune.data.example import Example
from gentletune.data.files import Row, Shape, check_rows, read_rows, shaped
from gentletune.data.hub import data_name, is_hub_name

_DEFAULT_CLINIC_ROWS = 1000
_FROM_FILE: Mapping[str, Callable[..., Example]] = {"medcalc": medcalc_example, "esci": esci_example}
DOMAINS = ("clinic", *_FROM_FILE)
T = TypeVar("T")


@dataclass(frozen=True)
class DomainData:
    """Training rows and held-out rows of one domain.

    `examples` are the held-out rows with an answer to judge (none for plain files, whose domain side is code
    length alone). `leaked` counts training rows dropped because their group (patient note, query) is held out.
    """

    name: str
    train: list[Row]
    test: list[Row]
    examples: list[Example] = field(default_factory=list)
    leaked: int = 0

    @property
    def train_hash(self) -> str:
        """SHA-256 of the training rows."""
        return digest(self.train)

    @property
    def test_hash(self) -> str:
        """SHA-256 of the held-out rows."""
        return digest(self.test)


def load_data(recipe: Recipe) -> DomainData:
    """The recipe's training rows and held-out rows, no group on both sides.

    Raises:
        UserError: anything wrong with the file, its columns or its rows.
    """
    if recipe.data is not None and recipe.data not in DOMAINS:
        raise unknown("data recipe", recipe.data, DOMAINS)
    if recipe.data_config is not None and (recipe.data_path is None or not _on_hub(recipe.data_path)):
        raise UserError("data_config is for a data set of the hub, and data_path names none; leave it out")
    if recipe.data == "clinic":
        return _clinic(recipe)
    if recipe.data_path is None:
        need = f"data: {recipe.data}" if recipe.data else "a recipe without data: clinic"
        raise UserError(f"{need} needs data_path (--data-path), a data file")
    if recipe.data is None:
        return _plain(recipe, recipe.data_path)
    return _domain(recipe, recipe.data, recipe.data_path)


def domain_name(recipe: Recipe) -> str:
    """What the recipe's domain is called in scores and run directories."""
    return recipe.data or data_name(recipe.data_path or "data")


def _on_hub(path: str) -> bool:
    return is_hub_name(path) and not Path(path).exists()


def _clinic(recipe: Recipe) -> DomainData:
    if recipe.data_path is not None:
        raise UserError("data: clinic generates its rows and takes no data_path; drop one of the two")
    rows = recipe.train_rows or _DEFAULT_CLINIC_ROWS
    train = clinic_examples(rows, seed=recipe.seed, cot=recipe.cot, split="train")
    # One test set for every seed: runs with other seeds are judged on the same questions.
    test = clinic_examples(recipe.test_rows, seed=0, cot=recipe.cot, split="test")
    return DomainData("clinic", [e.row() for e in train], [e.row() for e in test], test)


def _domain(recipe: Recipe, name: str, path: str) -> DomainData:
    make = _FROM_FILE[name]
    rows = read_rows(path, split=recipe.data_split, config=recipe.data_config)
    if recipe.test_path:
        held_rows = read_rows(recipe.test_path, split="test", config=recipe.data_config)
        train = [make(r, cot=recipe.cot, where=f"{path}: row {i}") for i, r in enumerate(rows, 1)]
        held = [make(r, cot=recipe.cot, where=f"{recipe.test_path}: row {i}") for i, r in enumerate(held_rows, 1)]
    else:
        examples = [make(r, cot=recipe.cot, where=f"{path}: row {i}") for i, r in enumerate(rows, 1)]
        if {"train", "test"} <= {str(r.get("split")) for r in rows}:  # the official ESCI file holds both
            train = [e for e, r in zip(examples, rows, strict=True) if r["split"] == "train"]
            held = [e for e, r in zip(examples, rows, strict=True) if r["split"] == "test"]
        else:
            train, held = split_by_group(examples, recipe.test_rows, [e.group for e in examples], path)
    shared = {e.group for e in held}
    clean = [e for e in train if e.group not in shared]
    if not clean:
        raise UserError(f"{path}: every training row shares its group with the held-out rows; nothing left to train on")
    held = draw(held, recipe.test_rows)
    kept = draw(clean, recipe.train_rows) if recipe.train_rows else clean
    return DomainData(name, [e.row() for e in kept], [e.row() for e in held], held, leaked=len(train) - len(clean))


def _plain(recipe: Recipe, path: str) -> DomainData:
    shape, rows = _shaped(path, recipe.data_split, recipe.data_config)
    leaked = 0
    if recipe.test_path:
        other, held = _shaped(recipe.test_path, "test", recipe.data_config)
        if other != shape:
            raise UserError(f"{recipe.test_path}: shape '{other}', but {path} has '{shape}'")
        shared = {_key(row) for row in held}
        train = [row for row in rows if _key(row) not in shared]
        leaked = len(rows) - len(train)
    else:
        train, held = split_by_group(rows, recipe.test_rows, [_key(row) for row in rows], path)
    if not train:
        raise UserError(f"{path}: every row is also held out; nothing left to train on")
    held = draw(held, recipe.test_rows)
    return DomainData(domain_name(recipe), draw(train, recipe.train_rows), held, leaked=leaked)


def _shaped(path: str, split: str, config: str | None) -> tuple[Shape, list[Row]]:
    """The rows of a file with the columns of their shape alone."""
    rows = read_rows(path, split=split, config=config)
    shape = check_rows(rows, path)
    return shape, [shaped(row, shape) for row in rows]


def _key(row: Row) -> str:
    """What two rows share when they are the same question."""
    kept = {k: row[k] for k in ("prompt", "text", "messages") if k in row}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def split_by_group(items: Sequence[T], test_rows: int, groups: Sequence[str], where: str) -> tuple[list[T], list[T]]:
    """Hold out whole groups, in the order of their hash, up to `test_rows` rows and a fifth of all rows.

    A group that would go beyond is passed over; where each would, a smallest one is held out. The split depends on
    the groups alone, not on the order of rows or a seed. Raises `UserError` where there are fewer than two groups.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda g: hashlib.sha256(f"held-out/{g}".encode()).hexdigest())
    if len(order) < 2:
        raise UserError(f"{where}: {len(items)} row(s) in one group cannot be split; give more rows or a test_path")
    wanted = max(1, min(test_rows, len(items) // 5))
    held: set[str] = set()
    count = 0
    for group in order:
        if count + sizes[group] <= wanted:
            held.add(group)
            count += sizes[group]
    if not held:
        held.add(min(order, key=sizes.__getitem__))
    train = [item for item, group in zip(items, groups, strict=True) if group not in held]
    test = [item for item, group in zip(items, groups, strict=True) if group in held]
    return train, test


def draw(items: list[T], limit: int | None) -> list[T]:
    """`limit` items in their order, spread by hash over the whole list, so that a sorted file is sampled fairly."""
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"draw/{i}".encode()).digest())[:limit]
    return [items[i] for i in sorted(chosen)]
