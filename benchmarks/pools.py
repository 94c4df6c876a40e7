"""Seeds borrowed from a study's settings: coverage of the intervals, and false findings in families.

Made-up studies in which nothing has an effect: 100 items, noise of each run, and a seed effect that is the same for all
settings, lognormal among them, twelve times as large for one in seven, or in part common to all.

    python benchmarks/pools.py --studies 200 --seed 0
"""

from __future__ import annotations

import argparse

import numpy as np

from gentletune.stats import Run, compare, holm, mean_score, seed_pool

KINDS = {
    "equal": "the same for all (0.1)",
    "unlike": "lognormal among settings (median 0.1, σ = 1)",
    "wild": "0.6 for one in seven, else 0.05",
    "shared": "0.1 of its own and 0.2 common to all",
}


def study(rng: np.random.Generator, kind: str, settings: int, seeds: int) -> tuple[list[Run], list[list[Run]]]:
    """The base model, and the runs of each setting."""
    own = {
        "equal": lambda: np.full(settings, 0.1),
        "unlike": lambda: 0.1 * np.exp(rng.normal(0, 1, settings)),
        "wild": lambda: np.where(rng.random(settings) < 1 / 7, 0.6, 0.05),
        "shared": lambda: np.full(settings, 0.1),
    }[kind]()
    common = rng.normal(0, 0.2 if kind == "shared" else 0, seeds)
    base = rng.normal(0, 1, 100)

    def run(items: np.ndarray, seed: int | None) -> Run:
        score = mean_score(list(items), task="t", metric="m", side="domain", higher_is_better=True)
        return Run((score,), seed)

    groups = [
        [run(base + common[s] + rng.normal(0, sd) + rng.normal(0, 0.5, 100), s) for s in range(seeds)] for sd in own
    ]
    return [run(base, None)], groups


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    print("| seed effect | settings × seeds | intervals that hold the truth | studies with a false finding |")
    print("|---|---:|---:|---:|")
    for kind, told in KINDS.items():
        for settings, seeds in ((6, 2), (24, 2), (24, 3)):
            held, false = [], 0
            for _ in range(given.studies):
                base, groups = study(rng, kind, settings, seeds)
                pool = seed_pool(groups)
                changes = [c for c in holm([compare(group, base, pool=pool) for group in groups]) if c is not None]
                held += [c.low <= 0 <= c.high for c in changes if c.low is not None and c.high is not None]
                false += any(c.significant for c in changes)
            share = 100 * false / given.studies
            print(f"| {told} | {settings} × {seeds} | {100 * np.mean(held):.1f} % | {share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
