"""Batched generation against one prompt at a time, and sampling against the model's own distribution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from gentletune.data.batches import length_batches
from gentletune.lm.generate import generate
from tests.conftest import make_model

PROMPTS = [[5, 6, 7], list(range(20, 41)), [9], [100, 4, 30, 31, 8, 77, 6], [300] * 12, [7, 6, 5]]
NEW = 12


def reader(*ends: int) -> Any:
    """As much of a tokenizer as generation needs; the end token also pads."""
    names = ("<|im_end|>", "<|eot_id|>")
    return SimpleNamespace(
        eos_token_id=ends[0],
        pad_token_id=ends[0],
        chat_template=None,
        get_added_vocab=lambda: dict(zip(names, ends[1:], strict=False)),
    )


@pytest.fixture(scope="module")
def model() -> Any:
    """A model that heeds its whole context, and is surer of its next token than random weights are."""
    made = make_model(500)
    with torch.no_grad():
        made.model.norm.weight.mul_(6)
        for layer in made.model.layers:
            for weight in layer.parameters():
                weight.mul_(6 if weight.ndim == 2 else 1)
    return made


def stepwise(model: Any, prompt: list[int], ends: tuple[int, ...]) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + NEW:
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_greedy_answers_are_those_of_single_prompts_in_order(model: Any, batch_tokens: int) -> None:
    expected = [stepwise(model, prompt, (499,)) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 3
    assert generate(model, reader(499), PROMPTS, max_new_tokens=NEW, batch_tokens=batch_tokens) == expected


def test_an_answer_stops_at_an_end_token_and_keeps_it(model: Any) -> None:
    free = [stepwise(model, prompt, (499,)) for prompt in PROMPTS]
    ends = (free[0][4], free[1][2])
    expected = [stepwise(model, prompt, ends) for prompt in PROMPTS]
    assert {len(answer) for answer in expected} > {NEW}
    found = generate(model, reader(*ends), PROMPTS, max_new_tokens=NEW)
    assert found == expected
    assert all(answer[-1] in ends for answer in found if len(answer) < NEW)
    assert not any(token in ends for answer in found for token in answer[:-1])


def test_nothing_to_answer_gives_nothing(model: Any) -> None:
    assert generate(model, reader(499), [], max_new_tokens=3) == []


def test_sampling_is_told_by_its_seed_and_leaves_the_callers_state(model: Any) -> None:
    before = torch.get_rng_state()

    def sampled(seed: int) -> list[list[int]]:
        return generate(model, reader(499), PROMPTS, max_new_tokens=NEW, sample=True, seed=seed)

    first, again, other = sampled(1), sampled(1), sampled(2)
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
    assert first != generate(model, reader(499), PROMPTS, max_new_tokens=NEW)


def test_sampled_tokens_follow_the_models_own_distribution(model: Any) -> None:
    prompt, draws, bins = PROMPTS[1], 600, 12
    with torch.no_grad():
        own = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    # Tokens by falling probability, in bins of about equal mass: a cut tail or another temperature shows.
    order = own.argsort(descending=True)
    middle = own[order].cumsum(0) - own[order] / 2
    assigned = torch.empty_like(order).scatter_(0, order, (middle * bins).long())
    expected = torch.zeros(bins, dtype=torch.float64).index_add_(0, assigned, own) * draws
    said = generate(model, reader(499), [prompt] * draws, max_new_tokens=1, sample=True, seed=3)
    counts = torch.bincount(assigned[torch.tensor(said).squeeze(1)], minlength=bins)
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square with 11 degrees of freedom, p = 0.001


DEFAULTS: dict[str, dict[str, Any]] = {
    "cut": {"do_sample": True, "top_k": 2, "top_p": 0.3, "temperature": 0.2, "min_p": 0.5, "typical_p": 0.2},
    "penalty": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
    "words": {"suppress_tokens": list(range(250)), "begin_suppress_tokens": list(range(250, 400))},
    "length": {"min_new_tokens": NEW, "max_length": 4, "forced_eos_token_id": 8},
    "search": {"num_beams": 2},
    "tokens": {"eos_token_id": [*range(400)], "pad_token_id": 3},
}


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("defaults", DEFAULTS)
def test_the_models_own_generation_defaults_change_nothing(model: Any, defaults: str, sample: bool) -> None:
    tokenizer = reader(stepwise(model, PROMPTS[0], (499,))[4])
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, sample=sample, seed=5)
    own = model.generation_config
    try:
        model.generation_config = changed = GenerationConfig(**DEFAULTS[defaults])
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, sample=sample, seed=5) == expected
        assert model.generation_config is changed
    finally:
        model.generation_config = own


def test_the_head_reads_whole_states_and_is_left_as_it_was(model: Any) -> None:
    """Else torch copies the head once a prompt, on a CPU in bf16."""
    read: list[bool] = []
    seen = model.lm_head.register_forward_hook(lambda _, given, out: read.append(given[0].is_contiguous()))
    generate(model, reader(499), PROMPTS, max_new_tokens=NEW)
    assert read
    assert all(read)
    model(input_ids=torch.tensor([PROMPTS[0], PROMPTS[0]]), logits_to_keep=1)
    assert not read[-1]
    seen.remove()


def test_progress_counts_prompts(model: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(model, reader(499), PROMPTS, max_new_tokens=2, batch_tokens=1, progress=lambda *at: seen.append(at))
    assert seen == [(i, len(PROMPTS)) for i in range(1, len(PROMPTS) + 1)]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(0, 20), st.integers(1, 300))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], extra: int, budget: int) -> None:
    batches = list(length_batches(lengths, extra, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    widths = [[lengths[i] for i in batch] for batch in batches]
    assert all(len(batch) == 1 or len(batch) * (max(batch) + extra) <= budget for batch in widths)
    assert [n for batch in widths for n in batch] == sorted(lengths, reverse=True)
    alike = list(length_batches(lengths, extra, budget, alike=True))
    assert sorted(i for batch in alike for i in batch) == list(range(len(lengths)))
    assert len(alike) >= len(batches)
    for batch in alike:
        kept, longest = [lengths[i] + extra for i in batch], lengths[batch[0]] + extra
        assert len(batch) == 1 or len(batch) * longest <= budget
        # Rows much shorter than the first came in before the pass was worth its cost.
        assert all(5 * n >= 4 * longest or at * longest < 512 for at, n in enumerate(kept))
    # No batch could have taken the first row of the next.
    assert all((len(batch) + 1) * (max(batch) + extra) > budget for batch in widths[:-1])
