"""Several comparisons at once: two corrections for their number, and the variance between seeds that settings share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gentletune.stats.change import Change
from gentletune.stats.evidence import find
from gentletune.stats.pool import Pool, pool_of
from gentletune.stats.runs import Run, design

Family = Callable[[Sequence[Change | None]], list[Change | None]]


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values as Holm (1979) adjusts them: the chance that any true null among them is rejected is at most that.

    >>> [round(p, 3) for p in adjusted([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        found[i] = largest
    return found


def holm(changes: Sequence[Change | None]) -> list[Change | None]:
    """The changes of one family, each with its `p_family`; those without a p-value are not counted.

    Decisions (`Change.significant`) then hold together: the chance of any false one is at most 5 %, whatever the
    comparisons have in common. The intervals stay each by itself: one may leave out 0 where the family does not.
    Intervals that hold together are those at level 1 - 0.05/m for m comparisons (Bonferroni); they leave out 0 only
    where Holm rejects.
    """
    return _family(changes, adjusted)


def benjamini_hochberg(changes: Sequence[Change | None]) -> list[Change | None]:
    """The changes of one family that are screened, as `holm` gives them: of those found at most 5 % are false.

    For a question such as which of many settings learnt anything (Benjamini and Hochberg 1995). Where none did, the
    chance of any finding is at most 5 %, as with Holm; where many did, each need not stand up as if it were alone. The
    share is a mean over studies, and holds for comparisons that are independent or rise together, as those with one
    base model do.
    """
    from scipy.stats import false_discovery_control  # half a second to import, which training need not wait for

    return _family(changes, lambda ps: false_discovery_control(np.clip(ps, 0.0, 1.0)).tolist())


def _family(
    changes: Sequence[Change | None], adjust: Callable[[Sequence[float]], Sequence[float]]
) -> list[Change | None]:
    ps = [change.p_cautious for change in changes if change is not None and change.p_cautious is not None]
    known = [i for i, change in enumerate(changes) if change is not None and change.p_cautious is not None]
    found = list(changes)
    for i, p in zip(known, adjust(ps), strict=True):
        change = changes[i]
        if change is not None:
            found[i] = replace(change, p_family=p, family=len(known))
    return found


def seed_pool(groups: Sequence[Sequence[Run]]) -> Pool | None:
    """The variance between seeds of a study's settings, each a group of runs; None where there is nothing to borrow.

    Settings are alike in what they are measured on, and trained from the same seeds as far as they share them.
    """
    means, noise = [], []
    for group in groups:
        if len(group) > 1:
            means.append({run.seed: run.value for run in group if run.seed is not None})
            noise.append(find(design(group, ())).noise[0] * len(group))
    return pool_of(means, noise)
