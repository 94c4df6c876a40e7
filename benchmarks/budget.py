"""Is a budget of KL from base kept, and what does the domain gain at that budget?

    python benchmarks/budget.py run [--part smollm] [--only WORD] [--json PATH] [--minutes 14]
    python benchmarks/budget.py show benchmarks/results/budget.json [MORE.json ...]

Each part is a study of plain SFT at five fixed rates and of the ways to keep a budget, each started at several rates:

    auto     wise_ft(alpha=auto): the largest share of plain SFT's update
    region   trust_region: the learning rate goes by the budget, and the largest share of the update is kept

It is over seeds, and on the lab over domains with none, half and all of the formulas to be learned by heart. KL is
measured after the run on prompts that steer nothing: as `kl_sampled` has it, and once more summed over the base model's
most probable tokens, as it is steered by, whose error is smaller (`kl`). The JSON has a row a run. A killed call goes
on where it was; with --minutes it ends by itself after a run. Calls with --only work beside each other, each with a
JSON of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness

from gentletune import Recipe, RunRecord, train
from gentletune.core.records import Score
from gentletune.evaluation.measure import reference_answers
from gentletune.evaluation.steering import Steering, steering_of
from gentletune.lm.loaded import Loaded
from gentletune.stats import Run, accuracy_score, compare, measured, zero_of

BUDGET = {"lab": 0.05, "smollm": 0.05}
BASE: dict[str, dict[str, Any]] = {
    "lab": {
        "model": "lab", "train_rows": 800, "max_steps": 150, "batch_size": 16, "precision": "fp32", "test_rows": 300,
        "domain_tokens": 48, "tasks": (), "general_prompts": 450, "general_tokens": 48, "probe_every": 0,
        "log_every": 50, "save_every": 1000,
    },
    "smollm": {
        "model": "smollm2-135m", "max_steps": 20, "batch_size": 8, "train_rows": 160, "precision": "fp32",
        "test_rows": 64, "cot": False, "domain_tokens": 6, "tasks": ("general",), "limit": 100, "general_prompts": 200,
        "general_tokens": 32, "eval_batch_tokens": 4096, "probe_every": 0, "log_every": 50, "save_every": 1000,
    },
}  # fmt: skip
DOMAINS = {"lab": ("lab(hard=0)", "lab", "lab(hard=1)"), "smollm": ("helpdesk",)}
GRID = {"lab": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "smollm": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)}
STARTS = {"lab": (1e-3, 2e-3, 4e-3, 8e-3), "smollm": (3e-5, 1e-4, 3e-4)}
SEEDS = {"lab": (0, 1, 2, 3), "smollm": (0, 1)}
WAYS = ("auto", "region")


def plan(part: str) -> list[dict[str, Any]]:
    """What is run, a dictionary a run: those that take another's training come after it."""
    found: list[dict[str, Any]] = []
    for seed in SEEDS[part]:
        for data in DOMAINS[part]:
            one = {"part": part, "data": data, "seed": seed}
            found += [one | {"rate": rate, "way": "fixed"} for rate in GRID[part]]
            kept = one | {"budget": BUDGET[part]}
            found += [kept | {"rate": rate, "way": way} for way in WAYS for rate in STARTS[part]]
    return found


def keys(row: dict[str, Any]) -> dict[str, Any]:
    """The recipe keys that a run differs in."""
    budget = row.get("budget")
    auto, region = f"wise_ft(alpha=auto, budget={budget})", f"trust_region(budget={budget})"
    made: dict[str, dict[str, Any]] = {
        "fixed": {"method": "sft"},
        "auto": {"method": auto},
        "region": {"method": region},
    }
    return {"data": row["data"], "seed": row["seed"], "learning_rate": row["rate"], **made[row["way"]]}


def name(row: dict[str, Any], way: str | None = None) -> str:
    data = "".join(c if c.isalnum() else "_" for c in row["data"])
    return f"{row['part']}-{data}-s{row['seed']}-lr{row['rate']:g}-{way or row['way']}"


