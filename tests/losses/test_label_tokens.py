from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gentletune.losses import IGNORE, LabelTokens, label_tokens, sequence_means

# Sequences of label ids, -100 where masked; one sequence at least.
SEQUENCES = st.lists(st.lists(st.sampled_from([IGNORE, 3, 4, 5, 6]), min_size=1, max_size=6), min_size=1, max_size=5)


def padded(rows: list[list[int]], fill: int = IGNORE) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def packed(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """All sequences in one row, and the position ids that restart in it."""
    flat = torch.tensor([[label for row in rows for label in row]])
    return flat, torch.tensor([[i for row in rows for i in range(len(row))]])


def means(found: LabelTokens, values: Tensor) -> list[float]:
    return sequence_means(found.gather(values), found.sequence, found.sequences).tolist()


def test_causal_shift() -> None:
    # Label t is predicted from position t - 1; row 1 starts at 4 in the flattened positions.
    found = label_tokens(torch.tensor([[7, 8, IGNORE, 9], [IGNORE, IGNORE, 5, 6]]))
    assert found.targets.tolist() == [8, 9, 5, 6]
    assert found.index.tolist() == [0, 2, 5, 6]
    assert found.sequence.tolist() == [0, 0, 1, 1]
    assert found.sequences == 2


def test_gather_takes_the_predicting_positions() -> None:
    found = label_tokens(torch.tensor([[7, 8, IGNORE, 9], [IGNORE, IGNORE, 5, 6]]))
    values = torch.arange(8.0).view(2, 4)
    assert found.gather(values).tolist() == [0, 2, 5, 6]
    assert found.gather(torch.stack([values, -values], dim=-1)).tolist() == [[0, 0], [2, -2], [5, -5], [6, -6]]


def test_all_masked() -> None:
    found = label_tokens(torch.full((2, 3), IGNORE))
    assert found.targets.numel() == found.index.numel() == found.sequence.numel() == 0
    assert found.sequences == 0
    assert sequence_means(torch.empty(0), found.sequence, 0).tolist() == []


def test_a_lone_first_token_is_no_label() -> None:
    assert label_tokens(torch.tensor([[4]])).sequences == 0
    assert label_tokens(torch.tensor([[4, 5]]), torch.tensor([[0, 0]])).targets.tolist() == []


def test_sequences_without_a_label_do_not_count() -> None:
    found = label_tokens(torch.tensor([[1, 5], [1, IGNORE], [1, 6]]))
    assert found.sequence.tolist() == [0, 1]
    assert found.sequences == 2
    assert means(found, torch.tensor([[3.0, 0.0], [9.0, 0.0], [4.0, 0.0]])) == [3.0, 4.0]


def test_positions_may_restart_in_some_rows_only() -> None:
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = label_tokens(labels, torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]))
    assert found.targets.tolist() == [2, 4, 6, 7, 8]
    assert found.sequence.tolist() == [0, 1, 2, 2, 2]


def test_a_row_that_starts_past_position_zero_is_a_sequence_of_its_own() -> None:
    found = label_tokens(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 1], [5, 6]]))
    assert found.targets.tolist() == [2, 4]
    assert found.sequence.tolist() == [0, 1]


@given(rows=SEQUENCES)
def test_equals_a_python_loop(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    expected = [
        (s * width + t - 1, label, s)
        for s, row in enumerate(rows)
        for t, label in enumerate(row)
        if t > 0 and label != IGNORE
    ]
    numbers = {s: i for i, s in enumerate(dict.fromkeys(s for _, _, s in expected))}
    found = label_tokens(padded(rows))
    assert list(zip(found.index.tolist(), found.targets.tolist(), found.sequence.tolist(), strict=True)) == [
        (index, label, numbers[s]) for index, label, s in expected
    ]
    assert found.sequences == len(numbers)


@given(rows=SEQUENCES, extra=st.integers(1, 3))
def test_padding_changes_nothing(rows: list[list[int]], extra: int) -> None:
    short, long = padded(rows), padded([[*rows[0], *[IGNORE] * extra], *rows[1:]])
    values = torch.rand(long.shape, dtype=torch.float64)
    a, b = label_tokens(short), label_tokens(long)
    assert a.targets.tolist() == b.targets.tolist()
    assert a.sequence.tolist() == b.sequence.tolist()
    assert means(a, values[:, : short.shape[1]]) == means(b, values)


@given(rows=SEQUENCES)
def test_packed_equals_separate_rows(rows: list[list[int]]) -> None:
    separate, (together, positions) = label_tokens(padded(rows)), packed(rows)
    found = label_tokens(together, positions)
    assert found.targets.tolist() == separate.targets.tolist()
    assert found.sequence.tolist() == separate.sequence.tolist()
    assert found.sequences == separate.sequences
    values = torch.rand(together.shape, dtype=torch.float64)
    spread = torch.nn.utils.rnn.pad_sequence(values[0].split([len(row) for row in rows]), batch_first=True)
    assert found.gather(values).tolist() == separate.gather(spread).tolist()
    assert means(found, values) == means(separate, spread)


@given(rows=SEQUENCES, data=st.data())
def test_masking_equals_deletion(rows: list[list[int]], data: st.DataObject) -> None:
    labels = padded(rows)
    drop = torch.tensor(data.draw(st.lists(st.booleans(), min_size=labels.numel(), max_size=labels.numel())))
    drop = drop.view_as(labels)
    whole, masked = label_tokens(labels), label_tokens(labels.masked_fill(drop, IGNORE))
    kept = ~whole.gather(drop.roll(-1, 1))  # a label is dropped where the token after its position is
    assert masked.targets.tolist() == whole.targets[kept].tolist()
    assert masked.index.tolist() == whole.index[kept].tolist()


def test_a_masked_row_equals_no_row() -> None:
    values = torch.tensor([[1.0, 2.0, 0.0], [3.0, 8.0, 0.0], [4.0, 6.0, 0.0]])
    with_it = label_tokens(torch.tensor([[1, 5, 6], [IGNORE] * 3, [1, 7, 8]]))
    without = label_tokens(torch.tensor([[1, 5, 6], [1, 7, 8]]))
    assert means(with_it, values) == means(without, values[[0, 2]]) == [1.5, 5.0]


def test_sequence_means_by_hand() -> None:
    # (1 + 2 + 6)/3 = 3 and (4 + 5)/2 = 4.5, in any order of tokens.
    values = torch.tensor([1.0, 4.0, 2.0, 5.0, 6.0])
    assert sequence_means(values, torch.tensor([0, 1, 0, 1, 0]), 2).tolist() == [3.0, 4.5]
