"""A lab base model from nothing: a small Llama, trained on the lab's skills by a plain seeded loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gentletune.core.cache import whole_directory
from gentletune.core.errors import UserError
from gentletune.data.encode import IGNORE, Encoded
from gentletune.data.example import Example
from gentletune.lab.skills import SKILLS, skill_rows
from gentletune.lab.tokenizer import make_tokenizer
from gentletune.lab.words import ASSISTANT, END, USER
from gentletune.lm.model_files import quiet

CONTEXT = 128
HEAD = 24
"""Width of an attention head."""

SHORT = 20
"""Rows up to so many tokens are computed apart from longer ones, so that little is padding."""

TURNS = {"lab_formulas": 2}
"""Skills that take more than one turn."""


@dataclass(frozen=True)
class Pretraining:
    """What a base model is made by: its size, its steps and its seed."""

    seed: int = 0
    width: int = 96
    layers: int = 3
    steps: int = 5000
    batch: int = 110
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.05

    def __post_init__(self) -> None:
        if self.width < HEAD or self.width % HEAD:
            raise UserError(f"width {self.width} is no multiple of {HEAD}")
        if min(self.layers, self.steps, self.batch) < 1:
            raise UserError("layers, steps and batch are whole numbers from 1")


def make_model(settings: Pretraining, tokenizer: Any) -> Any:
    """An untrained model of the Llama architecture."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.width * 8 // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // HEAD,
        num_key_value_heads=settings.width // HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config)


def batches(settings: Pretraining, tokenizer: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batch after batch, each as ids and labels of its short rows and of its long ones; the skills take turns."""
    turns = [name for name in SKILLS for _ in range(TURNS.get(name, 1))]
    streams = {name: skill_rows(name, seed=settings.seed, split="train") for name in SKILLS}
    count = 0
    while True:
        rows = encoded([next(streams[turns[(count + i) % len(turns)]]) for i in range(settings.batch)], tokenizer)
        count += settings.batch
        halves = [[row for row in rows if (len(row.input_ids) > SHORT) == long] for long in (False, True)]
        yield [_padded(half, tokenizer.pad_token_id) for half in halves if half]


def encoded(rows: list[Example], tokenizer: Any) -> list[Encoded]:
    """The rows as `encode_rows` gives them, all at once: row by row it would be a third of the time."""
    texts = [f"{USER} {row.prompt} {ASSISTANT} {row.completion} {END}" for row in rows]
    said = tokenizer.convert_tokens_to_ids(ASSISTANT)
    found = []
    for ids in tokenizer(texts)["input_ids"]:
        start = ids.index(said) + 1
        found.append(Encoded(ids, [IGNORE] * start + ids[start:]))
    return found


def _padded(rows: list[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORE)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
    return ids, labels


def pretrain(settings: Pretraining, output: Path, say: Callable[[str], None]) -> None:
    """Train a base model and save it with its tokenizer in `output`; on one machine a seed gives the same weights."""
    torch.set_num_threads(1)  # more would wait for each other longer than they compute, and add up in another order
    tokenizer = make_tokenizer(CONTEXT)
    model = make_model(settings, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=settings.decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    total = 0.0
    for step, batch in zip(range(1, settings.steps + 1), batches(settings, tokenizer), strict=False):
        optimizer.zero_grad(set_to_none=True)
        count = sum(int((labels != IGNORE).sum()) for _, labels in batch)
        for ids, labels in batch:
            loss = _summed_nll(model, ids, labels) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings.steps:
            say(f"step {step}/{settings.steps}, loss {total / ((step - 1) % 100 + 1):.4f}")
            total = 0.0
    with whole_directory(output) as scratch, quiet():
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def _summed_nll(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """NLL of the label tokens, with the head where they are alone."""
    places = labels[:, 1:] != IGNORE
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][places]
    return cross_entropy(model.lm_head(hidden), labels[:, 1:][places], reduction="sum")


def _rate(step: int, settings: Pretraining) -> float:
    warm = min(1.0, (step + 1) / settings.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
