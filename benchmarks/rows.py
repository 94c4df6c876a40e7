"""How long many chats take from a file to tokens, at the first start and at the second, and in how much memory.

    python benchmarks/rows.py [--model smollm2-135m] [--sizes 10000,100000] [--json PATH]

A JSONL of chats of three turns each, made from a seed. Each start is a process of its own: `read` is the file into rows
(split, checked, hashed), `encode` the rows into tokens and labels, from the cache at the second start, `epoch` all rows
once in random order, as a trainer fetches them. `encode_cpu_s` are the seconds of all cores that encoding took: on a
machine with other work, these tell. `encode_peak_mb` is what encoding took at most in this process above what was
resident before it, `worker_peak_mb` the most that one of its workers had resident; `held_mb` what is held of the
encoded rows after the epoch that is not mapped from a file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

TEXT = (
    "the patient has a weight of seventy kilograms and height what is body mass index please explain step by step "
    "because dose of this drug depends on renal function age and sex so we divide by plasma creatinine then round"
)

_SHOWN = ("read_s", "encode_s", "encode_cpu_s", "epoch_s", "encode_peak_mb", "held_mb")


def write_chats(path: Path, count: int) -> None:
    """Three questions of 10 to 40 words and as many answers of 20 to 60, the same on any machine."""
    draw, words = random.Random(0), TEXT.split()

    def say(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [(f"Case {number}: " * (turn == 0) + say(10, 40), say(20, 60)) for turn in range(3)]
            messages = [
                {"role": role, "content": text}
                for pair in turns
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def anonymous_mb() -> float:
    """Resident memory that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def child(spec: dict[str, Any]) -> None:
    from gentletune import Recipe
    from gentletune.core.cache import digest
    from gentletune.data import encode_rows, load_data
    from gentletune.data.rows import DiskRows
    from gentletune.lm.loaded import Loaded
    from gentletune.training.packing import training_set

    tokenizer = Loaded(spec["model"]).tokenizer
    begun = time.perf_counter()
    rows = load_data(Recipe(data=spec["path"], domain_metric="loss")).train
    rows_hash = digest(rows)
    read = time.perf_counter() - begun
    meter, before = harness.Memory(), anonymous_mb()
    begun, cpu = time.perf_counter(), cpu_seconds()
    found = encode_rows(rows, tokenizer, max_length=2048, rows_hash=rows_hash)
    encode, peak, cpu = time.perf_counter() - begun, meter.extra_mb(), cpu_seconds() - cpu
    assert isinstance(found.rows, DiskRows)
    del rows
    begun, after = time.perf_counter(), anonymous_mb()
    data = training_set(found.rows)
    order = random.Random(0).sample(range(len(data)), len(data))
    tokens = sum(len(row) for i in range(0, len(order), 64) for row in data[order[i : i + 64]]["input_ids"])
    answer: dict[str, Any] = {"read_s": read, "encode_s": encode, "epoch_s": time.perf_counter() - begun}
    answer |= {
        "encode_cpu_s": cpu,
        "encode_peak_mb": peak,
        "held_mb": max(0.0, anonymous_mb() - after),
        "resident_before_mb": before,
    }
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print("@@" + json.dumps({"rows": len(found.rows), "tokens": tokens, **answer, "worker_peak_mb": workers}))


def start(spec: dict[str, Any], cache: Path) -> dict[str, Any]:
    """One start in a process of its own, with this cache."""
    command = [sys.executable, __file__, "--child", json.dumps(spec)]
    environment = {**os.environ, "GENTLETUNE_CACHE": str(cache)}
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    found: dict[str, Any] = json.loads(next(line for line in out.splitlines() if line.startswith("@@"))[2:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer: alias or directory")
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    from gentletune.lm.model_files import resolve_model

    model = resolve_model(options.model)  # here, since the starts have a cache of their own
    rows = []
    print("| rows | start | read s | encode s | of all cores s | an epoch of rows s | encoding, peak MB | held MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for size in map(int, options.sizes.split(",")):
            path = Path(scratch) / f"chats-{size}.jsonl"
            write_chats(path, size)
            for name in ("first", "second"):
                spec = {"model": str(model), "path": str(path)}
                row = {"size": size, "start": name, **start(spec, Path(scratch) / f"cache-{size}")}
                rows.append(row)
                figures = [f"{row[key]:.1f}" for key in _SHOWN]
                print("| " + " | ".join([f"{size:,}", name, *figures]) + " |", flush=True)
                if options.json:
                    task = {"model": options.model, "processes": len(os.sched_getaffinity(0))}
                    harness.write_json(options.json, {**harness.machine(), "task": task, "rows": rows})


if __name__ == "__main__":
    main()
