"""What a trainer draws its batches from: rows one by one, or packed, several whole rows in one (TRL's best fit)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune.core.recipe import Recipe
from gentletune.data import Encoded
from gentletune.data.disk.encoded import DiskRows, no_bars
from gentletune.data.encode import IGNORE, label_counts, row_lengths
from gentletune.lm.setting import PACKED_LENGTH, Rows

Layout = Literal["padded", "packed", "flat"]


def training_set(
    rows: Sequence[Encoded],
    sequence_weights: Sequence[float] | None = None,
    *,
    pack: int | None = None,
    placed: bool = False,
) -> datasets.Dataset:
    """The rows as a trainer takes them, each with its `length` and `sequence_weight`; those on disk stay there.

    With `pack`, whole rows fill up rows of so many tokens, `seq_lengths` says how long each is, and the sequence weight
    stands at every token. `placed`: with the `base_place` of each token, as `label_places` numbers them.
    """
    with no_bars():
        found = _unpacked(rows)
        if placed:
            starts = [0, *accumulate(label_counts(rows))]
            found = found.map(_placed, batched=True, with_indices=True, fn_kwargs={"starts": starts})
        if pack is None:
            return found if sequence_weights is None else found.add_column("sequence_weight", list(sequence_weights))
        found = found.remove_columns("length")
        if sequence_weights is not None:
            weights = np.asarray(sequence_weights, dtype=np.float32)
            found = found.map(_spread, batched=True, with_indices=True, fn_kwargs={"weights": weights})
        return pack_dataset(found, pack, "bfd")


def pack_length(recipe: Recipe, rows: Sequence[Encoded]) -> int | None:
    """Tokens of a packed row; None where the recipe does not pack.

    >>> pack_length(Recipe(packing=True), [Encoded([1, 2], [1, 2])])
    2048
    """
    if not recipe.packing:
        return None
    return recipe.max_length or max(PACKED_LENGTH, *row_lengths(rows))


def rows_to_draw(recipe: Recipe, rows: Sequence[Encoded]) -> int:
    """How many rows a training on these draws its batches from: what `Recipe.steps` counts."""
    length = pack_length(recipe, rows)
    return len(rows) if length is None else len(training_set(rows, pack=length))


def batches_in_words(recipe: Recipe, rows: int, drawn: int) -> str:
    """How rows become batches, in words."""
    if recipe.packing:
        return f"{rows:,} rows packed into {drawn:,}"
    return f"{rows:,} rows, " + ("those of like length together" if recipe.group_by_length else "in random order")


def sizes_drawn(recipe: Recipe, rows: Sequence[Encoded]) -> Rows:
    """Sizes of the rows that a training on these draws its batches from, for a plan of its memory."""
    length = pack_length(recipe, rows)
    if length is None:
        return Rows.of(rows)
    packed = training_set(rows, pack=length)
    labels = max(int((np.asarray(row) != IGNORE).sum()) for row in packed["labels"])
    return Rows(max(map(sum, packed["seq_lengths"])), labels, len(packed))


def _unpacked(rows: Sequence[Encoded]) -> datasets.Dataset:
    if isinstance(rows, DiskRows):
        return rows.dataset.remove_columns("label_count")
    columns = {name: [getattr(row, name) for row in rows] for name in ("input_ids", "labels")}
    return datasets.Dataset.from_dict({**columns, "length": row_lengths(rows)})


def _spread(batch: dict[str, Any], numbers: list[int], weights: Any) -> dict[str, Any]:
    """The weight of each row, at every one of its tokens."""
    pairs = zip(numbers, batch["input_ids"], strict=True)
    return {"sequence_weight": [np.full(len(ids), weights[number]) for number, ids in pairs]}


def _placed(batch: dict[str, Any], numbers: list[int], starts: list[int]) -> dict[str, Any]:
    pairs = zip(numbers, batch["labels"], strict=True)
    return {"base_place": [label_places(labels, starts[number]) for number, labels in pairs]}


def label_places(labels: Sequence[int], start: int) -> Any:
    """For each token of a row its number among the label tokens of all rows, the row's first being `start`; else -1.

    >>> label_places([IGNORE, 7, 8], 10).tolist()
    [-1, 10, 11]
    """
    labelled = np.asarray(labels) != IGNORE
    labelled[:1] = False  # nothing predicts a row's first token
    return np.where(labelled, start + np.cumsum(labelled) - 1, -1)


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """Batches of ids and labels, and how much work they are.

    `padded` rows are padded on the right, with their mask. `packed` rows have positions that begin again with each of
    the rows in them, and no mask. In the `flat` layout they follow each other in one row without padding, with what
    kernels of variable length need. `sequence_weights` are by row, or by position where rows are packed; `base_place`
    is by position. `work` is for `throughput.Metered`: tokens that are not padding, and Σ of the squares of the rows'
    lengths.
    """

    layout: Layout = "padded"

    def __post_init__(self) -> None:
        self.padding_free, self.return_position_ids = self.layout == "flat", self.layout == "packed"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if self.layout == "packed":
            del batch["attention_mask"]  # beside it, transformers would not look at the positions
            batch["labels"][batch["position_ids"] == 0] = IGNORE
        if "sequence_weight" in examples[0]:
            batch["sequence_weights"] = self._weights([example["sequence_weight"] for example in examples])
        if "base_place" in examples[0]:
            places = [torch.tensor(example["base_place"]) for example in examples]
            flat = self.layout == "flat"
            batch["base_place"] = torch.cat(places)[None] if flat else pad_sequence(places, True, -1)
        lengths = [n for e in examples for n in e.get("seq_lengths", [len(e["input_ids"])])]
        batch["work"] = (sum(lengths), sum(n * n for n in lengths))
        return batch

    def _weights(self, values: list[Any]) -> torch.Tensor:
        if self.layout == "padded":
            return torch.tensor(values, dtype=torch.float32)
        rows = [torch.tensor(value, dtype=torch.float32) for value in values]
        return torch.cat(rows)[None] if self.layout == "flat" else pad_sequence(rows, batch_first=True)


class ByEpoch(Sampler[int]):
    """Rows of like length in an order that a resumed epoch has again: transformers goes by the global random state."""

    def __init__(self, sampler: Any, trainer: Any) -> None:
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        self.sampler.generator = torch.Generator().manual_seed(self.trainer.args.seed + epoch)
        return iter(self.sampler)
