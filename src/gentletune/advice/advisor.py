"""A learning rate and a method from minutes of probing, instead of a sweep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gentletune.advice.curve import (
    Choice,
    Forecast,
    ProbePoint,
    choose,
    half_decades,
    nearest_half_decade,
    prior_rate,
    stable_points,
    unit_movement,
)
from gentletune.advice.method import HARD, advise_method, base_method, edge_at_equal_drift, talr_method
from gentletune.advice.probes import Bench, split_rows
from gentletune.data import encode_rows, load_data
from gentletune.errors import UserError
from gentletune.evaluation.measure import reference_answers, row_limit
from gentletune.inspection.tokens import token_statistics
from gentletune.models import load_model, load_tokenizer, model_hash, resolve_model
from gentletune.recipe import Recipe

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the prior rate: probes move as far as full runs at smaller rates
STATISTICS_ROWS = 64  # training rows whose tokens are looked at
HELD_ROWS, OWN_ANSWERS = 32, 64  # what a probe is measured on
STEPS, LEAST_STEPS = 24, 6
SWEEP_RUNS = 24  # six methods at four rates
_SHARE = 0.06  # of the sweep's steps: looks and the initial model's answers take the rest of a tenth


@dataclass(frozen=True)
class Proposal:
    """What to train with, why, and the curve it was read from.

    `points` are the probes (bits per token, paired against the initial model, errors by sequence), `forecasts` the
    full runs they foretell, `diverged` the rates at which a probe was no longer finite. `hard_share` is the share of
    training labels below p = 0.1 under the initial model. `seconds` is all the time taken, `share_of_sweep` that over
    the training time of a sweep of `sweep_runs` such runs, at the probes' own seconds a step (its measuring not
    counted).
    """

    learning_rate: float
    method: str
    reasons: tuple[str, ...]
    points: tuple[ProbePoint, ...]
    forecasts: tuple[Forecast, ...]
    diverged: tuple[float, ...]
    hard_share: float
    full_steps: int
    sweep_runs: int
    seconds: float
    share_of_sweep: float

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; of a point's scores, value and standard error."""

        def flat(point: ProbePoint) -> dict[str, Any]:
            scores = {"gain": point.gain, "drift": point.drift}
            plain = {k: getattr(point, k) for k in ("method", "learning_rate", "steps", "movement")}
            values = {k: s.value for k, s in scores.items()} | {f"{k}_stderr": s.stderr for k, s in scores.items()}
            return plain | values

        rest = ("learning_rate", "method", "reasons", "diverged", "hard_share", "full_steps", "sweep_runs", "seconds")
        return {
            **{key: getattr(self, key) for key in rest},
            "share_of_sweep": self.share_of_sweep,
            "points": [flat(p) for p in self.points],
            "forecasts": [asdict(f) for f in self.forecasts],
        }


def advise(
    recipe: Recipe,
    *,
    rates: Sequence[float] | None = None,
    candidates: Sequence[float] | None = None,
    steps: int | None = None,
    budget: float | None = None,
    sweep_runs: int = SWEEP_RUNS,
    say: Callable[[str], None] = lambda _: None,
) -> Proposal:
    """Propose a learning rate and a method for the recipe's full training from short probes.

    Plain training is probed at each of `rates` (by default five around `prior_rate`; ten times larger with LoRA) for
    `steps` steps, TALR once. Probes train and are measured on training rows only, apart from one another; the held-out
    rows are never looked at. The rule is `curve.choose`'s: the least drift among `candidates` (default: half decades)
    whose forecast gain ties with the best; `budget` is the most sampled drift that may come of it, bits per token. By
    default `steps` are from 6 to 24, so many that all probes take about 6 % of the steps of `sweep_runs` full runs.

    Raises:
        UserError: bad input, fewer than 4 training rows, no rate at which a probe stayed finite or within budget.

    >>> advise(Recipe(data="clinic", max_steps=150)).learning_rate  # doctest: +SKIP
    0.0001
    """
    begun = time.perf_counter()
    _check(rates, candidates, steps, budget, sweep_runs)
    bench, hard_share, full, width = _bench(recipe, say)
    base, talr = base_method(recipe.method), talr_method(recipe.method)
    prior = prior_rate(width) * (10 if "lora" in base else 1)
    probed = sorted(rates or [nearest_half_decade(prior * f) for f in FACTORS])
    count = steps or max(LEAST_STEPS, min(STEPS, full, int(_SHARE * sweep_runs * full / (len(probed) + 1))))
    points, diverged = list[ProbePoint](), list[float]()
    for rate in probed:
        say(f"probing {base} at learning rate {rate:g} for {count} steps")
        found = bench.probe(base, rate, count)
        points += found or []
        if found is None:
            diverged.append(rate)
    units = unit_movement(full, full, recipe.warmup, recipe.schedule) or 1.0  # one step may be all warm-up
    options = candidates or half_decades(min(prior / 10, *probed), max(probed))
    choice = choose(points, diverged, units=units, test_rows=recipe.test_rows, candidates=options, budget=budget)
    if choice is None:
        raise _nothing(points, diverged, budget)
    stable = stable_points(points, diverged)
    equal = _equal_rate(stable, choice, units)
    say(f"probing {talr} at learning rate {equal:g} for {count} steps")
    other = bench.probe(talr, equal, count)
    edge = edge_at_equal_drift(other[-1], stable) if other else None
    method, why = advise_method(hard_share, edge, base, talr)
    if other is None:
        method, why = base, f"{base}, not {talr}: its probe at {equal:g} was no longer finite."
    seconds = time.perf_counter() - begun
    a_step = bench.seconds / max(bench.steps, 1)
    return Proposal(
        choice.learning_rate,
        method,
        (*_reasons(choice, stable, units, count, full, budget), why),
        (*points, *(other or [])),
        choice.forecasts,
        tuple(diverged),
        hard_share,
        full,
        sweep_runs,
        seconds,
        seconds / (sweep_runs * full * a_step) if a_step else math.inf,
    )


