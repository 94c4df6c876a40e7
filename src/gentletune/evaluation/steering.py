"""KL from base while a run can still be steered: quick, and on other prompts than it is measured on at the end."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.core.cache import cached_json
from gentletune.core.errors import memory_errors
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data.encode import IGNORE, Encoded, encode_prompt
from gentletune.data.load import prompts_for
from gentletune.evaluation.finite import check_model, check_rows
from gentletune.lm.generate import Progress, generate
from gentletune.lm.label_tokens import label_nll
from gentletune.lm.loaded import Loaded
from gentletune.stats import ratio_score

PROMPTS = 120  # by which a run is steered
TOKENS = 48  # of the longest answer
TASK = "kl_steering"
_SEED = 20251128  # the sampled answers are the same in every run
_VERSION = 1  # raise when what is cached would come out differently


@dataclass(frozen=True)
class Steering:
    """The base model's sampled answers to the steering prompts, and its NLL (nats) of each of their tokens."""

    rows: list[Encoded]
    nll: list[list[float]]

    def head(self, count: int) -> Steering:
        """The first `count` answers."""
        return Steering(self.rows[:count], self.nll[:count])

    def kl(self, model: Any, *, pad_id: int, batch_tokens: int = 8192) -> Score:
        """KL from base of a model, bits per token, with its error by answer.

        Of each token, drawn from the base model, it takes r - 1 - log r with r = p_θ/p_θ⁰. Its mean is KL per token as
        the mean of -log r is, since r has mean 1; but it is never negative, and near the base model its error is
        smaller by far (Schulman, "Approximating KL divergence", 2020).
        """
        found = label_nll(model, self.rows, pad_id=pad_id, batch_tokens=batch_tokens)
        check_rows([float(nll.sum()) for nll in found], "steering answers")
        base = [torch.tensor(nll, dtype=torch.float64) for nll in self.nll]
        bits = [kl_bits(before, after) for before, after in zip(base, found, strict=True)]
        sizes = [len(nll) for nll in found]
        return ratio_score(bits, sizes, task=TASK, side="general", metric="bits_per_token", higher_is_better=False)


def kl_bits(base: Tensor, tuned: Tensor) -> float:
    """Σ (r - 1 - log r) in bits over tokens drawn from the base model, from both models' NLL in nats.

    >>> kl_bits(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    0.0
    """
    log_ratio = base - tuned
    return float((torch.expm1(log_ratio) - log_ratio).sum()) / math.log(2)


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
        nll = label_nll(model, rows, pad_id=tokenizer.pad_token_id, batch_tokens=recipe.eval_batch_tokens)
        check_rows([float(one.sum()) for one in nll], "steering answers")
        return {"rows": [asdict(row) for row in rows], "nll": [one.tolist() for one in nll]}

    mend = f"lower eval_batch_tokens (now {recipe.eval_batch_tokens})"
    with memory_errors("in the base model's steering answers", mend):
        value = cached_json("steering", [_VERSION, base.hash, prompts, TOKENS], compute)
    return Steering([Encoded(**row) for row in value["rows"]], value["nll"])