def run(row: dict[str, Any], runs: Path) -> dict[str, Any]:
    """One run, measured: the row with what came of it."""
    recipe = Recipe(**BASE[row["part"]]).override({**keys(row), "output": str(runs / name(row))})
    begun = time.perf_counter()
    record = train(recipe, reuse=runs / name(row, "fixed") if row["way"] == "auto" else None)
    found = dict(row) | {"status": record.status, "seconds": time.perf_counter() - begun, "training": record.training}
    if record.status != "complete":
        return found | {"error": record.error}
    right = next(s for s in record.scores if s.side == "domain" and s.metric == "accuracy")
    return found | {
        "timings": record.timings,
        "base": next(s.value for s in record.base_scores if s.side == "domain" and s.metric == "accuracy"),
        "domain": dump(right) | {"items": [int(item) for item in right.items]},
        "domain_bits": dump(next(s for s in record.scores if s.side == "domain" and s.metric == "bits_per_token")),
        "general": {s.task: s.value for s in record.scores if s.side == "general" and s.metric == "accuracy"},
        "general_base": {s.task: s.value for s in record.base_scores if s.side == "general" and s.metric == "accuracy"},
        "kl_sampled": dump(record.score("kl_sampled/bits_per_token")),
        "kl": dump(kl(record, runs / name(row))),
    }


def kl(record: RunRecord, folder: Path) -> Score:
    """KL from base of a finished run on the prompts that measure, as a run is steered by it."""
    recipe = Recipe.parse(record.recipe)
    base = Loaded.of(recipe)
    rows, how = reference_answers(base, recipe).sampled.rows, {"pad_id": base.tokenizer.pad_token_id}
    if base.hash not in _KNOWN:
        _KNOWN[base.hash] = steering_of(base.model, rows, **how)
        base.forget()
    return _KNOWN[base.hash].kl(base.with_model(directory=folder / "model").load().model, **how)


_KNOWN: dict[str, Steering] = {}


def dump(score: Score | None) -> dict[str, Any]:
    assert score is not None
    change = compare(score, zero_of(score))
    return score.model_dump(exclude={"details", "skills", "items"}) | {"low": change.low, "high": change.high}


def load(value: dict[str, Any]) -> Score:
    return Score.model_validate({k: v for k, v in value.items() if k not in ("low", "high")})


# --- tables


def within(rows: list[dict[str, Any]], key: str) -> str:
    """How many runs end within the budget, with the share's 95 % interval, which one run has not."""
    kept = [row[key]["value"] <= row["budget"] for row in rows]
    share = accuracy_score(kept, task="kept", side="general")
    change = compare(share, zero_of(share))
    if change.low is None:
        return f"{sum(kept)} of {len(kept)}"
    return f"{sum(kept)} of {len(kept)} [{max(0.0, change.low):.0%}, {min(1.0, change.high or 1.0):.0%}]"


def best_fixed(rows: list[dict[str, Any]], row: dict[str, Any], budget: float) -> dict[str, Any] | None:
    """The fixed rate with the best domain score among those that end within the budget; of the same domain and seed."""
    same = [r for r in rows if r["way"] == "fixed" and all(r[k] == row[k] for k in ("part", "data", "seed"))]
    allowed = [r for r in same if r["status"] == "complete" and r["kl"]["value"] <= budget]
    return max(allowed, key=lambda r: r["domain"]["value"], default=None)


def show(rows: list[dict[str, Any]]) -> None:
    """Whether the budget is kept, and the domain beside the best fixed rate, as Markdown."""
    columns = (
        "part", "way", "runs", "failed", "`kl` within", "`kl_sampled` within", "mean `kl` / budget",
        "domain, points more than the best fixed rate",
    )  # fmt: skip
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["part"], row["way"]].append(row)
    for (part, way), mine in groups.items():
        if way == "fixed":
            continue
        done = [row for row in mine if row["status"] == "complete"]
        used = mean([row["kl"]["value"] / row["budget"] for row in done])
        kept = [within(done, key) for key in ("kl", "kl_sampled")]
        cells = (part, way, len(mine), len(mine) - len(done), *kept, f"{used:.2f}")
        print("| " + " | ".join(map(str, (*cells, gain(rows, mine)))) + " |")
    for part in sorted({row["part"] for row in rows}):
        against(part, rows)


