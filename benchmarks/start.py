"""What a start of the command line takes before its first step, and in all, when the rows and the base model's scores
are there.

    python benchmarks/start.py [--against CHECKOUT] [--rounds 5] [--json PATH]

A model of 0.4 M parameters (`lab`), so that the start is all there is. `train` is two steps on its own domain, nothing
measured, and `train, from Python` the same by a script; `train, measured` two steps on 40 rows of a file, with the base
model's scores in the cache and the tuned model's computed; `evaluate` asks for scores that are all there. Each start is
a process of its own, after one that fills the cache; with `--against` those of another checkout of this repository take
turns with them. CPU seconds are user and system of all threads; on a machine with other work these tell, though they
grow as well where caches and memory are fought over (`load` is the number of processes that wanted a core). The first
step is taken to begin where the line before it is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness

_TICK = os.sysconf("SC_CLK_TCK")
_COMMON = ["--model", "lab", "--max-steps", "2", "--batch-size", "8", "--probe-every", "0"]
_SMALL = ["--general-prompts", "8", "--general-tokens", "8", "--domain-tokens", "8"]
_PYTHON = """
import json, sys
from gentletune import Recipe, train
train(Recipe.parse(json.loads(sys.argv[1]) | {"lr": float(sys.argv[3]), "output": sys.argv[5]}))
"""
_RECIPE = {"model": "lab", "max_steps": 2, "batch_size": 8, "probe_every": 0, "data": "lab", "evaluate": False}
CASES = {
    "train": ["-m", "gentletune", "train", *_COMMON, "--data", "lab", "--no-evaluate"],
    "train, measured": ["-m", "gentletune", "train", *_COMMON, "--data", "mine.jsonl", *_SMALL],
    "evaluate": ["-m", "gentletune", "evaluate", "--model", "lab", "--base", "lab", "--data", "mine.jsonl", *_SMALL],
    "train, from Python": ["-c", _PYTHON, json.dumps(_RECIPE)],
}


def write_rows(path: Path) -> None:
    lines = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def cpu_seconds(pid: int) -> float:
    """Of a process so far, its ended children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def started(arguments: list[str], source: Path, scratch: Path) -> dict[str, float]:
    """One process: seconds to the first step and in all."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "GENTLETUNE_CACHE": str(scratch / "cache")}
    found, begun = dict[str, float](), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=scratch, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "attention sdpa" in line:  # the line before the first step
            found |= {"first_step_cpu_s": cpu_seconds(process.pid), "first_step_s": time.perf_counter() - begun}
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("".join(said))
    return {**found, "cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.perf_counter() - begun}


def rounds(sources: dict[str, Path], cases: list[str], count: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """The starts of each case, sources taking turns, the first of each left out."""
    for name in sources:
        (scratch / name).mkdir()
        write_rows(scratch / name / "mine.jsonl")
    for case in cases:
        arguments = CASES[case]
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
        for number in range(count + 1):
            for name, source in sources.items():
                own = ["--lr", f"{1e-5 * (number + 1):g}", "--output", f"{case}-{number}"] if case != "evaluate" else []
                row = started([*arguments, *own], source, scratch / name)
                rows[name] += [row] if number else []
        for name, some in rows.items():
            medians = {key: statistics.median(row[key] for row in some) for key in some[0]}
            yield {"case": case, "source": name, **medians, "starts": some}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout to compare with")
    parser.add_argument("--only", choices=CASES, help="this start alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sources = {"before": options.against.resolve()} if options.against else {}
    sources["here"] = Path(__file__).resolve().parents[1]
    rows = []
    print("| start | of | CPU s to the first step | in all | seconds to the first step | in all |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for row in rounds(sources, [options.only] if options.only else list(CASES), options.rounds, Path(scratch)):
            rows.append(row)
            keys = ("first_step_cpu_s", "cpu_s", "first_step_s", "wall_s")
            figures = [f"{row[key]:.1f}" if key in row else "–" for key in keys]
            print("| " + " | ".join([row["case"], row["source"], *figures]) + " |", flush=True)
            if options.json:
                record = {**harness.machine(), "load": os.getloadavg(), "rounds": options.rounds, "rows": rows}
                harness.write_json(options.json, record)


if __name__ == "__main__":
    main()
