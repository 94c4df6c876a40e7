"""Training runs followed step by step, each checkpoint compared in full with the base model and a target."""

from __future__ import annotations

import copy
import gc
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import reference_answers
from gentletune.methods.base import deviation_norm
from gentletune.research.tilting.figures import effective_tilt, kl, moved, tilt_bounds
from gentletune.research.tilting.positions import Positions, draw_positions, log_probs, token_log_probs
from gentletune.research.tilting.study import HARD, Checkpoint, FollowedRun, Target
from gentletune.runs.inputs import Inputs
from gentletune.training import TrainingDivergedError, fit

BITS = 1 / math.log(2)  # in a nat
Look = Callable[[Any, int], None]


class _LastLookError(Exception):
    """The last look is taken: what would follow is a checkpoint that nobody reads."""


@dataclass(frozen=True)
class Tables:
    """Log-probabilities (T, V), nats, at the general and at the domain positions."""

    general: Tensor
    domain: Tensor


class Bench:
    """One kind of data (with chain of thought or without): the base model and the positions it is compared at."""

    def __init__(
        self, inputs: Inputs, shared: Shared, general_positions: int, domain_positions: int, stage: Stage
    ) -> None:
        self.inputs, self.shared = inputs, shared
        self.model = inputs.base.model
        own = reference_answers(inputs.base, inputs.recipe, stage=stage).sampled
        self.general = draw_positions(own.rows, general_positions)
        self.domain = draw_positions(inputs.test.rows, domain_positions)
        self.initial = self.tables(self.model)
        self.before = self._bits(self.initial.domain, self.domain)
        self.target: Tables | None = None

    def tables(self, model: Any) -> Tables:
        """Log-probabilities of a model at the positions. Raises `TrainingDivergedError` where they are not finite."""
        how = {"pad_id": self.inputs.base.tokenizer.pad_token_id, "batch_tokens": self.inputs.recipe.eval_batch_tokens}
        found = Tables(log_probs(model, self.general, **how), log_probs(model, self.domain, **how))
        if not all(bool(torch.isfinite(table).all()) for table in (found.general, found.domain)):
            raise TrainingDivergedError("the model's predictions are no longer finite")
        return found

    def find_target(self, rates: Sequence[float], seed: int, say: Callable[[str], None]) -> Target:
        """Train towards the target and keep its tables: from the highest rate down, while held-out loss falls.

        Raises:
            UserError: every run diverged, or the target is still the base model.
        """
        tried: list[tuple[float, float | None]] = []
        best, ends = math.inf, list[Tables]()

        def keep(model: Any, _: int) -> None:
            ends[:] = [self.tables(model)]

        for rate in sorted(rates, reverse=True):
            say(f"looking for the target: learning rate {rate:g}, seed {seed}")
            diverged = self._train(rate, seed, 0, keep)
            bits = None if diverged else self._bits(ends[0].domain, self.domain)
            tried.append((rate, bits))
            if bits is not None and bits >= best:
                break
            if bits is not None:
                best, chosen, self.target = bits, rate, ends[0]
        if self.target is None:
            raise UserError(f"the runs at {', '.join(f'{rate:g}' for rate, _ in tried)} diverged; give smaller rates")
        if not (moved(self.initial.general, self.target.general) and moved(self.initial.domain, self.target.domain)):
            raise UserError(
                f"the run at {chosen:g} leaves the model where it was, so no λ is defined; give higher rates or "
                "more steps"
            )
        hard = token_log_probs(self.initial.domain, self.domain) < math.log(HARD)
        divergence = float(kl(self.initial.general, self.target.general).mean()) * BITS
        share = float(hard.double().mean())
        return Target(chosen, best, self.before, divergence, tuple(tried), share, len(self.domain))

    def follow(self, rate: float, seed: int, every: int) -> FollowedRun:
        """Train at a rate and compare the model with base model and target every `every` steps and at the end."""
        found: list[Checkpoint] = []
        diverged = self._train(rate, seed, every, lambda model, step: found.append(self.checkpoint(model, step)))
        return FollowedRun(self.inputs.recipe.cot, rate, seed, diverged, tuple(found))

    def checkpoint(self, model: Any, step: int) -> Checkpoint:
        """The figures of a model `step` steps on its way; nats become bits here."""
        assert self.target is not None
        here, start, goal = self.tables(model), self.initial, self.target
        general = effective_tilt(start.general, goal.general, here.general)
        domain = effective_tilt(start.domain, goal.domain, here.domain)
        bounds = tilt_bounds(start.general, goal.general, general.lam)
        fall = token_log_probs(start.general, self.general) - token_log_probs(here.general, self.general)
        with torch.no_grad():
            parameters = dict(self.model.named_parameters())
            norm = deviation_norm(self.inputs.method.parameterisation.deviations(model, parameters))
        return Checkpoint(
            step=step,
            gain=self.before - self._bits(here.domain, self.domain),
            kl=float(kl(start.general, here.general).mean()) * BITS,
            kl_sampled=float(fall.mean()) * BITS,
            lambda_general=general.lam,
            fit_general=general.fit,
            lambda_domain=domain.lam,
            fit_domain=domain.fit,
            tilted_kl=bounds.tilted * BITS,
            convex_bound=None if bounds.convex is None else bounds.convex * BITS,
            hoeffding_bound=bounds.hoeffding * BITS,
            quadratic=bounds.quadratic * BITS,
            update_norm=norm,
            theorem_bound=None if bounds.theorem is None else bounds.theorem * BITS,
        )

    def _bits(self, table: Tensor, positions: Positions) -> float:
        return -float(token_log_probs(table, positions).mean()) * BITS

    def _train(self, rate: float, seed: int, every: int, look: Look) -> bool:
        """Train a copy of the model, looking every `every` steps (0: never) and at the end; whether it diverged."""
        inputs = Inputs(self.inputs.recipe.override({"seed": seed, "learning_rate": rate}), self.shared)
        recipe, rows, done = inputs.recipe, inputs.train.rows, 0
        steps = recipe.steps(len(rows))
        every = min(every, steps) or steps

        def probe(model: Any) -> dict[str, float]:
            nonlocal done
            done = min(done + every, steps)
            look(model, done)
            if done == steps:
                raise _LastLookError
            return {}

        recipe = recipe.override({"max_steps": steps, "probe_every": every, "save_every": steps + 1, "report_to": ()})
        title = f"{inputs.method.label} lr {rate:g} seed {seed}"
        try:
            with tempfile.TemporaryDirectory() as scratch:
                model = copy.deepcopy(self.model)
                fit(
                    recipe, inputs.method, model, inputs.base.tokenizer, rows, Path(scratch),
                    base=dict(self.model.named_parameters()), probe=probe, title=title,
                )  # fmt: skip
        except _LastLookError:
            return False
        except TrainingDivergedError:
            return True
        finally:
            gc.collect()  # a trainer refers to itself, and holds a model and its optimiser
        return False  # pragma: no cover (the last look ends every run)
