"""The score card of `gentletune advise`: its proposal beside a full sweep, for many pairs of a base model and a domain.

    python benchmarks/advisor.py --runs RUNS --base lab --base lab-1=DIR --base lab-small=DIR --json CARD.json
    python benchmarks/advisor.py --study DIR --json CARD.json

A pair is a base model and one of CONDITIONS; its sweep is `gentletune compare` with plain SFT, in
RUNS/adv-BASE-CONDITION. Missing runs of a sweep are made, missing proposals too, and what there is is kept: run it
again and it goes on. `--study` adds any finished study, whose recipe is then that of its first complete run. `--pairs`
picks one set of pairs (`docs/results/advisor.md` says what each may be used for), `--again` makes their proposals anew,
`--seeds` adds seeds to the sweeps: what is proposed, and its share of the time, are those for a sweep of two.

Seconds are those of the processor, after the imports, of the sweep's process and of a process that only advises, with
an empty cache; of a `--study` those that its records tell, by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import machine
from scipy.stats import binomtest

from gentletune import Recipe, UserError, load_records
from gentletune.advice import advise
from gentletune.core.records import RunRecord, write_json_atomic
from gentletune.lm.device import settle_memory
from gentletune.reporting.axes import both_axes, overlapping
from gentletune.reporting.choice import Choice, oriented
from gentletune.reporting.recommend import default_margin
from gentletune.reporting.settings import settings_of

RATES, SEEDS = (2.5e-4, 5e-4, 1e-3, 1.5e-3, 3e-3, 6e-3, 1e-2), (0, 1)
# The set that a condition is of, chosen before any result, and how it differs from the ready study of the lab.
CONDITIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("development", ("--data", "lab")),
    "label": ("development", ("--data", "lab", "--no-cot")),
    "wrong": ("development", ("--data", "lab(wrong=0.3)")),
    "long": ("development", ("--data", "lab", "--max-steps", "200")),
    "hard": ("held out", ("--data", "lab(hard=1)")),
    "easy": ("held out", ("--data", "lab(hard=0)")),
    "noise": ("held out", ("--data", "lab(noise=0.3)")),
    "formulas": ("held out", ("--data", "lab(formulas=5)")),
    "epochs": ("held out", ("--data", "lab", "--train-rows", "80")),
    "short": ("held out", ("--data", "lab", "--max-steps", "50")),
    "batch": ("held out", ("--data", "lab", "--batch-size", "8")),
    "kind": ("fresh", ("--data", "lab(noise=0.1, hard=0)")),
    "noisy": ("fresh", ("--data", "lab(noise=0.1)")),
    "slight": ("fresh", ("--data", "lab(noise=0.03, hard=0)")),
    "hard-long": ("fresh", ("--data", "lab(hard=1)", "--max-steps", "200")),
    "label-easy": ("fresh", ("--data", "lab(hard=0)", "--no-cot")),
    "mixed": ("fresh", ("--data", "lab(formulas=10, wrong=0.2)")),
    "passes": ("fresh", ("--data", "lab", "--train-rows", "160")),
    "large": ("fresh", ("--data", "lab", "--batch-size", "32")),
}
SETS = ("development", "held out", "fresh")
SHARE = 0.1  # of the sweep's seconds
_OF_THE_RUN = ("output", "learning_rate", "method", "seed")  # what an advisor must not know


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- judging a proposal


def place(grid: Sequence[float], rate: float) -> float:
    """Where a rate lies on an ascending grid, in steps from its first, parts of a step by the logarithm.

    >>> place([1e-5, 1e-4, 1e-3], 1e-4), round(place([1e-5, 1e-4], 3e-5), 2), round(place([1e-5, 1e-4], 1e-6), 2)
    (1.0, 0.48, -1.0)
    """
    if len(grid) < 2:
        return 0.0
    i = min(max(sum(r <= rate for r in grid) - 1, 0), len(grid) - 2)
    return i + math.log(rate / grid[i]) / math.log(grid[i + 1] / grid[i])


def between(values: Sequence[Any], where: float) -> Any:
    """Linear between two values of the grid, constant beyond it: numbers, or tuples of numbers."""
    i = min(max(math.floor(where), 0), max(len(values) - 2, 0))
    part = min(max(where - i, 0.0), 1.0) if len(values) > 1 else 0.0
    low, high = values[i], values[min(i + 1, len(values) - 1)]
    if isinstance(low, tuple):
        return tuple(a + part * (b - a) for a, b in zip(low, high, strict=True))
    return low + part * (high - low)


def judge(records: Sequence[RunRecord], rate: float, method: str) -> dict[str, Any]:
    """The rate beside the sweep's choice among the plain runs: grid steps off, true general loss, domain gain lost.

    The interval of the loss is that of a setting by itself, linear between two rates as the loss is: too wide rather
    than too narrow.
    """
    domain, general = both_axes(records, None, None)
    if domain is None or general is None:
        raise UserError("the study has no complete run with both a domain and a general score")
    settings = sorted(settings_of(records, domain, general), key=lambda s: s.learning_rate)
    settings = [s for s in settings if s.label == method]
    blind = set(general.sources) <= set(overlapping(records))
    choice = Choice(records, domain, general, settings, default_margin(general), blind)
    grid = [s.learning_rate for s in settings]
    losses = [_loss(choice, i) for i in range(len(grid))]
    gains = [oriented(domain, change)[0] if (change := choice.gains[i]) else 0.0 for i in range(len(grid))]
    where, twice = place(grid, rate), place(grid, 2 * rate)
    loss, loss_at_twice = between(losses, where), between(losses, twice)[0]
    found: dict[str, Any] = {
        "grid": grid,
        "gains": gains,
        "losses": [value for value, _, _ in losses],
        "margin": choice.margin,
        "advised": rate,
        "loss": loss[0],
        "loss_interval": loss[1:],
        "harmful": loss[0] > 2 * choice.margin,
        "gain": between(gains, where),
        "twice": {
            "loss": loss_at_twice,
            "harmful": loss_at_twice > 2 * choice.margin,
            "gain": between(gains, twice),
        },
        "chosen": None,
        "steps_off": None,
        "gain_lost": None,
    }
    if choice.safe is not None:
        chosen = grid[choice.safe]
        found |= {
            "chosen": chosen,
            "claim": choice.claims[choice.safe],
            "steps_off": where - place(grid, chosen),
            "gain_lost": gains[choice.safe] - found["gain"],
        }
    return found


def _loss(choice: Choice, i: int) -> tuple[float, float, float]:
    """General loss of a setting with the ends of its 95 % interval, larger is worse."""
    change = choice.cost(i)
    if change is None:
        return math.nan, math.nan, math.nan
    value, low, high = oriented(choice.general, change)
    return -value, -high, -low


# --- making what is missing


def processor(run: Callable[[], object]) -> float:
    """Processor seconds of the child processes that `run` waits for."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    run()
    return spent() - before


