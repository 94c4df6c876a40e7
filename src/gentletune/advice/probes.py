"""Short trainings from one base model, measured on the way, that leave nothing behind."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gentletune.advice.curve import ProbePoint
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import MEAN, Score
from gentletune.data import Encoded
from gentletune.data.domains import domain
from gentletune.evaluation.code_length import SequenceNLL, rise_score, sequence_nll
from gentletune.evaluation.harness import resolve_tasks, run_tasks
from gentletune.evaluation.measure import OwnAnswers, silent
from gentletune.lm.loaded import Loaded, base_causal_lm
from gentletune.methods import parse_method
from gentletune.stats import headroom, mean_over_tasks
from gentletune.training.looks import train_copy


class GeneralLook:
    """The recipe's general accuracy of a model in memory, on about `items` questions in all, shared among the tasks.

    Tasks of the domain's own skill say nothing of general skill, and those that run generated programs take too long:
    neither is asked.
    """

    def __init__(self, base: Loaded, recipe: Recipe, items: int) -> None:
        trained = set(domain(recipe.data).skills) if recipe.data else set()

        def asked(its: Recipe) -> list[Any]:
            found = resolve_tasks(its)
            return [t for t in found if t.side == "general" and not t.runs_code and not trained & set(t.skills)]

        each = math.ceil(items / max(len(asked(recipe)), 1))
        limit = each if recipe.limit is None else min(each, recipe.limit)
        self.base, self.recipe = base, recipe.override({"limit": limit, "backend": "gentletune"})
        self.tasks = asked(self.recipe)

    def __call__(self, model: Any) -> Score | None:
        """The mean accuracy over the tasks; None where none has one."""
        return _mean_accuracy(self._scores(model))

    def of_base(self) -> tuple[Score | None, Score | None]:
        """The base model's mean accuracy over the tasks that can show a loss, of which alone it is asked from here on.

        As in the report (`reporting.axes.choose_axis`) those are all, if their mean is shown to be above guessing, else
        those that are by themselves; None where there is none. The second is the mean over all.
        """
        by_task = self._scores(self.base.model)
        mean = _mean_accuracy(by_task)
        if mean is None or _room(mean) > 0:
            return mean, mean
        kept = [any(_room(s) > 0 for s in scores) for scores in by_task]
        self.tasks = [task for task, keep in zip(self.tasks, kept, strict=True) if keep]
        rest = _mean_accuracy([scores for scores, keep in zip(by_task, kept, strict=True) if keep])
        return (rest if rest is not None and _room(rest) > 0 else None), mean

    def _scores(self, model: Any) -> list[list[Score]]:
        """The accuracies, task by task."""
        subject = self.base.with_model(base_causal_lm(model), known_as="a model in training")
        results = run_tasks(subject, self.tasks, self.recipe, silent, keep=False) if self.tasks else []
        return [[s for s in result.scores if s.metric == "accuracy"] for result in results]


def _room(score: Score) -> float:
    return headroom(score.value, score.stderr, score.chance)


def _mean_accuracy(by_task: Sequence[Sequence[Score]]) -> Score | None:
    scores = [score for mine in by_task for score in mine]
    return mean_over_tasks(scores, task=MEAN, side="general") if scores else None


@dataclass
class Bench:
    """One base model and the rows that probes train and are measured on; `seconds` and `steps` add up training."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    train: Sequence[Encoded]
    held: Sequence[Encoded]
    own: OwnAnswers
    general: Callable[[Any], Score | None]
    seconds: float = 0.0
    steps: int = 0
    _base: list[SequenceNLL] = field(default_factory=list)

    def probe(self, method: str, rate: float, steps: int) -> ProbePoint | None:
        """A run of `steps` steps at this peak rate, with the recipe's schedule; None where the training diverged.

        The base model stays as it is: each probe trains a copy in memory.
        """
        recipe = self.recipe.override({"method": method, "learning_rate": rate, "max_steps": steps})
        found: list[ProbePoint] = []
        looking, begun = 0.0, time.perf_counter()

        def look(model: Any, _: int) -> None:
            nonlocal looking
            started = time.perf_counter()
            found.append(self._point(model, method, rate, steps))
            looking += time.perf_counter() - started

        title = f"{method} at {rate:g}"
        if not train_copy(
            self.model, recipe, parse_method(method), self.tokenizer, self.train, look, every=0, title=title
        ):
            return None
        self.seconds += time.perf_counter() - begun - looking
        self.steps += steps
        point = found[-1]
        return point if math.isfinite(point.gain.value) and math.isfinite(point.kl.value) else None

    def _point(self, model: Any, method: str, rate: float, steps: int) -> ProbePoint:
        rise = rise_score(self._nll(model, self.held), self.base, task="domain_gain")
        kl = rise_score(self._nll(model, self.own.rows), self.own.base, task="kl_sampled")
        return ProbePoint(method, rate, steps, _gain(rise), kl, self.general(model))

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
