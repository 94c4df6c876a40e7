"""The advisor's learning rate against the one a finished sweep chose, and the time of each.

    python benchmarks/advisor.py STUDY [-c recipe.yaml] [--domain KEY --general KEY] [--candidates grid] [--json PATH]

STUDY is a study directory with finished records. The recipe is that of its first complete run, unless one is given. The
sweep's choice is `report.recommend`'s over all its runs, and over its plain runs alone: the advisor proposes
the rate of plain training first. Distances are in steps of the sweep's own grid of rates.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentletune import Recipe, UserError, load_recipe, load_records
from gentletune.advice import Proposal, advise
from gentletune.advice.method import base_method
from gentletune.core.records import RunRecord, write_json_atomic
from gentletune.lm.device import settle_memory
from gentletune.reporting import recommend
from gentletune.reporting.axes import both_axes

# What a record's recipe has of its own run, and an advisor must not know.
_OF_THE_RUN = ("output", "learning_rate", "method")


def grid_steps(grid: Sequence[float], proposed: float, chosen: float) -> float:
    """How many steps of the grid lie from the chosen rate (on it) to the proposed one, parts of a step counted.

    >>> grid_steps([1e-5, 1e-4, 1e-3], 1e-5, 1e-3), round(grid_steps([1e-5, 1e-4], 3e-5, 1e-4), 2)
    (-2.0, -0.52)
    """

    def place(rate: float) -> float:
        ordered = sorted(grid)
        i = min(max(sum(r <= rate for r in ordered) - 1, 0), max(len(ordered) - 2, 0))
        if len(ordered) < 2:
            return 0.0
        return i + math.log(rate / ordered[i]) / math.log(ordered[i + 1] / ordered[i])

    return place(proposed) - place(chosen)


def sweep_seconds(records: Sequence[RunRecord]) -> float:
    """Seconds of training and measuring in the records; runs that share a training count it once, by its time."""
    trained = {(r.learning_rate, r.seed, r.label.partition("+wise_ft")[0], r.timings.get("train")): r for r in records}
    training = math.fsum(r.timings.get("train", 0.0) for r in trained.values())
    return training + math.fsum(r.timings.get("evaluate", 0.0) + r.timings.get("base", 0.0) for r in records)


def compare(records: Sequence[RunRecord], found: Proposal, options: argparse.Namespace) -> dict[str, Any]:
    """The proposal beside what the sweep chose among all runs and among plain ones."""
    base = base_method(found.method)
    plain = [r for r in records if r.label == base]
    domain, general = both_axes(records, options.domain, options.general)
    took = sweep_seconds(records)
    row: dict[str, Any] = {
        "proposal": found.as_dict(),
        "domain": domain.key if domain else None,
        "general": general.key if general else None,
        "sweep_seconds": took,
        "share_of_sweep": found.seconds / took if took else None,
    }
    for name, runs in (("all", list(records)), ("plain", plain)):
        advice = recommend(runs, margin=options.margin, domain=options.domain, general=options.general)
        chosen = runs[advice.safe.index] if advice.safe else None
        grid = sorted({r.learning_rate for r in runs if r.status == "complete"})
        steps = grid_steps(grid, found.learning_rate, chosen.learning_rate) if chosen else None
        row[name] = {
            "grid": grid,
            "chosen": chosen and {"label": chosen.label, "learning_rate": chosen.learning_rate, "seed": chosen.seed},
            "reason": advice.reason,
            "grid_steps": steps,
            "within_one": None if steps is None else abs(steps) <= 1 + 1e-9,
            "same_method": chosen and chosen.label == found.method,
        }
    return row


def recipe_of(records: Sequence[RunRecord], path: Path | None, method: str) -> Recipe:
    """The recipe given, or that of the first complete run, with plain training for its method."""
    if path is not None:
        return load_recipe(path, {"output": None})
    done = [r for r in records if r.status == "complete"]
    if not done:
        raise UserError("the study has no complete run; let it finish, or give a recipe with -c")
    fields = {key: value for key, value in done[0].recipe.items() if key not in _OF_THE_RUN}
    return Recipe.parse({**fields, "method": method})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("--method", default="sft", help="what the probes train, where the recipe is the study's")
    parser.add_argument("--domain", help="score of the domain axis")
    parser.add_argument("--general", help="score of the general axis")
    parser.add_argument("--margin", type=float, help="general skill that may be lost, for the sweep's choice")
    parser.add_argument("--steps", type=int, help="optimiser steps of each probe")
    parser.add_argument(
        "--candidates", choices=("half-decades", "grid"), default="half-decades",
        help="rates that may be proposed: the advisor's own, or the study's grid",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settle_memory()
    try:
        records = load_records([options.study])
        recipe = recipe_of(records, options.config, options.method)
        grid = sorted({r.learning_rate for r in records}) if options.candidates == "grid" else None
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        found = advise(recipe, candidates=grid, steps=options.steps, sweep_runs=len(records), say=say)
        row = compare(records, found, options)
    except UserError as error:
        sys.exit(f"advisor: {error}")
    for line in found.reasons:
        print(line)
    for name in ("all", "plain"):
        mine = row[name]
        chosen = mine["chosen"]
        what = f"{chosen['label']} at {chosen['learning_rate']:g}" if chosen else f"none ({mine['reason']})"
        far = "" if chosen is None else f"; advisor {found.learning_rate:g}, {mine['grid_steps']:+.2f} grid steps"
        print(f"sweep's choice, {name} runs: {what}{far}")
    share = f"{row['share_of_sweep']:.1%}" if row["share_of_sweep"] else "unknown"
    print(f"advisor {found.seconds:.0f} s, sweep {row['sweep_seconds']:.0f} s: {share}")
    if options.json:
        write_json_atomic(options.json, row)


if __name__ == "__main__":
    main()
