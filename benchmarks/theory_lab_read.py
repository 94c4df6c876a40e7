"""What `theory_lab.py` found: tables, a CSV of checkpoints, one of token curves, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from theory_curves import CURVE_RATES, mean, shape_frame, shape_table, told

from gentletune.core.records import write_bytes_atomic, write_text_atomic
from gentletune.research.dynamics.callback import EDGES
from gentletune.research.dynamics.result import bin_name
from gentletune.research.plot import INK, MARKERS, canvas, dress, png
from gentletune.research.tilting.study import safe_edge
from gentletune.stats import Run, compare, holm, measured
from gentletune.stats.numbers import number, rate, with_interval

Array = NDArray[np.float64]
BUDGET = 0.05
PAIRS = (("heart", "given"), ("given", "noise"), ("few", "label"), ("easy", "drawn"))  # fewer hard tokens first
BOUNDS = {
    "Theorem 1a, λ̂ of general positions": ("rise", "bound_general", "lambda_general"),
    "Theorem 1a, λ̂ of domain positions": ("rise", "bound_domain", "lambda_domain"),
    "convex, λ̂ of general positions": ("rise", "convex_general", "lambda_general"),
    "convex, λ̂ of domain positions": ("rise", "convex_domain", "lambda_domain"),
    "exchange rate, λ̂ of general positions": ("rise", "price_general", "lambda_general"),
    "exchange rate, λ̂ of domain positions": ("rise", "price_domain", "lambda_domain"),
}


def by_seed(frame: pd.DataFrame, read: Callable[[pd.DataFrame], float]) -> dict[int, float]:
    return {int(seed): read(mine) for seed, mine in frame.groupby("seed")}


# ------------------------------------------------------------------------------------------ checkpoints


def checkpoints(files: Sequence[dict[str, Any]], targets: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row a checkpoint of SFT, with the other bounds at it."""
    lines = [
        {name: file[name] for name in ("condition", "rate", "seed")} | point
        for file in files
        for point in file["points"]
    ]
    frame = pd.DataFrame(lines)
    goal = pd.DataFrame(targets).T[["a", "b", "rise", "gain"]].astype(float)
    goal = goal.reindex(frame["condition"]).reset_index(drop=True)
    for place in ("general", "domain"):
        lam = frame[f"lambda_{place}"]
        frame[f"convex_{place}"] = (lam * goal["rise"]).where(lam <= 1)
        price = (goal["a"] + goal["b"] * lam).clip(lower=0) / goal["gain"]
        held = (lam <= 1) & (frame["gain"] > 0) & (goal["gain"] > 0)
        frame[f"price_{place}"] = (price * frame["gain"]).where(held)
    return frame.astype({name: float for name in frame.columns if name not in ("condition", "seed", "step")})


def bound_table(frame: pd.DataFrame) -> pd.DataFrame:
    """How often each bound lies above the measured rise."""
    lines = []
    for title, (rise, bound, lam) in BOUNDS.items():
        for name, mine in frame.groupby("condition", sort=False):
            counted = mine[(mine[lam] > 0) & (mine[lam] <= 1) & mine[bound].notna()]
            above = counted[rise] <= counted[bound]
            clear = counted[rise] - counted[bound] > 2 * counted["rise_stderr"]
            ratio = (counted[rise] / counted[bound]).replace([np.inf, -np.inf], np.nan)
            share = mean(by_seed(counted.assign(above=above), lambda rows: float(rows["above"].mean())))
            verdict = "holds" if not clear.any() else "mostly" if above.mean() >= 0.9 else "does not hold"
            lines.append({
                "bound": title, "condition": name, "checkpoints": len(counted), "share below the bound": told(share),
                "clearly above": int(clear.sum()), "rise / bound, median": number(float(ratio.median())),
                "largest": number(float(ratio.max())), "verdict": verdict if len(counted) else "–",
            })  # fmt: skip
    return pd.DataFrame(lines)


