"""Batched generation: greedy or sampled, sorted by length; answers that have ended leave their batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from gentletune.data.batches import length_batches
from gentletune.data.chat import end_tokens
from gentletune.lm.loaded import base_causal_lm
from gentletune.lm.spread import is_helped, spread

Progress = Callable[[int, int], None]
Ended = Callable[[int, list[int]], None]
_SEGMENT = 16  # tokens between two looks at which answers have ended; each look costs a few milliseconds


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    ended: Ended | None = None,
) -> list[list[int]]:
    """Answers to tokenised prompts, in the prompts' order.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: longest answer; one that ends earlier includes its end token.
        sample: draw from the model's distribution instead of greedy decoding; by default from the model itself
            (`temperature` 1, nothing cut by `top_p` or `top_k`).
        seed: of the sampling; the caller's random state is left as it was.
        stop: texts that end an answer. A few tokens may follow the stop text: cut the decoded answer there.
        batch_tokens: padded prompt and answer tokens in a batch.
        ended: told the index and the answer of each prompt as it ends.

    Returns:
        Token ids of each answer, at least one.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    model = base_causal_lm(model)
    ends = frozenset(end_tokens(tokenizer))
    sampling: dict[str, Any] = {"do_sample": False}
    if sample:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    how = _How(tokenizer, ends, max_new_tokens, tuple(stop), sampling)
    batches = length_batches([len(p) for p in prompts], max_new_tokens, batch_tokens)
    # Named, since by default every GPU there is would be started to read its state.
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), _no_defaults(model), _whole_states(model):
        torch.manual_seed(seed)
        for number, answer in _each(prompts, list(batches), model, how):
            answers[number] = answer
            done += 1
            if ended:
                ended(number, answer)
            if progress:
                progress(done, len(prompts))
    return answers


@dataclass(frozen=True)
class _How:
    tokenizer: Any
    ends: frozenset[int]
    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: dict[str, Any]

    def until_end(self, ids: list[int]) -> list[int] | None:
        """The answer up to and including its end; None where it has not ended."""
        for i, token in enumerate(ids):
            if token in self.ends:
                return ids[: i + 1]
        if len(ids) >= self.max_new_tokens:
            return ids
        if self.stop:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            if any(word in text for word in self.stop):
                return ids
        return None


def _each(
    prompts: Sequence[Sequence[int]], batches: list[list[int]], model: Any, how: _How
) -> Iterator[tuple[int, list[int]]]:
    """Each prompt's number and answer, as it ends; where ranks share the batches, a round of batches after the other.

    Sampled answers hang on one sequence of random numbers, so they are of one process.
    """
    if how.sampling["do_sample"] or not is_helped():
        for batch in batches:
            yield from ((batch[row], answer) for row, answer in _answer([prompts[i] for i in batch], model, how))
        return
    dealt = [[prompts[i] for i in batch] for batch in batches]
    found = spread(_answers, model, how.tokenizer, dealt, how=replace(how, tokenizer=None))
    for batch, answers in zip(batches, found, strict=True):
        yield from ((batch[row], answer) for row, answer in answers)


def _answers(model: Any, tokenizer: Any, prompts: list[Sequence[int]], *, how: _How) -> list[tuple[int, list[int]]]:
    """A batch's rows and answers; each rank has the tokenizer."""
    model = base_causal_lm(model)
    with torch.inference_mode(), _no_defaults(model), _whole_states(model):
        return list(_answer(prompts, model, replace(how, tokenizer=tokenizer)))


def _answer(prompts: list[Sequence[int]], model: Any, how: _How) -> Iterator[tuple[int, list[int]]]:
    """Each prompt's row and answer, as it ends; the rows that go on keep their cache and no others are computed."""
    ids, mask = _left_padded(prompts, how.tokenizer.pad_token_id)
    ids, mask = ids.to(model.device), mask.to(model.device)
    rows, cache = list(range(len(prompts))), None
    said: list[list[int]] = [[] for _ in prompts]
    while rows:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=min(_SEGMENT, how.max_new_tokens - len(said[rows[0]])),
            eos_token_id=sorted(how.ends),
            pad_token_id=how.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            **how.sampling,
        )
        new = out.sequences[:, ids.shape[1] :]
        going: list[int] = []
        for place, (row, tokens) in enumerate(zip(rows, new.tolist(), strict=True)):
            said[row] += tokens
            answer = how.until_end(said[row])
            if answer is None:
                going.append(place)
            else:
                yield row, answer
        kept = torch.tensor(going, device=ids.device, dtype=torch.long)
        cache = out.past_key_values
        if cache is not None and len(going) < len(rows):
            cache.batch_select_indices(kept)
            _forget_rows(model)
        ids = out.sequences[kept]
        mask = torch.cat([mask[kept], mask.new_ones(len(going), new.shape[1])], dim=1)
        rows = [rows[place] for place in going]


def _forget_rows(model: Any) -> None:
    """Qwen's models that see keep how far images shift each row's positions; text shifts none, however many rows."""
    shifts = getattr(model.base_model, "rope_deltas", None)
    if shifts is not None:
        model.base_model.rope_deltas = shifts[:1]


def _left_padded(prompts: list[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """A model's own generation defaults (penalties, cuts, banned words, beams) must not warp what it says."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _whole_states(model: Any) -> Iterator[None]:
    """The states that the head reads as one piece of memory, not cut out of a prompt's.

    Where they are cut out, torch on a CPU makes one matrix product per prompt, and in bf16 copies the head for each:
    28 GB for 60 prompts and a vocabulary of 150,000. If that fails, torch does without oneDNN from then on, at a
    fraction of the speed.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]) if given else None)
    try:
        yield
    finally:
        handle.remove()
