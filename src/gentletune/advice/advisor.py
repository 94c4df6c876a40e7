"""A learning rate and a method from minutes of probing, instead of a sweep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gentletune.advice.curve import (
    Choice,
    End,
    Forecast,
    ProbePoint,
    choose,
    nearest,
    prior_rate,
    rates_between,
    stable_points,
)
from gentletune.advice.harm import Accuracy, Dose, FromBase, Harm
from gentletune.advice.method import advise_method, base_method, edge_at_equal_kl, talr_method
from gentletune.advice.probes import Bench, GeneralLook, split_rows
from gentletune.advice.reasons import nothing_to_propose, rate_facts, told
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.data import Encoded, encode_rows, load_data
from gentletune.evaluation.measure import reference_answers
from gentletune.lm.loaded import Loaded
from gentletune.methods import parse_method
from gentletune.methods.parameters.peft import RATE_SCALE
from gentletune.reporting.recommend import MARGIN_BITS, MARGIN_SHARE, check_margin
from gentletune.runs.inputs import processes_here
from gentletune.stats import headroom
from gentletune.training.packing import rows_to_draw

FIRST = 3.0  # times the prior rate: the first probe
PROBES = 6  # at most
CLOSE = 2.05  # the largest harmless and the smallest harmful probe are not to lie further apart, as a factor
LONGER = 2  # times the usual steps: one probe at the edge, which shows how the loss grows with the steps
HELD_ROWS, OWN_ANSWERS, GENERAL_ITEMS = 32, 64, 128  # what a probe is measured on
STEPS, LEAST_STEPS = 24, 6
SWEEP_RUNS = 24  # six methods at four rates
_SHARE, _USUAL = 0.06, 4  # of the sweep's steps, in so many probes; the longer one and the looks come on top
_LOWER = 0.1  # of the smallest rate probed: the smallest that may be proposed


@dataclass(frozen=True)
class Proposal:
    """What to train with, why, and the curve it was read from.

    `points` are the probes (bits per token and accuracy, errors by item), the one of more steps, if any, at the end;
    `forecasts` are the full runs they foretell,
    `diverged` the rates at which a probe was no longer finite. `general` is the base model's accuracy on the items that
    the probes were asked; None where the recipe has no such tasks, so that KL from base stands for general loss.
    `margin` is the loss that may be overlooked, in accuracy or bits per token; `safe` whether the rate is forecast
    to keep to it. `grid_ends` are the ends of the grid beyond which a rate may be better (`curve.Choice`).
    `probe_rows` is how many training rows the probes drew their batches from. `seconds` is all the time taken,
    `share_of_sweep` that over the training time of a sweep of `sweep_runs` such runs, at the probes' own seconds a step
    (its measuring not counted).
    """

    learning_rate: float
    method: str
    reasons: tuple[str, ...]
    points: tuple[ProbePoint, ...]
    forecasts: tuple[Forecast, ...]
    diverged: tuple[float, ...]
    grid_ends: tuple[End, ...]
    general: Score | None
    margin: float
    safe: bool
    probe_rows: int
    full_steps: int
    sweep_runs: int
    seconds: float
    share_of_sweep: float

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON; of scores, value and standard error."""

        def flat(point: ProbePoint) -> dict[str, Any]:
            scores = {"gain": point.gain, "kl": point.kl, "general": point.general}
            plain = {k: getattr(point, k) for k in ("method", "learning_rate", "steps")}
            values = {k: s and s.value for k, s in scores.items()}
            return plain | values | {f"{k}_stderr": s and s.stderr for k, s in scores.items()}

        made = ("points", "forecasts", "general")
        return {
            **{name: value for name, value in vars(self).items() if name not in made},
            "general": self.general and self.general.value,
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
    margin: float | None = None,
    sweep_runs: int = SWEEP_RUNS,
    say: Callable[[str], None] = lambda _: None,
) -> Proposal:
    """Propose a learning rate and a method for the recipe's full training from short probes.

    Plain training is probed at each of `rates`; without them at a rate near `prior_rate`, and up or down from there
    until one probe loses more than `margin` and one at half its rate or more does not. Where general accuracy is
    measured, the smallest rate that lost more (else the largest) is probed again for twice the steps, at most the full
    run's, which shows how the loss grows with them. TALR is probed, once, only where the recipe has it. Probes train on
    `steps` batches of training rows (on all there are, again and again, where those are fewer) and are measured on
    training rows apart from them; the held-out rows are never looked at. General loss is measured on some items of the
    recipe's general tasks, and by KL from base where it has none. By default `steps` are from 6 to 24, so that four
    probes take about 6 % of the steps of `sweep_runs` full runs.

    The rule is `curve.choose`'s: of the `candidates` (default: round rates up to the largest probed) that are forecast
    to keep to `margin` (default: 0.02 of accuracy, or 0.05 bits of KL from base per token; at most half of what the
    base model is shown to have above guessing) and to `budget`, the most KL from base that may come of it, the smallest
    whose gain is as good as the best.

    Raises:
        UserError: bad input, fewer than 4 training rows, no rate at which a probe stayed finite or within budget.

    >>> advise(Recipe(data="clinic", max_steps=150)).learning_rate  # doctest: +SKIP
    0.0001
    """
    begun = time.perf_counter()
    _check(rates, candidates, steps, budget, margin, sweep_runs)
    data, loaded = load_data(recipe), Loaded.of(recipe)
    where = f"{data.name}, training"
    rows = encode_rows(data.train, loaded.tokenizer, where=where, **loaded.encoding).rows
    base, talr = base_method(recipe.method), talr_method(recipe.method)
    prior = prior_rate(int(loaded.config.get_text_config().hidden_size))
    if (how := parse_method(base).parameterisation).adapter:
        prior *= RATE_SCALE / how.rate_scale  # rates are the recipe's, and the optimiser's are so much larger
    full = recipe.steps(rows_to_draw(recipe, rows), processes_here(recipe.processes))
    count = steps or max(LEAST_STEPS, min(STEPS, full, int(_SHARE * sweep_runs * full / _USUAL)))
    most = max(count, min(LONGER * count, full))
    bench, general = _bench(recipe, loaded, rows, count, most, say)
    if general is not None:
        check_margin(margin, "the general accuracy")
    margin = margin if margin is not None else MARGIN_BITS if general is None else MARGIN_SHARE
    if general is not None and margin > (half := headroom(general.value, general.stderr, general.chance) / 2):
        say(f"the margin is {half:.3g}, not {margin:g}: half of what the base model is shown to have above guessing")
        margin = half
    search = _Search(bench, base, count, general, margin, full / count, say)
    if rates is None:
        search.look_for_the_edge(nearest(prior * FIRST))
    for rate in sorted(set(rates or ())):
        search.probe(rate)
    search.look_longer(most)
    choice = search.choose(candidates, budget)
    stable, other = stable_points(search.points, search.diverged), None
    why, better, edge = "not asked", False, None
    if talr is not None:
        nearby = min(stable, key=lambda p: abs(math.log(p.learning_rate / choice.learning_rate)))
        say(f"probing {talr} at learning rate {nearby.learning_rate:g} for {count} steps")
        other = bench.probe(talr, nearby.learning_rate, count)
        edge = edge_at_equal_kl(other, stable) if other else None
        better, why = advise_method(edge) if other else (False, "diverged")
    harmful = min((p.learning_rate for p in search.points if search.loss(p) > margin), default=None)
    longer = search.longer
    facts = {"steps": count, "harmful": harmful, "full": full, "budget": budget, "general": general, "margin": margin}
    reasons = [
        *told("rate", longer=longer, **rate_facts(choice, search.points, search.diverged), **facts),
        *(told("method", why=why, base=base, talr=talr, edge=edge) if talr else ()),
    ]
    seconds = time.perf_counter() - begun
    a_step = bench.seconds / max(bench.steps, 1)
    return Proposal(
        learning_rate=choice.learning_rate,
        method=talr if better and talr else base,
        reasons=tuple(reasons),
        points=tuple(p for p in (*search.points, other, longer.point if longer else None) if p is not None),
        forecasts=choice.forecasts,
        diverged=tuple(search.diverged),
        grid_ends=choice.ends,
        general=general,
        margin=margin,
        safe=choice.safe,
        probe_rows=len(bench.train),
        full_steps=full,
        sweep_runs=sweep_runs,
        seconds=seconds,
        share_of_sweep=seconds / (sweep_runs * full * a_step) if a_step else math.inf,
    )


