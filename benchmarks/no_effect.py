"""How often the report advises a setting where none has an effect, and how often it finds one that has.

    python benchmarks/no_effect.py [--studies 300]

The tables of docs/statistics.md, from the studies of `tests/report/test_no_effect.py`; about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.report.test_no_effect import shipped, study

SEED_SHIFTS: dict[str, dict[str, Any]] = {
    "none": {"seed": 0.0},
    "2.8 points, each setting its own": {"seed": 0.1},
    "2.8 points, all settings alike": {"seed": 0.1, "shift": "shared"},
    "8.4 points, each setting its own": {"seed": 0.3},
}


def shares(studies: int, count: int, seeds: int, items: int, **how: Any) -> tuple[float, float]:
    """The share of studies in which any setting is advised, and in which the one that gains is."""
    rng = np.random.default_rng([count, seeds, items])
    found = []
    for _ in range(studies):
        records, best = study(rng, count, seeds, items, **how)
        place = shipped(records, seeds)
        found.append((place is not None, place == best))
    advised, right = np.mean(found, axis=0)
    return float(advised), float(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    options = parser.parse_args()
    sizes = [(count, seeds) for count in (1, 6, 24) for seeds in (1, 2, 3)]
    print(f"| a seed moves a run by | {' | '.join(f'{c} × {s}' for c, s in sizes)} |\n|---{'|---:' * len(sizes)}|")
    for name, how in SEED_SHIFTS.items():
        # One seed's own shift is an effect of these weights: there is nothing that its interval should not see.
        cells = [
            "–" if seeds == 1 and how["seed"] else f"{100 * shares(options.studies, count, seeds, 100, **how)[0]:.1f}"
            for count, seeds in sizes
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    sizes = [(count, seeds) for count in (1, 6, 24) for seeds in (2, 3, 5)]
    print(f"\n| a seed moves a run by | {' | '.join(f'{c} × {s}' for c, s in sizes)} |\n|---{'|---:' * len(sizes)}|")
    for points, seed in ((0.0, 0.0), (1.4, 0.05), (2.8, 0.1)):
        found = [shares(options.studies // 2, count, seeds, 300, seed=seed, gain=0.1)[1] for count, seeds in sizes]
        print(f"| {points:g} points | {' | '.join(f'{100 * share:.0f}' for share in found)} |", flush=True)


if __name__ == "__main__":
    main()
