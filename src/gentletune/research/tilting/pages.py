"""What a tilting fit leaves to read: every checkpoint as CSV, tables and their reading as Markdown, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd

from gentletune.core.records import Score, write_bytes_atomic, write_text_atomic
from gentletune.core.render import MISSING, template
from gentletune.data.load import domain_name
from gentletune.research.tilting.plot import tilting_png
from gentletune.research.tilting.study import PLACES, Checkpoint, KindOfData, TiltingStudy
from gentletune.stats import compare, holm, mean_of, measured
from gentletune.stats.numbers import number, rate

CSV_FILE, TABLES_FILE, PLOT_FILE = "tilting.csv", "tilting.md", "tilting.png"
_FIGURES = [field.name for field in fields(Checkpoint)]
_UNITLESS = ("step", "lambda_general", "fit_general", "lambda_domain", "fit_domain", "update_norm")
_ENDS = {
    "gain": "Gain",
    "kl": "KL from base",
    "kl_sampled": "KL, sampled",
    "lambda_general": "λ̂ general",
    "fit_general": "Fit",
    "lambda_domain": "λ̂ domain",
    "fit_domain": "Fit, domain",
    "update_norm": "‖θ-θ⁰‖",
}
_BOUNDS = {"convex_bound": "Convex", "theorem_bound": "Theorem 1a", "hoeffding_bound": "Hoeffding"}


def write_tilting(study: TiltingStudy, output: Path) -> None:
    """Write `tilting.csv`, `tilting.md` and `tilting.png` into `output`, each whole or not at all."""
    write_text_atomic(output / CSV_FILE, csv(study))
    write_bytes_atomic(output / PLOT_FILE, tilting_png(study))
    write_text_atomic(output / TABLES_FILE, page(study))


def checkpoints(study: TiltingStudy) -> pd.DataFrame:
    """A row a checkpoint: data, learning rate, seed, whether the run is the target's own, then a `Checkpoint`."""
    lines = [
        {"data": kind.name, "learning_rate": run.rate, "seed": run.seed, "target": kind.is_target(run), **asdict(point)}
        for kind in study.kinds
        for run in kind.runs
        for point in run.checkpoints
    ]
    frame = pd.DataFrame(lines, columns=["data", "learning_rate", "seed", "target", *_FIGURES])
    return frame.astype(dict.fromkeys(_FIGURES, float) | {"step": int, "target": bool})


