"""The one loop over label tokens: the model's own numbers, in the rows' order, and the model left as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from gentletune.data.encode import IGNORE, Encoded
from gentletune.lm import label_tokens as module
from gentletune.lm.label_tokens import label_logits, label_nll, label_states

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Of unlike length, so that batches take them in another order; with several answers, and one that starts with a label.
ROWS = [
    Encoded(list(range(3, 3 + length)), [token if token % 5 in keep else IGNORE for token in range(3, 3 + length)])
    for length, keep in ((7, {0, 1}), (40, {2}), (3, {0}), (23, {0, 1, 2, 3, 4}), (40, {4}))
]


def own_nll(model: Any, row: Encoded) -> list[float]:
    """What transformers' own forward pass says of one row."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    return [-float(log_p[at - 1, label]) for at, label in enumerate(row.labels) if at and label != IGNORE]


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_the_numbers_are_the_models_in_the_order_of_the_rows(tiny_model: LlamaForCausalLM, batch_tokens: int) -> None:
    expected = [own_nll(tiny_model, row) for row in ROWS]
    how: dict[str, Any] = {"pad_id": 2, "batch_tokens": batch_tokens}
    for found, right in zip(label_nll(tiny_model, ROWS, **how), expected, strict=True):
        assert found.tolist() == pytest.approx(right, abs=1e-5)
    flat = torch.full((sum(map(len, expected)),), torch.nan)
    for block in label_logits(tiny_model, ROWS, **how):
        flat[block.place] = -block.logits.log_softmax(-1).gather(1, block.targets[:, None])[:, 0]
    assert flat.tolist() == pytest.approx([value for row in expected for value in row], abs=1e-5)


def test_logits_come_in_bounded_blocks(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {}
    for block in label_logits(tiny_model, ROWS, pad_id=2):
        whole |= dict(zip(block.place.tolist(), block.logits, strict=True))
    vocabulary = tiny_model.config.vocab_size
    monkeypatch.setattr(module, "_LOGITS", 3 * vocabulary + 1)
    blocks = list(label_logits(tiny_model, ROWS, pad_id=2))
    assert max(len(block.targets) for block in blocks) == 3
    for block in blocks:
        torch.testing.assert_close(block.logits, torch.stack([whole[at] for at in block.place.tolist()]))


def test_a_row_may_be_one_token_longer_than_the_context(tiny_model: LlamaForCausalLM) -> None:
    seen = []
    tiny_model.model.embed_tokens.register_forward_pre_hook(lambda _, ids: seen.append(ids[0].shape[1]))
    ids = [5] * (tiny_model.config.max_position_embeddings + 1)
    assert len(label_nll(tiny_model, [Encoded(ids, ids)], pad_id=2)[0]) == len(ids) - 1
    assert seen == [tiny_model.config.max_position_embeddings]


def test_a_caller_that_stops_leaves_the_model_and_the_gradients_as_they_were(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()  # one part frozen in eval mode, as some trainers do
    before = [part.training for part in tiny_model.modules()]
    computing = []
    tiny_model.model.register_forward_pre_hook(
        lambda part, _: computing.append((part.training, torch.is_grad_enabled()))
    )
    kept = label_states(tiny_model, ROWS, pad_id=2, batch_tokens=1)
    state = next(kept)
    assert torch.is_grad_enabled()
    assert not state.hidden.requires_grad
    assert [part.training for part in tiny_model.modules()] == before
    assert not any(block.logits.requires_grad for block in label_logits(tiny_model, ROWS, pad_id=2))
    assert set(computing) == {(False, False)}


def test_progress_counts_rows_up_to_all(tiny_model: LlamaForCausalLM) -> None:
    told: list[tuple[int, int]] = []
    label_nll(tiny_model, ROWS, pad_id=2, batch_tokens=1, progress=lambda done, rows: told.append((done, rows)))
    assert told == [(n, len(ROWS)) for n in range(1, len(ROWS) + 1)]


def test_no_rows_give_nothing_and_a_row_without_a_label_is_refused(tiny_model: LlamaForCausalLM) -> None:
    assert label_nll(tiny_model, [], pad_id=2) == []
    with pytest.raises(ValueError, match="row 1 has no label token"):
        label_nll(tiny_model, [ROWS[0], Encoded([4, 5], [4, IGNORE])], pad_id=2)