@dataclass(frozen=True)
class _Longer:
    """The probe of more steps; no point where it diverged, which counts as the loss of all general skill."""

    rate: float
    steps: int
    loss: float
    point: ProbePoint | None


@dataclass
class _Search:
    """Plain probes of one rate after another, and the choice they lead to.

    `general` is the base model's accuracy, `times` how many times as long as a probe the full run is.
    """

    bench: Bench
    method: str
    steps: int
    general: Score | None
    margin: float
    times: float
    say: Callable[[str], None]
    longer: _Longer | None = None
    points: list[ProbePoint] = field(default_factory=list)
    diverged: list[float] = field(default_factory=list)

    def look_for_the_edge(self, rate: float) -> None:
        """Probe from `rate` up or down by half decades to both sides of the edge of harm, then between them."""
        for _ in range(PROBES):
            self.probe(rate)
            harmful = [*self.diverged, *(p.learning_rate for p in self.points if self.loss(p) > self.margin)]
            above = min(harmful, default=math.inf)
            below = max((p.learning_rate for p in self.points if p.learning_rate < above), default=0.0)
            if math.isinf(above):
                rate = nearest(below * math.sqrt(10))
            elif not below:
                rate = nearest(above / math.sqrt(10))
            elif above / below > CLOSE:
                rate = nearest(math.sqrt(above * below))
            else:
                return

    def probe(self, rate: float) -> None:
        """Probe a rate; one that diverges is kept apart."""
        self.say(f"probing {self.method} at learning rate {rate:g} for {self.steps} steps")
        found = self.bench.probe(self.method, rate, self.steps)
        if found is None:
            self.diverged.append(rate)
        else:
            self.points = sorted([*self.points, found], key=lambda p: p.learning_rate)

    def look_longer(self, steps: int) -> None:
        """Probe the smallest rate that lost more than the margin, else the largest, for so many steps."""
        if steps == self.steps or not self.points or self.general is None:
            return
        rates = [p.learning_rate for p in self.points if self.loss(p) > self.margin]
        rate = min(rates, default=self.points[-1].learning_rate)
        self.say(f"probing {self.method} at learning rate {rate:g} for {steps} steps")
        found = self.bench.probe(self.method, rate, steps)
        self.longer = _Longer(rate, steps, self.loss(found) if found else self.general.value, found)

    def choose(self, candidates: Sequence[float] | None, budget: float | None) -> Choice:
        """The choice among the candidates. Raises `UserError` where no rate can be proposed."""
        if not self.points:
            raise nothing_to_propose(self.points, self.diverged, candidates or (), budget)
        ends = self.points[0].learning_rate * _LOWER, self.points[-1].learning_rate
        options = candidates or rates_between(*ends)
        kl = Harm(FromBase([Dose(p.learning_rate, p.kl.value) for p in self.points]), self.margin, self.times)
        harm = kl
        if self.general is not None:
            doses = [Dose(p.learning_rate, self.loss(p)) for p in self.points]
            if self.longer is not None:
                doses.append(Dose(self.longer.rate, self.longer.loss, self.longer.steps / self.steps))
            harm = Harm(Accuracy(doses, self.general.value, self.general.n), self.margin, self.times)
        rows = self.bench.recipe.test_rows
        choice = choose(self.points, self.diverged, harm=harm, kl=kl, test_rows=rows, candidates=options, budget=budget)
        if choice is None:
            raise nothing_to_propose(self.points, self.diverged, options, budget)
        return choice

    def loss(self, point: ProbePoint) -> float:
        """General loss of a probe in the margin's unit."""
        if self.general is None or point.general is None:
            return point.kl.value
        return self.general.value - point.general.value


