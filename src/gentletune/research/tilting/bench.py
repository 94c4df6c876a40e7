"""Training runs followed step by step, each checkpoint compared in full with the base model and a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import reference_answers
from gentletune.methods.base import deviation_norm
from gentletune.research.tilting.figures import effective_tilt, kl, moved, tilt_bounds
from gentletune.research.tilting.positions import Table, draw_positions, predictions
from gentletune.research.tilting.study import HARD, Checkpoint, FollowedRun, Target
from gentletune.runs.inputs import Inputs
from gentletune.training import TrainingDivergedError
from gentletune.training.looks import train_copy

Tables = tuple[Table, Table]  # at the general and at the domain positions


class Bench:
    """One kind of data (with chain of thought or without): the base model and the positions it is compared at."""

    def __init__(
        self, inputs: Inputs, shared: Shared, general_positions: int, domain_positions: int, stage: Stage
    ) -> None:
        self.inputs, self.shared = inputs, shared
        own = reference_answers(inputs.base, inputs.recipe, stage=stage).sampled
        self.rows = draw_positions(own.rows, general_positions), draw_positions(inputs.test.rows, domain_positions)
        self.start = self.tables(inputs.base.model)
        self.target: Tables | None = None

    def tables(self, model: Any) -> Tables:
        """Log-probabilities of a model at the positions. Raises `TrainingDivergedError` where they are not finite."""
        how = {"pad_id": self.inputs.base.tokenizer.pad_token_id, "batch_tokens": self.inputs.recipe.eval_batch_tokens}
        general, domain = (predictions(model, rows, **how) for rows in self.rows)
        if not all(bool(torch.isfinite(table.log_p).all()) for table in (general, domain)):
            raise TrainingDivergedError("the model's predictions are no longer finite")
        return general, domain

    def find_target(self, rates: Sequence[float], seed: int, say: Callable[[str], None]) -> Target:
        """Train towards the target and keep its tables: from the highest rate down, while held-out loss falls.

        Raises:
            UserError: every run diverged, or the target is still the base model.
        """
        tried: list[tuple[float, float | None]] = []
        best, chosen, ends = math.inf, 0.0, list[Tables]()
        for rate in sorted(rates, reverse=True):
            say(f"looking for the target: learning rate {rate:g}, seed {seed}")
            finished = self._train(rate, seed, 0, lambda model, _: ends.append(self.tables(model)))
            bits = _bits(ends[-1][1]) if finished else None
            tried.append((rate, bits))
            if bits is not None and bits >= best:
                break
            if bits is not None:
                best, chosen, self.target = bits, rate, ends[-1]
            ends.clear()
        if self.target is None:
            raise UserError(f"the runs at {', '.join(f'{rate:g}' for rate, _ in tried)} diverged; give smaller rates")
        if not all(moved(one.log_p, other.log_p) for one, other in zip(self.start, self.target, strict=True)):
            raise UserError(
                f"the run at {chosen:g} leaves the model where it was, so no λ is defined; give higher rates or "
                "more steps"
            )
        return Target(
            rate=chosen,
            bits=best,
            base_bits=_bits(self.start[1]),
            divergence=_to_bits(kl(self.start[0].log_p, self.target[0].log_p).mean()),
            candidates=tuple(tried),
            hard_share=float((self.start[1].own < math.log(HARD)).double().mean()),
            labels=len(self.start[1].own),
        )

    def follow(self, rate: float, seed: int, every: int) -> FollowedRun:
        """Train at a rate and compare the model with base model and target every `every` steps and at the end."""
        found: list[Checkpoint] = []
        finished = self._train(rate, seed, every, lambda model, step: found.append(self.checkpoint(model, step)))
        return FollowedRun(self.inputs.recipe.cot, rate, seed, not finished, tuple(found))

    def checkpoint(self, model: Any, step: int) -> Checkpoint:
        """The figures of a model `step` steps on its way; nats become bits here."""
        assert self.target is not None
        here = self.tables(model)
        general, domain = (
            effective_tilt(q.log_p, p2.log_p, k.log_p) for q, p2, k in zip(self.start, self.target, here, strict=True)
        )
        bounds = tilt_bounds(self.start[0].log_p, self.target[0].log_p, general.lam)
        with torch.no_grad():
            parameters = dict(self.inputs.base.model.named_parameters())
            norm = deviation_norm(self.inputs.method.parameterisation.deviations(model, parameters))
        return Checkpoint(
            step=step,
            gain=_bits(self.start[1]) - _bits(here[1]),
            kl=_to_bits(kl(self.start[0].log_p, here[0].log_p).mean()),
            kl_sampled=_bits(here[0]) - _bits(self.start[0]),
            lambda_general=general.lam,
            fit_general=general.fit,
            lambda_domain=domain.lam,
            fit_domain=domain.fit,
            tilted_kl=_to_bits(bounds.tilted),
            convex_bound=None if bounds.convex is None else _to_bits(bounds.convex),
            theorem_bound=None if bounds.theorem is None else _to_bits(bounds.theorem),
            hoeffding_bound=_to_bits(bounds.hoeffding),
            quadratic=_to_bits(bounds.quadratic),
            update_norm=norm,
        )

    def _train(self, rate: float, seed: int, every: int, look: Callable[[Any, int], None]) -> bool:
        """Train a copy of the base model, looking at it on the way; whether it came to its end."""
        inputs = Inputs(self.inputs.recipe.override({"seed": seed, "learning_rate": rate}), self.shared)
        base, title = self.inputs.base, f"{inputs.method.label} lr {rate:g} seed {seed}"
        return train_copy(
            base.model, inputs.recipe, inputs.method, base.tokenizer, inputs.train.rows, look, every=every, title=title
        )


def _bits(table: Table) -> float:
    """Mean code length of the tokens that stand at the positions."""
    return _to_bits(-table.own.mean())


def _to_bits(nats: Any) -> float:
    return float(nats) / math.log(2)
