"""Code length against the model's own loss, and drift worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gentletune.data.batches import pad_batch
from gentletune.data.encode import IGNORE, Encoded, encode_row
from gentletune.evaluation.code_length import SequenceNLL, code_length_score, drift_score, sequence_nll

LN2 = math.log(2)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Encoded]:
    pairs = [("BMI?", "22.9"), ("Weight 70 kg, height 175 cm. BMI?", "70 / 3.0625 = 22.86\nAnswer: 22.9"), ("A", "B")]
    gaps = Encoded([5, 6, 7, 8, 9, 10], [5, IGNORE, 7, IGNORE, 9, IGNORE])
    return [*(encode_row({"prompt": p, "completion": c}, tokenizer) for p, c in pairs), gaps, Encoded([3, 4], [3, 4])]


def test_the_code_length_is_the_models_own_loss(tiny_model: Any, rows: list[Encoded]) -> None:
    expected = []
    with torch.no_grad():
        for row in rows:
            own = tiny_model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
            expected.append(own.loss.item() * row.label_count)
    for batch_tokens in (1, 50, 8192):
        found = sequence_nll(tiny_model, rows, pad_id=2, batch_tokens=batch_tokens)
        assert found.tokens == [row.label_count for row in rows]
        assert found.nll == pytest.approx(expected, abs=1e-4)
    assert found.means == pytest.approx([e / row.label_count for e, row in zip(expected, rows, strict=True)], abs=1e-4)


def test_the_padding_token_does_not_matter(tiny_model: Any, tokenizer: Any, rows: list[Encoded]) -> None:
    assert tokenizer.eos_token_id in rows[0].labels
    by_end, by_other = (sequence_nll(tiny_model, rows, pad_id=pad).nll for pad in (tokenizer.eos_token_id, 7))
    assert by_end == pytest.approx(by_other, abs=1e-5)


def test_rows_are_padded_on_the_right() -> None:
    batch = pad_batch([Encoded([4, 5, 6], [IGNORE, 5, 6]), Encoded([7], [7])], pad_id=6)
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 6, 6]]
    assert batch["labels"].tolist() == [[IGNORE, 5, 6], [7, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(tiny_model: Any, rows: list[Encoded], training: bool) -> None:
    tiny_model.train(training)
    seen = []
    handle = tiny_model.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    found = sequence_nll(tiny_model, rows, pad_id=2)
    handle.remove()
    assert seen == [False]
    assert tiny_model.training == training
    assert all(value > 0 and math.isfinite(value) for value in found.nll)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("labels", [[IGNORE, IGNORE], [5, IGNORE]])
def test_a_row_without_a_label_is_named_and_the_mode_kept(
    tiny_model: Any, rows: list[Encoded], labels: list[int], training: bool
) -> None:
    tiny_model.train(training)
    with pytest.raises(ValueError, match="row 1 has no label token"):
        sequence_nll(tiny_model, [rows[0], Encoded([5, 6], labels)], pad_id=2)
    assert tiny_model.training == training


def test_progress_counts_rows(tiny_model: Any, rows: list[Encoded]) -> None:
    seen: list[tuple[int, int]] = []
    sequence_nll(tiny_model, rows, pad_id=2, batch_tokens=1, progress=lambda *at: seen.append(at))
    assert seen == [(i, len(rows)) for i in range(1, len(rows) + 1)]


def test_a_model_does_not_drift_from_itself(tiny_model: Any, rows: list[Encoded]) -> None:
    found = sequence_nll(tiny_model, rows, pad_id=2)
    score = drift_score(found, sequence_nll(tiny_model, rows, pad_id=2), task="drift_sampled")
    assert (score.value, score.stderr) == (0, 0)
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(3)
    moved = drift_score(sequence_nll(tiny_model, rows, pad_id=2), found, task="drift_sampled")
    assert moved.value != 0


def test_scores_by_hand() -> None:
    initial = SequenceNLL([2 * LN2, 4 * LN2], [2, 4])
    tuned = SequenceNLL([5 * LN2, 7 * LN2], [2, 4])
    # 3 bits more on each sequence: 6 bits over 6 tokens; residuals 3 - 2 and 3 - 4, se = √(2/1 · 2) / 6
    drift = drift_score(tuned, initial, task="drift_greedy")
    assert drift.value == pytest.approx(1)
    assert drift.stderr == pytest.approx(1 / 3)
    assert (drift.key, drift.side, drift.n, drift.higher_is_better) == (
        "drift_greedy/bits_per_token", "general", 2, False,
    )  # fmt: skip
    length = code_length_score(tuned, task="clinic", side="domain")
    # 12 bits over 6 tokens; residuals 5 - 4 and 7 - 8
    assert length.value == pytest.approx(2)
    assert length.stderr == pytest.approx(1 / 3)
    assert (length.key, length.side, length.higher_is_better) == ("clinic/bits_per_token", "domain", False)