def fit_table(frame: pd.DataFrame) -> pd.DataFrame:
    """How far the models are tilts."""
    lines = []
    for name, mine in frame.groupby("condition", sort=False):
        line: dict[str, Any] = {"condition": name}
        for place in ("general", "domain"):
            quantiles = mine[f"fit_{place}"].quantile([0.5, 0.05, 0.95])
            line[f"way explained, {place}"] = "{:.0%} ({:.0%} to {:.0%})".format(*quantiles)
            line[f"λ̂ at the end, {place}"] = ", ".join(
                number(float(v))
                for v in mine[mine["step"] == mine["step"].max()].groupby("rate")[f"lambda_{place}"].mean()
            )
        lines.append(line)
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------------------ a fixed gain


def at_gain(frame: pd.DataFrame, gain: float) -> dict[tuple[float, int], float]:
    """The rise where each run first reaches a gain, by rate and seed; runs that do not are left out."""
    found = {}
    for (lr, seed), run in frame.groupby(["rate", "seed"]):
        edge = safe_edge(zip(run["step"], run["gain"], run["rise"], strict=True), gain)
        if not edge.open:
            found[float(lr), int(seed)] = edge.gain
    return found


def gain_table(frame: pd.DataFrame, targets: dict[str, dict[str, Any]], share: float = 0.5) -> pd.DataFrame:
    """The rise at a share of the target's gain, by rate, and the largest rate against the smallest."""
    lines, changes = [], []
    for name, mine in frame.groupby("condition", sort=False):
        gain, seeds = share * targets[name]["gain"], set(mine["seed"])
        found = at_gain(mine, gain) if gain > 0 else {}
        rates = [lr for lr in sorted(set(mine["rate"])) if all((lr, seed) in found for seed in seeds)]
        values = {lr: {int(seed): found[lr, seed] for seed in seeds} for lr in rates}
        told_rates = {rate(lr): told(mean(values[lr])) if lr in values else "–" for lr in sorted(set(mine["rate"]))}
        lines.append({"condition": name, "at a gain of": number(gain)} | told_rates)
        apart = len(rates) > 1
        changes.append(compare(measured(values[rates[-1]]), measured(values[rates[0]])) if apart else None)
    for line, change in zip(lines, holm(changes), strict=True):
        line["largest - smallest"] = "–" if change is None else with_interval(change)
        line["significant"] = "–" if change is None else "yes" if change.significant else "no"
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------------------ safe ranges


def ranges(frame: pd.DataFrame) -> dict[str, dict[str, dict[int, tuple[float, str]]]]:
    """Where the rise first exceeds the budget, by condition, place and seed.

    It is marked > where it never does, and ~ where the first point does: then it lies on the line from the base model.
    """
    found: dict[str, dict[str, dict[int, tuple[float, str]]]] = {}
    for (name, seed), mine in frame.groupby(["condition", "seed"], sort=False):
        ends = mine[mine["step"] == mine.groupby("rate")["step"].transform("max")]
        ways = {"rate": (ends, "rate"), "λ̂ general": (mine, "lambda_general"), "λ̂ domain": (mine, "lambda_domain")}
        for place, (rows, column) in ways.items():
            edge = safe_edge(zip(rows[column], rows["rise"], rows["gain"], strict=True), BUDGET)
            mark = "> " if edge.open else "~ " if edge.at < rows.loc[rows[column] > 0, column].min() else ""
            found.setdefault(str(name), {}).setdefault(place, {})[int(seed)] = (edge.at, mark)
    return found


