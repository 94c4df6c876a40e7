"""Batched generation: greedy or sampled at temperature 1, sorted by length, stopped at the end of the turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gentletune.data.batches import length_batches
from gentletune.data.encode import end_tokens
from gentletune.models import base_causal_lm

Progress = Callable[[int, int], None]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sample: bool = False,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Answers to tokenised prompts, in the prompts' order.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: longest answer; one that ends earlier includes its end token.
        sample: draw from the model itself (temperature 1, nothing cut) instead of greedy decoding.
        seed: of the sampling; the caller's random state is left as it was.
        batch_tokens: padded prompt and answer tokens in a batch.

    Returns:
        Token ids of each answer, at least one.
    """
    ends = sorted(end_tokens(tokenizer))
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    model = base_causal_lm(model)
    with torch.random.fork_rng(), torch.inference_mode(), _no_defaults(model):
        torch.manual_seed(seed)
        for batch in length_batches([len(p) for p in prompts], max_new_tokens, batch_tokens):
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=sample,
                temperature=1.0 if sample else None,
                top_p=1.0 if sample else None,
                top_k=0 if sample else None,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            for row, i in enumerate(batch):
                answers[i] = _until_end(out[row, width:].tolist(), ends)
            done += len(batch)
            if progress:
                progress(done, len(prompts))
    return answers


@contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """A model's own generation defaults (penalties, cuts, banned words, beams) must not warp what it says."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The answer up to and including its first end token: what follows is padding."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: stop + 1]
