"""What a tilting fit leaves to read: every checkpoint as CSV, tables and their reading as Markdown, a figure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from statistics import fmean

from gentletune.core.records import write_bytes_atomic, write_text_atomic
from gentletune.data.load import domain_name
from gentletune.research.tilting.plot import tilting_png
from gentletune.research.tilting.reading import figure, rate_name, reading
from gentletune.research.tilting.run import KindOfData, TiltingStudy
from gentletune.research.tilting.safe_range import Checkpoint, Edge, SafeRange
from gentletune.stats import mean_of, measured

CSV_FILE, TABLES_FILE, PLOT_FILE = "tilting.csv", "tilting.md", "tilting.png"
_UNITS = {
    "gain": "gain_bits_per_token",
    "drift": "drift_bits_per_token",
    "drift_sampled": "drift_sampled_bits_per_token",
    "tilted_drift": "tilted_drift_bits_per_token",
    "convex_bound": "convex_bound_bits_per_token",
    "hoeffding_bound": "hoeffding_bound_bits_per_token",
    "theorem_bound": "theorem_bound_bits_per_token",
    "quadratic": "quadratic_bits_per_token",
}


def write_tilting(study: TiltingStudy, output: Path) -> None:
    """Write `tilting.csv`, `tilting.md` and `tilting.png` into `output`, each whole or not at all."""
    write_text_atomic(output / CSV_FILE, tilting_csv(study))
    write_bytes_atomic(output / PLOT_FILE, tilting_png(study))
    write_text_atomic(output / TABLES_FILE, tilting_markdown(study))


def tilting_csv(study: TiltingStudy) -> str:
    """One line a checkpoint; what is undefined is empty."""
    text = StringIO()
    names = [field.name for field in fields(Checkpoint)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "learning_rate", "seed", *(_UNITS.get(name, name) for name in names)])
    for kind in study.kinds:
        for run in kind.runs:
            for point in run.checkpoints:
                values = asdict(point)
                cells = ["" if values[name] is None else f"{values[name]:.9g}" for name in names]
                writer.writerow([kind.name, f"{run.rate:g}", run.seed, *cells])
    return text.getvalue()


def tilting_markdown(study: TiltingStudy) -> str:
    """The reading, then the tables it is taken from. All figures are bits per token, λ apart."""
    recipe = study.recipe
    data = domain_name(recipe)
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    parts = [
        f"# Fine-tuning as tilting: {recipe.method} on {data}, {recipe.model}",
        *reading(study),
        f"## Where the runs end\n\nMeans over {seeds}. Drift is KL(q‖q_k) on the initial model's own answers, over the "
        "whole vocabulary and, sampled, from the tokens that stand there.",
        _ends(study.kinds),
        "## The bounds at λ̂\n\nAt the ends of the runs, means over seeds. The bounds are on the tilt's drift, not on "
        "the model's; the quadratic is an approximation and bounds nothing.",
        _bounds(study.kinds),
        f"## The safe range\n\nWhere drift meets {study.budget:g} bits per token: > where it never did, up to what was "
        "measured.",
        _ranges(study.kinds),
        f"![Drift against gain, and drift against λ̂ with its bounds]({PLOT_FILE})",
    ]
    return "\n\n".join(parts) + "\n"


def _ends(kinds: Sequence[KindOfData]) -> str:
    columns: dict[str, Callable[[Checkpoint], float | None]] = {
        "Gain": lambda p: p.gain,
        "Drift": lambda p: p.drift,
        "Drift, sampled": lambda p: p.drift_sampled,
        "λ̂ general": lambda p: p.lambda_general,
        "Fit": lambda p: p.fit_general,
        "λ̂ domain": lambda p: p.lambda_domain,
        "Fit, domain": lambda p: p.fit_domain,
        "‖θ-θ⁰‖": lambda p: p.update_norm,
    }
    return _by_rate(kinds, columns)


def _bounds(kinds: Sequence[KindOfData]) -> str:
    columns: dict[str, Callable[[Checkpoint], float | None]] = {
        "Drift": lambda p: p.drift,
        "Tilt's drift": lambda p: p.tilted_drift,
        "Quadratic": lambda p: p.quadratic,
        "Convex bound": lambda p: p.convex_bound,
        "Theorem 1a": lambda p: p.theorem_bound,
        "Hoeffding bound": lambda p: p.hoeffding_bound,
        "Convex / drift": lambda p: _ratio(p.convex_bound, p.drift),
        "Theorem 1a / drift": lambda p: _ratio(p.theorem_bound, p.drift),
        "Hoeffding / drift": lambda p: _ratio(p.hoeffding_bound, p.drift),
    }
    return _by_rate(kinds, columns)


def _by_rate(kinds: Sequence[KindOfData], columns: dict[str, Callable[[Checkpoint], float | None]]) -> str:
    rows = []
    for kind in kinds:
        for rate in sorted({run.rate for run in kind.runs}):
            runs = [run for run in kind.runs if run.rate == rate]
            ends = [run.end for run in runs if run.end is not None]
            lost = len(runs) - len(ends)
            name = rate_name(rate) + (f" ({lost} of {len(runs)} diverged)" if lost else "")
            rows.append([kind.name, name, *(_mean([read(end) for end in ends]) for read in columns.values())])
    return _table(["Data", "Learning rate", *columns], rows)


def _ranges(kinds: Sequence[KindOfData]) -> str:
    header = ["Data", "Seed", "λ̂ general", "λ̂ domain", "Learning rate", "Gain at that rate", "Best gain within"]
    rows = []
    for kind in kinds:
        for found in kind.ranges:
            edges = [_edge(found.lambda_general), _edge(found.lambda_domain), _edge(found.rate, rate_name)]
            rows.append([kind.name, str(found.seed), *edges, figure(found.rate.gain), figure(found.best_gain)])
        if len(kind.ranges) > 1:
            rows.append([kind.name, "mean ± s.e.", *_means(kind.ranges)])
    return _table(header, rows)


def _means(ranges: Sequence[SafeRange]) -> list[str]:
    rows = [(r.lambda_general.at, r.lambda_domain.at, r.rate.at, r.rate.gain, r.best_gain) for r in ranges]
    spell = (figure, figure, rate_name, figure, figure)
    cells = []
    for values, spelled in zip(zip(*rows, strict=True), spell, strict=True):
        found = mean_of(measured(dict(enumerate(values))))
        cells.append(f"{spelled(found.value)} ± {'–' if found.stderr is None else spelled(found.stderr)}")
    return cells


def _edge(edge: Edge, spell: Callable[[float], str] = figure) -> str:
    return f"{'> ' if edge.open else ''}{spell(edge.at)}"


def _ratio(value: float | None, over: float) -> float | None:
    return None if value is None or over <= 0 else value / over


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return figure(fmean(known)) if known else "–"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