def csv(study: TiltingStudy) -> str:
    """One line a checkpoint, with units; what is undefined is empty."""
    units = {name: f"{name}_bits_per_token" for name in _FIGURES if name not in _UNITLESS}
    frame = checkpoints(study).drop(columns="target").rename(columns=units)
    return str(frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def page(study: TiltingStudy) -> str:
    """The reading, then the tables it is taken from."""
    ends = _ends(study)
    bounds = {"kl": "KL from base", "tilted_kl": "Tilt's KL", "quadratic": "Quadratic"}
    bounds |= {name: f"{title} bound" for name, title in _BOUNDS.items()}
    bounds |= {f"{name}_ratio": f"{title} / KL" for name, title in _BOUNDS.items()}
    return str(_template().render(
        study=study, data=domain_name(study.recipe), reading=reading(study), ends=_shown(ends, _ENDS),
        bounds=_shown(ends, bounds), ranges=_ranges(study.kinds), plot=PLOT_FILE,
    ))  # fmt: skip


def reading(study: TiltingStudy) -> str:
    """Paragraphs: for each kind of data its target, how far it is a tilt, the bounds; then the safe ranges compared."""
    frame = checkpoints(study)
    kinds = [_of_kind(kind, frame[frame["data"] == kind.name], study.budget) for kind in study.kinds]
    return str(_template().module.told(study.budget, kinds, _compared(study))).strip()


def _template() -> Any:
    return template("gentletune.research.tilting", "tilting.md.j2", number=number, rate=rate, mean=_mean)


def _ends(study: TiltingStudy) -> pd.DataFrame:
    """A row a run: its last checkpoint, empty where it diverged, with the bounds over the measured KL."""
    lines = [
        {"data": kind.name, "learning_rate": run.rate, "diverged": run.end is None}
        | (asdict(run.end) if run.end else {})
        for kind in study.kinds
        for run in kind.runs
    ]
    frame = pd.DataFrame(lines, columns=["data", "learning_rate", "diverged", *_FIGURES])
    frame = frame.astype(dict.fromkeys(_FIGURES, float))
    positive = frame["kl"].where(frame["kl"] > 0)
    return frame.assign(**{f"{name}_ratio": frame[name] / positive for name in _BOUNDS})


def _shown(ends: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Means over the seeds by data and rate, as text."""
    lines = []
    for (data, learning_rate), runs in ends.groupby(["data", "learning_rate"], sort=False):
        lost = int(runs["diverged"].sum())
        name = rate(learning_rate) + (f" ({lost} of {len(runs)} diverged)" if lost else "")
        means = runs[list(columns)].mean()
        lines.append({"Data": data, "Learning rate": name} | {columns[k]: _cell(means[k]) for k in columns})
    return pd.DataFrame(lines)


def _cell(value: float) -> str:
    return MISSING if pd.isna(value) else number(value)


def _ranges(kinds: Sequence[KindOfData]) -> pd.DataFrame:
    """The safe ranges by seed and their mean, as text; `>` where KL never met the budget."""
    lines = []
    for kind in kinds:
        numbers: dict[str, dict[int, float]] = {
            place: {} for place in (*PLACES, "gain at that rate", "best gain within")
        }
        for seed, edges in kind.ranges.items():
            within = [p.gain for run in kind.runs if run.seed == seed for p in run.checkpoints if p.kl <= kind.budget]
            reached = (*(edges[place].at for place in PLACES), edges[PLACES[-1]].gain, max(within, default=0.0))
            for name, value in zip(numbers, reached, strict=True):
                numbers[name][seed] = value
            opened = {name for name, edge in edges.items() if edge.open}
            cells = {name: ("> " if name in opened else "") + _spell(name, numbers[name][seed]) for name in numbers}
            lines.append({"Data": kind.name, "Seed": str(seed)} | cells)
        if len(kind.ranges) > 1:
            means = {name: mean_of(measured(found)) for name, found in numbers.items()}
            cells = {name: f"{_spell(name, m.value)} ± {_spell(name, m.stderr)}" for name, m in means.items()}
            lines.append({"Data": kind.name, "Seed": "mean ± s.e."} | cells)
    return pd.DataFrame(lines)


def _spell(name: str, value: float | None) -> str:
    return rate(value) if name == PLACES[-1] and value is not None else number(value)


def _of_kind(kind: KindOfData, frame: pd.DataFrame, budget: float) -> dict[str, Any]:
    """What the template says of a kind of data; of checkpoints that are not on the target's own way but the last."""
    others = frame[~frame["target"]]
    again = next((run.end for run in kind.runs if kind.is_target(run)), None)
    away = others[(others["kl"] > 0) & (others["lambda_general"] > 0)]
    convex = away[away["convex_bound"].notna()]
    theorem, tilted = convex[convex["theorem_bound"].notna()], away[away["tilted_kl"] > 0]
    return {
        "kind": kind,
        "target": kind.target,
        "again": again and again.lambda_general,
        "fit": _spread(others["fit_general"]),
        "fit_domain": _spread(others["fit_domain"]),
        "gap": _spread(others["lambda_general"] - others["lambda_domain"]),
        "gaps_below": int((others["lambda_general"] < others["lambda_domain"]).sum()),
        "convex": _spread(convex["convex_bound"] / convex["kl"]),
        "convex_above": int((convex["convex_bound"] >= convex["kl"]).sum()),
        "tilted": _spread(away["tilted_kl"] / away["kl"]),
        "hoeffding": _spread(away["hoeffding_bound"] / away["kl"]),
        "hoeffding_beyond": int((convex["hoeffding_bound"] > convex["convex_bound"]).sum()),
        "theorem": _spread(theorem["theorem_bound"] / theorem["kl"]),
        "theorem_below": int((theorem["theorem_bound"] < theorem["convex_bound"]).sum()),
        "quadratic": _spread(tilted["quadratic"] / tilted["tilted_kl"]),
        "limit": budget / kind.target.divergence if kind.target.divergence > budget else None,
    }


def _spread(values: pd.Series) -> dict[str, float] | None:
    """Median, least, greatest and number of what is known; None where nothing is."""
    known = values.dropna()
    if known.empty:
        return None
    return {"median": known.median(), "least": known.min(), "most": known.max(), "count": len(known)}


def _compared(study: TiltingStudy) -> dict[str, Any] | None:
    """The safe ranges of both kinds of data beside each other; None where there is one kind."""
    if len(study.kinds) < 2:
        return None
    cot, label = (next(kind for kind in study.kinds if kind.cot is wanted) for wanted in (True, False))
    hard = compare(_hard_share(label), _hard_share(cot))
    foretold = None if not hard.significant else label.name if hard.value < 0 else cot.name
    # One family of three: the ranges are read off the same runs.
    changes = holm([compare(label.reach(place), cot.reach(place)) for place in PLACES])
    lines = [
        {
            "name": place,
            "change": change,
            "means": {kind.name: mean_of(kind.reach(place)) for kind in (cot, label)},
            "open": {kind.name: sum(edges[place].open for edges in kind.ranges.values()) for kind in (cot, label)},
            "wider": label.name if change is not None and change.value > 0 else cot.name,
            "narrower": cot.name if change is not None and change.value > 0 else label.name,
        }
        for place, change in zip(PLACES, changes, strict=True)
    ]
    return {"kinds": (cot, label), "foretold": foretold, "lines": lines}


def _hard_share(kind: KindOfData) -> Score:
    """The share of hard tokens; tokens are taken as independent."""
    value, count = kind.target.hard_share, kind.target.labels
    known: dict[str, Any] = {"task": "hard", "side": "domain", "metric": "share", "higher_is_better": False}
    return Score(value=value, stderr=sqrt(value * (1 - value) / count), n=count, **known)


def _mean(found: Any) -> str:
    return number(found.value) + ("" if found.stderr is None else f" ± {number(found.stderr)}")
