"""KL from base while a run can still be steered: quick, and on other prompts than it is measured on at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.core.cache import cached_json
from gentletune.core.errors import memory_errors
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data.encode import IGNORE, Encoded, encode_prompt, label_counts
from gentletune.data.load import prompts_for
from gentletune.evaluation.finite import check_model, check_rows
from gentletune.lm.generate import Progress, generate
from gentletune.lm.label_tokens import label_logits
from gentletune.lm.loaded import Loaded
from gentletune.stats import ratio_score

PROMPTS = 400  # at most, by which a run is steered
TOKENS = 48  # of the longest answer
TOP = 32  # most probable tokens of the base model that are summed over
TASK = "kl_steering"
_SEED = 20251128  # the sampled answers are the same in every run
_VERSION = 3  # raise when what is cached would come out differently


@dataclass(frozen=True)
class Steering:
    """The base model's sampled answers `rows`, and its log-probabilities (nats) at their N label tokens.

    `top` (N, k) numbers its most probable tokens, of log-probabilities `top_log` (N, k); `own_log` (N,) is that of the
    token that was drawn.
    """

    rows: Sequence[Encoded]
    top: Tensor
    top_log: Tensor
    own_log: Tensor

    def head(self, count: int) -> Steering:
        """The first `count` answers."""
        tokens = sum(label_counts(self.rows[:count]))
        return Steering(self.rows[:count], self.top[:tokens], self.top_log[:tokens], self.own_log[:tokens])

    def kl(self, model: Any, *, pad_id: int, batch_tokens: int = 8192) -> Score:
        """KL from base of a model, bits per token, with its error by answer."""
        found = torch.zeros(len(self.own_log), dtype=torch.float64)
        for one in label_logits(model, self.rows, pad_id=pad_id, batch_tokens=batch_tokens):
            after, place = one.logits.log_softmax(-1).cpu(), one.place
            own = after.gather(1, one.targets.cpu()[:, None])[:, 0]
            drawn = (self.top[place] == one.targets.cpu()[:, None]).any(1)
            top = after.gather(1, self.top[place])
            found[place] = kl_bits(self.top_log[place], top, self.own_log[place], own, drawn)
        sizes = label_counts(self.rows)
        bits = [float(each.sum()) for each in found.split(sizes)]
        check_rows(bits, "steering answers")
        return ratio_score(bits, sizes, task=TASK, side="general", metric="bits_per_token", higher_is_better=False)


def kl_bits(base_top: Tensor, tuned_top: Tensor, base_own: Tensor, tuned_own: Tensor, drawn: Tensor) -> Tensor:
    """KL(base‖tuned) in bits at n places, from log-probabilities in nats; without bias.

    The base model's most probable tokens (n, k) are summed over; the rest is estimated from the token that it drew
    (n,), which counts with log p/q where `drawn` says that it is none of those, and with 0 else.
    """
    base_top, tuned_top = base_top.double(), tuned_top.double()
    rest = torch.where(drawn, 0.0, base_own.double() - tuned_own.double())
    found: Tensor = ((base_top.exp() * (base_top - tuned_top)).sum(-1) + rest) / math.log(2)
    return found


def steering_of(base: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192) -> Steering:
    """Answers of a base model with its log-probabilities at their tokens."""
    found = []
    for one in label_logits(base, rows, pad_id=pad_id, batch_tokens=batch_tokens):
        log = one.logits.log_softmax(-1).cpu()
        best = log.topk(min(TOP, log.shape[1]))
        found.append((one.place, best.indices, best.values, log.gather(1, one.targets.cpu()[:, None])[:, 0]))
    place, top, top_log, own_log = (torch.cat(each) for each in zip(*found, strict=True))
    order = place.argsort()
    return Steering(rows, top[order], top_log[order], own_log[order])


def steering_answers(base: Loaded, recipe: Recipe, progress: Progress | None = None) -> Steering:
    """The base model's answers to the steering prompts, sampled at temperature 1; made once and cached."""
    prompts = prompts_for(recipe, "steer", PROMPTS)

    def compute() -> Any:
        model, tokenizer = base.model, base.tokenizer
        check_model(model, tokenizer)
        ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
        said = generate(
            model, tokenizer, ids, max_new_tokens=TOKENS, sample=True, seed=_SEED,
            batch_tokens=recipe.eval_batch_tokens, progress=progress,
        )  # fmt: skip
        rows = [Encoded(p + s, [IGNORE] * len(p) + s) for p, s in zip(ids, said, strict=True)]
        found = steering_of(model, rows, pad_id=tokenizer.pad_token_id, batch_tokens=recipe.eval_batch_tokens)
        check_rows(found.own_log.tolist(), "steering answers")
        logs = {"top": found.top, "top_log": found.top_log, "own_log": found.own_log}
        return {"rows": [asdict(row) for row in rows], **{name: value.tolist() for name, value in logs.items()}}

    mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
    with memory_errors("in the base model's steering answers", mend):
        value = cached_json("steering", [_VERSION, base.hash, prompts, TOKENS, TOP], compute)
    logs = (torch.tensor(value["top"]), torch.tensor(value["top_log"]), torch.tensor(value["own_log"]))
    return Steering([Encoded(**row) for row in value["rows"]], *logs)
