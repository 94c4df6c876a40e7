"""What the runs of a curriculum say together: means over seeds, tables, and the sentence on the hardest tokens."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from gentletune.research.dynamics.callback import LEARNED, BinFigures
from gentletune.stats import Change, Mean, Run, compare, holm, mean_of, measured, ratio_score

QUANTITIES = ("probability", "median_probability", "learned", "nll", "weight", "weight_share", "gradient_share")


@dataclass(frozen=True)
class MethodRun:
    """One method (its label) trained from one seed: the figures of every step and bin, and of the training."""

    method: str
    seed: int
    figures: tuple[BinFigures, ...]
    training: dict[str, float] = field(default_factory=dict)

    def at(self, step: int) -> dict[int, BinFigures]:
        """The figures of a step by bin."""
        return {row.bin: row for row in self.figures if row.step == step}


@dataclass(frozen=True)
class Point:
    """The tokens of one bin after `step` steps of a method, over its seeds; `means` holds `QUANTITIES`."""

    method: str
    step: int
    bin: int
    name: str
    tokens: int
    means: dict[str, Mean]


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and s/√n of n values, s with n - 1; one has no error. Raises ValueError on none.

    >>> mean_over_seeds([1.0, 3.0]).stderr, mean_over_seeds([2.0]).stderr
    (1.0, None)
    """
    return mean_of(measured(dict(enumerate(values))))


