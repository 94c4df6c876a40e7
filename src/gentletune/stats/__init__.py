"""Scores with honest errors, groups of runs, and the one comparison between them."""

from __future__ import annotations

from gentletune.stats.change import LEVEL, Change, Mean, SeedEffect, average, compare, mean_of
from gentletune.stats.family import Family, adjusted, benjamini_hochberg, holm, seed_pool
from gentletune.stats.pool import Pool
from gentletune.stats.runs import Run, measured
from gentletune.stats.scores import (
    accuracy_score,
    balanced_accuracy_score,
    breakdown,
    guessing,
    headroom,
    mean_over_tasks,
    mean_score,
    ratio_score,
    zero_of,
)

__all__ = [
    "LEVEL",
    "Change",
    "Family",
    "Mean",
    "Pool",
    "Run",
    "SeedEffect",
    "accuracy_score",
    "adjusted",
    "average",
    "balanced_accuracy_score",
    "benjamini_hochberg",
    "breakdown",
    "compare",
    "guessing",
    "headroom",
    "holm",
    "mean_of",
    "mean_over_tasks",
    "mean_score",
    "measured",
    "ratio_score",
    "seed_pool",
    "zero_of",
]
