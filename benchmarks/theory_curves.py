"""The shape of a token's loss over the steps of training: S-shaped (logistic) or exponential?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gentletune.research.dynamics.callback import EDGES
from gentletune.research.dynamics.result import bin_name
from gentletune.stats import Change, compare, measured
from gentletune.stats.numbers import number, with_interval

Array = NDArray[np.float64]
FALL = 1.0  # nats that a token's loss falls by, at least
CURVE_RATES = (2e-3, 5e-3)


def mean(values: dict[int, float]) -> Change | None:
    """The mean of one number a seed, with its interval over seeds."""
    if not values:
        return None
    return compare(measured(values), measured(dict.fromkeys(values, 0.0)))


def told(change: Change | None) -> str:
    """A mean with its interval, which seeds that agree do not have."""
    if change is None:
        return "–"
    if change.seeds > 1 and (change.stderr or 0.0) < 1e-9:
        return f"{number(change.value)} in each seed"
    return with_interval(change).replace("+", "")


@dataclass(frozen=True)
class Shapes:
    """Two curves fitted to each token's loss (N,): how much less BIC and AIC are with the logistic one, and its t₀."""

    bic: Array
    aic: Array
    middle: Array
    exponential: Array  # (n, N), the fit


def shapes(steps: Array, loss: Array) -> Shapes:
    """c + A/(1 + e^{k(t - t₀)}), 0 ≤ t₀ ≤ the last step, against c + A e^{-kt}, A ≥ 0: `loss` (n, N), nats, at `steps`.

    k and t₀ are taken from fine grids, c and A by least squares.

    >>> t = np.linspace(0, 100, 51)
    >>> curves = np.stack([8 / (1 + np.exp((t - 40) / 5)), 8 * np.exp(-t / 20)], axis=1)
    >>> found = shapes(t, curves + 0.01 * np.sin(t)[:, None])
    >>> (found.bic > 0).tolist(), round(float(found.middle[0]))
    ([True, False], 40)
    """
    n, end = len(steps), steps[-1]
    k = np.geomspace(0.2 / end, 200 / end, 240)[:, None]
    plain = np.exp(-k * steps)
    kl, middles = np.geomspace(2 / end, 200 / end, 48), np.linspace(0, end, 101)
    bent = 1 / (1 + np.exp(np.clip(kl[:, None, None] * (steps - middles[:, None]), -50, 50)))
    one, fit_one, _ = _least(plain, loss)
    two, _, best = _least(bent.reshape(-1, n), loss)
    gain = n * np.log(np.maximum(one, 1e-12) / np.maximum(two, 1e-12))
    return Shapes(gain - np.log(n), gain - 2, middles[best % len(middles)], fit_one)


def _least(curves: Array, loss: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """The least sum of squares of c + A·curve with A ≥ 0 over the curves (K, n), for each token: (N,), fit, place."""
    centred = curves - curves.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(norm, 1e-12)
    rest = loss - loss.mean(0)
    along = np.maximum(unit @ rest, 0)
    best = along.argmax(0)
    size = along[best, np.arange(loss.shape[1])]
    fit = loss.mean(0) + unit[best].T * size
    return ((loss - fit) ** 2).sum(0), fit, best


def shape_frame(files: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """A row a run and bin: tokens that fell, the share that is S-shaped, and how often chance makes it so."""
    lines, rng = [], np.random.default_rng(0)
    for file in files:
        path = folder / f"{file['condition']}-{file['method']}-{file['rate']:g}-seed{file['seed']}.npy"
        if not path.exists():
            continue
        loss = np.load(path).astype(np.float64)
        if not np.isfinite(loss).all():
            continue
        steps = np.linspace(0, 100, len(loss))
        bins = np.digitize(np.exp(-loss[0]), EDGES[1:-1], right=True)
        fell = loss[0] - loss[-3:].mean(0) >= FALL
        for number_ in sorted(set(bins[fell])):
            mine = loss[:, fell & (bins == number_)]
            found = shapes(steps, mine)
            chance = shapes(steps, found.exponential + rng.permuted(mine - found.exponential, axis=0))
            wins = found.bic > 0
            lines.append({
                **{name: file[name] for name in ("condition", "method", "rate", "seed")},
                "bin": bin_name(EDGES[number_], EDGES[number_ + 1]), "tokens": mine.shape[1],
                "bic": wins.sum(), "aic": (found.aic > 0).sum(), "strong": (found.bic > 10).sum(),
                "inside": (wins & (found.middle >= 10) & (found.middle <= 90)).sum(), "chance": (chance.bic > 0).sum(),
                "chance_aic": (chance.aic > 0).sum(),
                "middle": float(np.median(found.middle[wins])) if wins.any() else None,
            })  # fmt: skip
    return pd.DataFrame(lines)


def shape_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Shares over the rates that both methods have, by condition, method and bin."""
    lines = []
    counts = ["tokens", "bic", "aic", "strong", "inside", "chance", "chance_aic"]
    for (name, method, bin_), mine in frame[frame["rate"].isin(CURVE_RATES)].groupby(
        ["condition", "method", "bin"], sort=False
    ):
        seeds = mine.groupby("seed")[counts].sum()

        def share(column: str, less: str = "", seeds: pd.DataFrame = seeds) -> Change | None:
            top = seeds[column] - (seeds[less] if less else 0)
            return mean({int(seed): float(v) for seed, v in (top / seeds["tokens"]).items()})

        more = share("bic", "chance")
        wins = share("bic")
        sure = [_least_likely(c) > least for c, least in ((more, 0.0), (wins, 0.5))]
        lines.append({
            "condition": name, "method": method, "initial p": bin_, "tokens": int(seeds["tokens"].sum()),
            "S by BIC": told(wins), "by chance": told(share("chance")), "S by AIC": told(share("aic")),
            "BIC by over 10": told(share("strong")), "bend in steps 10 to 90": told(share("inside")),
            "appears": "yes" if all(sure) else "no",
        })  # fmt: skip
    return pd.DataFrame(lines)


def _least_likely(change: Change | None) -> float:
    """The low end of a mean's interval; the mean itself where the seeds agree to the last digit."""
    if change is None:
        return -np.inf
    return change.low if change.low is not None else change.value if change.seeds > 1 else -np.inf
