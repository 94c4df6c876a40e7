"""How often a safe choice is named where none should be, how often it is harmful, and how often a good one is found.

    python benchmarks/no_effect.py [--studies 300]

The tables of docs/statistics.md, from the studies of `tests/reporting/test_no_effect.py`; about 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.reporting.test_no_effect import Shift, harmful, named, settings, study

Rng = np.random.Generator
SEED_SHIFTS: dict[str, tuple[float, Shift]] = {
    "none": (0.0, "own"),
    "2.8 points, each setting its own": (0.1, "own"),
    "2.8 points, all settings alike": (0.1, "shared"),
    "8.4 points, each setting its own": (0.3, "own"),
}


def share(studies: int, size: Sequence[int], once: Callable[[Rng], bool]) -> str:
    """Per cent of studies in which it is so."""
    rng = np.random.default_rng(size)
    return f"{100 * np.mean([once(rng) for _ in range(studies)]):.1f}"


def no_effect(studies: int) -> None:
    sizes = [(count, seeds) for count in (1, 6, 24) for seeds in (1, 2, 3)]
    head("no effect: named, %. A seed moves a run by", [f"{c} × {s}" for c, s in sizes])
    for name, (seed, shift) in SEED_SHIFTS.items():

        def once(rng: Rng, count: int, seeds: int, seed: float = seed, shift: Shift = shift) -> bool:
            return named(study(rng, count, seeds, 100, seed=seed, shift=shift), seeds) is not None

        # One seed's own shift is an effect of these weights: there is nothing that its interval should not see.
        row(name, (
            "–" if seeds == 1 and seed
            else share(studies, (count, seeds), lambda rng, c=count, s=seeds: once(rng, c, s))
            for count, seeds in sizes
        ))  # fmt: skip


def found(studies: int) -> None:
    sizes = [(count, seeds) for count in (1, 6, 24) for seeds in (2, 3, 5)]
    head("a gain of 10 points at no loss: found, %. Items a task, general tasks", [f"{c} × {s}" for c, s in sizes])
    for items, tasks in ((300, 1), (300, 2)):

        def once(rng: Rng, count: int, seeds: int, items: int = items, tasks: int = tasks) -> bool:
            best = len(settings(count)) // 2
            effects = {best: (0.1, 0.0)}
            return named(study(rng, count, seeds, items, seed=0.05, effects=effects, tasks=tasks), seeds) == best

        row(f"{items}, {tasks}", (
            share(studies // 2, (count, seeds, items), lambda rng, c=count, s=seeds: once(rng, c, s))
            for count, seeds in sizes
        ))  # fmt: skip


def harm(studies: int) -> None:
    sizes = [(6, 1, 100), (6, 1, 300), (6, 3, 300), (24, 1, 100), (24, 3, 300)]
    head("losses of 0 to 5 margins: named with more than two, %", [f"{c} × {s}, {n} items" for c, s, n in sizes])
    for tasks in (1, 2):
        for rising in (False, True):
            row(f"{tasks} general tasks, {'what gains more loses more' if rising else 'gains and losses apart'}", (
                share(studies, (count, seeds, items), lambda rng, c=count, s=seeds, n=items, up=rising, t=tasks:
                      harmful(rng, c, s, n, rising=up, tasks=t))
                for count, seeds, items in sizes
            ))  # fmt: skip


def head(what: str, columns: Sequence[str]) -> None:
    print(f"\n| {what} | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|", flush=True)


def row(name: str, cells: object) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    options = parser.parse_args()
    for part in (harm, found, no_effect):
        part(options.studies)


if __name__ == "__main__":
    main()
