"""What a model makes of the label tokens of rows: hidden states, NLL, logits. The one loop over rows that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gentletune.data.batches import length_batches, pad_batch
from gentletune.data.encode import Encoded, label_counts, row_lengths
from gentletune.lm.generate import Progress
from gentletune.lm.loaded import hidden_states, lm_head
from gentletune.lm.spread import is_helped, spread
from gentletune.losses import Head, label_tokens, token_nll

T = TypeVar("T")
_LOGITS = 2**24  # elements of a block of logits: 64 MiB in fp32


@dataclass(frozen=True)
class LabelStates:
    """Hidden states (n, D) that predict the n label tokens `targets` of a batch of rows.

    `place` (n,), on the host, numbers them among all label tokens of all rows, in the order of the rows.
    """

    hidden: Tensor
    targets: Tensor
    place: Tensor
    head: Head


@dataclass(frozen=True)
class LabelLogits:
    """Whole logits (n, V) of some label tokens, in fp32 (float64 stays float64); the rest as in `LabelStates`."""

    logits: Tensor
    targets: Tensor
    place: Tensor


# As a decorator, no_grad is on while the iterator computes and not while its caller does.
@torch.no_grad()
def label_states(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> Iterator[LabelStates]:
    """The states of every label token, a batch of rows of like length at a time, without gradient.

    A row's last token is not fed: it predicts nothing, so a row may be one token longer than the model's context.
    The model computes in eval mode; between two batches each module is in the mode it was in.

    Raises:
        ValueError: a row without a label token.
    """
    counts = label_counts(rows)
    if 0 in counts:
        raise ValueError(f"row {counts.index(0)} has no label token")
    starts, done = [0, *torch.tensor(counts).cumsum(0).tolist()], 0
    for batch in length_batches(row_lengths(rows), 0, batch_tokens, alike=True):
        padded = {k: v.to(model.device) for k, v in pad_batch([rows[i] for i in batch], pad_id).items()}
        ids, mask = padded["input_ids"][:, :-1], padded["attention_mask"][:, :-1]
        with evaluating(model):
            hidden = hidden_states(model, input_ids=ids, attention_mask=mask)
        tokens = label_tokens(padded["labels"])
        states = tokens.gather(torch.nn.functional.pad(hidden, (0, 0, 0, 1)))
        place = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
        yield LabelStates(states, tokens.targets, place, lm_head(model))
        done += len(batch)
        if progress:
            progress(done, len(rows))


@torch.no_grad()
def label_logits(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> Iterator[LabelLogits]:
    """The logits of every label token, a bounded number at a time. Otherwise as `label_states`."""
    for found in label_states(model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress):
        step = max(1, _LOGITS // found.head.weight.shape[0])
        for start in range(0, len(found.targets), step):
            some = slice(start, start + step)
            yield LabelLogits(found.head.logits(found.hidden[some]), found.targets[some], found.place[some])


def label_nll(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> list[Tensor]:
    """NLL (n,) in nats of each row's n label tokens, float64 on the host, without whole logits. Else as above.

    Where ranks help, they share the rows.
    """
    return by_row(_label_nll, model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress)


def by_row(
    work: Callable[..., list[T]],
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    batch_tokens: int,
    progress: Progress | None = None,
) -> list[T]:
    """What `work(model, rows, pad_id=, batch_tokens=, progress=)` makes of each row: here, or over the ranks that help.

    They are dealt the batches that one process would compute. `work` is a function of a module.
    """
    how = {"pad_id": pad_id, "batch_tokens": batch_tokens}
    counts = label_counts(rows)
    if not is_helped() or 0 in counts:
        return work(model, rows, **how, progress=progress)
    batches = list(length_batches(row_lengths(rows), 0, batch_tokens, alike=True))
    found: list[Any] = [None] * len(rows)
    done = 0
    dealt = ([rows[i] for i in batch] for batch in batches)  # rows may lie on disk
    for batch, values in zip(batches, spread(_of_batch, model, None, dealt, work=work, how=how), strict=True):
        for i, value in zip(batch, values, strict=True):
            found[i] = value
        done += len(batch)
        if progress:
            progress(done, len(rows))
    return found


def _of_batch(
    model: Any, _tokenizer: Any, rows: list[Encoded], *, work: Callable[..., list[T]], how: dict[str, int]
) -> list[T]:
    return work(model, rows, **how, progress=None)


@torch.no_grad()
def _label_nll(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, progress: Progress | None
) -> list[Tensor]:
    counts = label_counts(rows)
    nll = torch.empty(sum(counts), dtype=torch.float64)
    for found in label_states(model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress):
        some = token_nll(found.hidden, found.head.weight, found.targets, **found.head.options).nll
        nll[found.place] = some.double().cpu()
    return list(nll.split(counts))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in eval mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
