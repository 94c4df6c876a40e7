"""How often the intervals of `gentletune.stats.compare` hold the truth: the tables of docs/statistics.md.

    python benchmarks/coverage.py [--studies 10000] [--json benchmarks/results/coverage.json]

Studies are made up with a known truth (`tests/stats/worlds.py`), as many for each cell. The quick tests hold a part of
the same cells to 93-97 %. One core is enough; the default takes about 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.stats.worlds import ACCURACY, CODE_LENGTH, SeedShift, Studies, World, studies

from gentletune.stats.contrast import Contrast, crossed, p_value
from gentletune.stats.items import Array

SEED_COUNTS, ITEMS = (1, 2, 3, 5), (30, 200, 1000)
BATCH = 200_000  # items of one seed that are drawn at once
Method = Callable[[Contrast], Array]  # p-values of no difference

HARDER = {  # worlds apart from the ordinary
    "few discordant items (7 %)": replace(ACCURACY, gap=0.1, taste=0.1, noise=0.1),
    "nearly all right": replace(ACCURACY, gap=0.3, ease=1.5),
    "a large difference (0.4)": replace(ACCURACY, gap=1.5),
    "runs of one seed hardly agree": replace(ACCURACY, taste=0.1, noise=1.0),
    "seeds move a third as much": replace(ACCURACY, seed=0.04),
    "seeds move four times as much": replace(ACCURACY, seed=0.5),
    "code length, runs hardly agree": replace(CODE_LENGTH, taste=0.1, noise=0.6),
    "code length, seeds move five times as much": replace(CODE_LENGTH, seed=0.3),
}


def satterthwaite(contrast: Contrast) -> Array:
    """Student's t with Satterthwaite's degrees of freedom of I + M."""
    error = np.sqrt(contrast.items + contrast.seeds)
    return np.asarray(2 * special.stdtr(contrast.satterthwaite, -np.abs(contrast.centre) / error))


def pythagorean(contrast: Contrast) -> Array:
    """The half-width's square is the sum of those of the items and of the seeds, each with its own Student's t.

    Only whether it is below 5 %: 1 where the interval at 95 % holds 0, else 0.
    """
    items = special.stdtrit(contrast.items_df, 0.975) ** 2 * contrast.items
    seeds = special.stdtrit(np.maximum(contrast.seeds_df, 1), 0.975) ** 2 * contrast.seeds
    return np.asarray(contrast.centre**2 <= items + seeds, dtype=float)


def seeds_alone(contrast: Contrast) -> Array:
    """Student's t over the seeds' means, which forgets that they share their items."""
    error = np.sqrt(np.maximum(contrast.seeds, 1e-300))
    return np.asarray(2 * special.stdtr(np.maximum(contrast.seeds_df, 1), -np.abs(contrast.centre) / error))


# What else is an answer to the same question.
METHODS: dict[str, Method] = {
    "chosen": p_value,
    "Satterthwaite": satterthwaite,
    "Pythagorean": pythagorean,
    "seeds alone": seeds_alone,
}


def cells(
    world: World, count: int, *, grouped: bool, shift: SeedShift, base: bool = False, items: tuple[int, ...] = ITEMS
) -> Iterator[dict[str, Any]]:
    """The coverage of each method for each number of seeds and items."""
    for n in items:
        hits: dict[tuple[str, int], list[Array]] = {}
        done, batch = 0, 0
        while done < count:
            rng = np.random.default_rng([n, grouped, batch])
            size = min(count - done, 1000, BATCH // n)  # groups are drawn anew for each batch
            drawn = studies(world, rng, size, n, grouped=grouped, shift=shift, base=base)
            for seeds in SEED_COUNTS:
                for name, covered in _covered(drawn, seeds, world.metric == "accuracy").items():
                    hits.setdefault((name, seeds), []).append(covered)
            done, batch = done + size, batch + 1
        for (name, seeds), found in hits.items():
            share = float(np.concatenate(found).mean())
            yield {"method": name, "seeds": seeds, "items": n, "covered": round(share, 4)}


def _covered(drawn: Studies, seeds: int, shares: bool) -> dict[str, Array]:
    found = crossed(drawn.differences[:, :seeds], drawn.layout, shares=shares)
    truth = drawn.of_first if seeds == 1 else np.full(len(drawn.of_first), drawn.truth)
    moved = replace(found, centre=found.centre - truth)
    methods = METHODS if seeds > 1 else {"chosen": p_value}
    return {name: method(moved) >= 0.05 for name, method in methods.items()}


def table(rows: list[dict[str, Any]], method: str) -> list[str]:
    """Markdown: a row for each world, a column for each number of items and seeds, in per cent."""
    sizes = sorted({(r["items"], r["seeds"]) for r in rows})
    head = ["", *(f"{n} × {s}" for n, s in sizes)]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * len(sizes)}|"]
    for name in dict.fromkeys(r["world"] for r in rows):
        mine = {(r["items"], r["seeds"]): r["covered"] for r in rows if (r["world"], r["method"]) == (name, method)}
        figures = [f"{100 * mine[size]:.1f}" if size in mine else "–" for size in sizes]
        lines.append(f"| {' | '.join([name, *figures])} |")
    return lines


def worst(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: the lowest and the highest coverage of each method by number of seeds."""
    lines = ["| method | 2 seeds | 3 seeds | 5 seeds |", "|---|---:|---:|---:|"]
    for name in METHODS:
        found = [[r["covered"] for r in rows if (r["method"], r["seeds"]) == (name, s)] for s in SEED_COUNTS[1:]]
        spans = [f"{100 * min(mine):.1f} to {100 * max(mine):.1f}" for mine in found]
        lines.append(f"| {' | '.join([name, *spans])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main_rows: list[dict[str, Any]] = []
    for world in (ACCURACY, CODE_LENGTH):
        for grouped in (False, True):
            for shift in get_args(SeedShift):
                name = f"{world.metric}{', grouped' if grouped else ''}; seed effect: {shift}"
                found = cells(world, options.studies, grouped=grouped, shift=shift)
                main_rows += [{"world": name, **cell} for cell in found]
                print(name, file=sys.stderr)
    other_rows: list[dict[str, Any]] = []
    for name, world in HARDER.items():
        for shift in ("none", "own"):
            if shift == "none" and "seeds move" in name:
                continue
            found = cells(world, options.studies // 2, grouped=False, shift=shift, items=ITEMS[:2])
            other_rows += [{"world": f"{name}; seed effect: {shift}", **cell} for cell in found]
        print(name, file=sys.stderr)
    for world in (ACCURACY, CODE_LENGTH):
        for shift in ("none", "own"):
            found = cells(world, options.studies // 2, grouped=False, shift=shift, base=True, items=ITEMS[:2])
            other_rows += [{"world": f"{world.metric} against a base model; seed effect: {shift}", **c} for c in found]
    print("\n".join([*table(main_rows, "chosen"), "", *worst(main_rows), "", *table(other_rows, "chosen")]))
    if options.json:
        made = {"studies": options.studies, "main": main_rows, "harder": other_rows}
        options.json.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
