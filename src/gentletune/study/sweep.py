"""Run a plan in this process, one trial after the other; finished trials are not run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gentletune.evaluation.harness import Stage
from gentletune.evaluation.measure import silent
from gentletune.records import RunRecord
from gentletune.study.plan import Trial, plan
from gentletune.study.run import train

Say = Callable[[str], None]


def sweep(
    study: Mapping[str, Any], output: Path, *, where: str = "study", stage: Stage = silent, say: Say = lambda _: None
) -> list[RunRecord]:
    """Run every trial of the study under `output`, in order; returns their records.

    `say` hears before each trial what comes and, from the second on, how long the rest will take.

    Raises:
        UserError: a study that is not valid, or bad input met by its first trial.
    """
    trials = plan(study, output, where)
    records: list[RunRecord] = []
    spent: list[tuple[bool, float]] = []
    for number, trial in enumerate(trials, start=1):
        say(f"[{number}/{len(trials)}] {_what(trial)}{_remaining(trials[number - 1 :], spent)}")
        begun = time.perf_counter()
        source = output / trial.trains_like if trial.trains_like else None
        records.append(train(trial.recipe, reuse=source, stage=stage))
        spent.append((trial.trains_like is None, time.perf_counter() - begun))
    return records


def _what(trial: Trial) -> str:
    how = f"takes the weights of {trial.trains_like}, " if trial.trains_like else "trains, "
    return f"{trial.name}: {how}then measures both sides"


def _remaining(trials: list[Trial], spent: list[tuple[bool, float]]) -> str:
    """An estimate from the trials so far; the first one also measures the initial model, so it counts least."""
    if not spent:
        return ""
    trained = [seconds for trains, seconds in spent if trains]
    reused = [seconds for trains, seconds in spent if not trains] or [trained[-1] / 2]
    total = sum(trained[-1] if t.trains_like is None else reused[-1] for t in trials)
    return f" (about {max(1, round(total / 60))} min to go)"
