"""What the runs say together: means over seeds, tables, and a sentence a method on the hardest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from gentletune.core.records import write_bytes_atomic, write_text_atomic
from gentletune.core.render import one_line, template
from gentletune.research.dynamics.callback import BinFigures
from gentletune.research.dynamics.plot import dynamics_png
from gentletune.stats import Change, Mean, Run, compare, holm, mean_of, measured, ratio_score

QUANTITIES = ["probability", "median_probability", "learned", "nll", "weight", "weight_share", "gradient_share"]


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
class TokenDynamics:
    """Every method and seed that trained to its end, and those that did not, with why: (method, seed, error).

    All runs follow the same tokens at the same steps; `notes` say what was trained on what.
    """

    runs: tuple[MethodRun, ...]
    failed: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def by_method(self) -> dict[str, list[MethodRun]]:
        """The runs of each method, in the order they came in."""
        found: dict[str, list[MethodRun]] = {}
        for run in self.runs:
            found.setdefault(run.method, []).append(run)
        return found

    def frame(self) -> pd.DataFrame:
        """A row for each method, seed, step and bin: (`low`, `high`] of the initial probability, NLL in nats."""
        lines = [
            {"method": run.method, "seed": run.seed}
            | {name: getattr(row, name) for name in ("step", "bin", "low", "high", "tokens", *QUANTITIES)}
            for run in self.runs
            for row in run.figures
        ]
        return pd.DataFrame(lines)

    @cached_property
    def means(self) -> pd.DataFrame:
        """A `Mean` over the seeds of each of `QUANTITIES`, by method, step and bin; with the bin's name and tokens."""
        groups = self.frame().groupby(["method", "step", "bin"], sort=False)
        found = groups[QUANTITIES].agg(mean_over_seeds)
        first = groups[["low", "high", "tokens"]].first()
        names = [bin_name(low, high) for low, high in zip(first["low"], first["high"], strict=True)]
        return found.assign(name=names, tokens=first["tokens"])

    def sentences(self) -> list[str]:
        """For each method, whether the hardest tokens were learned, and how that compares with plain `sft`.

        What is significant is so among all methods (Holm), once for the falls and once for the comparisons with `sft`.
        """
        grouped = self.by_method
        number = min(self.runs[0].at(0)) if self.runs else 0
        falls = dict(zip(grouped, holm([nll_change(mine, number) for mine in grouped.values()]), strict=True))
        ends = {method: nll_runs(mine, last_step(mine), number) for method, mine in grouped.items()}
        others = [method for method in grouped if method != "sft" and "sft" in grouped]
        besides = dict(zip(others, holm([compare(ends[method], ends["sft"]) for method in others]), strict=True))
        words = _template().module
        return [
            one_line(
                words.sentence(
                    method=method,
                    row=mine[0].at(0)[number],
                    first=mean_of(nll_runs(mine, 0, number, base=True)),
                    last=mean_of(ends[method]),
                    fall=falls[method],
                    learned=mean_over_seeds([run.at(last_step(mine))[number].learned for run in mine]),
                    beside=besides.get(method),
                    plain=falls.get("sft"),
                )
            )
            for method, mine in grouped.items()
        ]

    def table(self, method: str) -> pd.DataFrame:
        """First and last figures of each bin of a method, as text."""
        runs, means = self.by_method[method], self.means.loc[method]
        last, lines = last_step(runs), []
        for number in sorted(runs[0].at(0)):
            a, b = means.loc[(0, number)], means.loc[(last, number)]
            lines.append({
                "initial p": a["name"],
                "tokens": a["tokens"],
                "mean p": f"{a['probability'].value:.4f}",
                f"after {last} steps": _plus_minus(b["probability"], ".4f"),
                "NLL (nats)": f"{a['nll'].value:.2f} → {_plus_minus(b['nll'], '.2f')}",
                "change": _change(nll_change(runs, number)),
                "p > 0.5": f"{a['learned'].value:.1%} → {_plus_minus(b['learned'], '.1%')}",
                "weight": f"{a['weight'].value:.3f} → {_plus_minus(b['weight'], '.3f')}",
                "gradient share": f"{a['gradient_share'].value:.1%} → {_plus_minus(b['gradient_share'], '.1%')}",
            })  # fmt: skip
        return pd.DataFrame(lines)

    def markdown(self) -> str:
        """The page: what was done, a sentence a method, a table a method, how to read it."""
        return str(_template().render(found=self))

    def csv(self) -> str:
        """`frame` with its bins as low..high."""
        frame = self.frame()
        bins = [f"{low:g}..{high:g}" for low, high in zip(frame["low"], frame["high"], strict=True)]
        frame = frame.drop(columns=["low", "high"]).assign(bin=bins)
        return str(frame.to_csv(index=False, float_format="%.8g", lineterminator="\n"))

    def write(self, directory: Path) -> None:
        """Write `dynamics.csv`, `dynamics.md` and `dynamics.png` into the directory, each whole or not at all."""
        write_text_atomic(directory / "dynamics.csv", self.csv())
        write_text_atomic(directory / "dynamics.md", self.markdown())
        write_bytes_atomic(directory / "dynamics.png", dynamics_png(self.means))


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and s/√n of n values, s with n - 1; one has no error. Raises ValueError on none.

    >>> mean_over_seeds([1.0, 3.0]).stderr, mean_over_seeds([2.0]).stderr
    (1.0, None)
    """
    return mean_of(measured(dict(enumerate(values))))


def bin_name(low: float, high: float) -> str:
    """How a bin of initial probability is called.

    >>> bin_name(0.0, 0.001), bin_name(0.1, 0.5)
    ('p ≤ 0.001', '0.1 < p ≤ 0.5')
    """
    return f"{f'{low:g} < ' if low else ''}p ≤ {high:g}"


def nll_runs(runs: Sequence[MethodRun], step: int, number: int, *, base: bool = False) -> list[Run]:
    """Mean NLL of a bin's tokens after a step, nats, a run for each seed; the items are the probe rows.

    With `base` the step is that of the model they all began from, which is one and has no seed.
    """
    kind: dict[str, Any] = {"task": "nll", "side": "domain", "metric": "nats_per_token", "higher_is_better": False}
    found = []
    for run in runs[:1] if base else runs:
        row = run.at(step)[number]
        score = ratio_score(row.sequence_nll, row.sequence_tokens, **kind)
        found.append(Run((score,), None if base else run.seed))
    return found


def last_step(runs: Sequence[MethodRun]) -> int:
    """The last step that every run has figures of."""
    return min(run.figures[-1].step for run in runs)


def nll_change(runs: Sequence[MethodRun], number: int) -> Change:
    """Final minus initial mean NLL of a bin's tokens, nats, with a 95 % interval over probe rows and seeds."""
    return compare(nll_runs(runs, last_step(runs), number), nll_runs(runs, 0, number, base=True))


def _template() -> Any:
    where, name = "gentletune.research.dynamics", "dynamics.md.j2"
    return template(where, name, change=_change, mean=_plus_minus, bin_name=bin_name)


def _change(change: Change) -> str:
    if change.low is None or change.high is None:
        return f"{change.value:+.2f}"
    return f"{change.value:+.2f} (95 %: {change.low:+.2f} to {change.high:+.2f})"


def _plus_minus(mean: Mean, form: str) -> str:
    return f"{mean.value:{form}}" + ("" if mean.stderr is None else f" ± {mean.stderr:{form}}")