def sweep(base: str, condition: str, folder: Path, rates: Sequence[float], seeds: Sequence[int]) -> None:
    """The pair's runs in `folder`; their processor seconds are added up in `processor.json` there."""
    command = [sys.executable, "-m", "gentletune", "compare", *CONDITIONS[condition][1], "--model", base]
    command += ["--methods", "sft", "--rates", ",".join(f"{r:g}" for r in rates)]
    command += ["--seeds", ",".join(map(str, seeds)), "--output", str(folder)]
    seconds = processor(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    before = read_json(path)["seconds"] if (path := folder / "processor.json").exists() else 0.0
    write_json_atomic(path, {"seconds": before + seconds})


def recipe_of(records: Sequence[RunRecord]) -> Recipe:
    """The recipe of the first complete run, with plain training for its method."""
    done = [r for r in records if r.status == "complete"]
    if not done:
        raise UserError("the study has no complete run; let it finish")
    fields = {key: value for key, value in done[0].recipe.items() if key not in _OF_THE_RUN}
    return Recipe.parse({**fields, "method": "sft"})


def propose(folder: Path, runs: int) -> dict[str, Any]:
    """The proposal of a process of its own, for the recipe of the study in `folder`, a sweep of so many runs."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "proposal.json"
        spec = json.dumps({"folder": str(folder.resolve()), "runs": runs, "out": str(out)})
        # Weights that a hub gave are no part of the time; what was computed of them is.
        environment = os.environ | {"GENTLETUNE_CACHE": str(Path(scratch) / "cache")}
        subprocess.run([sys.executable, "-X", "faulthandler", __file__, "--child", spec], check=True, env=environment)
        answer: dict[str, Any] = read_json(out)
        return answer


def child(spec: dict[str, Any]) -> None:
    """The process that only advises."""
    settle_memory()
    recipe = recipe_of(load_records([Path(spec["folder"])]))
    start, begun = time.process_time(), time.perf_counter()
    try:
        found = advise(recipe, sweep_runs=spec["runs"]).as_dict()
    except UserError as error:
        found = {"refused": str(error)}
    seconds = {"start": start, "processor": time.process_time() - start, "clock": time.perf_counter() - begun}
    write_json_atomic(Path(spec["out"]), {"proposal": found, "seconds": seconds})


def sweep_seconds(records: Sequence[RunRecord], folder: Path, start: float) -> tuple[float, str]:
    """Seconds of the sweep, and by which clock."""
    if (path := folder / "processor.json").exists():
        return float(read_json(path)["seconds"]) - start, "processor"
    return math.fsum(math.fsum(r.timings.values()) for r in records), "clock"


# --- the card


def complete(folder: Path) -> list[RunRecord]:
    """The finished runs of a pair."""
    return [r for r in load_records([folder]) if r.status == "complete"]


def missing(folder: Path, seeds: Sequence[int]) -> bool:
    """Whether a run of a pair's sweep is still to be made; one that failed is made again."""
    done = {(r.learning_rate, r.seed) for r in (complete(folder) if (folder / "compare.csv").exists() else ())}
    return any((rate, seed) not in done for rate in RATES for seed in seeds)


def row(records: Sequence[RunRecord], folder: Path, made: dict[str, Any], runs: int) -> dict[str, Any]:
    """One line of the card, for a proposal in the place of a sweep of so many runs."""
    proposal, seconds = made["proposal"], made["seconds"]
    total, clock = sweep_seconds(records, folder, seconds["start"])
    total *= runs / len(records)
    spent = {"seconds": seconds[clock], "sweep_seconds": total, "share": seconds[clock] / total, "clock": clock}
    if "refused" in proposal:
        return {**spent, "refused": proposal["refused"]}
    return {**judge(records, proposal["learning_rate"], "sft"), **spent, "method": proposal["method"]}


def wilson(good: int, of: int) -> dict[str, Any]:
    """Successes of n and their share with its 95 % interval."""
    if not of:
        return {"good": 0, "of": 0, "share": None, "interval": None}
    interval = binomtest(good, of).proportion_ci(method="wilson")
    return {"good": good, "of": of, "share": good / of, "interval": [float(interval.low), float(interval.high)]}


def card(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The three criteria over some pairs; a refusal is neither close nor harmful."""
    chosen = [r for r in rows if r.get("chosen") is not None or "refused" in r]
    close = sum(r.get("steps_off") is not None and abs(r["steps_off"]) <= 1 + 1e-9 for r in chosen)
    return {
        "close": wilson(close, len(chosen)),
        "harmless": wilson(sum(not r.get("harmful") for r in rows), len(rows)),
        "twice": wilson(sum(not r["twice"]["harmful"] for r in rows if "twice" in r), sum("twice" in r for r in rows)),
        "cheap": wilson(sum(r["share"] <= SHARE for r in rows), len(rows)),
        "without_choice": len(rows) - len(chosen),
        "refused": sum("refused" in r for r in rows),
        "methods": sorted({r["method"] for r in rows if "method" in r}),
        "mean_gain_lost": _mean([r["gain_lost"] for r in rows if r.get("gain_lost") is not None]),
        "mean_share": _mean([r["share"] for r in rows]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The pairs as Markdown."""
    lines = ["| pair | sweep's choice | advised | steps off | general loss | domain gain (lost) | time |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for name, r in rows.items():
        if "refused" in r:
            lines.append(f"| {name} | | refused | | | | {r['share']:.1%} |")
            continue
        low, high = r["loss_interval"]
        choice, off = (f"{r['chosen']:g}", f"{r['steps_off']:+.2f}") if r["chosen"] is not None else ("none", "–")
        lost = f" ({r['gain_lost']:+.3f})" if r["gain_lost"] is not None else ""
        lines.append(
            f"| {name} | {choice} | {r['advised']:g} | {off} | {r['loss']:+.3f} [{low:+.3f}, {high:+.3f}]"
            f"{' **harmful**' if r['harmful'] else ''} | {r['gain']:.3f}{lost} | {r['share']:.1%} |"
        )
    return "\n".join(lines)


def words(found: dict[str, Any]) -> str:
    """The card as Markdown."""
    lines = []
    for name in ("close", "harmless", "twice", "cheap"):
        one, said = found[name], "twice the rate harmless" if name == "twice" else name
        if one["of"]:
            low, high = one["interval"]
            lines.append(
                f"- {said}: {one['good']} of {one['of']} ({one['share']:.0%}; 95 % interval {low:.0%} to {high:.0%})"
            )
    return "\n".join(lines)


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds as they are given."""
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/advisor"), help="directory of the pairs' sweeps")
    parser.add_argument("--base", action="append", default=[], metavar="NAME[=MODEL]", help="base model, repeatable")
    parser.add_argument("--study", action="append", default=[], type=Path, help="a finished study, repeatable")
    parser.add_argument("--pairs", choices=SETS, help="only the pairs of this set")
    parser.add_argument("--seeds", type=seeds_of, default=SEEDS, metavar="0,1,…", help="of the pairs' sweeps")
    parser.add_argument("--again", action="store_true", help="make the proposals of these pairs anew")
    parser.add_argument("--run", action=argparse.BooleanOptionalAction, default=True, help="off: finished sweeps only")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    if "--child" in sys.argv:
        child(json.loads(sys.argv[sys.argv.index("--child") + 1]))
        return
    options = parser.parse_args()
    bases = dict((*given.split("=", 1), given)[:2] for given in options.base)
    pairs = [
        (f"{name}-{condition}", kind, model, condition)
        for kind in SETS if options.pairs in (None, kind)
        for name, model in bases.items()
        for condition, (its, _) in CONDITIONS.items() if its == kind
    ]  # fmt: skip
    pairs += [(path.name, "other", "", "") for path in options.study]
    folders = {path.name: path for path in options.study}
    state: dict[str, Any] = read_json(options.json) if options.json.exists() else {"pairs": {}}
    for name, kind, model, condition in pairs:
        folder = folders.get(name, options.runs / f"adv-{name}")
        if condition and missing(folder, options.seeds):
            if not options.run:
                continue
            sweep(model, condition, folder, RATES, options.seeds)
        records = complete(folder)
        if condition:
            records = [r for r in records if r.learning_rate in RATES and r.seed in options.seeds]
        runs = len(RATES) * len(SEEDS) if condition else len(records)
        made = None if options.again else state["pairs"].get(name)
        made = made or propose(folder, runs)
        found = {"proposal": made["proposal"], "seconds": made["seconds"], "row": row(records, folder, made, runs)}
        state["pairs"][name] = {"set": kind, **found}
        write_json_atomic(options.json, state)
        print(table({name: found["row"]}).splitlines()[-1], file=sys.stderr)
    for kind in (*SETS, "other"):
        rows = {name: pair["row"] for name, pair in state["pairs"].items() if pair["set"] == kind}
        if rows:
            found = card(list(rows.values()))
            state.setdefault("cards", {})[kind] = found
            print(f"\n{kind}:\n\n{words(found)}\n\n{table(rows)}")
    write_json_atomic(options.json, {**machine(), **state})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"advisor: {error}")
