"""A tilting fit in sentences, each computed from its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import median
from typing import Any

from gentletune.core.records import Score
from gentletune.research.tilting.bench import HARD
from gentletune.research.tilting.run import KindOfData, TiltingStudy
from gentletune.research.tilting.safe_range import Checkpoint, Edge, SafeRange
from gentletune.stats import Change, Run, compare, holm, mean_of, measured

_WELL, _BADLY = 0.9, 0.5  # shares of the way that one λ accounts for


def figure(value: float | None) -> str:
    """Three digits; a dash where there is nothing.

    >>> figure(0.123456), figure(3e-05), figure(None)
    ('0.123', '3e-05', '–')
    """
    return "–" if value is None else f"{value:.3g}"


def rate_name(rate: float) -> str:
    """A learning rate as the field writes it.

    >>> rate_name(3e-4), rate_name(0.00015), rate_name(1.0)
    ('3e-4', '1.5e-4', '1e0')
    """
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def reading(study: TiltingStudy) -> list[str]:
    """Paragraphs: for each kind of data its target, how far it is a tilt, the bounds; then the safe ranges compared."""
    paragraphs = []
    for kind in study.kinds:
        paragraphs += [
            f"**{kind.name}.** {_target(kind)}{_repeated(kind)}",
            f"{_fits(kind)} {_lambdas(kind)}",
            _bounds(kind, study.budget),
        ]
    return [*paragraphs, *_safe(study)]


def _target(kind: KindOfData) -> str:
    target = kind.target
    tried = ", ".join(
        f"{rate_name(rate)}: {'diverged' if bits is None else figure(bits)}" for rate, bits in target.candidates
    )
    said = (
        f"The target p₂ is the end of the run at {rate_name(target.rate)}, first seed: {figure(target.bits)} bits per "
        f"held-out label token where the initial model needs {figure(target.initial_bits)} (rates tried: {tried}). On "
        f"general positions KL(q‖p₂) is {figure(target.divergence)} bits per token."
    )
    if target.bits >= target.initial_bits:
        said += " It does no better on held-out labels than the initial model, so it is no target: give other rates."
    return said


def _repeated(kind: KindOfData) -> str:
    """Whether the target's run, trained again, ends at λ = 1."""
    again = [run.end for run in kind.runs if _is_target(kind, run.rate, run.seed)]
    if not again or again[0] is None:
        return ""
    lam = again[0].lambda_general
    if abs(lam - 1) < 1e-3:
        return " Trained again, it ends at λ̂ = 1, as it must."
    return f" Trained again, it ends at λ̂ = {figure(lam)}, not 1: training here does not repeat itself exactly."


def _fits(kind: KindOfData) -> str:
    points = _others(kind)
    general = [p.fit_general for p in points if p.fit_general is not None]
    domain = [p.fit_domain for p in points if p.fit_domain is not None]
    if not general or not domain:
        return "No checkpoint of another run has moved, so nothing can be said of its fit."
    middle = median(general)
    verdict = (
        "so these models lie close to tilts there" if middle >= _WELL
        else "so a tilt describes these models there only in part" if middle >= _BADLY
        else "so these models are not tilts there: what is said of tilts need not hold for them"
    )  # fmt: skip
    return (
        "Of the way KL(q_k‖q) that the checkpoints of the other runs have gone, one λ for all positions accounts for "
        f"{_spread(general)} on general positions and {_spread(domain)} on domain positions; {verdict}."
    )


def _spread(shares: Sequence[float]) -> str:
    """Median, range and number.

    >>> _spread([0.25, 0.5, 1.0])
    'a median of 50% (25% to 100%, 3 checkpoints)'
    """
    return f"a median of {median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}, {len(shares)} checkpoints)"


def _lambdas(kind: KindOfData) -> str:
    gaps = [p.lambda_general - p.lambda_domain for p in _others(kind)]
    if not gaps:
        return ""
    below = sum(gap < 0 for gap in gaps)
    return (
        "The theory has one λ for all contexts; here λ̂ on general positions lies below λ̂ on domain positions at "
        f"{below} of {len(gaps)} checkpoints, median difference {median(gaps):+.3f}."
    )


def _bounds(kind: KindOfData, budget: float) -> str:
    """Where the bounds sit above the measured drift, away from the target, where the convex one is equal to it."""
    points = [p for p in _others(kind) if p.drift > 0 and p.lambda_general > 0]
    convex = [(p.convex_bound, p) for p in points if p.convex_bound is not None]
    if not convex:
        return "No checkpoint of another run has come to a λ̂ above 0 and up to 1, so the bounds say nothing of it."
    ratios = [bound / p.drift for bound, p in convex]
    above = sum(ratio >= 1 for ratio in ratios)
    said = (
        f"The convex bound λ̂·KL(q‖p₂) lies above the measured drift at {above} of {len(ratios)} checkpoints of the "
        f"other runs with 0 < λ̂ ≤ 1, a median of {figure(median(ratios))} times it ({figure(min(ratios))} to "
        f"{figure(max(ratios))})"
    )
    if above < len(ratios):
        said += "; below it where the model has left the tilts, whose drift alone is bounded"
    said += (
        f". The tilt at λ̂ has a median of {median(p.tilted_drift / p.drift for p in points):.0%} of the drift. "
        "Hoeffding's bound, whose D takes in every token of the vocabulary however rare, is a median of "
        f"{figure(median(p.hoeffding_bound / p.drift for p in points))} times the drift, and beyond the convex one at "
        f"{sum(p.hoeffding_bound > bound for bound, p in convex)} of {len(convex)} checkpoints."
    )
    if theorem := [(p.theorem_bound, bound, p.drift) for bound, p in convex if p.theorem_bound is not None]:
        times = median(b / drift for b, _, drift in theorem)
        said += (
            f" Theorem 1a's λ̂²·min(D²/8, V) is a median of {figure(times)} times the drift, and below the convex bound "
            f"at {sum(b < bound for b, bound, _ in theorem)} of {len(theorem)}."
        )
    if near := [p.quadratic / p.tilted_drift for p in points if p.tilted_drift > 0]:
        said += f" The quadratic is a median of {figure(median(near))} times the tilt's own drift."
    if kind.target.divergence > budget:
        said += (
            f" By the convex bound a tilt stays within {budget:g} bits per token up to "
            f"λ = {figure(budget / kind.target.divergence)}."
        )
    return said


