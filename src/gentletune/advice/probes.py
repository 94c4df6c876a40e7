"""Short trainings from one base model, measured on the way, that leave nothing behind."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gentletune.advice.curve import ProbePoint, unit_movement
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data import Encoded
from gentletune.evaluation.code_length import SequenceNLL, rise_score, sequence_nll
from gentletune.evaluation.measure import OwnAnswers
from gentletune.methods import parse_method
from gentletune.training.looks import train_copy


@dataclass
class Bench:
    """One base model and the rows that probes train and are measured on; `seconds` and `steps` add up training."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    train: Sequence[Encoded]
    held: Sequence[Encoded]
    own: OwnAnswers
    seconds: float = 0.0
    steps: int = 0
    _base: list[SequenceNLL] = field(default_factory=list)

    def probe(self, method: str, rate: float, steps: int) -> list[ProbePoint] | None:
        """Points after half and all of `steps` steps at a constant rate; None where the training diverged.

        The base model stays as it is: each probe trains a copy in memory.
        """
        recipe = self.recipe.override({
            "method": method, "learning_rate": rate, "max_steps": steps, "schedule": "constant",
        })  # fmt: skip
        found: list[ProbePoint] = []
        looking, begun = 0.0, time.perf_counter()

        def look(model: Any, done: int) -> None:
            nonlocal looking
            started = time.perf_counter()
            found.append(self._point(model, method, recipe, done, steps))
            looking += time.perf_counter() - started

        wanted, half = parse_method(method), math.ceil(steps / 2)
        title = f"{method} at {rate:g}"
        if not train_copy(self.model, recipe, wanted, self.tokenizer, self.train, look, every=half, title=title):
            return None
        self.seconds += time.perf_counter() - begun - looking
        self.steps += steps
        finite = all(math.isfinite(s.value) for point in found for s in (point.gain, point.kl))
        # A first look may come before the warm-up has moved anything.
        return [point for point in found if point.movement > 0] if finite else None

    def _point(self, model: Any, method: str, recipe: Recipe, done: int, steps: int) -> ProbePoint:
        before, movement = self.base, unit_movement(done, steps, recipe.warmup, "constant") * recipe.learning_rate
        rise = rise_score(self._nll(model, self.held), before, task="domain_gain")
        kl = rise_score(self._nll(model, self.own.rows), self.own.base, task="kl_sampled")
        return ProbePoint(method, recipe.learning_rate, done, movement, _gain(rise), kl)

    @property
    def base(self) -> SequenceNLL:
        """The base model's NLL on the held rows."""
        if not self._base:
            self._base.append(self._nll(self.model, self.held))
        return self._base[0]

    def _nll(self, model: Any, rows: Sequence[Encoded]) -> SequenceNLL:
        tokens = self.recipe.eval_batch_tokens
        return sequence_nll(model, rows, pad_id=self.tokenizer.pad_token_id, batch_tokens=tokens)


def split_rows(rows: Sequence[Encoded], held: int, train: int, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Rows for probes to train on and rows to measure them on, apart, drawn by `seed` from the training rows.

    The held-out rows of the recipe are left alone: a sweep is judged on them. About a quarter is held at most.
    Raises `UserError` on fewer than 4 rows.
    """
    if len(rows) < 4:
        raise UserError(f"advice needs at least 4 training rows to probe with, got {len(rows)}; give more")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    apart = min(held, max(len(rows) // 4, 2))
    chosen, rest = sorted(order[:apart]), sorted(order[apart : apart + train])
    return [rows[i] for i in rest], [rows[i] for i in chosen]


def _gain(rise: Score) -> Score:
    """Bits saved: the rise of the code length with its sign turned."""
    turned = {"value": -rise.value, "items": tuple(-item for item in rise.items), "side": "domain"}
    return rise.model_copy(update=turned | {"higher_is_better": True})