def range_tables(frame: pd.DataFrame, targets: dict[str, dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ranges of each condition, and the pairs with fewer and more hard tokens."""
    found = ranges(frame)
    lines = []
    for name, places in found.items():
        line = {"condition": name, "hard": f"{targets[name]['hard_share']:.0%}"}
        for place, seeds in places.items():
            line[place] = max(mark for _, mark in seeds.values()) + told(
                mean({seed: at for seed, (at, _) in seeds.items()})
            )
        line["λ, the tilt's own"] = number(targets[name]["safe_tilt"])
        line["λ, guaranteed"] = number(targets[name]["safe_guaranteed"])
        lines.append(line)
    pairs = []
    for place in ("rate", "λ̂ general", "λ̂ domain"):

        def reach(name: str, place: str = place) -> list[Run]:
            return measured({seed: at for seed, (at, _) in found[name][place].items()})

        both = [pair for pair in PAIRS if all(name in found for name in pair)]
        for (few, many), change in zip(both, holm([compare(reach(a), reach(b)) for a, b in both]), strict=True):
            assert change is not None
            verdict = "not told apart" if not change.significant else "wider" if change.value > 0 else "narrower"
            pairs.append({"place": place, "fewer hard": few, "more hard": many, "difference": with_interval(change),
                          "fewer hard tokens": verdict})  # fmt: skip
        if {"few", "heart"} <= set(found):
            change = compare(reach("few"), reach("heart"))
            pairs.append({"place": place, "fewer hard": "few", "more hard": "heart (ten times the labels)",
                          "difference": with_interval(change), "fewer hard tokens": "–"})  # fmt: skip
    return pd.DataFrame(lines), pd.DataFrame(pairs)


def rise_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The rise at the end of each rate: that with more hard tokens over that with fewer, which needs no line drawn."""
    ends = frame[frame["step"] == frame["step"].max()].set_index(["condition", "rate", "seed"])["rise"]
    lines = []
    for few, many in (*PAIRS, ("heart", "few")):
        if not {few, many} <= set(frame["condition"]):
            continue
        line = {
            "fewer hard": few,
            "more hard": f"{many} (equally hard, a tenth of the labels)" if many == "few" else many,
        }
        for lr in sorted(set(frame["rate"])):
            logs = [{int(k): float(np.log(v)) for k, v in ends[name, lr].items() if v > 0} for name in (many, few)]
            change = (
                compare(measured(logs[0]), measured(logs[1])) if logs[0].keys() == logs[1].keys() != set() else None
            )
            line[rate(lr)] = "–" if change is None or change.low is None or change.high is None else (
                "{:.2f} [{:.2f}, {:.2f}]".format(*np.exp([change.value, change.low, change.high]))
            )  # fmt: skip
        lines.append(line)
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------------------ what is written


def target_table(targets: dict[str, dict[str, Any]]) -> pd.DataFrame:
    lines = []
    for name, t in targets.items():
        mixed = ["{2:.2f} ({0:.2f} to {4:.2f})".format(*t["least_mixture"][side]) for side in ("general", "domain")]
        lines.append({
            "condition": name, "labels a row": f"{t['labels_per_row']:.1f}", "hard": f"{t['hard_share']:.0%}",
            "target's rate": rate(t["rate"]), "G(1)": number(t["gain"]), "R(1)": number(t["rise"]), "a": number(t["a"]),
            "b": number(t["b"]), "Pinsker's a": number(t["pinsker"]),
            "idle from λ": number((t["rise"] - t["a"]) / t["b"]),
            "least m, general": mixed[0], "least m, domain": mixed[1],
        })  # fmt: skip
    return pd.DataFrame(lines)


def show(files: Sequence[dict[str, Any]], targets: dict[str, dict[str, Any]], work: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    order = list(targets)
    files = sorted(files, key=lambda f: (order.index(f["condition"]), f["method"], f["rate"], f["seed"]))
    frame, curves = checkpoints(files, targets), shape_frame(files, work)
    reached, pairs = range_tables(frame, targets)
    shaped = shape_table(curves)
    parts = {
        "Targets": target_table(targets), "How far a tilt": fit_table(frame), "Bounds": bound_table(frame),
        "Rise at a fixed gain": gain_table(frame, targets), "Safe ranges": reached, "Safe ranges compared": pairs,
        "Shape of token losses": shaped, "Added after the plan: the rise at nine tenths of the target's gain":
        gain_table(frame, targets, 0.9), "Added after the plan: the rise at the end of a run, how many times as large":
        rise_table(frame),
    }  # fmt: skip
    text = "\n\n".join(f"## {title}\n\n{_markdown(part)}" for title, part in parts.items())
    first, seconds = next(iter(targets.values())), sum(file["seconds"] for file in files)
    head = f"# Theory on the lab: tables\n\nMade by `benchmarks/theory_lab.py show` from {len(files)} runs "
    head += f"({seconds / 60:.0f} minutes). {first['date']}, {first['machine']['cpu']}, one thread, torch "
    head += f"{first['versions']['torch']}. "
    head += "Bits per token; intervals are of 95 %, over seeds. [Reading](../theory.md)."
    write_text_atomic(output / "tables.md", f"{head}\n\n{text}\n")
    write_text_atomic(output / "checkpoints.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text_atomic(output / "curves.csv", curves.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_bytes_atomic(output / "theory.png", picture(frame, targets, curves))
    print(text)


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def picture(frame: pd.DataFrame, targets: dict[str, dict[str, Any]], curves: pd.DataFrame) -> bytes:
    """PNG bytes: rise over bound, rise against gain, safe rates, S-shaped shares."""
    figure = canvas(13.0, 9.6)
    (bounds, gains), (safe, shaped) = figure.subplots(2, 2)
    _bounds(bounds, frame, list(targets))
    _gains(gains, frame, "given" if "given" in targets else next(iter(targets)), targets)
    _safe(safe, frame, targets)
    _shapes(shaped, curves)
    return png(figure)


def _bounds(axes: Axes, frame: pd.DataFrame, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        mine = frame[(frame["condition"] == name) & frame["lambda_general"].between(1e-9, 1)]
        ratio = (mine["rise"] / mine["bound_general"]).clip(lower=1e-3)
        axes.plot(mine["lambda_general"], ratio, MARKERS[place], color=f"C{place}", ms=3.5, label=name)
    axes.axhline(1, color=INK, lw=1)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8.5, ncols=2)
    title = "Theorem 1a: rise over bound (above 1: exceeded)"
    dress(axes, title=title, x="effective λ, general positions", y="rise / (aλ̂ + bλ̂²)")


def _gains(axes: Axes, frame: pd.DataFrame, name: str, targets: dict[str, dict[str, Any]]) -> None:
    for place, (lr, runs) in enumerate(frame[frame["condition"] == name].groupby("rate")):
        how: dict[str, Any] = {"marker": MARKERS[place], "ms": 3.5, "lw": 0.9, "color": f"C{place}"}
        for number_, (_, run) in enumerate(runs.groupby("seed")):
            label = None if number_ else rate(float(lr))
            axes.plot([0, *run["gain"]], [0, *run["rise"]], label=label, **how)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.axvline(targets[name]["gain"] / 2, color=INK, lw=0.8, ls=":")
    axes.legend(title="learning rate", frameon=False, fontsize=8.5)
    x, y = "domain gain (bits per token)", "general rise (bits per token)"
    dress(axes, title=f"{name}: general rise against domain gain", x=x, y=y)


def _safe(axes: Axes, frame: pd.DataFrame, targets: dict[str, dict[str, Any]]) -> None:
    for place, (_, places) in enumerate(ranges(frame).items()):
        change = mean({seed: at for seed, (at, _) in places["rate"].items()})
        assert change is not None
        axes.plot(change.value, place, "o", color=f"C{place}")
        if change.low is not None and change.high is not None:
            axes.plot([change.low, change.high], [place] * 2, color=f"C{place}", lw=1.5)
    axes.set_yticks(range(len(targets)), [f"{name} ({t['hard_share']:.0%} hard)" for name, t in targets.items()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    dress(axes, title=f"Largest rate with a rise of at most {BUDGET:g} bits", x="learning rate")


def _shapes(axes: Axes, curves: pd.DataFrame) -> None:
    part = curves[curves["rate"].isin(CURVE_RATES) & (curves["condition"] != "noise")]
    names = [bin_name(low, high) for low, high in pairwise(EDGES)]
    bins = [name for name in names if name in set(part["bin"])]
    for method, mark in (("sft", "o"), ("talr", "s")):
        sums = part[part["method"] == method].groupby("bin")[["tokens", "bic", "chance"]].sum().reindex(bins)
        places = range(len(bins))
        axes.plot(sums["bic"] / sums["tokens"], places, mark, label=f"{method}: logistic wins")
        axes.plot(sums["chance"] / sums["tokens"], places, mark, mfc="none", color=INK, label=f"{method}: by chance")
    axes.set_yticks(range(len(bins)), bins)
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, fontsize=8.5)
    x = "share of the tokens that fell by 1 nat or more"
    dress(axes, title="S-shaped token losses, by initial probability", x=x)
