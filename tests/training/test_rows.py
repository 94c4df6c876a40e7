from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentletune.training.mixin import row_groups
from tests.training.steps import EXACT, ROWS, distance, first_loss, gradients, lively_model, one_step


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    width = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    ids = torch.arange(1, mask.numel() + 1).view_as(mask) * mask
    return {"input_ids": ids, "labels": ids.where(mask == 1, -100), "attention_mask": mask}


def cost(groups: list[dict[str, torch.Tensor]], pass_tokens: int) -> int:
    return sum(group["input_ids"].numel() + pass_tokens for group in groups)


def least_cost(lengths: list[int], pass_tokens: int) -> int:
    """Over all ways to cut the sorted lengths."""
    ordered, count = sorted(lengths), len(lengths)
    every = []
    for size in range(count):
        for cuts in combinations(range(1, count), size):
            edges = [0, *cuts, count]
            parts = [ordered[a:b] for a, b in pairwise(edges)]
            every.append(sum(len(part) * max(part) + pass_tokens for part in parts))
    return min(every)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 60))
def test_groups_hold_every_row_once_at_the_least_cost(lengths: list[int], pass_tokens: int) -> None:
    inputs = padded(lengths)
    groups = row_groups(inputs, pass_tokens)
    assert cost(groups, pass_tokens) == least_cost(lengths, pass_tokens)
    found = sorted(tuple(row[row > 0].tolist()) for group in groups for row in group["input_ids"])
    assert found == sorted(tuple(row[row > 0].tolist()) for row in inputs["input_ids"])
    for group in groups:
        assert group["attention_mask"].any(0).all()  # no column of padding alone
        assert torch.equal(group["labels"] != -100, group["attention_mask"] == 1)


def test_a_dear_pass_keeps_rows_together() -> None:
    assert len(row_groups(padded([3, 9, 30]), pass_tokens=1000)) == 1


def test_row_entries_follow_their_rows() -> None:
    inputs = padded([9, 2, 8]) | {"sequence_weights": torch.tensor([0.9, 0.2, 0.8])}
    short, long = row_groups(inputs, pass_tokens=3)
    assert short["sequence_weights"].tolist() == pytest.approx([0.2])
    assert long["sequence_weights"].tolist() == pytest.approx([0.9, 0.8])
    assert long["input_ids"].shape == (2, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])},
        {"position_ids": torch.tensor([[0, 1, 2], [0, 1, 2]])},
        {"attention_mask": None},
        {"max_length": 3},
    ],
    ids=["left padding", "packed", "no mask", "an entry that is not by row"],
)
def test_what_cannot_be_cut_stays_whole(change: dict[str, Any]) -> None:
    inputs = padded([3, 1]) | change
    (group,) = row_groups({k: v for k, v in inputs.items() if v is not None}, pass_tokens=0)
    assert group["input_ids"].shape == (2, 3)


@pytest.mark.parametrize("method", ["sft", "talr", "talr(tau=lagged_median)", "talr(tau=3.0, normalization=simplex)"])
def test_the_update_is_that_of_the_padded_batch(
    method: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for pass_tokens in (0, 10**6):  # each row alone; all rows together
        monkeypatch.setattr(row_groups, "__defaults__", (pass_tokens,))
        assert len(row_groups(padded([len(row.input_ids) for row in ROWS]))) == (4 if not pass_tokens else 1)
        found.append(one_step(lively_model(tokenizer), tokenizer, tmp_path / str(pass_tokens), method)[0])
    assert distance(*map(gradients, found)) < EXACT
    assert first_loss(found[0]) == pytest.approx(first_loss(found[1]), rel=EXACT)