def _check(
    rates: Sequence[float] | None,
    candidates: Sequence[float] | None,
    steps: int | None,
    budget: float | None,
    sweep_runs: int,
) -> None:
    for name, given in (("rates", rates), ("candidates", candidates)):
        if given is not None and (not given or not all(math.isfinite(r) and r > 0 for r in given)):
            raise UserError(f"{name} must be numbers above 0, at least one")
    if steps is not None and steps < 2:
        raise UserError(f"steps must be 2 or more, got {steps}: the first step of a warm-up moves nothing")
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise UserError(f"budget must be a number of bits per token above 0, got {budget:g}")
    if sweep_runs < 1:
        raise UserError(f"sweep_runs must be 1 or more, got {sweep_runs}")


def _bench(recipe: Recipe, say: Callable[[str], None]) -> tuple[Bench, float, int, int]:
    """What to probe on, the share of hard tokens, the steps of the full training and the model's width."""
    data = load_data(recipe)
    directory = resolve_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(directory, trust_remote_code=recipe.trust_remote_code)
    model = load_model(directory, trust_remote_code=recipe.trust_remote_code)
    rows = encode_rows(data.train, tokenizer, max_length=row_limit(model, recipe), where=f"{data.name}, training").rows
    step_rows = recipe.batch_size * recipe.gradient_accumulation
    train, held = split_rows(rows, HELD_ROWS, STEPS * step_rows, recipe.seed)
    say("token statistics of the training rows under the initial model")
    tokens = {"pad_id": tokenizer.pad_token_id, "batch_tokens": recipe.eval_batch_tokens}
    hard = token_statistics(model, [*held, *train][:STATISTICS_ROWS], **tokens).hard_share[HARD]
    say("the initial model's own answers (shared with any run of the recipe)")
    reference = reference_answers(model, tokenizer, recipe, model_hash(directory))
    bench = Bench(recipe, model, tokenizer, train, held, reference.sampled.head(OWN_ANSWERS))
    full = recipe.max_steps or max(1, math.ceil(recipe.epochs * math.ceil(len(rows) / step_rows)))
    return bench, hard, full, int(model.config.get_text_config().hidden_size)


def _equal_rate(stable: Sequence[ProbePoint], choice: Choice, units: float) -> float:
    """The stable probed rate whose probe moved most nearly as far as the full run at the chosen rate."""
    ends = {p.learning_rate: p for p in stable}  # by movement, so the last of each rate
    target = choice.learning_rate * units
    return min(ends.values(), key=lambda p: abs(math.log(p.movement / target))).learning_rate


def _nothing(points: Sequence[ProbePoint], diverged: Sequence[float], budget: float | None) -> UserError:
    if budget is not None and stable_points(points, diverged):
        return UserError(
            f"no learning rate is forecast to stay within {budget:g} bits of drift per token; raise budget"
        )
    return UserError(f"the probes at {', '.join(f'{r:g}' for r in diverged)} diverged; give smaller rates")


def _reasons(
    choice: Choice, stable: Sequence[ProbePoint], units: float, steps: int, full: int, budget: float | None
) -> list[str]:
    mine = next(f for f in choice.forecasts if f.learning_rate == choice.learning_rate)
    best = max(f.gain for f in choice.forecasts if f.learning_rate in choice.tied)
    top = max(stable, key=lambda p: p.gain.value)
    error = f" ± {top.gain.stderr:.3f}" if top.gain.stderr is not None else ", error unknown"
    limit = f", of those forecast to drift at most {budget:g}" if budget is not None else ""
    said = [
        f"Learning rate {choice.learning_rate:g}: the smallest whose forecast gain over {full} steps, {mine.gain:.3f} "
        f"bits per domain token, ties with the best, {best:.3f} (within {choice.tolerance:.3f}){limit}; forecast drift "
        f"{mine.drift:.3f} bits per token.",
        f"Read from probes of {steps} steps: a full run moves as far as {units:.3g} steps at its peak rate, so a "
        f"probe at about {units / steps:.2g} times the rate stands for it; the largest gain measured is "
        f"{top.gain.value:.3f}{error} at {top.learning_rate:g}, and rates above {choice.largest_stable:g} were not "
        "stable or not probed.",
    ]
    if top.gain.stderr is not None and top.gain.value <= 1.96 * top.gain.stderr:
        said.append("No probe gained measurably on the domain, so take the rate for a guess: give more steps.")
    if mine.beyond:
        said.append("The full run goes beyond what the probes measured: its gain is a floor, its drift extrapolated.")
    return said
