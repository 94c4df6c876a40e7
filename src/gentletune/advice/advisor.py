"""A learning rate and a method from minutes of probing, instead of a sweep."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gentletune.advice.curve import (
    Choice,
    End,
    Forecast,
    ProbePoint,
    choose,
    half_decades,
    nearest_half_decade,
    prior_rate,
    stable_points,
    unit_movement,
)
from gentletune.advice.method import FEW_HARD, HARD, advise_method, base_method, edge_at_equal_kl, talr_method
from gentletune.advice.probes import Bench, split_rows
from gentletune.advice.reasons import nothing_to_propose, rate_facts, told
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.data import Encoded, encode_rows, load_data
from gentletune.evaluation.measure import reference_answers
from gentletune.lm.label_tokens import label_nll
from gentletune.lm.loaded import Loaded
from gentletune.methods import parse_method
from gentletune.methods.parameters.peft import RATE_SCALE
from gentletune.runs.inputs import processes_here
from gentletune.training.packing import rows_to_draw

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the prior rate: probes move as far as full runs at smaller rates
MORE_FACTORS = (300.0, 1000.0)  # probed too, one by one, where the best rate lies at the upper end of those
_LOWER = 1e-4  # how far below the usual candidates to look where the best lies at their lower end: no probe needed
STATISTICS_ROWS = 64  # training rows whose tokens are looked at
HELD_ROWS, OWN_ANSWERS = 32, 64  # what a probe is measured on
STEPS, LEAST_STEPS = 24, 6
SWEEP_RUNS = 24  # six methods at four rates
_SHARE = 0.06  # of the sweep's steps: looks and the base model's answers take the rest of a tenth


@dataclass(frozen=True)
class Proposal:
    """What to train with, why, and the curve it was read from.

    `points` are the probes (bits per token, paired against the base model, errors by sequence), `forecasts` the
    full runs they foretell, `diverged` the rates at which a probe was no longer finite. `grid_ends` are the ends of the
    grid beyond which a rate may be better (`curve.Choice`); a reason then says what to do. `probe_rows` is how many
    training rows the probes trained on, `hard_share` the share of training labels below p = 0.1 under the base
    model. `seconds` is all the time taken, `share_of_sweep` that over the training time of a sweep of `sweep_runs` such
    runs, at the probes' own seconds a step (its measuring not counted).
    """

    learning_rate: float
    method: str
    reasons: tuple[str, ...]
    points: tuple[ProbePoint, ...]
    forecasts: tuple[Forecast, ...]
    diverged: tuple[float, ...]
    grid_ends: tuple[End, ...]
    probe_rows: int
    hard_share: float
    full_steps: int
    sweep_runs: int
    seconds: float
    share_of_sweep: float

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; of a point's scores, value and standard error."""

        def flat(point: ProbePoint) -> dict[str, Any]:
            scores = {"gain": point.gain, "kl": point.kl}
            plain = {k: getattr(point, k) for k in ("method", "learning_rate", "steps", "movement")}
            values = {k: s.value for k, s in scores.items()} | {f"{k}_stderr": s.stderr for k, s in scores.items()}
            return plain | values

        made = ("points", "forecasts")
        return {
            **{name: value for name, value in vars(self).items() if name not in made},
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

    Plain training is probed at each of `rates` for `steps` steps, TALR once. Without `rates` they are five around
    `prior_rate` (with LoRA, as the optimiser has it, around ten times that), and up to two larger ones where the best
    lies at the upper end of those.
    Probes train on `steps` batches of training rows (on all there are, again and again, where those are fewer) and are
    measured on training rows apart from them; the held-out rows are never looked at. The rule is `curve.choose`'s: the
    least KL from base among `candidates` (default: half decades, as far down as it takes) whose forecast gain is
    as good as the best; `budget` is the most KL from base that may come of it, bits per token. By default `steps` are
    from 6 to 24, so many that the probes, larger rates aside, take about 6 % of the steps of `sweep_runs` full runs.

    Raises:
        UserError: bad input, fewer than 4 training rows, no rate at which a probe stayed finite or within budget.

    >>> advise(Recipe(data="clinic", max_steps=150)).learning_rate  # doctest: +SKIP
    0.0001
    """
    begun = time.perf_counter()
    _check(rates, candidates, steps, budget, sweep_runs)
    data, loaded = load_data(recipe), Loaded.of(recipe)
    where = f"{data.name}, training"
    rows = encode_rows(data.train, loaded.tokenizer, where=where, **loaded.encoding).rows
    base, talr = base_method(recipe.method), talr_method(recipe.method)
    prior = prior_rate(int(loaded.config.get_text_config().hidden_size))
    if (how := parse_method(base).parameterisation).adapter:
        prior *= RATE_SCALE / how.rate_scale  # rates are the recipe's, and the optimiser's are so much larger
    probed = sorted(rates or [nearest_half_decade(prior * f) for f in FACTORS])
    full = recipe.steps(rows_to_draw(recipe, rows), processes_here(recipe.processes))
    count = steps or max(LEAST_STEPS, min(STEPS, full, int(_SHARE * sweep_runs * full / (len(probed) + 1))))
    bench, hard_share = _bench(recipe, loaded, rows, count, say)
    units = unit_movement(full, full, recipe.warmup, recipe.schedule) or 1.0  # one step may be all warm-up
    search = _RateSearch(bench, base, count, units, min(prior / 10, *probed), candidates, budget, say)
    choice = search.run(probed, () if rates else [nearest_half_decade(prior * f) for f in MORE_FACTORS])
    stable = stable_points(search.points, search.diverged)
    equal = _equal_rate(stable, choice, units)
    say(f"probing {talr} at learning rate {equal:g} for {count} steps")
    other = bench.probe(talr, equal, count)
    edge = edge_at_equal_kl(other[-1], stable) if other else None
    better, why = advise_method(hard_share, edge) if other else (False, "diverged")
    facts = {"units": units, "steps": count, "full": full, "budget": budget}
    reasons = [
        *told("rate", **rate_facts(choice, search.points, search.diverged), **facts),
        *told("method", why=why, base=base, talr=talr, hard_share=hard_share, few=FEW_HARD, edge=edge),
    ]
    seconds = time.perf_counter() - begun
    a_step = bench.seconds / max(bench.steps, 1)
    return Proposal(
        choice.learning_rate,
        talr if better else base,
        tuple(reasons),
        (*search.points, *(other or [])),
        choice.forecasts,
        tuple(search.diverged),
        choice.ends,
        len(bench.train),
        hard_share,
        full,
        sweep_runs,
        seconds,
        seconds / (sweep_runs * full * a_step) if a_step else math.inf,
    )


@dataclass
class _RateSearch:
    """Plain probes of one rate after another, and the choice they lead to.

    `low` is the smallest usual candidate, `units` the full run's movement at rate 1.
    """

    bench: Bench
    method: str
    steps: int
    units: float
    low: float
    candidates: Sequence[float] | None
    budget: float | None
    say: Callable[[str], None]
    points: list[ProbePoint] = field(default_factory=list)
    diverged: list[float] = field(default_factory=list)

    def run(self, rates: Sequence[float], more: Sequence[float]) -> Choice:
        """The choice after probing `rates`, and after as many of `more` as the upper end of the grid asks for.

        Raises `UserError` where no rate can be proposed.
        """
        for rate in rates:
            self._probe(rate)
        choice = self._choose()
        for rate in more:
            if "largest probe" not in choice.ends:
                break
            self.say(f"the best rate lies at the upper end of those probed, {choice.largest_stable:g}; going on")
            self._probe(rate)
            choice = self._choose()
        return choice

    def _probe(self, rate: float) -> None:
        self.say(f"probing {self.method} at learning rate {rate:g} for {self.steps} steps")
        found = self.bench.probe(self.method, rate, self.steps)
        self.points += found or []
        if found is None:
            self.diverged.append(rate)

    def _choose(self) -> Choice:
        """The choice among the candidates; the usual ones go on downwards while the best lies at their lower end.

        A smaller rate needs no probe: its full run is read off the curve nearer to its start.
        """
        low, high = self.low, max([*(p.learning_rate for p in self.points), *self.diverged])
        while True:
            options = self.candidates or half_decades(low, high)
            known: dict[str, Any] = {"units": self.units, "test_rows": self.bench.recipe.test_rows}
            choice = choose(self.points, self.diverged, candidates=options, budget=self.budget, **known)
            open_below = choice is None or ("smallest candidate" in choice.ends and choice.best > choice.tolerance)
            if self.candidates or not self.points or not open_below or low <= self.low * _LOWER:
                break
            low /= 10
        if choice is None:
            raise nothing_to_propose(self.points, self.diverged, options, self.budget)
        return choice


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


def _bench(
    recipe: Recipe, loaded: Loaded, rows: Sequence[Encoded], steps: int, say: Callable[[str], None]
) -> tuple[Bench, float]:
    """What probes of `steps` steps train and are measured on, and the share of hard tokens."""
    model, tokenizer = loaded.model, loaded.tokenizer
    train, held = split_rows(rows, HELD_ROWS, steps * recipe.step_rows(), recipe.seed)
    say("token statistics of the training rows under the base model")
    looked_at = random.Random(recipe.seed).sample(rows, min(STATISTICS_ROWS, len(rows)))
    tokens = {"pad_id": tokenizer.pad_token_id, "batch_tokens": recipe.eval_batch_tokens}
    probability = torch.exp(-torch.cat(label_nll(model, looked_at, **tokens)))
    hard = float((probability < HARD).double().mean())
    say("the base model's own answers (shared with any run of the recipe)")
    reference = reference_answers(loaded, recipe)
    say(f"probes train on {len(train)} and are measured on {len(held)} of {len(rows)} training rows")
    return Bench(recipe, model, tokenizer, train, held, reference.sampled.head(OWN_ANSWERS)), hard


def _equal_rate(stable: Sequence[ProbePoint], choice: Choice, units: float) -> float:
    """The stable probed rate whose probe moved most nearly as far as the full run at the chosen rate."""
    ends = {p.learning_rate: p for p in stable}  # by movement, so the last of each rate
    target = choice.learning_rate * units
    return min(ends.values(), key=lambda p: abs(math.log(p.movement / target))).learning_rate
