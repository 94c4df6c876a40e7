"""Seeds borrowed from a study's settings: coverage of the intervals, false findings in families, and true ones.

Made-up studies: 100 items, noise of each run, and a seed effect that is the same for all settings, lognormal among
them, twelve times as large for one in seven, or in part common to all. Nothing has an effect in the first table; half
of the settings do in the second.

    python benchmarks/pools.py --studies 200 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from gentletune.stats import Change, Run, benjamini_hochberg, compare, holm, mean_score, seed_pool

EFFECT = 0.5

KINDS = {
    "equal": "the same for all (0.1)",
    "unlike": "lognormal among settings (median 0.1, σ = 1)",
    "wild": "0.6 for one in seven, else 0.05",
    "shared": "0.1 of its own and 0.2 common to all",
}


def study(
    rng: np.random.Generator, kind: str, settings: int, seeds: int, gains: np.ndarray
) -> tuple[list[Run], list[list[Run]]]:
    """The base model, and the runs of each setting, which gains so much."""
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
        [run(base + gain + common[s] + rng.normal(0, sd) + rng.normal(0, 0.5, 100), s) for s in range(seeds)]
        for sd, gain in zip(own, gains, strict=True)
    ]
    return [run(base, None)], groups


def changes_of(rng: np.random.Generator, kind: str, settings: int, seeds: int, gains: np.ndarray) -> list[Change]:
    """Each setting minus the base model."""
    base, groups = study(rng, kind, settings, seeds, gains)
    pool = seed_pool(groups)
    return [compare(group, base, pool=pool) for group in groups]


def significant(changes: Sequence[Change | None]) -> np.ndarray:
    """Which of them are."""
    return np.array([bool(change and change.significant) for change in changes])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    cells = [(kind, *size) for kind in KINDS for size in ((7, 2), (24, 2), (24, 3))]
    print("| seed effect | settings × seeds | intervals that hold the truth | studies with a false finding |")
    print("|---|---:|---:|---:|")
    for kind, settings, seeds in cells:
        held, false = [], 0
        for _ in range(given.studies):
            changes = changes_of(rng, kind, settings, seeds, np.zeros(settings))
            held += [c.low <= 0 <= c.high for c in changes if c.low is not None and c.high is not None]
            false += int(significant(holm(changes)).any())  # where nothing has an effect both corrections find the same
        share = 100 * false / given.studies
        print(f"| {KINDS[kind]} | {settings} × {seeds} | {100 * np.mean(held):.1f} % | {share:.1f} % |", flush=True)
    print(f"\n| half gain {EFFECT} | settings × seeds | found: Holm | found | false of those found |")
    print("|---|---:|---:|---:|---:|")
    for kind, settings, seeds in cells:
        gains = np.where(np.arange(settings) < settings // 2, EFFECT, 0.0)
        found: list[float] = []
        strict: list[float] = []
        wrong: list[float] = []
        for _ in range(given.studies):
            changes = changes_of(rng, kind, settings, seeds, gains)
            strict.append(significant(holm(changes))[gains > 0].mean())
            chosen = significant(benjamini_hochberg(changes))
            found.append(chosen[gains > 0].mean())
            wrong.append(chosen[gains == 0].sum() / max(chosen.sum(), 1))
        shares = " | ".join(f"{100 * np.mean(one):.1f} %" for one in (strict, found, wrong))
        print(f"| {KINDS[kind]} | {settings} × {seeds} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