def by_method(runs: Sequence[MethodRun]) -> dict[str, list[MethodRun]]:
    """The runs of each method, in the order they came in."""
    found: dict[str, list[MethodRun]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def bin_name(low: float, high: float) -> str:
    """How a bin of initial probability is called.

    >>> bin_name(0.0, 0.001), bin_name(0.1, 0.5)
    ('p ≤ 0.001', '0.1 < p ≤ 0.5')
    """
    return f"{f'{low:g} < ' if low else ''}p ≤ {high:g}"


def aggregate(runs: Sequence[MethodRun]) -> list[Point]:
    """Every method, step and bin, over the seeds; all runs follow the same tokens at the same steps."""
    points = []
    for method, mine in by_method(runs).items():
        for row in mine[0].figures:
            same = [run.at(row.step)[row.bin] for run in mine]
            means = {name: mean_over_seeds([getattr(r, name) for r in same]) for name in QUANTITIES}
            points.append(Point(method, row.step, row.bin, bin_name(row.low, row.high), row.tokens, means))
    return points


def csv_text(runs: Sequence[MethodRun]) -> str:
    """One line for each method, seed, step and bin; `bin` is low..high of the initial probability, NLL in nats."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "step", "bin", "tokens", *QUANTITIES])
    for run in runs:
        for row in run.figures:
            name = f"{row.low:g}..{row.high:g}"
            figures = [f"{getattr(row, quantity):.8g}" for quantity in QUANTITIES]
            writer.writerow([run.method, run.seed, row.step, name, row.tokens, *figures])
    return text.getvalue()


def nll_runs(runs: Sequence[MethodRun], step: int, number: int, *, initial: bool = False) -> list[Run]:
    """Mean NLL of a bin's tokens after a step, nats, a run for each seed; the items are the probe rows.

    With `initial` the step is that of the model they all began from, which is one and has no seed.
    """
    kind: dict[str, Any] = {"task": "nll", "side": "domain", "metric": "nats_per_token", "higher_is_better": False}
    found = []
    for run in runs[:1] if initial else runs:
        row = run.at(step)[number]
        score = ratio_score(row.sequence_nll, row.sequence_tokens, **kind)
        found.append(Run((score,), None if initial else run.seed))
    return found


def last_step(runs: Sequence[MethodRun]) -> int:
    """The last step that every run has figures of."""
    return min(run.figures[-1].step for run in runs)


def nll_change(runs: Sequence[MethodRun], number: int) -> Change:
    """Final minus initial mean NLL of a bin's tokens, nats, with a 95 % interval over probe rows and seeds."""
    return compare(nll_runs(runs, last_step(runs), number), nll_runs(runs, 0, number, initial=True))


def verdicts(runs: Sequence[MethodRun]) -> list[str]:
    """For each method, whether the hardest tokens were learned, and how that compares with plain `sft`.

    What is significant is so among all methods (Holm), once for the falls and once for the comparisons with `sft`.
    """
    grouped = by_method(runs)
    number = min(runs[0].at(0))
    falls = holm([nll_change(mine, number) for mine in grouped.values()])
    besides = dict.fromkeys(grouped)
    if "sft" in grouped:
        others = [method for method in grouped if method != "sft"]
        ends = {method: nll_runs(mine, last_step(mine), number) for method, mine in grouped.items()}
        besides |= dict(zip(others, holm([compare(ends[method], ends["sft"]) for method in others]), strict=True))
    changes = dict(zip(grouped, falls, strict=True))
    plain = changes.get("sft")
    return [
        _verdict(method, mine, number, change, besides[method], plain)
        for (method, mine), change in zip(grouped.items(), falls, strict=True)
        if change is not None
    ]


def _verdict(
    method: str, runs: Sequence[MethodRun], number: int, change: Change, beside: Change | None, plain: Change | None
) -> str:
    first = mean_of(nll_runs(runs, 0, number, initial=True))
    last = mean_of(nll_runs(runs, last_step(runs), number))
    row = runs[0].at(0)[number]
    learned = mean_over_seeds([run.at(last_step(runs))[number].learned for run in runs])
    text = (
        f"`{method}`: the mean NLL of the {row.tokens} hardest tokens ({bin_name(row.low, row.high)} at first) went "
        f"from {first.value:.2f} to {last.value:.2f} nats, {_change(change)}: {_fell(change)}; {_percent(learned)} of "
        f"them end at p > {LEARNED:g}"
    )
    if beside is None or plain is None:
        return f"{text}."
    share = f"; its change is {change.value / plain.value:.0%} of `sft`'s" if max(plain.value, change.value) < 0 else ""
    return f"{text}. It ends at {_change(beside)} beside `sft`: {_beside(beside)}{share}."


def _change(change: Change) -> str:
    if change.low is None or change.high is None:
        return f"{change.value:+.2f}"
    return f"{change.value:+.2f} (95 %: {change.low:+.2f} to {change.high:+.2f})"


def _fell(change: Change) -> str:
    if change.significant is None:
        return "whether that is more than chance cannot be told, since they are all in one row"
    if not change.significant:
        return "no significant change"
    return "it fell, significantly" if change.value < 0 else "it rose, significantly"


def _beside(change: Change) -> str:
    if change.significant is None:
        return "whether that is more than chance cannot be told"
    if not change.significant:
        return "not significantly different"
    return "significantly higher" if change.value > 0 else "significantly lower"


def markdown(runs: Sequence[MethodRun], failed: Sequence[tuple[str, int, str]], notes: Sequence[str]) -> str:
    """The page: what was done, the verdicts, a table a method, how to read it."""
    lines = ["# Curriculum: tokens by their initial difficulty", "", *notes, ""]
    lines += [f"Seeds: {', '.join(dict.fromkeys(str(run.seed) for run in runs))}.", ""]
    if failed:
        lines += [*(f"Failed: `{method}`, seed {seed}: {error}." for method, seed, error in failed), ""]
    lines += ["## Are the hardest tokens learned in the end?", "", *(f"- {v}" for v in verdicts(runs)), ""]
    for method, mine in by_method(runs).items():
        lines += [f"## `{method}`", "", *_table(mine), ""]
    return "\n".join([*lines, "![Bins over the steps](curriculum.png)", "", *_READING, ""])


_READING = (
    "± is one standard error over seeds (none with one seed). The NLL change has a 95 % interval over probe rows and, "
    "where there are several, seeds; with one seed it says nothing of other seeds. What is called significant above is "
    "so among all methods (Holm); intervals stand each by itself. The gradient share of a bin is its "
    "part of Σ w‖∂ℓ/∂z‖, with w the method's weight, the probe taken as one batch, and z the logits; weights and "
    "shares are at the first (initial model) and the last step.",
    "",
    "Bins are chosen by the initial probability, so any change of a model, even a random one, tends to raise the "
    "lowest bin's mean probability and to lower the highest's: go by the NLL, and by the differences between methods.",
)


def _table(runs: Sequence[MethodRun]) -> list[str]:
    last = last_step(runs)
    points = {(point.step, point.bin): point for point in aggregate(runs) if point.step in (0, last)}
    head = [
        "initial p",
        "tokens",
        "mean p",
        f"after {last} steps",
        "NLL (nats)",
        "change",
        "p > 0.5",
        "weight",
        "gradient share",
    ]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for number in sorted(runs[0].at(0)):
        a, b = points[0, number].means, points[last, number].means
        cells = [
            points[0, number].name,
            str(points[0, number].tokens),
            f"{a['probability'].value:.4f}",
            _plus_minus(b["probability"], 4),
            f"{a['nll'].value:.2f} → {_plus_minus(b['nll'], 2)}",
            _change(nll_change(runs, number)),
            f"{a['learned'].value:.1%} → {_percent(b['learned'])}",
            f"{a['weight'].value:.3f} → {_plus_minus(b['weight'], 3)}",
            f"{a['gradient_share'].value:.1%} → {_percent(b['gradient_share'])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _plus_minus(mean: Mean, digits: int) -> str:
    return f"{mean.value:.{digits}f}" + ("" if mean.stderr is None else f" ± {mean.stderr:.{digits}f}")


def _percent(mean: Mean) -> str:
    return f"{mean.value:.1%}" + ("" if mean.stderr is None else f" ± {mean.stderr:.1%}")