def gain(rows: list[dict[str, Any]], mine: list[dict[str, Any]]) -> str:
    """Mean over starts and domains of a way's domain accuracy minus the best fixed rate's; the unit is the seed.

    Where no fixed rate keeps the budget, or a run failed, what counts is the base model.
    """
    sides: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in mine:
        base = next((r["base"] for r in rows if r["data"] == row["data"] and "base" in r), math.nan)
        best = best_fixed(rows, row, row["budget"])
        ours = row["domain"]["value"] if row["status"] == "complete" else base
        sides[row["seed"]].append((ours, best["domain"]["value"] if best else base))
    ours, theirs = ({seed: mean([pair[i] for pair in pairs]) for seed, pairs in sides.items()} for i in (0, 1))
    change = compare(measured(ours), measured(theirs))
    if change.low is None or change.high is None:
        return f"{100 * change.value:+.1f}"
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def against(part: str, rows: list[dict[str, Any]]) -> None:
    """Domain accuracy minus that of the best fixed rate, by start rate and domain."""
    mine = [row for row in rows if row["part"] == part]
    print(f"\n{part}: domain accuracy, in brackets its difference to the best fixed rate within the budget [95 % CI]\n")
    print(
        "| domain | best fixed rate | "
        + " | ".join(f"{way} from {rate:g}" for way in WAYS for rate in STARTS[part])
        + " |"
    )
    print("|---" * (2 + len(WAYS) * len(STARTS[part])) + "|")
    for data in DOMAINS[part]:
        here = [row for row in mine if row["data"] == data]
        if not here:
            continue
        fixed = {r["seed"]: best_fixed(mine, r, BUDGET[part]) for r in here}
        best = [r for r in fixed.values() if r]
        rates = ", ".join(format(r["rate"], "g") for r in best)
        told = [f"{mean([r['domain']['value'] for r in best]):.1%} ({rates})" if best else "none"]
        for way in WAYS:
            for rate in STARTS[part]:
                told.append(difference([r for r in here if (r["way"], r["rate"]) == (way, rate)], fixed))
        print(f"| {data} | " + " | ".join(told) + " |")


def difference(mine: list[dict[str, Any]], fixed: dict[int, dict[str, Any] | None]) -> str:
    pairs = [(row, other) for row in mine if row["status"] == "complete" and (other := fixed[row["seed"]])]
    if not pairs:
        return "–"
    ours, theirs = (
        [Run((load(row["domain"]),), row["seed"], row["data"]) for row in side] for side in zip(*pairs, strict=True)
    )
    change = compare(ours, theirs)
    value = mean([row["domain"]["value"] for row, _ in pairs])
    if change.low is None or change.high is None:
        return f"{value:.1%} ({100 * change.value:+.1f})"
    return f"{value:.1%} ({100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}])"


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("paths", nargs="*", type=Path, help="of show: what is read, as one")
    parser.add_argument("--part", choices=BASE, default="lab")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/budget.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/budget"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--only", default="", help="only runs whose name has this word, such as s0 or lab_hard")
    options = parser.parse_args()
    if options.what == "show":
        show([row for path in options.paths or [options.json] for row in read(path)])
        return
    rows, begun = read(options.json), time.perf_counter()
    done = {name(row) for row in rows}
    for row in plan(options.part):
        if name(row) in done or options.only not in name(row):
            continue
        if time.perf_counter() - begun > 60 * options.minutes:
            break
        rows.append(run(row, options.runs))
        harness.write_json(options.json, {**harness.machine(), "budget": BUDGET, "base": BASE, "rows": rows})
        drop(options.runs, row)
    show(rows)


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def drop(runs: Path, row: dict[str, Any]) -> None:
    """Delete the weights that no later run takes; the records stay."""
    done = {"fixed": (), "region": (row["way"],), "auto": (row["way"], "fixed")}[row["way"]]
    for way in done:
        for part in ("model", "tuned"):
            shutil.rmtree(runs / name(row, way) / part, ignore_errors=True)


if __name__ == "__main__":
    main()