def _safe(study: TiltingStudy) -> list[str]:
    if len(study.kinds) < 2:
        return ["One kind of data was measured, so there is no other safe range to compare with."]
    cot, label = (next(kind for kind in study.kinds if kind.cot is wanted) for wanted in (True, False))
    wider = _foretold(cot, label)
    shares = " and ".join(
        f"{kind.target.hard_share:.1%} of {kind.target.labels} labels with {kind.name}" for kind in (cot, label)
    )
    first = (
        f"**The safe range at {study.budget:g} bits per token.** Hard under the initial model (p < {HARD:g}) are "
        f"{shares}. By Theorem 2 the data with fewer hard tokens have the wider guaranteed range of λ, and mostly, not "
        "always, the wider exact one: "
        f"{wider or 'here the shares are not told apart, so it suggests nothing'}. Measured:"
    )
    places: dict[str, Callable[[SafeRange], Edge]] = {
        "λ̂ on general positions": lambda found: found.lambda_general,
        "λ̂ on domain positions": lambda found: found.lambda_domain,
        "the learning rate": lambda found: found.rate,
    }
    # One family of three: the ranges are read off the same runs.
    changes = holm([compare(_at(label, read), _at(cot, read)) for read in places.values()])
    lines = [
        f"- {name}: {_compared(cot, label, read, change, wider)}"
        for (name, read), change in zip(places.items(), changes, strict=True)
        if change is not None
    ]
    return [
        first,
        "\n".join(lines),
        "The theorem speaks of one λ for all nodes and of the same contexts for both kinds of data. Here each kind has "
        "a target of its own, so a λ of one is no λ of the other, and general contexts are the model's own answers; "
        "the learning rate is what both have in common. Gains per token are not comparable between the kinds, whose "
        "tokens differ. Between checkpoints a range is read along a straight line, so a little small where drift bends "
        "upwards. The theorem also takes p₂ at general contexts as given: what tuning does there is measured here, not "
        "foretold by hard tokens of the domain.",
    ]


def _foretold(cot: KindOfData, label: KindOfData) -> str | None:
    """The kind of data with significantly fewer hard tokens, if there is one; tokens are taken as independent."""

    def share(kind: KindOfData) -> Score:
        value, count = kind.target.hard_share, kind.target.labels
        error = sqrt(value * (1 - value) / count)
        known: dict[str, Any] = {"task": "hard", "side": "domain", "metric": "share", "higher_is_better": False}
        return Score(value=value, stderr=error, n=count, **known)

    change = compare(share(label), share(cot))
    return None if not change.significant else (label.name if change.value < 0 else cot.name)


def _at(kind: KindOfData, read: Callable[[SafeRange], Edge]) -> list[Run]:
    return measured({found.seed: read(found).at for found in kind.ranges})


def _compared(
    cot: KindOfData, label: KindOfData, read: Callable[[SafeRange], Edge], change: Change, wider: str | None
) -> str:
    """Both ranges, their difference by seed, and whether the theorem's order is seen."""
    edges = {kind.name: [read(found) for found in kind.ranges] for kind in (cot, label)}
    said = []
    for kind in (cot, label):
        found = edges[kind.name]
        mean, opened = mean_of(_at(kind, read)), sum(edge.open for edge in found)
        error = "" if mean.stderr is None else f" ± {figure(mean.stderr)}"
        note = f" (at least: within the budget to the last with {opened} of {len(found)} seeds)" if opened else ""
        said.append(f"{kind.name} {figure(mean.value)}{error}{note}")
    text = f"{', '.join(said)}; {label.name} minus {cot.name} {change.value:+.3g}"
    if change.seeds == 1:
        return f"{text}, one seed, so without an error."
    larger, smaller = (label.name, cot.name) if change.value > 0 else (cot.name, label.name)
    if change.low is not None and change.high is not None:
        text += f" [95 %: {change.low:+.3g}, {change.high:+.3g}]"
    if all(any(edge.open for edge in found) for found in edges.values()):
        return f"{text}: neither range was seen to end with every seed, so they are not compared."
    if not change.significant:
        return f"{text}: not told apart."
    if any(edge.open for edge in edges[smaller]):
        return f"{text}: wider with {larger} as measured, but the other was not seen to end with every seed."
    agrees = ", as Theorem 2 suggests" if wider == larger else ", against what it suggests" if wider else ""
    return f"{text}: wider with {larger}{agrees}."


def _others(kind: KindOfData) -> Sequence[Checkpoint]:
    """Checkpoints that are not on the target's own way."""
    return [p for run in kind.runs if not _is_target(kind, run.rate, run.seed) for p in run.checkpoints]


def _is_target(kind: KindOfData, rate: float, seed: int) -> bool:
    return rate == kind.target.rate and seed == kind.runs[0].seed
