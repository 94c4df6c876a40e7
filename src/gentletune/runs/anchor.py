"""What a run takes of its base model to stay near it: samples to replay, predictions on them and on training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from random import Random
from typing import Any

import torch
from torch import Tensor

from gentletune.core.cache import cached_json, digest
from gentletune.core.errors import UserError, memory_errors
from gentletune.data import encode_rows
from gentletune.data.encode import IGNORE, Encoded, encode_prompt, label_counts, row_lengths
from gentletune.evaluation.finite import check_model, of_model
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.lm.generate import generate
from gentletune.lm.setting import size
from gentletune.losses import TOP_K, BaseTopK
from gentletune.methods.base import Replay
from gentletune.runs.base_topk import BYTES, BaseTopKRows, base_topk
from gentletune.runs.inputs import Inputs
from gentletune.training.anchor import Lookup, ReplayRows
from gentletune.training.packing import pack_length

SEED = 20260926  # the samples are the same in every run
_FEW = 64  # rows that stand for all where steps are timed
_VERSION = 1  # raise when they would come out differently


def anchor_lines(inputs: Inputs) -> list[str]:
    """What replay and a KL to base take, told before a training begins."""
    told = []
    if (replay := inputs.method.replay) is not None:
        more = replay.share / (1 - replay.share)
        told.append(f"replay: {more:.0%} more rows a step")
    if inputs.method.base_kl:
        tokens = sum(label_counts(inputs.train.rows))
        told.append(
            f"KL to base: once a forward pass over the training rows, {size(BYTES * tokens)} in the cache; each step "
            "the head once more"
        )
    return told


def anchors(inputs: Inputs, *, stage: Stage = silent) -> tuple[ReplayRows | None, BaseTopKRows | None]:
    """`replay` and `base_kl` for `training.fit`; None where the method does without. Computed once, and cached."""
    replay, base, recipe = inputs.method.replay, inputs.base, inputs.recipe
    if replay is None and not inputs.method.base_kl:
        return None, None
    with inputs.alone(stage):
        found, topk = None, None
        if replay is not None:
            rows, near = _rows(inputs, replay, stage), None
            if replay.loss == "kl":
                key: list[Any] = ["replay", digest([asdict(row) for row in rows])]
                told = stage("the base model's predictions on what is replayed")
                near = base_topk(base, rows, key, recipe, progress=told)
            found = ReplayRows(rows, base.tokenizer.pad_token_id, near)
        if inputs.method.base_kl:
            key = ["training", inputs.hashes["train"], base.encoding, inputs.train.kept]
            told = stage("the base model's predictions on the training rows")
            topk = base_topk(base, inputs.train.rows, key, recipe, progress=told)
    return found, topk


def stand_ins(inputs: Inputs) -> tuple[ReplayRows | None, Lookup | None]:
    """What makes a step as long as `anchors` does, without a word of the base model: to time a few steps."""
    method, base = inputs.method, inputs.base
    length = base.model.get_output_embeddings().weight.shape[0]

    def flat(places: Tensor) -> BaseTopK:
        each = torch.full((len(places), min(TOP_K, length)), -math.log(2 * TOP_K))
        some = torch.full((len(places),), -math.log(2))
        return BaseTopK(torch.arange(each.shape[1]).expand(each.shape), each, some, some)

    found = None
    if (replay := method.replay) is not None and (source := inputs.replayed) is not None:
        if replay.source == "self":
            ids = [encode_prompt(prompt, base.tokenizer) for prompt in source.prompts[:_FEW]]
            said = [base.tokenizer.pad_token_id] * replay.tokens
            rows: Sequence[Encoded] = [Encoded([*one, *said], [IGNORE] * len(one) + said) for one in ids]
        else:
            few = source.rows[:_FEW]
            rows = encode_rows(few, base.tokenizer, where=f"replay, {replay.source}", **base.encoding).rows
        found = ReplayRows(rows, base.tokenizer.pad_token_id, flat)
    return found, flat if method.base_kl else None


def _rows(inputs: Inputs, replay: Replay, stage: Stage) -> Sequence[Encoded]:
    if replay.source == "self":
        return _own(inputs, replay, stage)
    source, base = inputs.replayed, inputs.base
    assert source is not None
    found = encode_rows(source.rows, base.tokenizer, where=f"replay, {replay.source}", **base.encoding).rows
    recipe = inputs.recipe
    rows, domain = inputs.train.rows, float(recipe.step_rows(inputs.processes))
    if (packed := pack_length(recipe, rows)) is not None:  # at most so many rows in a packed one, on average
        domain *= packed * len(rows) / sum(row_lengths(rows))
    most = recipe.steps(len(rows), inputs.processes) * replay.beside(domain)
    if replay.loss == "kl" and len(found) > most:  # the base model's predictions on the others would go unused
        return [found[i] for i in sorted(Random(f"replay/{recipe.seed}").sample(range(len(found)), most))]
    return found


def _own(inputs: Inputs, replay: Replay, stage: Stage) -> list[Encoded]:
    """The base model's answers to general prompts, sampled at temperature 1."""
    base, recipe, source = inputs.base, inputs.recipe, inputs.replayed
    assert source is not None
    prompts = list(islice(cycle(source.prompts), replay.rows))
    ids = [encode_prompt(prompt, base.tokenizer) for prompt in prompts]
    room = base.max_length - max(map(len, ids))
    if room < 1:
        raise UserError(
            f"replay: max_length {base.max_length} leaves no room for answers to the prompts of its samples; raise it"
        )

    def compute() -> Any:
        check_model(base.model, base.tokenizer)
        return generate(
            base.model, base.tokenizer, ids, max_new_tokens=min(replay.tokens, room), sample=True, seed=SEED,
            batch_tokens=recipe.eval_batch_tokens, progress=stage("the base model's samples to replay"),
        )  # fmt: skip

    mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
    with of_model(f"the base model {recipe.model}"), memory_errors("in the samples to replay", mend):
        said = cached_json("replay", [_VERSION, base.hash, prompts, replay.tokens, room], compute)
    return [Encoded(p + s, [IGNORE] * len(p) + s) for p, s in zip(ids, said, strict=True)]