def _check(
    rates: Sequence[float] | None,
    candidates: Sequence[float] | None,
    steps: int | None,
    budget: float | None,
    margin: float | None,
    sweep_runs: int,
) -> None:
    for name, given in (("rates", rates), ("candidates", candidates)):
        if given is not None and (not given or not all(math.isfinite(r) and r > 0 for r in given)):
            raise UserError(f"{name} must be numbers above 0, at least one")
    if steps is not None and steps < 2:
        raise UserError(f"steps must be 2 or more, got {steps}: the first step of a warm-up moves nothing")
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise UserError(f"budget must be a number of bits per token above 0, got {budget:g}")
    if margin is not None and not (math.isfinite(margin) and margin > 0):
        raise UserError(f"margin must be a number above 0, got {margin:g}")
    if sweep_runs < 1:
        raise UserError(f"sweep_runs must be 1 or more, got {sweep_runs}")


def _bench(
    recipe: Recipe, loaded: Loaded, rows: Sequence[Encoded], steps: int, most: int, say: Callable[[str], None]
) -> tuple[Bench, Score | None]:
    """What probes of `steps` and of `most` steps train and are measured on, and the base model's general accuracy.

    The accuracy is None where there is none or too little; then no probe has more than `steps`.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    say("the base model's own answers (shared with any run of the recipe)")
    reference = reference_answers(loaded, recipe)
    look = GeneralLook(loaded, recipe, GENERAL_ITEMS)
    general, mean = look.of_base()
    if mean is not None and mean is not general:
        told = f"{mean.value:.3g} right, where guessing has {mean.chance:.3g}"
        instead = (
            "KL from base stands for it" if general is None else f"only {', '.join(general.details['tasks'])} counts"
        )
        say(f"general accuracy could not show a loss ({told}), so {instead}")
    drawn = (steps if general is None else most) * recipe.step_rows()
    train, held = split_rows(rows, HELD_ROWS, drawn, recipe.seed)
    say(f"probes train on {len(train)} and are measured on {len(held)} of {len(rows)} training rows")
    asked = look if general is not None else lambda _: None
    return Bench(recipe, model, tokenizer, train, held, reference.sampled.head(OWN_ANSWERS), asked), general
