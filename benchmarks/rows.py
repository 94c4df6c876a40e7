"""How long many chats take from a file to tokens, at the first start and at the second, and in how much memory.

    python benchmarks/rows.py [--model smollm2-135m] [--sizes 10000,100000] [--json PATH]

A JSONL of chats of three turns each, made from a seed. Each start is a process of its own: `read` is the file into rows
(split, checked, hashed), `encode` the rows into tokens and labels, `epoch` all rows once in random order, as a trainer
fetches them. `cpu_s` are the seconds of all cores that reading and encoding took: on a machine with other work, these
tell. `held_mb` is the most that this process held from before the reading to behind the epoch that is not mapped from a
file (a sample every 10 ms), above what it held before; `peak_mb` is that with the mapped files, which the system takes
back when it needs the room; `worker_peak_mb` the most that one of the encoding processes had resident. `train` is one
step of `gentletune train` on the rows of the file with a small model and this tokenizer, imports not counted, in a
process of its own: the whole call, and what it held at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import harness

TEXT = (
    "the patient has a weight of seventy kilograms and height what is body mass index please explain step by step "
    "because dose of this drug depends on renal function age and sex so we divide by plasma creatinine then round"
)

_SHOWN = ("read_s", "encode_s", "cpu_s", "epoch_s", "held_mb", "train_s", "train_held_mb")


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


@contextmanager
def held() -> Iterator[list[float]]:
    """The most memory held inside that is no mapped file, above what was held before, is in the list at the end."""
    gc.collect()
    found, before, done = [0.0], anonymous_mb(), threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            found[0] = max(found[0], anonymous_mb() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def child(spec: dict[str, Any]) -> None:
    if spec["train"]:
        train(spec)
        return
    from gentletune import Recipe
    from gentletune.data import encode_rows, load_data
    from gentletune.data.disk.encoded import DiskRows
    from gentletune.lm.loaded import Loaded
    from gentletune.training.packing import training_set

    tokenizer = Loaded(spec["model"]).tokenizer
    answer: dict[str, Any] = {"resident_before_mb": anonymous_mb()}
    meter, cpu = harness.Memory(), cpu_seconds()
    with held() as most:
        begun = time.perf_counter()
        data = load_data(Recipe(data=spec["path"]))
        rows_hash = data.train_hash
        read = time.perf_counter()
        found = encode_rows(data.train, tokenizer, max_length=2048, rows_hash=rows_hash)
        assert isinstance(found.rows, DiskRows)
        encoded, cpu = time.perf_counter(), cpu_seconds() - cpu
        drawn = training_set(found.rows)
        order = random.Random(0).sample(range(len(drawn)), len(drawn))
        tokens = sum(len(row) for i in range(0, len(order), 64) for row in drawn[order[i : i + 64]]["input_ids"])
        epoch = time.perf_counter()
    answer |= {"read_s": read - begun, "encode_s": encoded - read, "epoch_s": epoch - encoded, "cpu_s": cpu}
    answer |= {"held_mb": most[0], "peak_mb": meter.extra_mb(), "rows": len(found.rows), "tokens": tokens}
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    harness.reply(answer | {"worker_peak_mb": workers})


def train(spec: dict[str, Any]) -> None:
    """One step by the command line."""
    for module in ("cli.check", "cli.runs", "data.disk.encoded", "runs.plan", "runs.run", "training.trainer"):
        import_module(f"gentletune.{module}")  # and what that imports: not counted
    from gentletune.cli import main as command

    options = ["--model", spec["small"], "--data", spec["path"], "--output", spec["output"], "--max-steps", "1"]
    options += ["--batch-size", "2", "--no-evaluate", "--probe-every", "0", "--max-length", "2048"]
    sys.argv = ["gentletune", "train", *options]
    begun = time.perf_counter()
    with held() as most, suppress(SystemExit):
        command()
    assert (Path(spec["output"]) / "record.json").exists()
    harness.reply({"train_s": time.perf_counter() - begun, "train_held_mb": most[0]})


def small_model(place: Path, tokenizer: Path) -> Path:
    """A model of few parameters with this tokenizer, weights at random."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8192, tie_word_embeddings=True, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    words.save_pretrained(place)
    return place


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
    print("| rows | start | read s | encode s | of all cores s | an epoch s | held MB | a train s | held MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        small = small_model(Path(scratch) / "small", model)
        for size in map(int, options.sizes.split(",")):
            path = Path(scratch) / f"chats-{size}.jsonl"
            write_chats(path, size)
            for name in ("first", "second"):
                spec = {"model": str(model), "path": str(path), "small": str(small), "train": False}
                cache = Path(scratch) / f"cache-{size}"
                row = {"size": size, "start": name, "file_mb": path.stat().st_size / 2**20, **start(spec, cache)}
                row |= start({**spec, "train": True, "output": f"{scratch}/{size}-{name}"}, cache)
                rows.append(row)
                figures = [f"{row[key]:.1f}" for key in _SHOWN]
                print("| " + " | ".join([f"{size:,}", name, *figures]) + " |", flush=True)
                if options.json:
                    task = {"model": options.model, "processes": len(os.sched_getaffinity(0))}
                    harness.write_json(options.json, {**harness.machine(), "task": task, "rows": rows})


if __name__ == "__main__":
    main()
